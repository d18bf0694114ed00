"""What orders on their way to the ledger will need, so that two at once cannot use the same money twice."""

from collections import defaultdict
from decimal import Decimal

from desk_server.domain import ZERO, Order, OrderId, Side, Symbol, UserId


class Holds:
    """Added when risk approves, dropped when the book has folded the intent (or the ledger refused it)."""

    def __init__(self) -> None:
        self._held: dict[OrderId, Order] = {}
        self._cash: dict[UserId, Decimal] = defaultdict(Decimal)
        self._qty: dict[tuple[UserId, Symbol], Decimal] = defaultdict(Decimal)
        self._count: dict[UserId, int] = defaultdict(int)

    def add(self, order: Order) -> None:
        self._held[order.order_id] = order
        self._change(order, 1)

    def drop(self, order: Order) -> None:
        """Dropping twice is the same as once."""
        if self._held.pop(order.order_id, None) is not None:
            self._change(order, -1)

    def cash(self, user: UserId) -> Decimal:
        return self._cash.get(user, ZERO)

    def qty(self, user: UserId, symbol: Symbol) -> Decimal:
        return self._qty.get((user, symbol), ZERO)

    def count(self, user: UserId) -> int:
        return self._count.get(user, 0)

    def _change(self, order: Order, sign: int) -> None:
        self._count[order.user] += sign
        self._cash[order.user] += sign * order.reserved_cash
        if order.request.side is Side.SELL:
            self._qty[order.user, order.request.symbol] += sign * (order.request.qty or ZERO)
