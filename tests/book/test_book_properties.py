"""Whatever happens, in whatever order: the book agrees with plain sums over the events, and with its rebuild."""

from collections import defaultdict
from decimal import Decimal
from fractions import Fraction

from book_story import Story, contents
from hypothesis import given, settings
from hypothesis import strategies as st

from desk_server import events
from desk_server.domain import HOUSE, Order, Side, State
from desk_server.postings import named, postings

USERS = ("alice", "bob")
SYMBOLS = ("AAPL", "BTC/USD")
quantities = st.decimals("0.000000001", 1000, places=9) | st.integers(1, 500).map(Decimal)
prices = st.decimals("0.0001", 70_000, places=4)
fees = st.just(Decimal(0)) | st.decimals(0, 5, places=4)
sides = st.sampled_from(Side)


class Writer:
    """Writes a story of drawn events: mostly what a broker would say, partly late, early, twice or wrong."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.story = Story().open("alice").open("bob", 5)

    def write(self) -> Story:
        acts = [self.place] * 4 + [self.fill] * 6 + [self.accept] * 3 + [self.end, self.end, self.replace, self.settle]
        acts += [self.settle, self.bracket, self.oco, self.house, self.doubt, self.cancel, self.release, self.refuse]
        for act in self.draw(st.lists(st.sampled_from(acts), min_size=1, max_size=40)):
            act()
        return self.story

    def any_order(self) -> Order | None:
        orders = list(self.story.book.orders.values())
        return self.draw(st.sampled_from(orders)) if orders else None

    def place(self) -> None:
        by_value = self.draw(st.integers(0, 5)) == 0
        order = self.story.new_order(
            self.draw(sides),
            None if by_value else self.draw(quantities),
            self.draw(st.sampled_from(USERS)),
            symbol=self.draw(st.sampled_from(SYMBOLS)),
            reserved=self.draw(st.decimals(0, 5000, places=2)),
            **({"notional": Decimal(100)} if by_value else {}),
        )
        self.story.intend(order)

    def fill(self) -> None:
        if (order := self.any_order()) is None:
            return
        remaining = order.remaining or Decimal(1)
        qty = self.draw(st.sampled_from([remaining, remaining, None]))
        if qty is None or qty <= 0:
            qty = self.draw(quantities)
        self.story.fill(order.order_id, qty, self.draw(prices), self.draw(fees))

    def accept(self) -> None:
        if order := self.any_order():
            self.story.accept(order.order_id, self.draw(st.sampled_from(["new", "held"])))

    def release(self) -> None:
        if order := self.any_order():
            self.story.happen(events.OrderReleased, order_id=order.order_id)

    def end(self) -> None:
        if order := self.any_order():
            self.story.end(order.order_id, self.draw(st.sampled_from([State.CANCELED, State.EXPIRED])))

    def cancel(self) -> None:
        if order := self.any_order():
            self.story.happen(events.CancelRequested, order_id=order.order_id, by=order.user)

    def doubt(self) -> None:
        if (order := self.any_order()) is None:
            return
        kind = self.draw(st.sampled_from([events.OrderUnknown, events.OrderNotSent, events.OrderRejected]))
        why = {"code": "X", "message": "no"} if kind is events.OrderRejected else {"reason": "silence"}
        self.story.happen(kind, order_id=order.order_id, **why)

    def refuse(self) -> None:
        self.story.happen(events.OrderRefused, order=self.story.new_order(self.draw(sides), 1, code="X"))

    def bracket(self) -> None:
        self.story.bracket(self.draw(quantities), reserved=self.draw(st.integers(0, 1000)))

    def oco(self) -> None:
        self.story.oco(self.draw(sides), self.draw(quantities), reserved=self.draw(st.integers(0, 1000)))

    def replace(self) -> None:
        order = self.any_order()
        is_able = order and order.state is State.LIVE and order.qty and order.order_id not in self.story.book.replacing
        if is_able:
            extra = {"symbol": order.request.symbol, "reserved": self.draw(st.integers(0, 1000))}
            self.story.replace(order.order_id, self.draw(quantities), **extra)

    def settle(self) -> None:
        for old_id, new_id in list(self.story.book.replacing.items()):
            if self.draw(st.booleans()):
                self.story.replaced(old_id, new_id, self.draw(quantities))
            else:
                self.story.happen(events.ReplaceRejected, order_id=old_id, new_order_id=new_id, code="X", message="")

    def house(self) -> None:
        self.story.happen(
            events.HouseExecuted,
            symbol=self.draw(st.sampled_from(SYMBOLS)),
            side=self.draw(sides),
            execution_id=f"h{len(self.story.events)}",
            qty=self.draw(quantities),
            price=self.draw(prices),
        )


@st.composite
def stories(draw: st.DrawFn) -> Story:
    return Writer(draw).write()


def executions(story: Story) -> list[tuple[str, str, str, int, events.Executed | events.HouseExecuted]]:
    """(order id, user, symbol, sign, event) of each, as the events tell it."""
    found = []
    for event in story.events:
        if isinstance(event, events.HouseExecuted):
            found.append(("", HOUSE, event.symbol, event.side.sign, event))
        elif isinstance(event, events.Executed):
            order = story.order(event.order_id)
            found.append((event.order_id, order.user, order.request.symbol, order.request.side.sign, event))
    return found


@settings(max_examples=150, deadline=None)
@given(stories())
def test_cash_and_positions_are_the_sums_of_executions(story: Story):
    """To the last digit, for every user and the house; nobody's trades touch anybody else's book."""
    cash, held, fees_paid = defaultdict(Fraction), defaultdict(Fraction), defaultdict(Fraction)
    cash.update(alice=Fraction(100_000), bob=Fraction(5))
    for _, user, symbol, sign, event in executions(story):
        cash[user] -= sign * Fraction(event.qty) * Fraction(event.price) + Fraction(event.fee)
        held[user, symbol] += sign * Fraction(event.qty)
        fees_paid[user] += Fraction(event.fee)
    book = story.book
    assert {user: Fraction(account.cash) for user, account in book.accounts.items()} == {
        user: cash[user] for user in book.accounts
    }
    for user, account in book.accounts.items():
        assert Fraction(account.fees) == fees_paid[user]
        for symbol in SYMBOLS:
            assert Fraction(book.position(user, symbol).qty) == held[user, symbol]
    for symbol in SYMBOLS:
        total = sum(held[user, symbol] for user in book.accounts)
        assert Fraction(book.totals().get(symbol, 0)) == total


@settings(max_examples=150, deadline=None)
@given(stories())
def test_no_value_is_made_or_lost(story: Story):
    """Cash + cost = allotment + realised - fees, exactly, and realised profit is the average-price method's."""
    for user, account in story.book.accounts.items():
        cost = sum(Fraction(p.cost) for p in story.book.positions.get(user, {}).values())
        earned = Fraction(account.realized_pl) - Fraction(account.fees)
        assert Fraction(account.cash) + cost == Fraction(account.allotment) + earned
    held, cost, realized = defaultdict(Fraction), defaultdict(Fraction), defaultdict(Fraction)
    for _, user, symbol, sign, event in executions(story):
        key, price, rest = (user, symbol), Fraction(event.price), sign * Fraction(event.qty)
        if held[key] * rest < 0:
            closed = min(rest, -held[key], key=abs)
            average = cost[key] / held[key]
            realized[key] -= closed * (price - average)
            cost[key] += closed * average
            held[key] += closed
            rest -= closed
        cost[key] += rest * price
        held[key] += rest
    for (user, symbol), expected in realized.items():
        position = story.book.position(user, symbol)
        assert abs(Fraction(position.realized_pl) - expected) < Fraction(1, 10**12)
        assert abs(Fraction(position.cost) - cost[user, symbol]) < Fraction(1, 10**12)


@settings(max_examples=150, deadline=None)
@given(stories())
def test_an_orders_filled_quantity_is_the_sum_of_its_executions(story: Story):
    """So are its value, its fees and its list of fills."""
    filled = defaultdict(list)
    for order_id, _, _, _, event in executions(story):
        filled[order_id].append(event)
    for order in story.book.orders.values():
        mine = filled[order.order_id]
        assert Fraction(order.filled_qty) == sum(Fraction(e.qty) for e in mine)
        assert Fraction(order.filled_value) == sum(Fraction(e.qty) * Fraction(e.price) for e in mine)
        assert Fraction(order.fees) == sum(Fraction(e.fee) for e in mine)
        listed = [fill.execution_id for fill in story.book.fills_of(order.user, order_id=order.order_id)[0]]
        assert listed == [e.execution_id for e in mine][::-1][:50]
        if order.qty is not None and order.filled_qty >= order.qty:
            assert order.state in (State.FILLED, State.REPLACED, State.REFUSED)


@settings(max_examples=200, deadline=None)
@given(stories())
def test_reservations_are_those_of_open_orders(story: Story):
    """Never negative, at most the sum of what open orders hold and at least the largest alone, and nothing at all
    when everything has ended."""
    book = story.book
    for user in USERS:
        mine = book.open_orders(user)
        assert [o for o in book.orders.values() if o.user == user and o.state.is_open] == sorted(
            mine, key=lambda order: order.order_id
        )
        assert book.reserved_cash(user) >= 0
        simple = [o for o in mine if not (o.parent_id or o.leg_ids or o.replaces or o.order_id in book.replacing)]
        if len(simple) == len(mine):
            assert book.reserved_cash(user) == sum(order.reserved_cash for order in mine)
        for symbol in SYMBOLS:
            for side in Side:
                same = [o for o in simple if o.request.symbol == symbol and o.request.side is side]
                remaining = sum(order.remaining for order in same if order.remaining is not None)
                assert book.open_qty(user, symbol, side) >= remaining
                if len(simple) == len(mine):
                    assert book.open_qty(user, symbol, side) == remaining
    for _ in range(2):
        for order in book.open_orders():
            story.end(order.order_id)
    assert all(not order.reserved_cash for order in book.orders.values())
    assert book._reservations._cash == {} and book._reservations._qty == {}
    assert not any(book._reservations._notional.values()) and book._reservations._groups == {}
    assert book._open == {} and not any(book._open_of_user.values()) and not any(book._open_of_symbol.values())


@settings(max_examples=100, deadline=None)
@given(stories())
def test_a_rebuilt_book_is_the_same_digit_by_digit(story: Story):
    """Folding what the ledger stored gives the book that was folded live."""
    assert contents(story.rebuilt()) == contents(story.book)


@settings(max_examples=100, deadline=None)
@given(stories())
def test_every_journal_entry_sums_to_zero(story: Story):
    """Per asset; and positions and cash rebuild from postings alone."""
    balances: dict[tuple[str, str], Fraction] = defaultdict(Fraction)
    for event in story.events:
        entry = postings(named(event, story.book.orders))
        sums: dict[str, Fraction] = defaultdict(Fraction)
        for posting in entry:
            sums[posting.asset] += Fraction(posting.amount)
            balances[posting.account, posting.asset] += Fraction(posting.amount)
        assert not any(sums.values())
    for user, account in story.book.accounts.items():
        assert balances[user, "USD"] == Fraction(account.cash)
        for symbol in SYMBOLS:
            assert balances[user, symbol] == Fraction(story.book.position(user, symbol).qty)


@settings(max_examples=100, deadline=None)
@given(stories())
def test_no_end_is_left(story: Story):
    """An order that is over stays so; only rejected and unsent ones come back, and a cancel may prove to be a fill."""
    replay = Story()
    ends: dict[str, State] = {}
    for event in story.events:
        replay.book.fold(replay.book.seq + 1, event)
        for order in replay.book.orders.values():
            if (before := ends.get(order.order_id)) and order.state is not before:
                is_late_fill = before in (State.CANCELED, State.EXPIRED) and order.state is State.FILLED
                assert before in (State.REJECTED, State.NOT_SENT) or is_late_fill
                del ends[order.order_id]
            if not order.state.is_open:
                ends[order.order_id] = order.state
