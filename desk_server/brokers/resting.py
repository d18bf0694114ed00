"""An order on the paper exchange, its group of legs, and the orders of one symbol. Changed by matching.py only."""

import hashlib
import uuid
from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal

from desk_server.brokers import Ack, BrokerOrder, What
from desk_server.brokers.fills import Touch
from desk_server.domain import ZERO, Order, OrderChange, OrderClass, OrderType, Side, TimeInForce

_INFINITY = Decimal("Infinity")
_ONE = Decimal(1)
_NAMESPACE = uuid.UUID("6f0bd9e4-6c0e-4c60-9a0c-0d2f3a3f5d1b").bytes
_NAMED = hashlib.sha1(_NAMESPACE, usedforsecurity=False)
# The digit that a UUID has in the place of a hash's (RFC 9562: its two upper bits are 10).
_VARIANT = {f"{digit:x}": f"{digit & 3 | 8:x}" for digit in range(16)}
_OPEN = frozenset({"held", "accepted", "new", "partially_filled"})
_ENDS = {
    "filled": What.FILL,
    "canceled": What.CANCELED,
    "expired": What.EXPIRED,
    "rejected": What.REJECTED,
    "replaced": What.REPLACED,
}
_STOPS = frozenset({OrderType.STOP, OrderType.STOP_LIMIT, OrderType.TRAILING_STOP})


def stable_id(name: str) -> str:
    """The version 5 UUID of `name`: the same in every run, another for every name."""
    digest = _NAMED.copy()
    digest.update(name.encode())
    text = digest.hexdigest()
    return f"{text[:8]}-{text[8:12]}-5{text[13:16]}-{_VARIANT[text[16]]}{text[17:20]}-{text[20:32]}"


class Resting:
    """One order as the exchange has it, open or over. `status` is in Alpaca's words."""

    __slots__ = (
        "broker_id",
        "buy",
        "client_id",
        "crypto",
        "due",
        "extended",
        "filled",
        "group",
        "is_entry",
        "legs",
        "limit",
        "mark",
        "notional",
        "opens_at",
        "qty",
        "side",
        "since",
        "status",
        "stop",
        "symbol",
        "tif",
        "trail_percent",
        "trail_price",
        "triggered",
        "type",
    )

    def __init__(self, order: Order, since: datetime, *, crypto: bool) -> None:
        request = order.request
        self.client_id = order.client_order_id
        self.broker_id = stable_id(order.client_order_id)
        self.symbol = request.symbol
        self.side = request.side
        self.buy = request.side is Side.BUY
        self.type = request.type
        self.tif = request.time_in_force
        self.qty = request.qty
        self.notional = request.notional
        self.limit = request.limit_price
        if request.order_class is OrderClass.OCO and self.limit is None:
            self.limit = request.take_profit  # an OCO is its take-profit; its leg is the stop
        self.stop = request.stop_price
        self.trail_price = request.trail_price
        self.trail_percent = request.trail_percent
        self.extended = request.extended_hours
        self.crypto = crypto
        self.filled = ZERO
        self.status = "accepted"
        self.triggered = request.type not in _STOPS
        self.mark: Decimal | None = None
        self.since = since
        self.due: datetime | None = None
        self.opens_at: datetime | None = None
        self.group: Group | None = None
        self.is_entry = False
        self.legs: tuple[Resting, ...] = ()

    def take_terms(self, old: "Resting", change: OrderChange, qty: Decimal) -> None:
        """Be what `old` was, but for the change, and for `qty`."""
        self.symbol, self.side, self.buy, self.type = old.symbol, old.side, old.buy, old.type
        self.qty, self.notional, self.extended, self.legs = qty, None, old.extended, old.legs
        self.tif = change.time_in_force or old.tif
        self.limit = old.limit if change.limit_price is None else change.limit_price
        self.stop = old.stop if change.stop_price is None else change.stop_price
        self.trail_price, self.trail_percent = old.trail_price, old.trail_percent
        if change.trail is not None and old.trail_price is not None:
            self.trail_price = change.trail
        elif change.trail is not None:
            self.trail_percent = change.trail
        self.mark = old.mark
        self.triggered = old.triggered if change.stop_price is None else False

    @property
    def is_open(self) -> bool:
        return self.status in _OPEN

    @property
    def at_once(self) -> bool:
        return self.tif is TimeInForce.IOC or self.tif is TimeInForce.FOK

    @property
    def whole(self) -> bool:
        return self.qty is not None and not self.qty % _ONE

    @property
    def left(self) -> Decimal:
        """What may still execute: of an exit, no more than its group has left. Not for notional orders."""
        own = (self.qty or ZERO) - self.filled
        if self.group is not None and not self.is_entry:
            return min(own, self.group.left)
        return own

    def reached(self, touch: Touch) -> bool:
        """Whether its stop has been reached, now or before; a trailing stop follows the market here."""
        if self.triggered:
            return True
        price = touch.buy if self.buy else touch.sell
        stop = self._trailed(price) if self.type is OrderType.TRAILING_STOP else self.stop
        if stop is not None:
            self.triggered = price >= stop if self.buy else price <= stop
        return self.triggered

    def marketable(self, price: Decimal) -> bool:
        if self.limit is None:
            return True
        return price <= self.limit if self.buy else price >= self.limit

    def _trailed(self, price: Decimal) -> Decimal:
        mark = self.mark
        if mark is None or (price < mark if self.buy else price > mark):
            mark = self.mark = price
        trail = self.trail_price if self.trail_price is not None else mark * (self.trail_percent or ZERO) / 100
        return mark + trail if self.buy else mark - trail

    def ack(self, status: str = "") -> Ack:
        legs = tuple(leg.ack() for leg in self.legs) if self.legs else ()
        return Ack(self.broker_id, status or self.status, legs)

    def shown(self) -> BrokerOrder:
        return BrokerOrder(
            client_order_id=self.client_id,
            broker_order_id=self.broker_id,
            status=self.status,
            symbol=self.symbol,
            side=self.side,
            qty=self.qty,
            filled_qty=self.filled,
            legs=tuple(leg.shown() for leg in self.legs),
            is_open=self.is_open,
            end=_ENDS.get(self.status),
        )


class Group:
    """An entry and its exits; or, for an OCO, exits alone. `left` is what the exits may still execute together."""

    __slots__ = ("entry", "exits", "left")

    def __init__(self, entry: Resting | None, exits: Iterable[Resting], left: Decimal) -> None:
        self.entry = entry
        self.exits = list(exits)
        self.left = left
        for member in self.members():
            member.group = self
            member.is_entry = member is entry

    def members(self) -> list[Resting]:
        return [self.entry, *self.exits] if self.entry else list(self.exits)

    def put(self, new: Resting, old: Resting) -> None:
        """`new` takes the place of `old`."""
        new.group, new.is_entry = self, old.is_entry
        if self.entry is old:
            self.entry = new
        self.exits = [new if leg is old else leg for leg in self.exits]


class SymbolBook:
    """The working orders of one symbol, in the order they came, and the nearest prices that concern any."""

    __slots__ = ("_always", "_buy_limit", "_buy_stop", "_sell_limit", "_sell_stop", "_stale", "orders")

    def __init__(self) -> None:
        self.orders: dict[str, Resting] = {}
        self._forget()

    def add(self, order: Resting) -> None:
        self.orders[order.client_id] = order
        self._watch(order)

    def drop(self, order: Resting) -> None:
        if self.orders.pop(order.client_id, None) is not None:
            self._stale = True

    def changed(self) -> None:
        """A stop was reached: other prices concern that order now."""
        self._stale = True

    def concerns(self, touch: Touch) -> bool:
        """Whether a line at these prices can move any order: most lines move none, and cost a few compares."""
        if self._stale:
            self._forget()
            for order in self.orders.values():
                self._watch(order)
        return (
            self._always
            or touch.buy <= self._buy_limit
            or touch.sell >= self._sell_limit
            or touch.buy >= self._buy_stop
            or touch.sell <= self._sell_stop
        )

    def _forget(self) -> None:
        self._stale = self._always = False
        self._buy_limit = self._sell_stop = -_INFINITY
        self._sell_limit = self._buy_stop = _INFINITY

    def _watch(self, order: Resting) -> None:
        if not order.triggered and order.stop is not None:
            if order.buy:
                self._buy_stop = min(self._buy_stop, order.stop)
            else:
                self._sell_stop = max(self._sell_stop, order.stop)
        elif order.limit is not None and order.triggered and order.tif is not TimeInForce.OPG:
            if order.buy:
                self._buy_limit = max(self._buy_limit, order.limit)
            else:
                self._sell_limit = min(self._sell_limit, order.limit)
        else:
            self._always = True
