"""Crashes at any moment: what the exchange had said but nobody had written down never happened.

The desk's own book and its reading of events stand in for the desk; a crash loses every event behind some point.
"""

from collections import defaultdict
from datetime import datetime
from decimal import Decimal

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from paper_samples import NOON, Market, make_order
from test_paper_properties import STEPS

from desk_server.book import Book
from desk_server.brokers import BrokerRejected, What
from desk_server.domain import Order, OrderChange, OrderClass, State
from desk_server.events import OrderAccepted, OrderIntended, OrderReplaced, ReplaceIntended, UserOpened
from desk_server.settle import event_of


class Desk:
    """A book, an exchange, and a number of the exchange's events that have been written down."""

    def __init__(self, seed: int) -> None:
        self.book = Book()
        self.sent: list[Order] = []
        self.seed = seed
        self.at: datetime = NOON
        self.executed: set[str] = set()
        self.fold(UserOpened(at=NOON, user="alice", allotment=Decimal(10**9)))
        self.start()

    def fold(self, event) -> None:
        self.book.fold(self.book.seq + 1, event)

    def start(self) -> None:
        self.market = Market(partial_percent=40, size_limited=True, seed=self.seed, at=self.at, opening_line=False)
        self.market.exchange.restore(self.book.orders.values())

    def crash(self, kept: int) -> None:
        """Write down the first events of those that wait, lose the others, start again."""
        for _ in range(min(kept, len(self.market.exchange.outbox))):
            self.write_one()
        self.at = self.market.at
        self.start()

    def write_one(self) -> None:
        said = self.market.exchange.outbox.popleft()
        order = self.book.by_client_order_id(said.client_order_id)
        assert order is not None
        if said.what is What.FILL:
            assert said.execution_id not in self.executed, "one execution, twice"
            self.executed.add(said.execution_id)
        event = event_of(said, order, self.book.by_client_order_id(said.replaced_by))
        if event is not None:
            self.fold(event)

    def write_all(self) -> None:
        while self.market.exchange.outbox:
            self.write_one()

    def take(self, step) -> None:
        exchange, at = self.market.exchange, self.market.at
        match step:
            case ("send", order, legs):
                self.fold(OrderIntended(at=at, order=order, legs=legs))
                ack = exchange.submit(order, legs)
                ids = tuple(leg.broker_order_id for leg in ack.legs)
                self.fold(
                    OrderAccepted(
                        at=at,
                        order_id=order.order_id,
                        broker_order_id=ack.broker_order_id,
                        status=ack.status,
                        leg_broker_ids=ids,
                    )
                )
                self.sent += [order, *legs]
            case ("line", price, spread, seconds, size):
                at = datetime.fromtimestamp(at.timestamp() + seconds, at.tzinfo)
                self.market.line(price, price - spread, price + spread, at=at, sizes=(size, size))
            case ("cancel", which) if self.sent:
                try:
                    exchange.cancel(self.sent[which % len(self.sent)])
                except BrokerRejected:
                    pass
            case ("replace", which, price, qty) if self.sent:
                self.replace(self.sent[which % len(self.sent)], price, qty)

    def replace(self, sent: Order, price: Decimal, qty: int | None) -> None:
        at = self.market.at
        old = self.book.orders[sent.order_id]
        limit = price if old.request.limit_price is not None or old.request.order_class is OrderClass.OCO else None
        change = OrderChange(limit_price=limit, qty=None if qty is None else Decimal(qty))
        if old.state is not State.LIVE or old.remaining is None:
            return
        new = make_order(created_at=at, parent=old.parent_id, leg=old.leg)
        request = replace(old.request, qty=old.remaining, limit_price=limit or old.request.limit_price)
        new = replace(new, request=request, replaces=old.order_id)
        try:
            ack = self.market.exchange.replace(old, new, change)
        except BrokerRejected:
            return
        self.fold(ReplaceIntended(at=at, order_id=old.order_id, order=new))
        self.fold(
            OrderReplaced(
                at=at,
                order_id=old.order_id,
                new_order_id=new.order_id,
                broker_order_id=ack.broker_order_id,
                qty=ack.qty,
            )
        )
        self.sent.append(new)


@settings(max_examples=200, deadline=None)
@given(lives=st.lists(st.tuples(STEPS, st.integers(0, 40)), min_size=1, max_size=4), seed=st.integers(0, 3))
def test_book_and_exchange_agree_after_any_number_of_crashes(lives, seed):
    """Every order's state and quantity, the position, and no execution twice, whatever was lost."""
    desk = Desk(seed)
    for steps, kept in lives:
        desk.market.line(100, at=desk.at)
        for step in steps:
            desk.take(step)
        desk.crash(kept)
    desk.market.line(100, at=desk.at)
    desk.write_all()
    bought = defaultdict(Decimal)
    for order in desk.book.orders.values():
        shown = desk.market.exchange.find(order.client_order_id)
        assert (shown.status, shown.filled_qty) == (order.status, order.filled_qty)
        assert order.remaining is None or order.remaining >= 0
        bought[order.request.symbol] += order.filled_qty * order.request.side.sign
    held = desk.book.position("alice", "AAPL").qty
    assert desk.market.exchange.positions().get("AAPL", Decimal(0)) == held == bought["AAPL"]
    _check_groups(desk)


def _check_groups(desk: Desk) -> None:
    """No group's exits executed more than its entry did, and none stands open beside an entry that ended unfilled."""
    orders = desk.book.orders
    exits, entries = defaultdict(Decimal), defaultdict(Decimal)
    for order in orders.values():
        if order.leg:
            exits[order.parent_id] += order.filled_qty
    for parent_id, sold in exits.items():
        first = current = orders[parent_id]
        entries[parent_id] += first.filled_qty
        while current.replaced_by:
            current = orders[current.replaced_by]
            entries[parent_id] += current.filled_qty
        if first.request.order_class is OrderClass.OCO:
            assert sold + entries[parent_id] <= first.request.qty
            continue
        assert sold <= entries[parent_id]
        legs = [order for order in orders.values() if order.parent_id == parent_id and order.leg]
        if current.state in (State.CANCELED, State.EXPIRED):
            assert not any(leg.state.is_open for leg in legs)
        if current.state is State.FILLED:
            assert not any(leg.state is State.HELD for leg in legs)
