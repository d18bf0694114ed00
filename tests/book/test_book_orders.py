"""How orders move from state to state, whatever order the broker's words come in."""

import pytest
from book_story import Story

from desk_server import events
from desk_server.book import BookError
from desk_server.domain import Leg, OrderClass, OrderId, Side, State


@pytest.fixture
def story() -> Story:
    return Story().open("alice").open("bob")


def words(changes: tuple) -> list[str]:
    return [change.word for change in changes]


def test_an_order_is_sent_accepted_and_filled(story: Story):
    """The plain way: pending, accepted, partially filled, filled, with the broker's id known."""
    order_id = story.buy(10, reserved=1000)
    assert story.order(order_id).status == "pending"
    assert words(story.accept(order_id)) == ["accepted"]
    assert story.order(order_id).status == "new"
    (change,) = story.fill(order_id, 4, 99)
    assert (change.word, change.order.status, change.fill.qty) == ("partial_fill", "partially_filled", 4)
    (change,) = story.fill(order_id, 6, 100)
    assert (change.word, change.order.status, change.seq) == ("fill", "filled", 6)
    order = story.order(order_id)
    assert (order.filled_qty, order.filled_value, order.filled_avg_price * 10) == (10, 996, 996)
    assert story.book.by_broker_order_id(f"b{order_id}") == order
    assert story.book.by_client_order_id(order.client_order_id) == order
    assert story.book.open_orders() == [] and story.book.open_count("alice") == 0


def test_a_fill_before_the_acceptance_counts(story: Story):
    """An execution proves that the order lives; the acceptance that follows only names it."""
    order_id = story.buy(10)
    story.fill(order_id, 4, 100)
    assert story.order(order_id).state is State.LIVE
    story.accept(order_id)
    story.fill(order_id, 6, 100)
    assert story.order(order_id).state is State.FILLED
    other = story.buy(5)
    story.fill(other, 5, 100)
    assert story.accept(other) == ()
    assert story.order(other).state is State.FILLED
    assert story.order(other).broker_order_id == f"b{other}"


@pytest.mark.parametrize("end", [State.CANCELED, State.EXPIRED])
def test_a_late_fill_is_booked_and_the_end_stands(story: Story, end: State):
    """After a cancel that a fill overtook, shares and cash move; the order stays over."""
    order_id = story.buy(10, reserved=1000)
    story.accept(order_id)
    story.end(order_id, end)
    assert story.book.reserved_cash("alice") == 0
    story.fill(order_id, 4, 100)
    assert (story.order(order_id).state, story.order(order_id).filled_qty) == (end, 4)
    assert story.book.position("alice", "AAPL").qty == 4
    assert story.book.reserved_cash("alice") == 0
    assert story.book.open_orders("alice") == []


def test_late_fills_that_complete_an_order_make_it_filled(story: Story):
    """A cancel of which nothing was left was none."""
    order_id = story.buy(10)
    story.accept(order_id)
    story.end(order_id)
    story.fill(order_id, 10, 100)
    assert story.order(order_id).state is State.FILLED


def test_ends_are_not_left(story: Story):
    """Whatever the broker or the desk says after an order's end changes nothing about it."""
    order_id = story.buy(10)
    story.accept(order_id)
    story.end(order_id)
    ended = story.order(order_id)
    assert story.end(order_id, State.EXPIRED) == ()
    for kind, fields in [
        (events.OrderAccepted, {"broker_order_id": f"b{order_id}"}),
        (events.OrderUnknown, {"reason": "timeout"}),
        (events.OrderRejected, {"code": "X", "message": "late"}),
        (events.OrderNotSent, {"reason": "late"}),
        (events.OrderReleased, {}),
        (events.CancelRequested, {"by": "alice"}),
        (events.CancelRejected, {"message": "late"}),
    ]:
        assert story.happen(kind, order_id=order_id, **fields) == ()
    assert story.order(order_id) == ended


@pytest.mark.parametrize("proof", ["accepted", "released", "executed"])
@pytest.mark.parametrize("end", [events.OrderRejected, events.OrderNotSent])
def test_a_rejected_order_comes_back_when_the_broker_proves_it_lives(story: Story, end: type, proof: str):
    """The one way out of an end, with the reservation as it was."""
    order_id = story.buy(10, reserved=1000)
    why = {"code": "X", "message": "no"} if end is events.OrderRejected else {"reason": "never got it"}
    (change,) = story.happen(end, order_id=order_id, **why)
    assert change.word == "rejected" and not change.order.state.is_open
    assert story.book.reserved_cash("alice") == 0
    if proof == "accepted":
        story.accept(order_id)
    elif proof == "released":
        story.happen(events.OrderReleased, order_id=order_id)
    else:
        story.fill(order_id, 4, 100)
    order = story.order(order_id)
    assert (order.state, order.code, order.message) == (State.LIVE, "", "")
    assert story.book.reserved_cash("alice") == (600 if proof == "executed" else 1000)
    assert story.book.open_orders("alice") == [order]
    story.end(order_id)
    assert story.book.reserved_cash("alice") == 0


def test_silence_is_unknown_only_while_nothing_is_known(story: Story):
    """A lost answer makes SENDING unknown; it does not make a working order unknown."""
    order_id = story.buy(10)
    (change,) = story.happen(events.OrderUnknown, order_id=order_id, reason="timeout")
    assert (change.word, change.order.state, change.order.message) == ("unknown", State.UNKNOWN, "timeout")
    story.accept(order_id)
    assert story.order(order_id).message == ""
    assert story.happen(events.OrderUnknown, order_id=order_id, reason="timeout") == ()
    assert story.order(order_id).state is State.LIVE


def test_a_cancel_may_be_asked_for_and_refused(story: Story):
    """While asked for, the order shows pending_cancel; a refusal takes that back and says why."""
    order_id = story.buy(10)
    story.accept(order_id)
    (change,) = story.happen(events.CancelRequested, order_id=order_id, by="alice")
    assert (change.word, change.order.status) == ("cancel_requested", "pending_cancel")
    (change,) = story.happen(events.CancelRejected, order_id=order_id, message="too late")
    assert (change.word, change.order.status, change.order.message) == ("cancel_rejected", "new", "too late")


def test_refusals_are_kept_and_hold_nothing(story: Story):
    """A refused order is found by its request id, is over, and reserves nothing."""
    order = story.new_order(Side.BUY, 10, request_id="r1", reserved=1000, code="COLLAR", message="too far")
    (change,) = story.happen(events.OrderRefused, order=order)
    assert (change.word, change.order.state) == ("refused", State.REFUSED)
    assert story.book.by_request("alice", "r1").code == "COLLAR"
    assert story.book.by_request("bob", "r1") is None
    assert story.book.reserved_cash("alice") == 0 and story.book.open_orders("alice") == []


def test_legs_are_held_until_released_and_end_with_a_rejected_entry(story: Story):
    """Accepting a bracket holds its legs; rejecting one ends them, each with an update of its own."""
    entry, profit, stop = story.bracket(10)
    assert words(story.accept(entry, legs=("tp", "sl"))) == ["accepted"] * 3
    assert [leg.state for leg in story.book.legs(story.order(entry))] == [State.HELD, State.HELD]
    assert story.book.by_broker_order_id("sl").order_id == stop
    story.fill(entry, 10, 100)
    story.happen(events.OrderReleased, order_id=profit)
    assert story.order(profit).status == "new"
    assert story.order(stop).status == "held"

    entry, profit, stop = story.bracket(10)
    changes = story.happen(events.OrderRejected, order_id=entry, code="X", message="no")
    assert [(change.word, change.order.order_id) for change in changes] == [
        ("rejected", entry),
        ("rejected", profit),
        ("rejected", stop),
    ]
    assert len(story.accept(entry)) == 3
    assert story.order(stop).state is State.HELD


def test_a_fill_that_overtakes_the_acceptance_holds_the_legs_too(story: Story):
    """The broker that executes an entry has its legs."""
    entry, profit, _ = story.bracket(10)
    story.fill(entry, 4, 100)
    assert story.order(profit).state is State.HELD
    story.accept(entry, legs=("tp", "sl"))
    assert story.order(profit).broker_order_id == "tp"


def test_a_replace_puts_the_new_order_in_the_old_ones_place(story: Story):
    """The old one keeps what it had filled; the new one has the rest of the new total."""
    old = story.buy(10, reserved=1000)
    story.accept(old)
    story.fill(old, 3, 100)
    new = story.replace(old, 17, reserved=1700, request_id="r2")
    assert story.order(new).status == "pending"
    assert story.book.by_request("alice", "r2").order_id == new
    assert words(story.replaced(old, new, 17)) == ["replaced", "accepted"]
    assert (story.order(old).state, story.order(old).filled_qty) == (State.REPLACED, 3)
    assert (story.order(old).replaced_by, story.order(new).replaces) == (new, old)
    assert story.book.total_qty(story.order(new)) == 20
    story.fill(new, 17, 100)
    assert story.order(new).state is State.FILLED
    assert story.book.position("alice", "AAPL").qty == 20


def test_a_refused_replace_leaves_the_old_order_alone(story: Story):
    """The new one is rejected with the broker's words; the old one works on and can be replaced again."""
    old = story.buy(10, reserved=1000)
    story.accept(old)
    new = story.replace(old, 20, reserved=2000)
    changes = story.happen(events.ReplaceRejected, order_id=old, new_order_id=new, code="X", message="no")
    assert [(change.word, change.order.order_id) for change in changes] == [
        ("replace_rejected", old),
        ("rejected", new),
    ]
    assert story.order(old).status == "new"
    assert story.book.reserved_cash("alice") == 1000
    assert story.book.replacing == {}
    again = story.replace(old, 5, reserved=500)
    story.replaced(old, again, 5)
    assert story.book.reserved_cash("alice") == 500


def test_a_fill_of_the_new_order_proves_the_replace(story: Story):
    """Even before the broker says so, the old order is over; its later word still sets the quantity."""
    old = story.buy(10, reserved=1000)
    story.accept(old)
    new = story.replace(old, 20, reserved=2000)
    assert words(story.fill(new, 5, 100)) == ["replaced", "partial_fill"]
    assert story.order(old).state is State.REPLACED
    assert words(story.replaced(old, new, 18)) == ["accepted"]
    assert story.order(new).qty == 18
    assert story.replaced(old, new, 18) == ()
    story.fill(new, 13, 100)
    assert story.order(new).state is State.FILLED
    assert story.book.reserved_cash("alice") == 0


def test_a_replace_that_was_thought_rejected_comes_back(story: Story):
    """The broker's word that it did replace is the last one."""
    old = story.buy(10, reserved=1000)
    story.accept(old)
    new = story.replace(old, 20, reserved=2000)
    story.happen(events.ReplaceRejected, order_id=old, new_order_id=new, code="X", message="no")
    story.replaced(old, new, 20)
    assert (story.order(old).state, story.order(new).state) == (State.REPLACED, State.LIVE)
    assert story.book.reserved_cash("alice") == 2000
    assert [order.order_id for order in story.book.open_orders("alice")] == [new]


def test_a_late_fill_of_a_replaced_order_is_booked_to_it(story: Story):
    """It belongs to the old order, which stays replaced."""
    old = story.buy(10)
    story.accept(old)
    new = story.replace(old, 10)
    story.replaced(old, new, 7)
    story.fill(old, 3, 100)
    assert (story.order(old).state, story.order(old).filled_qty) == (State.REPLACED, 3)
    story.fill(new, 7, 100)
    assert story.order(new).state is State.FILLED


def test_a_replaced_leg_stands_under_its_entry(story: Story):
    """The new leg takes the old one's place among the legs, and a replaced entry's legs move to the new entry."""
    entry, profit, stop = story.bracket(10)
    story.accept(entry)
    new_profit = story.replace(profit, 10)
    story.replaced(profit, new_profit, 10)
    assert story.order(entry).leg_ids == (new_profit, stop)
    assert story.order(new_profit).parent_id == entry
    new_entry = story.replace(entry, 10)
    story.replaced(entry, new_entry, 10)
    assert story.order(new_entry).leg_ids == (new_profit, stop)
    assert story.order(stop).parent_id == new_entry


def test_a_notional_order_is_filled_when_its_dollars_are_spent(story: Story):
    """Its quantity is what its executions say; the request stays as it was asked."""
    order_id = story.buy(None, notional=1000, reserved=1000)
    story.accept(order_id)
    story.fill(order_id, "1.5", 400)
    assert story.order(order_id).state is State.LIVE
    assert story.book.reserved_cash("alice") == 400
    story.fill(order_id, "0.999999999", 400)
    order = story.order(order_id)
    assert (order.state, order.qty, order.request.notional) == (State.FILLED, None, 1000)
    assert story.book.reserved_cash("alice") == 0
    other = story.buy(None, notional=1000, reserved=1000)
    story.fill(other, 2, 400)
    (change,) = story.end(other, State.FILLED)
    assert (change.word, change.order.state) == ("fill", State.FILLED)


def test_events_about_nothing_known_are_errors_and_change_nothing(story: Story):
    """An execution of an unknown order, an order without an account, or an event out of turn cannot be folded."""
    seq = story.book.seq
    with pytest.raises(BookError, match="no event has opened order nope"):
        story.fill("nope", 1, 1)
    story.events.pop()
    with pytest.raises(BookError, match="carol, who has no account"):
        story.buy(1, "carol")
    with pytest.raises(BookError, match=f"event {seq + 2} cannot follow event {seq}"):
        story.book.fold(seq + 2, story.events[0])
    assert story.book.seq == seq
    assert story.book.orders == {}


def test_orders_are_listed_newest_first_in_pages(story: Story):
    """Pages join without gap or repetition while new orders come in; users see their own only."""
    mine = [story.buy(1, symbol="AAPL" if number % 2 else "MSFT") for number in range(7)]
    story.buy(1, "bob")
    page, token = story.book.orders_of("alice", limit=3)
    assert [order.order_id for order in page] == mine[:3:-1]
    story.buy(1)
    rest, token = story.book.orders_of("alice", limit=3, page_token=token)
    assert [order.order_id for order in rest] == mine[3:0:-1]
    last, token = story.book.orders_of("alice", limit=3, page_token=token)
    assert ([order.order_id for order in last], token) == (mine[:1], "")
    assert len(story.book.orders_of(None)[0]) == 9
    with pytest.raises(ValueError, match="page_token 'x' is not one"):
        story.book.orders_of("alice", page_token="x")


def test_orders_are_listed_by_filter(story: Story):
    """Open or closed, by symbol, side, strategy and time; an entry is open while a leg is."""
    closed = story.bought(10, 100)
    open_buy = story.buy(1, symbol="MSFT", strategy="other")
    open_sell = story.sell(5)
    entry, profit, stop = story.bracket(10)
    story.accept(entry)
    story.fill(entry, 10, 100)

    def listed(**filters: object) -> list[OrderId]:
        return [order.order_id for order in story.book.orders_of("alice", **filters)[0]]

    assert listed() == [entry, open_sell, open_buy, closed]
    assert listed(is_open=True) == [entry, open_sell, open_buy]
    assert listed(is_open=False) == [closed]
    assert listed(symbols={"MSFT"}) == [open_buy]
    assert listed(side=Side.SELL) == [open_sell]
    assert listed(strategy="other") == [open_buy]
    at = story.order(open_sell).created_at
    assert listed(after=at) == [entry, open_sell]
    assert listed(until=at) == [open_buy, closed]
    story.end(profit)
    story.end(stop)
    assert listed(is_open=False) == [entry, closed]
    page, token = story.book.orders_of("alice", is_open=True, limit=1)
    assert [order.order_id for order in page] == [open_sell]
    assert story.book.orders_of("alice", is_open=True, limit=1, page_token=token) == ([story.order(open_buy)], "")


def test_fills_are_listed_newest_first(story: Story):
    """By user, symbol and order, in pages."""
    order_id = story.buy(10)
    for _ in range(5):
        story.fill(order_id, 1, 100)
    other = story.buy(1, symbol="MSFT")
    story.fill(other, 1, 50)
    story.bought(1, 100, "bob")
    page, token = story.book.fills_of("alice", limit=4)
    rest, end = story.book.fills_of("alice", limit=4, page_token=token)
    seqs = [fill.seq for fill in (*page, *rest)]
    assert (len(seqs), end) == (6, "") and seqs == sorted(seqs, reverse=True)
    assert [fill.symbol for fill in story.book.fills_of("alice", symbol="MSFT")[0]] == ["MSFT"]
    assert len(story.book.fills_of("alice", order_id=order_id)[0]) == 5
    assert story.book.fills_of("bob", order_id=order_id)[0] == []
    assert len(story.book.fills_of(None)[0]) == 7


def test_halts_name_their_scope_and_reason(story: Story):
    """Of the desk, a user, one strategy of a user, or a symbol; lifted by the same name."""
    book = story.book
    assert book.halted("alice", "s", "AAPL") == ""
    for scope, name, not_hit in [
        ("symbol", "AAPL", ("alice", "s", "MSFT")),
        ("strategy", "alice/s", ("bob", "s", "AAPL")),
        ("user", "alice", ("bob", "s", "AAPL")),
    ]:
        story.happen(events.HaltSet, scope=scope, name=name, halted=True, reason="too wild", by="admin")
        assert book.halted("alice", "s", "AAPL") == f"the {scope} {name} is halted by admin: too wild"
        assert book.halted(*not_hit) == ""
        story.happen(events.HaltSet, scope=scope, name=name, halted=False, reason="", by="admin")
        assert book.halted("alice", "s", "AAPL") == ""
    story.happen(events.HaltSet, scope="desk", name="", halted=True, reason="", by="admin")
    assert book.halted("bob", "x", "MSFT") == "the desk is halted by admin: no reason given"


def test_a_leg_that_works_proves_its_entry(story: Story):
    """An OCO of which only the stop was heard of: its other order works, too, were it unknown or given up."""
    for end in (None, events.OrderUnknown, events.OrderNotSent):
        main = story.new_order(Side.BUY, 10, limit_price=90, take_profit=90, order_class=OrderClass.OCO, reserved=1100)
        stop = story.new_order(Side.BUY, 10, parent_id=main.order_id, leg=Leg.STOP_LOSS)
        story.intend(main, stop)
        if end is not None:
            story.happen(end, order_id=main.order_id, reason="the wire broke")
        changes = story.happen(events.OrderReleased, order_id=stop.order_id, status="accepted")
        assert {story.order(one.order_id).status for one in (main, stop)} == {"accepted"}
        assert {story.order(one.order_id).state for one in (main, stop)} == {State.LIVE}
        assert words(changes)[-1] == "accepted"
        assert story.book.reserved_cash("alice") == 1100
        story.happen(events.OrderEnded, order_id=main.order_id, state=State.CANCELED)
        story.happen(events.OrderEnded, order_id=stop.order_id, state=State.CANCELED)
        assert story.book.reserved_cash("alice") == 0


def test_a_release_is_newer_than_the_answer_that_it_overtook(story: Story):
    """An order that waited for the opening and works already does not wait again when its acceptance is told."""
    order = story.buy(10)
    story.happen(events.OrderReleased, order_id=order)
    story.happen(events.OrderAccepted, order_id=order, broker_order_id="b", status="accepted")
    assert story.order(order).status == "new"
    assert story.book.by_broker_order_id("b").order_id == order


def test_legs_of_an_entry_that_was_released_unheard_are_held(story: Story):
    """A bracket sent before the opening, of which the first word is that it works: the broker has its legs."""
    entry, profit, stop = story.bracket(10)
    story.happen(events.OrderReleased, order_id=entry)
    assert story.order(entry).state is State.LIVE
    assert {story.order(leg).state for leg in (profit, stop)} == {State.HELD}


def test_legs_of_an_entry_that_ended_unheard_are_held(story: Story):
    """The end is the first that is heard of a bracket: the broker has its legs until it ends them, too."""
    entry, profit, stop = story.bracket(10)
    story.happen(events.OrderEnded, order_id=entry, state=State.CANCELED)
    assert story.order(entry).state is State.CANCELED
    assert {story.order(leg).state for leg in (profit, stop)} == {State.HELD}
    for leg in (profit, stop):
        story.happen(events.OrderEnded, order_id=leg, state=State.CANCELED)
    assert not story.book.open_orders()
