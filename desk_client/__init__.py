"""What a strategy imports: its orders, its book, and the market's lines.

    import json, sys
    from desk_client import place_order

    for line in sys.stdin:
        tick = json.loads(line)
        if tick["price"] < 100:
            print(place_order(tick["symbol"], 1, "buy"))

The functions here are those of one Client, which reads DESK_SERVER_URL, DESK_TOKEN_FILE or DESK_TOKEN, and
USER_ID. They may be called from any thread. docs/strategies.md tells more; `errors` has the exceptions.
"""

from desk.v1.orders_pb2 import Fill, Order, OrderResponse, OrderUpdate

from desk_client.client import Client
from desk_client.errors import (
    AuthenticationError,
    ConfigurationError,
    DeskClientError,
    DeskTimeout,
    DeskUnavailable,
    NotFound,
    OrderRefused,
    OutcomeUnknown,
    ProtocolError,
    Refused,
)
from desk_client.hand import Line
from desk_client.settings import Settings, Token, parse_url

_DESK = Client()

account = _DESK.account
asset = _DESK.asset
calendar = _DESK.calendar
cancel_all = _DESK.cancel_all
cancel_order = _DESK.cancel_order
clock = _DESK.clock
fills = _DESK.fills
get_order = _DESK.get_order
latest = _DESK.latest
list_orders = _DESK.list_orders
market = _DESK.market
place_order = _DESK.place_order
positions = _DESK.positions
replace_order = _DESK.replace_order
set_user_id = _DESK.set_user_id
updates = _DESK.updates

__all__ = [
    "AuthenticationError",
    "Client",
    "ConfigurationError",
    "DeskClientError",
    "DeskTimeout",
    "DeskUnavailable",
    "Fill",
    "Line",
    "NotFound",
    "Order",
    "OrderRefused",
    "OrderResponse",
    "OrderUpdate",
    "OutcomeUnknown",
    "ProtocolError",
    "Refused",
    "Settings",
    "Token",
    "account",
    "asset",
    "calendar",
    "cancel_all",
    "cancel_order",
    "clock",
    "fills",
    "get_order",
    "latest",
    "list_orders",
    "market",
    "parse_url",
    "place_order",
    "positions",
    "replace_order",
    "set_user_id",
    "updates",
]
