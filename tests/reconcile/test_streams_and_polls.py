"""Polling alone suffices, the stream alone is faster, both together never double."""

from decimal import Decimal as D

import pytest
from msgspec.structs import replace as changed

from desk_server import events
from desk_server.brokers import BrokerEvent, BrokerUnknown, What
from desk_server.domain import OrderChange, OrderClass, State, StopLoss
from tests.desk.conftest import ALICE, BOB
from tests.reconcile.ground import request


async def test_polling_alone_brings_fills_and_ends(ground):
    """With a stream that says nothing, two looks later the books are the broker's."""
    ground.broker.stream = lambda said: []
    bought = await ground.desk.place(ALICE, request())
    resting = await ground.desk.place(BOB, request(limit_price=D(90)))
    await ground.desk.cancel(BOB, resting.order_id)
    await ground.look()
    assert ground.now(bought).state is State.FILLED
    assert ground.now(resting).state is State.CANCELED
    assert ground.held("alice") == 10
    ground.agree()


@pytest.mark.parametrize("stream_first", [True, False])
async def test_stream_and_polls_never_double(ground, stream_first):
    """They name an execution differently; its place in the order is the same."""
    later = []
    if not stream_first:
        ground.broker.stream = lambda said: later.append(said) or []
    order = await ground.desk.place(ALICE, request())
    await ground.look(2)
    for said in (*later, *later):
        await ground.keeper.on_broker_event(said)
    await ground.look(2)
    assert ground.now(order).filled_qty == 10
    assert len(ground.book.fills) == 1
    ground.agree()


async def test_an_end_waits_for_its_executions(ground):
    """Told canceled before the execution it had: the order stays open until the quantities agree."""
    order = await ground.desk.place(ALICE, request(limit_price=D(90)))
    await ground.heard()
    ground.broker.stream = lambda said: [] if said.what is What.FILL else [said]
    resting = ground.broker.exchange._orders[order.client_order_id]
    ground.broker.exchange._execute(resting, D(4), D(90))
    await ground.desk.cancel(ALICE, order.order_id)
    await ground.heard()
    assert ground.now(order).state is State.LIVE
    await ground.look()
    assert (ground.now(order).state, ground.now(order).filled_qty) == (State.CANCELED, 4)
    ground.agree()


async def test_a_legs_fill_before_its_name_is_known_is_not_the_houses(ground):
    """The broker names legs as it likes, and told of one before it answered: found through its parent."""
    ground.broker.answers_lost = 1
    exits = {"order_class": OrderClass.BRACKET, "take_profit": D(110), "stop_loss": StopLoss(D(90))}
    entry = await ground.desk.place(ALICE, request(**exits))
    await ground.line("AAPL", "111", "111.01")
    await ground.look(2)
    assert ground.now(entry).state is State.FILLED
    profit, stop = ground.book.legs(ground.now(entry))
    assert (profit.state, stop.state) == (State.FILLED, State.CANCELED)
    assert ground.held("alice") == 0
    assert not ground.book.foreign_orders()
    ground.agree()


async def test_legs_without_a_name_are_no_difference(ground):
    """The entry's acceptance came by the stream, which does not name its legs: they are asked for with the entry."""
    ground.broker.answers_lost = 1
    exits = {"order_class": OrderClass.BRACKET, "take_profit": D(110), "stop_loss": StopLoss(D(80))}
    entry = await ground.desk.place(ALICE, request(limit_price=D(90), **exits))
    await ground.keeper.settle([BrokerEvent(What.ACCEPTED, entry.client_order_id, "", ground.clock.now())])
    assert [leg.state for leg in ground.book.legs(ground.now(entry))] == [State.HELD, State.HELD]
    await ground.look()
    assert not ground.reconciler.report().differences
    assert all(leg.broker_order_id for leg in ground.book.legs(ground.now(entry)))


async def test_a_list_that_is_older_than_the_stream_takes_nothing_back(ground):
    """While the broker drew up its list, the stream told of a newer status: that one stays."""
    order = await ground.desk.place(ALICE, request(limit_price=D(90)))
    await ground.until_live(order)
    said = BrokerEvent(What.RELEASED, order.client_order_id, "", ground.clock.now(), status="accepted")
    await ground.keeper.settle([said])
    orders = ground.broker.orders

    async def slow(since):
        listed = [changed(one, status="accepted") for one in await orders(since)]
        await ground.keeper.settle([changed(said, status="new")])
        return listed

    ground.broker.orders = slow
    await ground.look()
    assert ground.now(order).status == "new"


async def test_a_replacement_is_found_by_polling(ground):
    """Its answer and its events are lost, and so is what the old order had executed."""
    ground.broker.stream = lambda said: []
    old = await ground.desk.place(ALICE, request(limit_price=D(90)))
    ground.broker.exchange._execute(ground.broker.exchange._orders[old.client_order_id], D(3), D(90))
    await ground.look()
    ground.broker.answers_lost = 1
    new = await ground.desk.replace(ALICE, old.order_id, OrderChange(qty=D(8), limit_price=D(101)))
    await ground.look(2)
    assert ground.now(old).state is State.REPLACED
    assert (ground.now(new).state, ground.now(new).filled_qty, ground.held("alice")) == (State.FILLED, 5, 8)
    ground.agree()


async def test_an_order_given_up_lives_when_the_broker_shows_it(ground):
    """NOT_SENT was wrong: its execution is booked, with an alarm, and nobody loses a share."""
    ground.broker.stream = lambda said: []
    ground.broker.answers_lost = 1
    order = await ground.desk.place(ALICE, request())
    await ground.keeper.record(events.OrderNotSent(at=ground.clock.now(), order_id=order.order_id, reason="wrong"))
    await ground.look(2)
    assert (ground.now(order).state, ground.held("alice")) == (State.FILLED, 10)
    ground.agree()


async def test_a_look_that_fails_changes_nothing(ground):
    """The reason is told, and the next look catches up."""
    ground.broker.stream = lambda said: []
    order = await ground.desk.place(ALICE, request())
    ground.broker.is_down = True
    with pytest.raises(BrokerUnknown):
        await ground.look()
    assert ground.now(order).filled_qty == 0
    ground.clock.advance(120)
    assert "122 s ago" in ground.reconciler.problem()
    ground.broker.is_down = False
    await ground.look()
    assert ground.reconciler.problem() == ""
    ground.agree()
