"""Which orders of one account could trade against each other: the broker refuses the second of them.

The rule is Alpaca's (docs.alpaca.markets, "User Protection", wash trades): of open orders of opposite sides in one
symbol, the later is refused where either is a market or stop order, or where both have limits and the buy's is not
below the sell's. Brackets, OCOs, OTOs and trailing stops are exempt.
"""

from collections.abc import Iterable

from desk_server.domain import Leg, Order, OrderClass, OrderRequest, OrderType, Side

_AT_ANY_PRICE = frozenset({OrderType.MARKET, OrderType.STOP})


def could_meet(one: OrderRequest, other: OrderRequest) -> bool:
    """Whether two orders of opposite sides in one symbol could; neither is exempt."""
    if one.type in _AT_ANY_PRICE or other.type in _AT_ANY_PRICE:
        return True
    buy, sell = (one, other) if one.side is Side.BUY else (other, one)
    return buy.limit_price is None or sell.limit_price is None or buy.limit_price >= sell.limit_price


def is_exempt(request: OrderRequest, leg: Leg = Leg.NONE) -> bool:
    complex_ = leg is not Leg.NONE or request.order_class is not OrderClass.SIMPLE
    return complex_ or request.type is OrderType.TRAILING_STOP


def met_by(request: OrderRequest, orders: Iterable[Order]) -> list[Order]:
    """Those of `orders`, all open and in the request's symbol, that it could trade against."""
    return [
        order
        for order in orders
        if order.request.side is not request.side
        and not is_exempt(order.request, order.leg)
        and could_meet(request, order.request)
    ]
