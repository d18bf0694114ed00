"""What reaches the books besides the desk's own orders: busts, foreign orders, activities, adjustments, recovery."""

from collections import defaultdict
from decimal import Decimal
from fractions import Fraction

import pytest
from book_story import Story, contents, dollars
from hypothesis import given, settings
from hypothesis import strategies as st
from test_book_properties import SYMBOLS, USERS, Writer, prices, quantities, sides

from desk_server import events
from desk_server.book import BookError
from desk_server.domain import HOUSE, Side, State
from desk_server.positions import Fill
from desk_server.postings import named, postings

KINDS = ("DIV", "FEE", "SPLIT", "CSD", "CFEE", "INT")
amounts = st.decimals(-500, 500, places=4)


class Other(Writer):
    """Also writes what brokers and other people do to the account."""

    def write(self) -> Story:
        own = [self.place] * 4 + [self.fill] * 6 + [self.accept] * 2 + [self.end, self.bracket, self.house, self.doubt]
        more = [self.bust] * 3 + [self.activity] * 2 + [self.adjust, self.quarantine, self.recover, self.foreign]
        for act in self.draw(st.lists(st.sampled_from(own + more), min_size=1, max_size=40)):
            act()
        return self.story

    def bust(self) -> None:
        standing = [fill for fill in self.story.book.fills if not fill.is_busted]
        if standing:
            bust(self.story, self.draw(st.sampled_from(standing)))

    def activity(self) -> None:
        symbol = self.draw(st.sampled_from(("", *SYMBOLS)))
        users = self.draw(st.lists(st.sampled_from((*USERS, HOUSE)), min_size=1, unique=True))
        shares = tuple(
            events.Share(user, self.draw(amounts), self.draw(amounts) if symbol else Decimal(0)) for user in users
        )
        kind = self.draw(st.sampled_from(KINDS))
        name = f"a{len(self.story.events)}"
        self.story.happen(events.ActivityPosted, activity_id=name, kind=kind, shares=shares, symbol=symbol)

    def adjust(self) -> None:
        account = self.draw(st.sampled_from(("", "acc-1")))
        if self.draw(st.booleans()):
            self.story.happen(events.HouseAdjusted, reason="?", cash=self.draw(amounts), account=account)
        else:
            symbol, qty = self.draw(st.sampled_from(SYMBOLS)), self.draw(amounts)
            price = self.draw(prices)
            self.story.happen(events.HouseAdjusted, reason="?", symbol=symbol, qty=qty, price=price, account=account)

    def quarantine(self) -> None:
        if order := self.any_order():
            self.story.happen(events.OrderQuarantined, order_id=order.order_id, reason="missing")

    def recover(self) -> None:
        order = self.story.new_order(self.draw(sides), self.draw(quantities), state=State.LIVE, reserved=100)
        old = self.any_order()
        fields = {"broker_order_id": f"b{order.order_id}"}
        if old and old.qty and not old.replaced_by and self.draw(st.booleans()):
            fields["replaces"] = old.order_id
        self.story.happen(events.OrderRecovered, order=events.msgspec.structs.replace(order, **fields))

    def foreign(self) -> None:
        name = f"f{len(self.story.events)}"
        self.story.happen(
            events.ForeignOrderSeen, broker_order_id=name, client_order_id="x", symbol="AAPL", side=Side.BUY
        )


def bust(story: Story, fill: Fill) -> None:
    story.happen(
        events.ExecutionBusted,
        order_id=fill.order_id,
        execution_id=fill.execution_id,
        user=fill.user,
        symbol=fill.symbol,
        side=fill.side,
        qty=fill.qty,
        price=fill.price,
        fee=fill.fee,
    )


@st.composite
def stories(draw: st.DrawFn) -> Story:
    return Other(draw).write()


@settings(max_examples=150, deadline=None)
@given(stories())
def test_no_value_is_made_or_lost_by_any_event(story: Story):
    """cash = allotment + realised - fees - cost, exactly, for every user and every house."""
    for user, account in story.book.accounts.items():
        cost = sum(Fraction(p.cost) for p in story.book.positions.get(user, {}).values())
        earned = Fraction(account.realized_pl) - Fraction(account.fees)
        assert Fraction(account.cash) + cost == Fraction(account.allotment) + earned
        assert all(p.cost == 0 for p in story.book.positions.get(user, {}).values() if not p.qty)


@settings(max_examples=150, deadline=None)
@given(stories())
def test_postings_rebuild_every_book(story: Story):
    """Each entry sums to zero per asset, and cash and shares are their sums."""
    balances: dict[tuple[str, str], Fraction] = defaultdict(Fraction)
    for event in story.events:
        sums: dict[str, Fraction] = defaultdict(Fraction)
        for posting in postings(named(event, story.book.orders)):
            sums[posting.asset] += Fraction(posting.amount)
            balances[posting.account, posting.asset] += Fraction(posting.amount)
        assert not any(sums.values())
    for user, account in story.book.accounts.items():
        assert balances[user, "USD"] == Fraction(account.cash)
        for symbol in SYMBOLS:
            assert balances[user, symbol] == Fraction(story.book.position(user, symbol).qty)


@settings(max_examples=100, deadline=None)
@given(stories())
def test_it_is_the_same_when_folded_again(story: Story):
    """Digit by digit, and orders have what stands of their executions."""
    assert contents(story.rebuilt()) == contents(story.book)
    for order in story.book.orders.values():
        standing = [fill for fill in story.book.executions_of(order.order_id) if not fill.is_busted]
        assert Fraction(order.filled_qty) == sum(Fraction(fill.qty) for fill in standing)
        assert Fraction(order.filled_value) == sum(Fraction(fill.qty) * Fraction(fill.price) for fill in standing)
        assert order.reserved_cash >= 0


def test_a_bust_takes_back_all_that_the_execution_did():
    """Shares, cash, fee, and the order's sums; what may have to be bought again is reserved again."""
    story = Story().open("alice", 10_000)
    order_id = story.buy(10, reserved=1000)
    story.fill(order_id, 4, 100, fee=1)
    bust(story, story.book.fills[0])
    order, account = story.order(order_id), story.book.accounts["alice"]
    assert (order.filled_qty, order.filled_value, order.fees, order.state) == (0, 0, 0, State.LIVE)
    assert (account.cash, account.fees, story.book.position("alice", "AAPL").qty) == (10_000, 0, 0)
    assert story.book.reserved_cash("alice") == 1000
    assert story.book.fills_of("alice")[0] == []


def test_a_second_bust_changes_nothing():
    """However it came to be told twice."""
    story = Story().open("alice", 10_000)
    story.bought(10, 100)
    for _ in range(2):
        bust(story, story.book.fills[0])
    assert story.book.position("alice", "AAPL").qty == 0
    assert story.book.accounts["alice"].cash == 10_000


def test_a_filled_order_reopens_only_after_a_bust():
    """The broker's word that it works counts then, and not before."""
    story = Story().open("alice", 10_000)
    order_id = story.bought(10, 100)
    story.happen(events.OrderReleased, order_id=order_id)
    assert story.order(order_id).state is State.FILLED
    bust(story, story.book.fills[0])
    story.happen(events.OrderReleased, order_id=order_id)
    assert story.order(order_id).state is State.LIVE
    assert story.book.reserved_cash("alice") == 1000
    story.end(order_id)
    assert (story.order(order_id).state, story.book.reserved_cash("alice")) == (State.CANCELED, 0)


def test_a_quarantined_order_keeps_what_it_may_need():
    """It may still be under way: cash stays reserved until it is found or given up."""
    story = Story().open("alice", 10_000)
    order_id = story.buy(10, reserved=1000)
    story.happen(events.OrderUnknown, order_id=order_id, reason="silence")
    story.happen(events.OrderQuarantined, order_id=order_id, reason="not found")
    assert story.order(order_id).state is State.QUARANTINE
    assert story.book.reserved_cash("alice") == 1000
    story.accept(order_id)
    assert (story.order(order_id).state, story.order(order_id).message) == (State.LIVE, "")


def test_an_unknown_user_or_execution_is_an_error():
    """The ledger would not be this desk's."""
    story = Story().open("alice")
    share = events.Share("nobody", Decimal(1))
    with pytest.raises(BookError):
        story.happen(events.ActivityPosted, activity_id="a", kind="DIV", shares=(share,))
    fill = Fill(1, "e", "", HOUSE, "", "AAPL", Side.BUY, dollars(1), dollars(1), dollars(0), story.events[0].at)
    story.events.pop()
    with pytest.raises(BookError):
        bust(story, fill)
