"""The recovery state machine: what becomes of orders and cancels that the broker did not simply answer."""

import asyncio
from datetime import timedelta
from decimal import Decimal as D

import pytest
from msgspec.structs import replace

from desk_server import resolve
from desk_server.brokers import BrokerEvent, BrokerThrottled, BrokerUnknown, What
from desk_server.domain import Order, OrderChange, State
from desk_server.errors import Code
from desk_server.resolve import AT_ONCE_MAX
from tests.desk.conftest import ADMIN, ALICE, BOB, TEN_O_CLOCK, DeskUnderTest, FaultyBroker
from tests.desk.test_order_path import BID, BUY, SELL, named, refused


class Records:
    """The exchange's list of orders, as a broker with records tells it; and how often it was asked."""

    def __init__(self) -> None:
        self.known: tuple[Order, ...] = ()
        self.broker: FaultyBroker | None = None
        self.asked = 0
        self.lists = True

    async def orders(self, since):
        self.asked += 1
        if not self.lists:
            raise BrokerUnknown("503")
        known = [await self.broker.paper.find(order) for order in self.known if order.created_at >= since]
        return [order for order in known if order is not None]


def lagging(run: DeskUnderTest, lag_s: float = 0.3, resend_s: float = 60.0) -> None:
    run.broker.paper.capabilities = replace(run.broker.capabilities, lookup_lag_s=lag_s, resend_s=resend_s)


# Sent again


async def test_an_order_over_the_broker_s_limit_is_sent_when_it_may_be(run):
    """429 proves that it is not there: it stays pending, and goes under its own name when the limit is over."""
    run.broker.faults = ["throttled"]
    order = await run.desk.place(ALICE, named(BID, "r1"))
    assert (order.status, order.state) == ("pending", State.SENDING)
    assert run.desk.book.reserved_cash("alice") == D(950)
    assert (await run.desk.place(ALICE, named(BID, "r1"))).order_id == order.order_id
    await run.ended(order, "new")
    assert run.broker.submits == [order.client_order_id] * 2
    assert run.broker.finds == 0


async def test_an_order_over_the_limit_that_is_cancelled_never_goes(run):
    """It was proved not to be at the broker, so it ends at once, as cancelled."""
    run.broker.faults = ["throttled"]
    order = await run.desk.place(ALICE, BID)
    await run.desk.cancel(ALICE, order.order_id)
    await run.ended(order, "not_sent")
    assert len(run.broker.submits) == 1
    assert run.desk.book.reserved_cash("alice") == 0


async def test_an_order_over_the_limit_that_is_halted_never_goes(run):
    """A halt is looked at again right before it would be sent."""
    run.broker.faults = ["throttled"]
    order = await run.desk.place(ALICE, named(BID, "r1"))
    await run.desk.set_halt(ADMIN, "symbol", "AAPL", True, "now")
    await run.ended(order, "not_sent")
    assert len(run.broker.submits) == 1
    await refused(Code.HALTED, run.desk.place(ALICE, named(BID, "r1")))


async def test_an_order_kept_back_by_the_limit_for_too_long_is_not_sent(run):
    """Minutes later nobody may want it any more: its end is explicit, and repeats itself."""
    lagging(run, resend_s=0.1)
    run.broker.faults = ["throttled"]
    order = await run.desk.place(ALICE, named(BID, "r1"))
    await run.ended(order, "not_sent")
    error = await refused(Code.NOT_SENT, run.desk.place(ALICE, named(BID, "r1")))
    assert error.order_id == order.order_id
    assert len(run.broker.submits) == 1


async def test_a_replace_over_the_limit_is_sent_when_it_may_be(run):
    """And the old order works until then."""
    old = await run.desk.place(ALICE, BID)
    run.broker.faults = ["throttled"]
    new = await run.desk.replace(ALICE, old.order_id, OrderChange(limit_price=D(96)))
    assert (new.status, run.now(old).state) == ("pending", State.LIVE)
    await run.ended(new, "new")
    await run.ended(old, "replaced")
    assert run.desk.book.reserved_cash("alice") == D(960)


async def test_a_replace_over_the_limit_of_an_order_that_ended_meanwhile_is_not_sent(run):
    """There is nothing left to replace: the replacement ends, and holds nothing."""
    old = await run.desk.place(ALICE, BID)
    run.broker.faults = ["throttled"]
    new = await run.desk.replace(ALICE, old.order_id, OrderChange(limit_price=D(96)))
    await run.desk.cancel(ALICE, old.order_id)
    await run.ended(old, "canceled")
    await run.until(lambda: run.now(new).state is State.REJECTED)
    assert run.desk.book.reserved_cash("alice") == 0


async def test_an_order_asked_for_too_long_ago_is_not_sent_again(run):
    """Past the deadline a missing order goes to quarantine, not to the broker."""
    lagging(run, resend_s=0.0)
    run.broker.faults = ["lost"]
    order = await run.desk.place(ALICE, named(BID, "r1"))
    await run.until(lambda: run.now(order).state is State.QUARANTINE)
    assert run.now(order).status == "unknown"
    assert run.desk.book.reserved_cash("alice") == D(950)
    await run.ended(order, "not_sent")
    assert len(run.broker.submits) == 1
    await refused(Code.NOT_SENT, run.desk.place(ALICE, named(BID, "r1")))
    assert run.desk.book.reserved_cash("alice") == 0


async def test_a_clock_that_was_set_back_does_not_make_an_order_young_again(run, monkeypatch):
    """The deadline counts by both clocks, the time of day and the one that never steps."""
    lagging(run, resend_s=0.15)
    run.broker.faults, run.broker.find_faults = ["lost"], 3
    order = await run.desk.place(ALICE, BID)
    now = run.desk.clock.now
    monkeypatch.setattr(run.desk.clock, "now", lambda: now() - timedelta(hours=1))
    await run.until(lambda: run.now(order).state is State.QUARANTINE)
    assert len(run.broker.submits) == 1


async def test_a_rejection_of_the_second_sending_waits_for_the_first(run):
    """The broker rejects what is sent again while the first request may still arrive: nothing is freed before the lag
    is over, then the order is rejected in the broker's words."""
    lagging(run, 0.4)
    run.broker.faults = ["lost", "refused"]
    order = await run.desk.place(ALICE, named(BID, "r1"))
    await run.until(lambda: run.now(order).state is State.QUARANTINE)
    assert run.desk.book.reserved_cash("alice") == D(950)
    await run.ended(order, "rejected")
    error = await refused(Code.REJECTED, run.desk.place(ALICE, named(BID, "r1")))
    assert "it cannot be done now" in error.message
    assert run.desk.book.reserved_cash("alice") == 0


# Quarantine


async def test_an_order_found_in_quarantine_is_cancelled(run, capsys):
    """Nobody waits for it any more: it is booked as working, cancelled, and an alarm tells of it."""
    lagging(run, 5.0, resend_s=0.0)
    run.broker.faults = ["late"]
    order = await run.desk.place(ALICE, BID)
    await run.until(lambda: run.now(order).state is State.QUARANTINE)
    late, run.broker.late = run.broker.late, None
    capsys.readouterr()
    await late()
    await run.ended(order, "canceled")
    assert run.broker.submits == [order.client_order_id]
    assert run.broker.cancels == [order.client_order_id]
    assert run.desk.book.reserved_cash("alice") == 0


async def test_a_lookup_that_fails_starts_the_wait_anew(run):
    """Only a whole lag of clean answers proves that an order is not there."""
    lagging(run, 0.4, resend_s=0.0)
    run.broker.faults = ["lost"]
    order = await run.desk.place(ALICE, BID)
    await run.until(lambda: run.now(order).state is State.QUARANTINE)
    run.broker.find_faults = 1
    await run.until(lambda: run.broker.find_faults == 0)
    begun = asyncio.get_running_loop().time()
    await run.ended(order, "not_sent")
    assert asyncio.get_running_loop().time() - begun >= 0.4


async def test_quarantine_survives_a_restart(run):
    """After a restart the order is looked up again, and its reservation stands until it is proved not to be there."""
    lagging(run, 60.0, resend_s=0.0)
    run.broker.faults = ["lost"]
    order = await run.desk.place(ALICE, BID)
    await run.until(lambda: run.now(order).state is State.QUARANTINE)
    second = await run.restarted()
    second.line()
    assert second.desk.book.reserved_cash("alice") == D(950)
    await second.ended(order, "not_sent")
    await second.stop()


async def test_an_order_in_quarantine_can_be_cancelled_and_filled(run):
    """A cancel of it is noted; a fill proves that it lives, wherever the lookups look."""
    lagging(run, 60.0, resend_s=0.0)
    run.broker.faults = ["lost"]
    order = await run.desk.place(ALICE, BID)
    await run.until(lambda: run.now(order).state is State.QUARANTINE)
    assert (await run.desk.cancel(ALICE, order.order_id)).cancel_requested
    await run.keeper.on_broker_event(
        BrokerEvent(
            What.FILL,
            order.client_order_id,
            "b1",
            TEN_O_CLOCK,
            order.request.symbol,
            order.request.side,
            "e1",
            D(4),
            D(95),
        )
    )
    await run.until(lambda: run.now(order).filled_qty == 4)
    assert run.now(order).state is State.LIVE


async def test_what_the_broker_lists_is_not_given_up(tmp_path):
    """Lookups that find nothing are not enough where the broker's list of orders has it."""
    records = Records()
    run = await DeskUnderTest(tmp_path, desk={"records": records}).start()
    run.line()
    records.broker = run.broker
    lagging(run, 0.2, resend_s=0.0)
    run.broker.faults, run.broker.missing = ["mute"], 10**6
    order = await run.desk.place(ALICE, BID)
    records.known = (order,)
    await run.until(lambda: records.asked)
    await asyncio.sleep(0.3)
    assert run.now(order).state is State.QUARANTINE
    run.broker.missing = 0
    await run.ended(order, "canceled")
    await run.stop()


async def test_a_list_that_cannot_be_read_proves_nothing(tmp_path):
    """While the broker's list fails, the order stays in quarantine; one whole list then ends it."""
    records = Records()
    records.lists = False
    run = await DeskUnderTest(tmp_path, desk={"records": records}).start()
    run.line()
    records.broker = run.broker
    lagging(run, 0.1, resend_s=0.0)
    run.broker.faults = ["lost"]
    order = await run.desk.place(ALICE, BID)
    await run.until(lambda: records.asked >= 2)
    assert run.now(order).state is State.QUARANTINE
    records.lists = True
    await run.ended(order, "not_sent")
    await run.stop()


# Found


@pytest.mark.parametrize("fault", ["mute", "lost"])
async def test_many_orders_in_doubt_are_looked_up_a_few_at_a_time(run, monkeypatch, fault):
    """However many there are, at most eight lookups are under way."""
    find, at_once, most = run.broker.paper.find, 0, 0

    async def slow(order):
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.002)
        at_once -= 1
        return await find(order)

    monkeypatch.setattr(run.broker.paper, "find", slow)
    run.broker.faults = [fault] * 60
    one = replace(BID, qty=D(1))
    orders = await asyncio.gather(*(run.desk.place(ALICE, one) for _ in range(60)))
    for order in orders:
        await run.ended(order, "new")
    assert most == AT_ONCE_MAX


async def test_lookups_heed_the_broker_s_limit(run, monkeypatch):
    """One 429 stops all lookups until the limit is over."""
    find, asked = run.broker.find, []

    async def limited(order):
        asked.append(asyncio.get_running_loop().time())
        if len(asked) == 1:
            raise BrokerThrottled(0.3)
        return await find(order)

    monkeypatch.setattr(run.broker, "find", limited)
    run.broker.faults = ["mute"]
    first = await run.desk.place(ALICE, BID)
    await run.until(lambda: asked)
    run.broker.faults = ["mute"]
    second = await run.desk.place(BOB, BID)
    for order in (first, second):
        await run.ended(order, "new")
    assert all(at - asked[0] >= 0.3 for at in asked[1:])


async def test_another_order_under_the_same_name_is_never_taken_for_it(run, monkeypatch):
    """A lookup that answers with another symbol or side proves nothing."""
    find = run.broker.paper.find

    async def odd(order):
        found = await find(order)
        return found and replace(found, symbol="SPY")

    monkeypatch.setattr(run.broker.paper, "find", odd)
    run.broker.faults = ["mute"]
    order = await run.desk.place(ALICE, BID)
    await asyncio.sleep(0.2)
    assert run.now(order).state is State.UNKNOWN
    monkeypatch.setattr(run.broker.paper, "find", find)
    await run.ended(order, "new")


async def test_an_order_that_ended_unheard_is_booked_with_its_end(run, monkeypatch):
    """Found cancelled with nothing filled, it ends so, though the broker's events never came."""
    find = run.broker.paper.find

    async def over(order):
        found = await find(order)
        return found and replace(found, status="canceled", is_open=False, end=What.CANCELED, message="by the broker")

    monkeypatch.setattr(run.broker.paper, "find", over)
    run.broker.faults = ["mute"]
    order = await run.desk.place(ALICE, BID)
    assert (await run.ended(order, "canceled")).message == "by the broker"
    assert run.desk.book.reserved_cash("alice") == 0


async def test_an_order_found_rejected_is_rejected(run, monkeypatch):
    """A 200 is not final: what the broker rejected after all ends in its words."""
    find = run.broker.paper.find

    async def no(order):
        found = await find(order)
        return found and replace(found, status="rejected", is_open=False, end=What.REJECTED, message="not today")

    monkeypatch.setattr(run.broker.paper, "find", no)
    run.broker.faults = ["mute"]
    order = await run.desk.place(ALICE, named(BID, "r1"))
    await run.ended(order, "rejected")
    assert "not today" in (await refused(Code.REJECTED, run.desk.place(ALICE, named(BID, "r1")))).message


async def test_an_end_with_executions_missing_waits_for_them(tmp_path):
    """A terminal status counts when the quantities agree; until then the books are compared with the broker."""
    wanted = []
    run = await DeskUnderTest(tmp_path, desk={"soon": lambda: wanted.append(1)}).start()
    run.line()
    find = run.broker.paper.find

    async def over(order):
        found = await find(order)
        return found and replace(found, is_open=False, end=What.CANCELED, filled_qty=D(4))

    run.broker.paper.find = over
    run.broker.faults = ["mute"]
    order = await run.desk.place(ALICE, BID)
    await run.until(lambda: wanted)
    assert run.now(order).state is State.LIVE
    run.broker.paper.find = find
    await run.stop()


# Cancels


async def test_a_refused_cancel_is_asked_for_until_the_order_is_over(run):
    """A refusal does not prove that the order lives, and not that it should."""
    order = await run.desk.place(ALICE, BID)
    run.broker.cancel_faults = ["refused"] * 3
    assert (await run.desk.cancel(ALICE, order.order_id)).status == "pending_cancel"
    await run.ended(order, "canceled")
    assert len(run.broker.cancels) == 4


async def test_a_cancel_refused_because_the_order_is_over_says_so(run):
    """Filled before the cancel came: 409, and the order is filled."""
    order = await run.desk.place(ALICE, BID)
    await run.until(lambda: run.now(order).state is State.LIVE)
    run.broker.paper._exchange.on_quote(replace(run.hub.latest("AAPL"), bid=D(94), ask=D(95), price=D(95)))
    await refused(Code.NOT_CANCELABLE, run.desk.cancel(ALICE, order.order_id))
    run.broker.paper._announce()
    await run.ended(order, "filled")


async def test_a_cancel_that_is_granted_and_not_carried_out_is_asked_for_again(run, monkeypatch):
    """A stuck pending_cancel does not stay one."""
    monkeypatch.setattr(resolve, "_STUCK_S", 0.1)
    monkeypatch.setattr(resolve, "_WATCH_EVERY_S", 0.05)
    order = await run.desk.place(ALICE, BID)
    run.broker.cancel_faults = ["idle", "idle"]
    await run.desk.cancel(ALICE, order.order_id)
    await run.ended(order, "canceled")
    assert len(run.broker.cancels) == 3


async def test_the_broker_s_word_that_a_cancel_was_refused_does_not_end_the_cancelling(run, monkeypatch):
    """The event order_cancel_rejected leaves the order pending_cancel; a restart goes on asking."""
    order = await run.desk.place(ALICE, BID)
    run.broker.cancel_faults = ["idle"]
    await run.desk.cancel(ALICE, order.order_id)
    broker_order_id = run.now(order).broker_order_id
    await run.keeper.on_broker_event(
        BrokerEvent(What.CANCEL_REJECTED, order.client_order_id, broker_order_id, TEN_O_CLOCK, message="no")
    )
    await run.keeper._said.join()
    assert run.now(order).status == "pending_cancel"
    second = await run.restarted()
    second.line()
    await second.ended(order, "canceled")
    await second.stop()


async def test_an_end_that_the_stream_lost_is_found_by_who_asked_for_it(run, monkeypatch):
    """The cancel was carried out and the event lost: asking again finds the order over, and books that."""
    monkeypatch.setattr(resolve, "_STUCK_S", 0.1)
    monkeypatch.setattr(resolve, "_WATCH_EVERY_S", 0.05)
    order = await run.desk.place(ALICE, BID)
    find = run.broker.paper.find

    async def over(order):
        return replace(await find(order), status="canceled", is_open=False, end=What.CANCELED)

    monkeypatch.setattr(run.broker.paper, "find", over)
    run.broker.cancel_faults = ["idle"]
    await run.desk.cancel(ALICE, order.order_id)
    await run.ended(order, "canceled")
    assert len(run.broker.cancels) == 1


@pytest.mark.parametrize("overtakes", [True, False])
async def test_an_order_replaced_while_it_was_being_cancelled_is_cancelled_all_the_same(run, monkeypatch, overtakes):
    """The cancel meant what the order became."""
    monkeypatch.setattr(resolve, "_WATCH_EVERY_S", 0.05)
    old = await run.desk.place(ALICE, BID)
    run.broker.gate = asyncio.Event()
    replacing = asyncio.create_task(run.desk.replace(ALICE, old.order_id, OrderChange(limit_price=D(96))))
    await run.until(lambda: run.desk.book.replacing)
    cancelling = asyncio.create_task(run.desk.cancel(ALICE, old.order_id))
    await run.until(lambda: overtakes == bool(run.broker.cancels))
    run.broker.gate.set()
    await cancelling
    new = await replacing
    await run.ended(new, "canceled")
    assert not run.desk.book.open_orders()


# Start, lease, surprises


async def test_the_desk_is_not_ready_until_the_books_were_compared(tmp_path):
    """Start returns while the broker is silent; orders are refused with the reason, cancels are taken."""
    why, begun = ["the books have not been compared yet"], []

    async def begin():
        begun.append(1)

    run = DeskUnderTest(tmp_path, desk={"begin_comparing": begin, "uncompared": lambda: why[0]})
    await run.start()
    run.line()
    assert begun
    assert run.desk.problems() == why
    await refused(Code.NOT_READY, run.desk.place(ALICE, named(BID, "r1")))
    why[0] = ""
    await run.until(lambda: not run.desk.problems())
    await run.desk.place(ALICE, named(BID, "r1"))
    await run.stop()


async def test_a_broker_that_cannot_be_reached_at_start_is_tried_again(tmp_path, monkeypatch):
    """The desk starts, says so, and is ready when the broker is back; what was in doubt is resolved then."""
    monkeypatch.setattr("desk_server.desk._ASK_AGAIN_S", 0.05)
    first = await DeskUnderTest(tmp_path).start()
    first.line()
    first.broker.gate = asyncio.Event()
    placing = asyncio.create_task(first.desk.place(ALICE, BID))
    await first.until(lambda: first.broker.submits)
    (caught,) = first.desk.book.open_orders()
    placing.cancel()
    await first.stop()
    run = DeskUnderTest(tmp_path, start_at=first.at)
    connect, tries = run.broker.paper.connect, []

    async def away(on_event):
        tries.append(1)
        if len(tries) < 3:
            raise BrokerUnknown("no route to host")
        await connect(on_event)

    monkeypatch.setattr(run.broker.paper, "connect", away)
    await run.start()
    run.line()
    await run.ended(caught, "new")
    assert len(tries) == 3
    assert run.desk.problems() == []
    await run.stop()


async def test_a_server_that_lost_its_lease_sends_nothing(run, monkeypatch):
    """Submit, replace and cancel: whoever has the ledger now will see to them."""
    old = await run.desk.place(ALICE, BID)
    working = await run.ended(old, "new")
    fenced = ["another server has the ledger"]
    monkeypatch.setattr(run.ledger, "fenced", lambda: fenced[0])
    sent = len(run.broker.submits)
    error = await refused(Code.NOT_READY, run.desk.place(ALICE, named(BUY, "r1")))
    assert "another server" in error.message
    await refused(Code.NOT_READY, run.desk.replace(ALICE, old.order_id, OrderChange(limit_price=D(96))))
    await run.desk.cancel(ALICE, working.order_id)
    await asyncio.sleep(0.15)
    assert (len(run.broker.submits), run.broker.cancels) == (sent, [])
    assert (await run.broker.find(old)).status == "new"
    fenced[0] = ""
    await run.ended(old, "canceled")


async def test_an_error_nobody_foresaw_leaves_the_order_unknown(run, monkeypatch):
    """Whatever breaks on the way to the broker, the order may have arrived: it is looked up."""
    submit = run.broker.paper.submit

    async def broken(order, legs=()):
        await submit(order, legs)
        raise ZeroDivisionError("a bug in an adapter")

    monkeypatch.setattr(run.broker.paper, "submit", broken)
    order = await run.desk.place(ALICE, BID)
    assert order.status == "unknown"
    await run.ended(order, "new")
    assert len(run.broker.submits) == 1


async def test_a_broker_that_does_not_tell_its_assets_refuses_nothing_for_ever(run, monkeypatch):
    """Whether a symbol is listed cannot be found out: 503, nothing stored, and the same request may come again."""
    asset = run.broker.paper.asset

    async def silent(_):
        raise BrokerUnknown("timeout")

    monkeypatch.setattr(run.broker.paper, "asset", silent)
    error = await refused(Code.NOT_READY, run.desk.place(ALICE, named(BID, "r1")))
    assert error.retry_after_s and not error.order_id
    monkeypatch.setattr(run.broker.paper, "asset", asset)
    await run.desk.place(ALICE, named(BID, "r1"))


async def test_a_frozen_symbol_takes_only_orders_that_reduce(tmp_path):
    """While books and broker differ, users can get out, and not in."""
    frozen = {}
    run = await DeskUnderTest(tmp_path, desk={"freezes": lambda symbol: frozen.get(symbol, "")}).start()
    run.line()
    run.line("SPY")
    await run.ended(await run.desk.place(ALICE, BUY), "filled")
    frozen["AAPL"] = "AAPL differs"
    error = await refused(Code.NOT_READY, run.desk.place(ALICE, named(BUY, "r1")))
    assert "AAPL differs" in error.message and not error.order_id
    await run.desk.place(ALICE, replace(BUY, symbol="SPY"))
    await run.ended(await run.desk.place(ALICE, SELL), "filled")
    frozen.clear()
    await run.desk.place(ALICE, named(BUY, "r1"))
    await run.stop()
