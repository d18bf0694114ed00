"""Events to store, and a ledger that is open, with what it reported."""

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal

from desk_server.domain import Order, OrderRequest, Side
from desk_server.events import Executed, OrderIntended, UserOpened
from desk_server.ledger import Ledger, Stored

AT = datetime(2026, 1, 2, 14, 30, 0, 123456, tzinfo=UTC)


def opened(user: str) -> UserOpened:
    return UserOpened(at=AT, user=user, allotment=Decimal("100000.00"))


def executed(execution_id: object) -> Executed:
    return Executed(
        at=AT,
        order_id="o1",
        execution_id=str(execution_id),
        qty=Decimal("0.100000000"),
        price=Decimal("145.50"),
        fee=Decimal("0.00"),
        user="alice",
        symbol="AAPL",
    )


def intended(number: int, request_id: str = "") -> OrderIntended:
    request = OrderRequest(
        symbol="AAPL", side=Side.BUY, qty=Decimal("1.50"), request_id=request_id, notes={"why": "prices rose — ↑"}
    )
    order = Order(
        order_id=f"o{number}",
        client_order_id=f"d1.alice.s.{number}",
        user="alice",
        strategy="s",
        deployment_id="",
        request=request,
        created_at=AT,
        updated_at=AT,
    )
    return OrderIntended(at=AT, order=order)


class Open:
    """`log` has what the ledger said, in order: every commit's events, and whatever a test notes in between."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.log: list[object] = []
        # Why the ledger was lost, each time that it was told.
        self.lost: list[str] = []
        ledger.open(self._committed, self.lost.append)

    def _committed(self, stored: Sequence[Stored]) -> None:
        self.log.append([one.seq for one in stored])

    def seqs(self) -> list[int]:
        return [seq for entry in self.log if isinstance(entry, list) for seq in entry]
