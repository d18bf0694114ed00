"""What orders on their way to the ledger will need, so that two at once cannot use the same money twice."""

from decimal import Decimal

from msgspec import Struct

from desk_server.domain import ZERO, OrderId, Symbol, UserId


class Hold(Struct, frozen=True):
    """`cash` in dollars; `qty` are shares that a sell takes, 0 for a buy."""

    order_id: OrderId
    user: UserId
    symbol: Symbol
    cash: Decimal
    qty: Decimal


class Holds:
    """Added when risk approves, dropped when the book has folded the intent (or the ledger refused it)."""

    def __init__(self) -> None:
        self._held: dict[OrderId, Hold] = {}
        self._cash: dict[UserId, Decimal] = {}
        self._qty: dict[tuple[UserId, Symbol], Decimal] = {}
        self._count: dict[UserId, int] = {}

    def add(self, hold: Hold) -> None:
        self._held[hold.order_id] = hold
        self._change(hold, 1)

    def drop(self, order_id: OrderId) -> None:
        """Dropping twice is the same as once."""
        if hold := self._held.pop(order_id, None):
            self._change(hold, -1)

    def cash(self, user: UserId) -> Decimal:
        return self._cash.get(user, ZERO)

    def qty(self, user: UserId, symbol: Symbol) -> Decimal:
        return self._qty.get((user, symbol), ZERO)

    def count(self, user: UserId) -> int:
        return self._count.get(user, 0)

    def _change(self, hold: Hold, sign: int) -> None:
        shares = (hold.user, hold.symbol)
        self._count[hold.user] = self.count(hold.user) + sign
        self._cash[hold.user] = self.cash(hold.user) + sign * hold.cash
        self._qty[shares] = self.qty(*shares) + sign * hold.qty
