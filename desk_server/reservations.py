"""What open orders hold back: cash of a user, and quantities per user, symbol and side.

Orders of which only one can execute in full share one reservation, the largest: the exits of a bracket, the
two orders of an OCO, an order and what is to replace it.
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import TypeVar

from desk_server.domain import ZERO, Order, OrderClass, OrderId, Side, Symbol, UserId
from desk_server.positions import MONEY, share_of

K = TypeVar("K")


class _Group:
    """Orders that share a reservation. `totals` has the open ones: what each may execute together with
    all that the group has filled; None where only its fills will tell (a notional order)."""

    __slots__ = ("cash", "entry", "exits", "filled", "members", "notional", "qty", "side", "symbol", "totals", "user")

    def __init__(self, order: Order, entry: "_Group | None" = None) -> None:
        self.user: UserId = order.user
        self.symbol: Symbol = order.request.symbol
        self.side: Side = order.request.side
        self.members: list[OrderId] = []
        self.totals: dict[OrderId, Decimal | None] = {}
        self.filled = ZERO
        # The reservations that this group has now.
        self.cash = ZERO
        self.qty = ZERO
        self.notional = False
        # Exits can only execute what their entry has filled.
        self.entry = entry
        self.exits: _Group | None = None

    @property
    def is_over(self) -> bool:
        return not self.totals and (self.exits is None or not self.exits.totals)


class Reservations:
    """Kept up to date by the book: one call for every change of an order."""

    def __init__(self, orders: Mapping[OrderId, Order]) -> None:
        self._orders = orders
        self._groups: dict[OrderId, _Group] = {}
        self._cash: dict[UserId, Decimal] = {}
        self._qty: dict[tuple[UserId, Symbol, Side], Decimal] = {}
        self._notional: dict[tuple[UserId, Symbol, Side], int] = {}

    def cash(self, user: UserId) -> Decimal:
        return self._cash.get(user, ZERO)

    def qty(self, user: UserId, symbol: Symbol, side: Side) -> Decimal:
        """What open orders of that side may still execute; notional orders are not in it."""
        return self._qty.get((user, symbol, side), ZERO)

    def notional_orders(self, user: UserId, symbol: Symbol, side: Side) -> int:
        """How many open orders of that side have no quantity."""
        return self._notional.get((user, symbol, side), 0)

    def total(self, order: Order) -> Decimal | None:
        """The order's quantity with what the orders it replaced have filled, while it is open."""
        group = self._groups.get(order.order_id)
        if group is None or order.order_id not in group.totals:
            return order.qty
        return group.totals[order.order_id]

    def open(self, order: Order) -> None:
        """A new order that shares its reservation with none: `join` and `update` in one."""
        request = order.request
        if not order.state.is_open:
            return
        group = _Group(order)
        self._groups[order.order_id] = group
        group.members.append(order.order_id)
        if request.qty is None or order.filled_qty or order.replaces:
            group.filled = order.filled_qty
            group.totals[order.order_id] = self._total_now(group, order)
            self._measure(group)
            return
        qty, cash = request.qty, order.reserved_cash
        group.totals[order.order_id] = group.qty = qty
        key = (order.user, request.symbol, request.side)
        self._qty[key] = MONEY.add(self._qty.get(key, ZERO), qty)
        if cash:
            group.cash = cash
            self._cash[order.user] = MONEY.add(self._cash.get(order.user, ZERO), cash)

    def join(self, order: Order, parent: Order | None = None, replaced: Order | None = None) -> None:
        """Say whose reservation a new order shares, before the first `update` for it."""
        group: _Group | None = None
        if replaced is not None:
            group = self._group_of(replaced)
        elif parent is not None:
            entry = self._group_of(parent)
            if parent.request.order_class is OrderClass.OCO:
                group = entry
            else:
                if entry.exits is None:
                    entry.exits = _Group(order, entry)
                group = entry.exits
        if group is None:
            group = _Group(order)
        self._add(group, order)

    def update(self, order: Order, filled: Decimal = ZERO) -> None:
        """The order has changed; `filled` is the quantity that this change executed."""
        group = self._groups.get(order.order_id)
        if group is None:
            if not order.state.is_open:
                return
            group = self._group_of(order)
        elif filled:
            group.filled = MONEY.add(group.filled, filled)
        if not order.state.is_open:
            group.totals.pop(order.order_id, None)
        elif order.order_id not in group.totals:
            group.totals[order.order_id] = self._total_now(group, order)
        self._measure(group)
        if filled and group.exits is not None:
            self._measure(group.exits)
        if group.is_over:
            self._forget(group)

    def set_total(self, order: Order) -> None:
        """The broker has said what the replacing order's quantity is. Where that is less than the desk
        thought, executions of the replaced order are still to come: their part stays reserved."""
        group = self._groups.get(order.order_id)
        if group is None or order.order_id not in group.totals:
            return
        now, before = self._total_now(group, order), group.totals[order.order_id]
        group.totals[order.order_id] = now if now is None or before is None else max(now, before)

    def _group_of(self, order: Order) -> _Group:
        """Its group, made anew for an order whose group was over (its end is taken back, or its legs live on)."""
        if order.order_id not in self._groups:
            self.join(order, self._orders.get(OrderId(order.parent_id)))
        return self._groups[order.order_id]

    def _add(self, group: _Group, order: Order) -> None:
        group.members.append(order.order_id)
        if order.filled_qty:
            group.filled = MONEY.add(group.filled, order.filled_qty)
        self._groups[order.order_id] = group
        if order.state.is_open:
            group.totals[order.order_id] = self._total_now(group, order)

    def _total_now(self, group: _Group, order: Order) -> Decimal | None:
        if order.qty is None:
            return None
        total = order.qty
        if order.change is not None and not order.broker_order_id:
            # Asked for, not done yet: its quantity was drawn up before the last fills of what it is to replace.
            asked, order = order.change.qty, self._orders[OrderId(order.replaces)]
            total = (order.qty or ZERO) if asked is None else asked
        while order.replaces:
            # What the other orders of the group have filled was never taken off its quantity.
            order = self._orders[OrderId(order.replaces)]
            total = MONEY.add(total, order.filled_qty)
        return total

    def _measure(self, group: _Group) -> None:
        cash = qty = ZERO
        notional = False
        for order_id, total in group.totals.items():
            order = self._orders[order_id]
            remaining = order.remaining
            if total is None or remaining is None:
                notional, cash = True, max(cash, order.reserved_cash)
                continue
            left = max(ZERO, MONEY.subtract(total, group.filled)) if group.filled else total
            qty = max(qty, left)
            if order.reserved_cash:
                cash = max(cash, share_of(order.reserved_cash, left, remaining))
        if group.entry is not None:
            qty = min(qty, max(ZERO, MONEY.subtract(group.entry.filled, group.filled)))
        if cash is not group.cash:
            _shift(self._cash, group.user, group.cash, cash)
            group.cash = cash
        key = (group.user, group.symbol, group.side)
        if qty is not group.qty:
            _shift(self._qty, key, group.qty, qty)
            group.qty = qty
        if notional is not group.notional:
            self._notional[key] = self._notional.get(key, 0) + (1 if notional else -1)
            group.notional = notional

    def _forget(self, group: _Group) -> None:
        for order_id in group.members:
            self._groups.pop(order_id, None)
        if group.exits is not None:
            self._forget(group.exits)
        elif group.entry is not None and group.entry.is_over:
            group.entry.exits = None
            self._forget(group.entry)


def _shift(amounts: dict[K, Decimal], key: K, before: Decimal, after: Decimal) -> None:
    """Put one group's part of the sum anew."""
    amount = amounts.get(key, ZERO)
    amount = MONEY.subtract(MONEY.add(amount, after), before) if before else MONEY.add(amount, after)
    if amount:
        amounts[key] = amount
    else:
        amounts.pop(key, None)
