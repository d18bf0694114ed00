"""Offers to buy SPY at the bid, then to sell it at the ask: one limit order at a time, moved when it waits too long.

Shows limit orders, cancels, and how to learn what became of an order: a cancel may come too late.
"""

from datetime import datetime, timedelta
from decimal import Decimal

from desk_client import cancel_all, cancel_order, get_order, market, place_order, positions

SYMBOL = "SPY"
SHARES = Decimal(5)
PATIENCE = timedelta(seconds=10)
OPEN = {"pending", "unknown", "new", "accepted", "partially_filled", "pending_cancel"}

# A fresh start: what an earlier run left working is taken back.
cancel_all([SYMBOL])
held = sum((Decimal(position.qty) for position in positions() if position.symbol == SYMBOL), Decimal(0))
working = None
placed_at = None

for quote in market([SYMBOL]):
    if quote["type"] != "quote":
        continue
    now = datetime.fromisoformat(quote["timestamp"])
    if working:
        order = get_order(working)
        if order.status in OPEN:
            if order.status != "pending_cancel" and now - placed_at > PATIENCE:
                cancel_order(working)
            continue
        filled = Decimal(order.filled_qty or 0)
        held += filled if order.side == "buy" else -filled
        working = None
        if filled:
            print(f"{quote['timestamp']} {order.side} {filled} at {order.filled_avg_price}; holding {held}", flush=True)
    if held > 0:
        answer = place_order(SYMBOL, held, "sell", "limit", limit_price=quote["ask"])
    else:
        answer = place_order(SYMBOL, SHARES, "buy", "limit", limit_price=quote["bid"])
    if answer.status == "success":
        working, placed_at = answer.order_id, now
    else:
        print(f"refused: {answer.code}: {answer.message}", flush=True)
