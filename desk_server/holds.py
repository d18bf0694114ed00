"""What orders on their way to the ledger will need, so that two at once cannot use the same money twice."""

from decimal import Decimal

from msgspec import Struct

from desk_server.domain import ZERO, Order, OrderId, Symbol, UserId


class Hold(Struct, frozen=True, gc=False):
    """`cash` in dollars; `qty` are shares that a sell takes, 0 for a buy; `order` is who needs them."""

    order_id: OrderId
    user: UserId
    symbol: Symbol
    cash: Decimal
    qty: Decimal
    order: Order


class Holds:
    """Added when risk approves, dropped when the book has folded the intent (or the ledger refused it)."""

    def __init__(self) -> None:
        self._held: dict[OrderId, Hold] = {}
        self._cash: dict[UserId, Decimal] = {}
        self._qty: dict[tuple[UserId, Symbol], Decimal] = {}
        self._count: dict[UserId, int] = {}

    def add(self, hold: Hold) -> None:
        self._held[hold.order_id] = hold
        self._count[hold.user] = self.count(hold.user) + 1
        if hold.cash:
            self._cash[hold.user] = self.cash(hold.user) + hold.cash
        if hold.qty:
            self._qty[hold.user, hold.symbol] = self.qty(hold.user, hold.symbol) + hold.qty

    def drop(self, order_id: OrderId) -> None:
        """Dropping twice is the same as once."""
        hold = self._held.pop(order_id, None)
        if hold is None:
            return
        self._count[hold.user] -= 1
        if hold.cash:
            self._cash[hold.user] -= hold.cash
        if hold.qty:
            self._qty[hold.user, hold.symbol] -= hold.qty

    def cash(self, user: UserId) -> Decimal:
        return self._cash.get(user, ZERO)

    def qty(self, user: UserId, symbol: Symbol) -> Decimal:
        return self._qty.get((user, symbol), ZERO)

    def count(self, user: UserId) -> int:
        return self._count.get(user, 0)

    def orders(self, symbol: Symbol) -> list[Order]:
        """Those on their way to the ledger, in this symbol."""
        return [hold.order for hold in self._held.values() if hold.symbol == symbol]
