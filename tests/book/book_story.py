"""Tells a book a story, one event a line: `Story().open("alice").buy("alice", 10, reserved=1000)…`."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from desk_server import events
from desk_server.book import Book, Change
from desk_server.domain import (
    Leg,
    Order,
    OrderClass,
    OrderId,
    OrderRequest,
    OrderType,
    Side,
    State,
    Symbol,
    UserId,
)

START = datetime(2026, 1, 2, 14, 30, tzinfo=UTC)


def dollars(amount: object) -> Decimal:
    return Decimal(str(amount))


class Story:
    """Keeps every event, so that the book can be rebuilt from them."""

    def __init__(self) -> None:
        self.book = Book()
        self.events: list[events.AnyEvent] = []
        self._ids = 0

    def happen(self, kind: type, /, **fields: object) -> tuple[Change, ...]:
        event = kind(at=START + timedelta(seconds=len(self.events)), **fields)
        self.events.append(event)
        return self.book.fold(len(self.events), event)

    def open(self, user: str = "alice", allotment: object = 100_000) -> "Story":
        self.happen(events.UserOpened, user=UserId(user), allotment=dollars(allotment))
        return self

    def new_order(self, side: Side, qty: object, user: str = "alice", **extra: object) -> Order:
        self._ids += 1
        order_id = OrderId(f"{self._ids:08d}")
        fields = {name: extra.pop(name) for name in list(extra) if name in OrderRequest.__struct_fields__}
        request = OrderRequest(
            symbol=Symbol(str(fields.pop("symbol", "AAPL"))),
            side=side,
            type=OrderType.LIMIT if "limit_price" in fields else OrderType.MARKET,
            qty=None if qty is None else dollars(qty),
            **fields,
        )
        at = START + timedelta(seconds=len(self.events))
        reserved = dollars(extra.pop("reserved", 0))
        return Order(
            order_id=order_id,
            client_order_id=f"d1.{user}.s.{order_id}",
            user=UserId(user),
            strategy=str(extra.pop("strategy", "s")),
            deployment_id="",
            request=request,
            created_at=at,
            updated_at=at,
            reserved_cash=reserved,
            **extra,
        )

    def intend(self, order: Order, *legs: Order) -> OrderId:
        self.happen(events.OrderIntended, order=order, legs=legs)
        return order.order_id

    def buy(self, qty: object, user: str = "alice", **extra: object) -> OrderId:
        return self.intend(self.new_order(Side.BUY, qty, user, **extra))

    def sell(self, qty: object, user: str = "alice", **extra: object) -> OrderId:
        return self.intend(self.new_order(Side.SELL, qty, user, **extra))

    def accept(self, order_id: str, status: str = "new", legs: tuple[str, ...] = ()) -> tuple[Change, ...]:
        return self.happen(
            events.OrderAccepted, order_id=order_id, broker_order_id=f"b{order_id}", status=status, leg_broker_ids=legs
        )

    def fill(self, order_id: str, qty: object, price: object, fee: object = 0) -> tuple[Change, ...]:
        self._ids += 1
        return self.happen(
            events.Executed,
            order_id=order_id,
            execution_id=f"e{self._ids}",
            qty=dollars(qty),
            price=dollars(price),
            fee=dollars(fee),
        )

    def end(self, order_id: str, state: State = State.CANCELED) -> tuple[Change, ...]:
        return self.happen(events.OrderEnded, order_id=order_id, state=state)

    def bought(self, qty: object, price: object, user: str = "alice") -> OrderId:
        order_id = self.buy(qty, user)
        self.fill(order_id, qty, price)
        return order_id

    def bracket(self, qty: object, reserved: object = 0) -> tuple[OrderId, OrderId, OrderId]:
        entry = self.new_order(Side.BUY, qty, reserved=reserved, order_class=OrderClass.BRACKET)
        legs = [
            self.new_order(Side.SELL, qty, parent_id=entry.order_id, leg=leg)
            for leg in (Leg.TAKE_PROFIT, Leg.STOP_LOSS)
        ]
        self.intend(entry, *legs)
        return entry.order_id, legs[0].order_id, legs[1].order_id

    def oco(self, side: Side, qty: object, reserved: object = 0) -> tuple[OrderId, OrderId]:
        profit = self.new_order(side, qty, order_class=OrderClass.OCO, reserved=reserved)
        stop = self.new_order(side, qty, parent_id=profit.order_id, leg=Leg.STOP_LOSS, reserved=reserved)
        self.intend(profit, stop)
        return profit.order_id, stop.order_id

    def replace(self, old_id: str, qty: object, reserved: object = 0, **extra: object) -> OrderId:
        old = self.order(old_id)
        new = self.new_order(old.request.side, qty, old.user, replaces=old_id, reserved=reserved, **extra)
        self.happen(events.ReplaceIntended, order_id=OrderId(old_id), order=new)
        return new.order_id

    def replaced(self, old_id: str, new_id: str, qty: object = None) -> tuple[Change, ...]:
        return self.happen(
            events.OrderReplaced,
            order_id=old_id,
            new_order_id=new_id,
            broker_order_id=f"b{new_id}",
            qty=None if qty is None else dollars(qty),
        )

    def order(self, order_id: str) -> Order:
        return self.book.orders[OrderId(order_id)]

    def rebuilt(self) -> Book:
        """Another book, made from what the ledger would have stored."""
        book = Book()
        for seq, event in enumerate(self.events, start=1):
            book.fold(seq, events.decode(events.encode(event)))
        return book


def contents(book: Book) -> str:
    """All that a book holds, decimals digit by digit."""
    parts = [book.seq, book.orders, book.accounts, book.positions, book.fills, book.replacing]
    groups = book._reservations
    parts += [groups._cash, groups._qty, groups._notional, book._halts, book._listed, list(book._open)]
    parts += [book._by_request, book._by_broker_order_id, book._by_client_order_id, book._released]
    parts += [book._foreign, book._foreign_fills, book.activities, book.opened, book._busted, book._recovered]
    return "\n".join(repr(part) for part in parts)
