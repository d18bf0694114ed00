"""Buys BAC when it trades unusually low for the last few bars, sells when it is back at their mean.

Reads parsed lines from market(), so that each order also says which fields it was decided on.
"""

from collections import deque
from decimal import Decimal

import numpy as np

from desk_client import market, place_order, positions

SYMBOL = "BAC"
SHARES = 100
BARS = 20
# In standard deviations from the mean.
BUY_BELOW, SELL_ABOVE = -0.5, 0.5

closes = deque(maxlen=BARS)


def held():
    return sum(Decimal(position.qty) for position in positions() if position.symbol == SYMBOL)


# What an earlier run bought is still there.
holding = held() > 0

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
    # All that is there: a buy may have been filled in part only, before an earlier run ended.
    shares = SHARES if side == "buy" else held()
    if not shares:
        holding = False
        continue
    order = place_order(SYMBOL, shares, side, notes={"score": f"{score:.2f}"})
    if order.status == "success":
        holding = side == "buy"
        print(f"{bar['timestamp']} {side} {shares} {SYMBOL} at {bar['close']}: score {score:.2f}", flush=True)
    else:
        print(f"{side} refused: {order.code}: {order.message}", flush=True)
