"""Puts 200 dollars into AIG every five minutes of the market, and never sells.

There is no config.json: the folder's name is the user.
"""

import json
import sys
from datetime import datetime, timedelta

from desk_client import account, place_order

SYMBOL = "AIG"
DOLLARS = 200
EVERY = timedelta(minutes=5)

bought_at = None

for line in sys.stdin:
    tick = json.loads(line)
    if tick["symbol"] != SYMBOL:
        continue
    now = datetime.fromisoformat(tick["timestamp"])
    if bought_at and now - bought_at < EVERY:
        continue
    bought_at = now
    order = place_order(SYMBOL, None, "buy", notional=DOLLARS)
    if order.status == "success":
        print(f"{tick['timestamp']} {DOLLARS} dollars into {SYMBOL} near {tick['price']}", flush=True)
        print(f"  equity {account().equity}", flush=True)
    else:
        print(f"refused: {order.code}: {order.message}", flush=True)
