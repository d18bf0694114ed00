"""Buys BAC when it trades unusually low for the last few bars, sells when it is back at their mean.

Reads parsed lines from market(), so that each order also says which fields it was decided on.
"""

from collections import deque

import numpy as np

from desk_client import market, place_order, positions

SYMBOL = "BAC"
SHARES = 100
BARS = 20
# In standard deviations from the mean.
BUY_BELOW, SELL_ABOVE = -0.5, 0.5

closes = deque(maxlen=BARS)
holding = any(position.symbol == SYMBOL and float(position.qty) > 0 for position in positions())

for bar in market([SYMBOL]):
    if bar["type"] != "bar":
        continue
    closes.append(bar["close"])
    spread = np.std(closes)
    if len(closes) < BARS or spread == 0:
        continue
    score = (bar["close"] - np.mean(closes)) / spread
    if score < BUY_BELOW and not holding:
        side = "buy"
    elif score > SELL_ABOVE and holding:
        side = "sell"
    else:
        continue
    order = place_order(SYMBOL, SHARES, side, notes={"score": f"{score:.2f}"})
    if order.status == "success":
        holding = side == "buy"
        print(f"{bar['timestamp']} {side} {SHARES} {SYMBOL} at {bar['close']}: score {score:.2f}", flush=True)
    else:
        print(f"{side} refused: {order.code}: {order.message}", flush=True)
