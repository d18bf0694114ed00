"""A first strategy: buys one share whenever a price is lower than the one before, up to three in all."""

import json
import sys

from desk_client import place_order

held = 0
before: dict[str, float] = {}

for line in sys.stdin:
    tick = json.loads(line)
    symbol, price = tick["symbol"], float(tick["price"])
    if held < 3 and price < before.get(symbol, 0.0):
        answer = place_order(symbol, 1, "buy")
        if answer.status == "success":
            held += 1
            print(f"buying 1 {symbol} near {price}: order {answer.order_id}", flush=True)
        else:
            print(f"refused: {answer.code}: {answer.message}", flush=True)
    before[symbol] = price
