"""Whatever order acks, executions and ends come in, and however often: the same order, the same books."""

from datetime import timedelta
from decimal import Decimal as D

from book_story import START, Story, contents
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace as changed

from desk_server.brokers import BrokerEvent, What
from desk_server.domain import Side, State
from desk_server.events import Executed, HouseExecuted
from desk_server.settle import Unsettled, event_of


def tell(story: Story, said: BrokerEvent) -> bool:
    """Fold what is new in it; False where it cannot be settled yet."""
    book = story.book
    order = book.by_client_order_id(said.client_order_id)
    booked = book.executions_of(order.order_id)
    event = event_of(said, order, None, booked)
    if isinstance(event, Unsettled):
        return False
    if event is not None:
        story.events.append(event)
        book.fold(len(story.events), event)
    return True


def said(story: Story, order_id: str, what: What, **more: object) -> BrokerEvent:
    order = story.order(order_id)
    return BrokerEvent(
        what, order.client_order_id, f"b{order_id}", START, symbol=order.request.symbol, side=order.request.side, **more
    )


def fills(story: Story, order_id: str, parts: list[int]) -> list[BrokerEvent]:
    found, total = [], 0
    for qty in parts:
        total += qty
        execution = {"qty": D(qty), "price": D(100 + total), "filled_qty": D(total)}
        found.append(said(story, order_id, What.FILL, broker_execution_id=f"x{total}", **execution))
    return found


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_order_of_arrival_matters(data: st.DataObject):
    """An ack, executions told by the stream and by a poll under another name, an end: any order, any repetition."""
    parts = data.draw(st.lists(st.integers(1, 5), max_size=4))
    story = Story().open("alice")
    order_id = story.buy(30)
    told = fills(story, order_id, parts)
    polled = [changed(one, broker_execution_id=f"poll-{n}") for n, one in enumerate(told)]
    end = said(story, order_id, What.CANCELED, filled_qty=D(sum(parts)))
    everything = [said(story, order_id, What.ACCEPTED), *told, *polled, end, end]
    waiting = data.draw(st.permutations(everything + data.draw(st.lists(st.sampled_from(everything), max_size=5))))
    while waiting:
        left = [one for one in waiting if not tell(story, one)]
        assert len(left) < len(waiting)
        waiting = left
    order = story.order(order_id)
    assert (order.state, order.filled_qty) == (State.CANCELED, sum(parts))
    assert order.filled_value == sum(one.qty * one.price for one in told)
    assert len(story.book.fills) == len(parts)
    assert story.book.reserved_cash("alice") == 0
    assert contents(story.rebuilt()) == contents(story.book)


def test_a_place_is_booked_once_whatever_its_name():
    """The stream's id and the list's id differ; the part of the order they tell of is the same."""
    story = Story().open("alice")
    order_id = story.buy(10)
    (first,) = fills(story, order_id, [4])
    tell(story, first)
    for name in ("", "x4", "another"):
        assert event_of(changed(first, broker_execution_id=name), story.order(order_id), None, story.book.fills) is None
    assert story.book.fills[0].execution_id == f"b{order_id}:4"


def test_one_execution_told_as_two_and_two_as_one():
    """A list that sums up what the stream told apart tells nothing new; half of it is not made to fit."""
    story = Story().open("alice")
    order_id = story.buy(10)
    one, two = fills(story, order_id, [4, 3])
    both = changed(two, qty=D(7), broker_execution_id="both")
    tell(story, one)
    assert isinstance(event_of(both, story.order(order_id), None, story.book.fills), Unsettled)
    tell(story, two)
    assert event_of(both, story.order(order_id), None, story.book.fills) is None


def test_a_busted_place_is_free_again_and_the_busted_one_stays_away():
    """A correction is booked under a name of its own; the execution that was taken back is not booked again."""
    story = Story().open("alice")
    order_id = story.buy(10)
    (first,) = fills(story, order_id, [4])
    tell(story, first)
    tell(story, said(story, order_id, What.BUSTED, broker_execution_id="x4"))
    assert story.order(order_id).filled_qty == 0
    for again in (first, changed(first, broker_execution_id=""), changed(first, broker_execution_id="poll")):
        assert event_of(again, story.order(order_id), None, story.book.fills) is None
    right = changed(first, price=D(99), broker_execution_id="x4b", at=START + timedelta(seconds=9))
    tell(story, right)
    assert [fill.execution_id for fill in story.book.fills] == [f"b{order_id}:4", f"b{order_id}:4#1"]
    assert (story.order(order_id).filled_qty, story.order(order_id).filled_value) == (4, 396)
    tell(story, said(story, order_id, What.BUSTED, broker_execution_id="x4"))
    assert story.order(order_id).filled_qty == 4


def test_an_unknown_bust_is_not_guessed():
    """The broker's records must tell which one it means."""
    story = Story().open("alice")
    order_id = story.buy(10)
    tell(story, fills(story, order_id, [4])[0])
    assert not tell(story, said(story, order_id, What.BUSTED, broker_execution_id="who"))
    assert story.order(order_id).filled_qty == 4


def test_a_notional_order_is_filled_when_the_broker_says_so():
    """Its quantity is only known from its executions: the broker's word, with all of them booked, ends it."""
    story = Story().open("alice")
    order_id = story.buy(None, notional=D(1000))
    end = said(story, order_id, What.FILL, filled_qty=D(9))
    assert not tell(story, end)
    tell(story, fills(story, order_id, [9])[0])
    assert story.order(order_id).state is State.LIVE
    tell(story, end)
    assert story.order(order_id).state is State.FILLED


def test_executions_of_nobodys_order_are_the_houses_once():
    """They have places in their order like any other."""
    at = {"symbol": "AAPL", "side": Side.BUY, "qty": D(2), "price": D(10), "filled_qty": D(2)}
    fill = BrokerEvent(What.FILL, "theirs", "b1", START, broker_execution_id="x", account="acc", **at)
    event = event_of(fill, None, None, [])
    assert isinstance(event, HouseExecuted)
    assert (event.account, event.execution_id, event.broker_order_id) == ("acc", "b1:2", "b1")
    assert event_of(changed(fill, broker_execution_id="y"), None, None, [event]) is None


def test_the_same_batch_knows_its_own_executions():
    """Two reports of one execution may be read before either is in the book."""
    story = Story().open("alice")
    order_id = story.buy(10)
    (fill,) = fills(story, order_id, [4])
    first = event_of(fill, story.order(order_id), None, [])
    assert isinstance(first, Executed)
    assert event_of(changed(fill, broker_execution_id="poll"), story.order(order_id), None, [first]) is None
    end = said(story, order_id, What.CANCELED, filled_qty=D(4))
    assert not isinstance(event_of(end, story.order(order_id), None, [first]), Unsettled)
