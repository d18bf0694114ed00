"""Buys SPY while its fast average is above the slow one, sells when it falls below.

The simplest form of a strategy: lines of JSON on standard input, orders through place_order.
"""

import json
import sys
from collections import deque
from decimal import Decimal

from desk_client import place_order, positions

SYMBOL = "SPY"
SHARES = 10
FAST, SLOW = 5, 20
# The averages must differ by this much, in dollars, or every wobble would trade.
BAND = 0.005

prices = deque(maxlen=SLOW)


def held():
    return sum(Decimal(position.qty) for position in positions() if position.symbol == SYMBOL)


# What an earlier run bought is still there.
holding = held() > 0

for line in sys.stdin:
    tick = json.loads(line)
    if tick["symbol"] != SYMBOL or tick["type"] != "quote":
        continue
    prices.append(tick["price"])
    if len(prices) < SLOW:
        continue
    fast = sum(list(prices)[-FAST:]) / FAST
    slow = sum(prices) / SLOW
    if fast > slow + BAND and not holding:
        side = "buy"
    elif fast < slow - BAND and holding:
        side = "sell"
    else:
        continue
    # All that is there: a buy may have been filled in part only, before an earlier run ended.
    shares = SHARES if side == "buy" else held()
    if not shares:
        holding = False
        continue
    order = place_order(SYMBOL, shares, side, notes={"fast": f"{fast:.4f}", "slow": f"{slow:.4f}"})
    if order.status == "success":
        holding = side == "buy"
        print(f"{tick['timestamp']} {side} {shares} {SYMBOL}: fast {fast:.3f}, slow {slow:.3f}", flush=True)
    else:
        print(f"{side} refused: {order.code}: {order.message}", flush=True)
