"""What overtakes what: answers, fills, cancels, replaces and restarts in every unlucky order."""

import asyncio
from decimal import Decimal as D

import pytest
from msgspec.structs import replace

from desk_server.brokers import BrokerUnknown
from desk_server.domain import OrderChange, OrderClass, OrderType, State, StopLoss, UserId
from desk_server.errors import Code
from desk_server.events import ReplaceIntended
from desk_server.ledger import LedgerUnavailable
from tests.desk.conftest import ADMIN, ALICE
from tests.desk.test_order_path import BID, BUY, SELL, named, refused

BRACKET = replace(BID, order_class=OrderClass.BRACKET, take_profit=D(110), stop_loss=StopLoss(D(90)))


async def test_a_cancel_is_asked_for_until_the_broker_has_heard_it(run):
    """However often the wire breaks: a cancel that was answered is never forgotten."""
    order = await run.desk.place(ALICE, BID)
    run.broker.cancel_faults = ["lost"] * 4
    await run.desk.cancel(ALICE, order.order_id)
    await run.ended(order, "canceled")
    assert len(run.broker.cancels) == 5


async def test_a_cancel_of_a_leg_overtakes_its_entry(run):
    """A leg cancelled while its entry is on its way is cancelled once the broker has it."""
    run.broker.gate = asyncio.Event()
    placing = asyncio.create_task(run.desk.place(ALICE, BRACKET))
    await run.until(lambda: len(run.broker.submits) == 1)
    leg = next(order for order in run.desk.book.open_orders(UserId("alice")) if order.leg)
    await run.desk.cancel(ALICE, leg.order_id)
    run.broker.gate.set()
    await placing
    await run.ended(leg, "canceled")


async def test_a_cancel_of_a_replacement_overtakes_it(run):
    """A replacement cancelled while the broker is being asked for it does not work on."""
    old = await run.desk.place(ALICE, BID)
    run.broker.gate = asyncio.Event()
    replacing = asyncio.create_task(run.desk.replace(ALICE, old.order_id, OrderChange(limit_price=D(96))))
    await run.until(lambda: run.desk.book.replacing)
    (new_id,) = run.desk.book.replacing.values()
    await run.desk.cancel(ALICE, new_id)
    run.broker.gate.set()
    new = await replacing
    await run.ended(new, "canceled")
    assert not run.desk.book.open_orders()


async def test_a_fill_before_the_answer_is_in_the_answer(run):
    """What is answered is never older than what the broker has said."""
    run.broker.gate_back = asyncio.Event()
    placing = asyncio.create_task(run.desk.place(ALICE, BUY))
    await run.until(lambda: run.desk.book.position("alice", "AAPL").qty == D(10))
    run.broker.gate_back.set()
    order = await placing
    assert order.status == "filled"
    assert run.desk.order(ALICE, order.order_id).status == "filled"
    await refused(Code.NOT_CANCELABLE, run.desk.cancel(ALICE, order.order_id))


async def test_an_order_that_arrives_after_all_is_not_rejected(run):
    """It was given up, sent again, and had arrived in the meantime: the broker has it, and so has the book."""
    run.broker.faults = ["late"]
    order = await run.desk.place(ALICE, BID)
    assert order.status == "unknown"
    working = await run.ended(order, "new")
    assert set(run.broker.submits) == {order.client_order_id}
    assert (await run.broker.find(working)).status == "new"


async def test_a_replacement_that_arrives_after_all_takes_the_old_order_s_place(run):
    """Even when it had been given up: the broker's word counts."""
    old = await run.desk.place(ALICE, BID)
    run.broker.faults = ["late"]
    new = await run.desk.replace(ALICE, old.order_id, OrderChange(limit_price=D(96)))
    await run.until(lambda: run.now(new).state is State.REJECTED)
    await run.desk.place(ALICE, BID)
    await run.ended(old, "replaced")
    assert (await run.ended(new, "new")).reserved_cash == D(960)


async def test_what_may_still_be_under_way_is_not_given_up(run):
    """A broker whose lookups lag has its time to find an order that was cancelled meanwhile."""
    run.broker.paper.capabilities = replace(run.broker.capabilities, lookup_lag_s=0.3)
    run.broker.faults = ["lost"]
    run.broker.find_faults = 1
    order = await run.desk.place(ALICE, BID)
    await run.desk.cancel(ALICE, order.order_id)
    await asyncio.sleep(0.2)
    assert run.now(order).state is State.QUARANTINE
    await run.ended(order, "not_sent")


async def test_a_replaced_leg_caught_by_a_crash_is_resolved(run):
    """The replacement of a leg that was on its way when the desk died is looked up, and the old leg stands."""
    entry = await run.desk.place(ALICE, replace(BRACKET, type=OrderType.MARKET, limit_price=None))
    target = run.desk.book.legs(entry)[0]
    await run.ended(target, "new")
    run.broker.gate = asyncio.Event()
    replacing = asyncio.create_task(run.desk.replace(ALICE, target.order_id, OrderChange(limit_price=D(112))))
    await run.until(lambda: run.desk.book.replacing)
    (new_id,) = run.desk.book.replacing.values()
    replacing.cancel()
    second = await run.restarted()
    second.line()
    await second.until(lambda: second.desk.book.orders[new_id].state is State.REJECTED)
    assert second.now(target).state is State.LIVE
    assert not second.desk.book.replacing
    await second.stop()


async def test_an_order_is_not_replaced_twice_while_the_first_replace_is_in_doubt(run):
    """Until it is known what became of the first replacement, there is no second."""
    old = await run.desk.place(ALICE, BID)
    run.broker.faults, run.broker.find_faults = ["mute"], 2
    new = await run.desk.replace(ALICE, old.order_id, OrderChange(limit_price=D(96)))
    if run.now(old).state is State.LIVE:
        await refused(Code.NOT_REPLACEABLE, run.desk.replace(ALICE, old.order_id, OrderChange(limit_price=D(97))))
    await run.ended(new, "new")
    await run.ended(old, "replaced")


async def test_a_halt_between_a_replace_s_intent_and_the_broker_stops_it(run, monkeypatch):
    """A replacement is an order: after a halt was acknowledged, none goes out."""
    old = await run.desk.place(ALICE, BID)
    record = run.keeper.record

    async def halt_first(*events):
        await record(*events)
        if isinstance(events[0], ReplaceIntended):
            await run.desk.set_halt(ADMIN, "desk", "", True, "now")

    monkeypatch.setattr(run.keeper, "record", halt_first)
    await refused(Code.NOT_REPLACEABLE, run.desk.replace(ALICE, old.order_id, OrderChange(limit_price=D(96))))
    assert (await run.broker.find(old)).status == "new"
    assert run.desk.book.reserved_cash("alice") == D(950)


async def test_a_replace_that_failed_fails_alike_when_asked_again(run):
    """The same change under the same id has the same answer; another change does not."""
    old = await run.desk.place(ALICE, BID)
    run.broker.gate = asyncio.Event()
    change = OrderChange(limit_price=D(96), request_id="c1")
    replacing = asyncio.create_task(run.desk.replace(ALICE, old.order_id, change))
    await run.until(lambda: run.desk.book.replacing)
    run.line(ask="94.9", bid="94.8")
    await run.ended(old, "filled")
    run.broker.gate.set()
    first = await refused(Code.NOT_REPLACEABLE, replacing)
    again = await refused(Code.NOT_REPLACEABLE, run.desk.replace(ALICE, old.order_id, change))
    assert (again.message, again.order_id) == (first.message, first.order_id)
    other = OrderChange(qty=D(10), request_id="c1")
    await refused(Code.KEY_REUSED, run.desk.replace(ALICE, old.order_id, other))


async def test_a_twin_of_what_is_no_order_answers_for_itself(run):
    """Two requests under one id at once, the first of which is refused and not recorded: the second is an order."""
    wrong = named(replace(BID, limit_price=D("95.001")), "r1")
    outcomes = await asyncio.gather(
        run.desk.place(ALICE, wrong), run.desk.place(ALICE, named(BID, "r1")), return_exceptions=True
    )
    assert outcomes[0].code is Code.INVALID
    assert outcomes[1].status == "new"


async def test_a_twin_waits_for_the_broker_s_answer(run):
    """Who asks again while the first request is under way is answered as the first is."""
    run.broker.gate = asyncio.Event()
    first = asyncio.create_task(run.desk.place(ALICE, named(BID, "r1")))
    await run.until(lambda: len(run.broker.submits) == 1)
    second = asyncio.create_task(run.desk.place(ALICE, named(BID, "r1")))
    await asyncio.sleep(0.02)
    run.broker.gate.set()
    assert await first == await second
    assert (await first).status == "new"


async def test_a_bookkeeper_that_fails_stops_the_trade(run, monkeypatch):
    """When what the broker says cannot be taken in any more, the desk says so, sends nothing, and can be stopped."""
    monkeypatch.setattr("desk_server.bookkeeper.event_of", lambda *_: 1 / 0)
    await run.desk.place(ALICE, BUY)
    await run.until(run.desk.problems)
    sent = len(run.broker.submits)
    await refused(Code.NOT_READY, run.desk.place(ALICE, BID))
    assert len(run.broker.submits) == sent
    async with asyncio.timeout(10):
        await run.stop()


async def test_a_desk_whose_ledger_is_full_can_be_stopped(run, monkeypatch):
    """What the broker said and cannot be written is asked for again at the next start."""
    bought = await run.desk.place(ALICE, BID)
    await run.until(lambda: run.now(bought).state is State.LIVE)
    append = run.ledger.append
    monkeypatch.setattr(run.ledger, "append", _full)
    monkeypatch.setattr("desk_server.bookkeeper._LAST_WRITES_S", 0.2, raising=False)
    run.line(ask="94.9", bid="94.8")
    await run.until(run.desk.problems)
    async with asyncio.timeout(10):
        await run.stop()
    monkeypatch.setattr(run.ledger, "append", append)
    second = await run.anew(run.directory)
    second.line(ask="94.9", bid="94.8")
    await second.ended(bought, "filled")
    await second.stop()


async def test_cancel_all_says_when_it_could_not(run, monkeypatch):
    """A ledger that cannot be written is no reason to look as if all had been cancelled."""
    order = await run.desk.place(ALICE, BID)
    await run.until(lambda: run.now(order).state is State.LIVE)
    monkeypatch.setattr(run.ledger, "append", _full)
    await refused(Code.LEDGER, run.desk.cancel_all(ALICE, UserId("alice"), frozenset()))


async def test_looking_an_order_up_goes_on_after_a_surprise(run, monkeypatch):
    """An error that nobody thought of leaves the order in doubt, not forgotten."""
    find, surprises = run.broker.find, [ZeroDivisionError("a bug"), BrokerUnknown("503")]

    async def odd(client_order_id):
        if surprises:
            raise surprises.pop(0)
        return await find(client_order_id)

    monkeypatch.setattr(run.broker, "find", odd)
    run.broker.faults = ["lost"]
    order = await run.desk.place(ALICE, BID)
    await run.ended(order, "new")
    assert not surprises


async def test_refusals_come_no_faster_than_the_rate(run, monkeypatch):
    """A refusal is recorded, so who is over the rate is told to wait, whatever else is wrong."""
    await refused(Code.NOT_OWNED, run.desk.place(ALICE, SELL))
    monkeypatch.setattr(run.desk._throttle, "take", lambda _: 2.0)
    before = len(run.desk.book.orders)
    error = await refused(Code.THROTTLED, run.desk.place(ALICE, SELL))
    assert error.retry_after_s == 2.0
    assert len(run.desk.book.orders) == before


@pytest.mark.parametrize("stop_limit", [None, D("112")])
async def test_exits_that_buy_are_paid_for(run, stop_limit):
    """What a sale brings may be spent elsewhere: the exits that buy back hold the cash that they may need."""
    await run.ended(await run.desk.place(ALICE, BUY), "filled")
    exits = StopLoss(D(110), stop_limit)
    sale = replace(SELL, order_class=OrderClass.BRACKET, take_profit=D(90), stop_loss=exits)
    entry = await run.desk.place(ALICE, sale)
    await run.ended(entry, "filled")
    assert run.desk.book.reserved_cash("alice") == 10 * (stop_limit or D(110))
    await run.desk.cancel(ALICE, run.desk.book.legs(entry)[0].order_id)
    await run.until(lambda: not run.desk.book.open_orders())
    assert run.desk.book.reserved_cash("alice") == 0
    buy_back = replace(
        BUY, type=OrderType.LIMIT, order_class=OrderClass.OCO, take_profit=D(90), stop_loss=exits, qty=D(1)
    )
    await run.desk.place(ALICE, buy_back)
    assert run.desk.book.reserved_cash("alice") == stop_limit or D(110)


async def test_an_oco_arrived_unheard_survives_a_crash(run):
    """The leg of an OCO works while nobody has heard of the other order: that one lives, too, after a restart."""
    await run.ended(await run.desk.place(ALICE, BUY), "filled")
    run.broker.gate_back = asyncio.Event()
    oco = replace(SELL, type=OrderType.LIMIT, order_class=OrderClass.OCO, take_profit=D(110), stop_loss=StopLoss(D(90)))
    placing = asyncio.create_task(run.desk.place(ALICE, oco))
    await run.until(lambda: any(order.leg and order.state is State.LIVE for order in run.desk.book.open_orders()))
    placing.cancel()
    second = await run.restarted()
    second.line()
    await second.until(lambda: all(order.state is State.LIVE for order in second.desk.book.open_orders()))
    second.line(bid="111", ask="111.01")
    await second.until(lambda: not second.desk.book.open_orders())
    assert second.desk.book.position("alice", "AAPL").qty == 0
    await second.stop()


async def test_readers_who_leave_are_forgotten(run):
    """A stream of updates that is given up while nothing happens leaves nothing behind."""
    ring = run.desk.updates._everybody
    reading = [asyncio.create_task(anext(run.desk.updates.subscribe(None, None))) for _ in range(20)]
    await run.until(lambda: len(ring.waiting) == 20)
    for task in reading:
        task.cancel()
    await asyncio.gather(*reading, return_exceptions=True)
    assert not ring.waiting


def _full(*_events):
    future = asyncio.get_running_loop().create_future()
    future.set_exception(LedgerUnavailable("disk full"))
    return future
