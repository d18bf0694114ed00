"""The order path: once, attributed, durable, and never more than the user has."""

import asyncio
from decimal import Decimal as D

import pytest
from msgspec.structs import replace

from desk_server.domain import (
    HOUSE,
    Identity,
    LineInHand,
    OrderChange,
    OrderClass,
    OrderRequest,
    OrderType,
    Role,
    Side,
    State,
    StopLoss,
    Symbol,
    UserId,
)
from desk_server.errors import Code, DeskError
from desk_server.events import OrderIntended
from desk_server.ledger import LedgerUnavailable
from tests.desk.conftest import ADMIN, ALICE, BOB, DeskUnderTest

BUY = OrderRequest(symbol=Symbol("AAPL"), side=Side.BUY, qty=D(10))
SELL = OrderRequest(symbol=Symbol("AAPL"), side=Side.SELL, qty=D(10))
# Rests: nobody sells at 95.
BID = replace(BUY, type=OrderType.LIMIT, limit_price=D(95))


def named(request: OrderRequest, request_id: str) -> OrderRequest:
    return replace(request, request_id=request_id)


async def refused(code: Code, work) -> DeskError:
    with pytest.raises(DeskError) as caught:
        await work
    assert caught.value.code is code, caught.value
    return caught.value


async def test_an_order_is_attributed_sent_and_filled(run):
    """A market order fills at the ask; the book of its user, and of nobody else, has it."""
    order = await run.desk.place(ALICE, BUY)
    assert order.client_order_id == f"d1.alice.manual.{order.order_id}"
    filled = await run.ended(order, "filled")
    assert (filled.filled_qty, filled.filled_avg_price) == (D(10), D(100))
    assert run.desk.book.accounts["alice"].cash == D(99_000)
    assert run.desk.book.position("alice", "AAPL").qty == D(10)
    assert run.desk.book.reserved_cash("alice") == 0
    assert "bob" not in run.desk.book.accounts
    assert HOUSE not in run.desk.book.accounts


async def test_a_request_id_is_one_order_however_often_it_is_sent(run):
    """The same content gives the same order, at once, later and after a restart; other content is an error."""
    request = named(BID, "r1")
    orders = await asyncio.gather(*(run.desk.place(ALICE, request) for _ in range(50)))
    assert {order.order_id for order in orders} == {orders[0].order_id}
    assert len(run.broker.submits) == 1
    noted = replace(request, line=LineInHand(seq=7), notes={"why": "another note"})
    assert (await run.desk.place(ALICE, noted)).order_id == orders[0].order_id
    await refused(Code.KEY_REUSED, run.desk.place(ALICE, named(replace(BID, qty=D(11)), "r1")))
    theirs = await run.desk.place(BOB, request)
    assert theirs.order_id != orders[0].order_id
    second = await run.restarted()
    assert (await second.desk.place(ALICE, request)).order_id == orders[0].order_id
    await second.stop()


async def test_a_refusal_is_recorded_and_repeats_itself(run):
    """What the desk refused once under a request id is refused for ever, in the same words."""
    request = named(SELL, "r1")
    first = await refused(Code.NOT_OWNED, run.desk.place(ALICE, request))
    bought = await run.desk.place(ALICE, BUY)
    await run.ended(bought, "filled")
    again = await refused(Code.NOT_OWNED, run.desk.place(ALICE, request))
    assert (again.order_id, again.message, again.limit, again.observed) == (
        first.order_id,
        first.message,
        first.limit,
        first.observed,
    )
    second = await run.restarted()
    third = await refused(Code.NOT_OWNED, second.desk.place(ALICE, request))
    assert (third.order_id, third.message) == (first.order_id, first.message)
    assert len(run.broker.submits) == 1
    await second.stop()


async def test_a_transient_refusal_leaves_the_request_id_free(tmp_path):
    """Without market data the answer is "later", and later the same request goes through."""
    run = await DeskUnderTest(tmp_path).start()
    run.line("SPY")
    error = await refused(Code.STALE_DATA, run.desk.place(ALICE, named(BUY, "r1")))
    assert error.retry_after_s
    assert not error.order_id
    run.line("AAPL")
    order = await run.desk.place(ALICE, named(BUY, "r1"))
    await run.ended(order, "filled")
    await run.stop()


async def test_orders_at_the_same_time_cannot_spend_the_same_money(run):
    """Of a hundred orders for a tenth of the cash each, exactly ten are taken."""
    tenth = replace(BID, qty=D(100), limit_price=D(100) - D("0.01"))
    outcomes = await asyncio.gather(*(run.desk.place(ALICE, tenth) for _ in range(100)), return_exceptions=True)
    taken = [outcome for outcome in outcomes if not isinstance(outcome, DeskError)]
    assert len(taken) == 10
    assert {outcome.code for outcome in outcomes if isinstance(outcome, DeskError)} == {Code.BUYING_POWER}
    assert run.desk.book.buying_power("alice") == D(100_000) - 10 * D(9_999)


async def test_sells_at_the_same_time_cannot_sell_the_same_shares(run):
    """Of two orders to sell all shares, one is taken."""
    await run.ended(await run.desk.place(ALICE, BUY), "filled")
    ask = replace(SELL, type=OrderType.LIMIT, limit_price=D(105))
    outcomes = await asyncio.gather(*(run.desk.place(ALICE, ask) for _ in range(2)), return_exceptions=True)
    assert [getattr(outcome, "code", None) for outcome in outcomes] == ["", Code.NOT_OWNED]
    await refused(Code.NOT_OWNED, run.desk.place(BOB, SELL))


@pytest.mark.parametrize("fault", ["mute", "lost"])
async def test_an_unanswered_order_is_looked_up_and_sent_at_most_once(run, fault):
    """Whether the broker got it or not, there is one order in the end, under one name."""
    run.broker.faults = [fault]
    run.broker.find_faults = 2
    order = await run.desk.place(ALICE, named(BID, "r1"))
    assert order.status == "unknown"
    assert run.desk.book.reserved_cash("alice") == D(950)
    working = await run.ended(order, "new")
    assert (await run.desk.place(ALICE, named(BID, "r1"))).order_id == working.order_id
    assert set(run.broker.submits) == {order.client_order_id}
    assert len(run.broker.submits) == (1 if fault == "mute" else 2)


async def test_an_order_caught_by_a_crash_is_resolved_at_the_next_start(run):
    """An intent without an outcome is UNKNOWN after the restart, then asked for, then working."""
    run.broker.gate = asyncio.Event()
    placing = asyncio.create_task(run.desk.place(ALICE, named(BID, "r1")))
    await run.until(lambda: len(run.broker.submits) == 1)
    placing.cancel()
    (caught,) = run.desk.book.open_orders(UserId("alice"))
    assert caught.state is State.SENDING
    second = await run.restarted()
    second.line()
    working = await second.ended(caught, "new")
    assert working.reserved_cash == D(950)
    assert second.broker.submits == [caught.client_order_id]
    await second.stop()


async def test_the_books_are_the_same_after_a_restart(run):
    """Orders, cash, positions and reservations are folded from the ledger, digit by digit."""
    await run.ended(await run.desk.place(ALICE, BUY), "filled")
    resting = await run.desk.place(ALICE, BID)
    before = run.desk.book
    second = await run.restarted()
    after = second.desk.book
    assert after.orders == before.orders
    assert after.accounts == before.accounts
    assert after.reserved_cash("alice") == before.reserved_cash("alice") == D(950)
    second.line(ask="94.5", bid="94")
    filled = await second.ended(resting, "filled")
    assert filled.filled_avg_price == D("94.5")
    await second.stop()


async def test_nobody_sees_or_touches_anothers_order(run):
    """For another user an order is not there: not to read, not to replace, not to cancel."""
    order = await run.desk.place(ALICE, BID)
    with pytest.raises(DeskError) as caught:
        run.desk.order(BOB, order.order_id)
    assert caught.value.code is Code.NOT_FOUND
    await refused(Code.NOT_FOUND, run.desk.cancel(BOB, order.order_id))
    await refused(Code.NOT_FOUND, run.desk.replace(BOB, order.order_id, OrderChange(limit_price=D(94))))
    assert run.desk.order(ADMIN, order.order_id).order_id == order.order_id
    assert await run.desk.cancel_all(BOB, UserId("alice"), frozenset()) == []


async def test_a_token_that_may_not_trade_does_not(run):
    """Read tokens and the administrator's place no orders; only the administrator cancels others'."""
    reader = Identity(UserId("alice"), Role.READ)
    await refused(Code.FORBIDDEN, run.desk.place(reader, BID))
    await refused(Code.FORBIDDEN, run.desk.place(ADMIN, BID))
    order = await run.desk.place(ALICE, BID)
    await refused(Code.FORBIDDEN, run.desk.cancel(reader, order.order_id))
    await run.desk.cancel(ADMIN, order.order_id)
    await run.ended(order, "canceled")


async def test_cancelling_twice_is_the_same_as_once(run):
    """The second cancel answers like the first; a filled order cannot be cancelled."""
    order = await run.desk.place(ALICE, BID)
    await asyncio.gather(*(run.desk.cancel(ALICE, order.order_id) for _ in range(3)))
    await run.ended(order, "canceled")
    assert (await run.desk.cancel(ALICE, order.order_id)).status == "canceled"
    assert run.desk.book.reserved_cash("alice") == 0
    filled = await run.ended(await run.desk.place(ALICE, BUY), "filled")
    await refused(Code.NOT_CANCELABLE, run.desk.cancel(ALICE, filled.order_id))


async def test_a_cancel_that_overtakes_the_acceptance_still_cancels(run):
    """While the broker is being called, a cancel is noted, and done as soon as there is an order to cancel."""
    run.broker.gate = asyncio.Event()
    placing = asyncio.create_task(run.desk.place(ALICE, BID))
    await run.until(lambda: len(run.broker.submits) == 1)
    (order,) = run.desk.book.open_orders(UserId("alice"))
    await run.desk.cancel(ALICE, order.order_id)
    run.broker.gate.set()
    await placing
    await run.ended(order, "canceled")


async def test_an_order_cancelled_before_the_broker_had_it_is_cancelled_and_not_halted(run):
    """Cancelling it again, and sending its request again, show the order that was never sent; neither is an error."""
    request = named(BID, "r1")
    run.broker.faults, run.broker.find_faults = ["lost"], 3
    order = await run.desk.place(ALICE, request)
    await run.desk.cancel(ALICE, order.order_id)
    await run.ended(order, "not_sent")
    assert (await run.desk.cancel(ALICE, order.order_id)).status == "not_sent"
    assert (await run.desk.place(ALICE, request)).order_id == order.order_id
    assert len(run.broker.submits) == 1
    assert run.desk.book.reserved_cash("alice") == 0


async def test_what_was_answered_is_what_is_shown(run):
    """The answer does not wait until the acceptance is written; whoever asks for the order sees it all the same."""
    order = await run.desk.place(ALICE, BID)
    assert order.status == "new"
    assert run.desk.order(ALICE, order.order_id) == order
    await run.until(lambda: run.now(order).state is State.LIVE)
    assert run.now(order) == order


async def test_a_cancel_right_behind_the_answer_cancels(run):
    """Even while the acceptance is still being written."""
    orders = [await run.desk.place(ALICE, BID) for _ in range(5)]
    for order in orders:
        await run.desk.cancel(ALICE, order.order_id)
    for order in orders:
        await run.ended(order, "canceled")


async def test_cancel_all_cancels_what_is_open_and_one_s_own(run):
    """Only the caller's open orders, only in the symbols named."""
    mine = [await run.desk.place(ALICE, replace(BID, symbol=Symbol(symbol))) for symbol in ("AAPL", "SPY")]
    theirs = await run.desk.place(BOB, BID)
    await run.desk.cancel_all(ALICE, UserId("alice"), frozenset({"SPY"}))
    await run.ended(mine[1], "canceled")
    assert run.now(mine[0]).state is State.LIVE
    await run.desk.cancel_all(ADMIN, None, frozenset())
    await run.ended(mine[0], "canceled")
    await run.ended(theirs, "canceled")


async def test_a_replace_makes_a_new_order_in_the_old_one_s_place(run):
    """The new order works with the new price, the old one is replaced, and only the new one holds cash."""
    old = await run.desk.place(ALICE, BID)
    change = OrderChange(limit_price=D(96), qty=D(20), request_id="c1")
    new = await run.desk.replace(ALICE, old.order_id, change)
    assert (new.request.limit_price, new.request.qty, new.replaces) == (D(96), D(20), old.order_id)
    gone = await run.ended(old, "replaced")
    assert gone.replaced_by == new.order_id
    assert run.desk.book.reserved_cash("alice") == D(1920)
    again = await run.desk.replace(ALICE, old.order_id, change)
    assert again.order_id == new.order_id
    other = OrderChange(limit_price=D(97), request_id="c1")
    await refused(Code.KEY_REUSED, run.desk.replace(ALICE, old.order_id, other))
    await refused(Code.NOT_REPLACEABLE, run.desk.replace(ALICE, old.order_id, OrderChange(limit_price=D(97))))


async def test_two_replaces_at_once_make_one_order(run):
    """The second is refused while the first is under way."""
    old = await run.desk.place(ALICE, BID)
    outcomes = await asyncio.gather(
        *(run.desk.replace(ALICE, old.order_id, OrderChange(limit_price=D(price))) for price in (96, 97)),
        return_exceptions=True,
    )
    assert [getattr(outcome, "code", None) for outcome in outcomes] == ["", Code.NOT_REPLACEABLE]
    assert run.desk.book.reserved_cash("alice") == D(960)


@pytest.mark.parametrize("fault", ["mute", "lost"])
async def test_an_unanswered_replace_is_resolved(run, fault):
    """Either the new order works or the old one still does; never both, never neither."""
    old = await run.desk.place(ALICE, BID)
    run.broker.faults = [fault]
    new = await run.desk.replace(ALICE, old.order_id, OrderChange(limit_price=D(96)))
    await run.until(lambda: run.now(new).state is not State.UNKNOWN)
    states = (run.now(old).state, run.now(new).state)
    assert states == ((State.REPLACED, State.LIVE) if fault == "mute" else (State.LIVE, State.REJECTED))
    assert run.desk.book.reserved_cash("alice") == (D(960) if fault == "mute" else D(950))


async def test_a_replace_that_costs_more_than_there_is_is_refused(run):
    """The old order stands and its reservation with it."""
    old = await run.desk.place(ALICE, BID)
    await refused(Code.BUYING_POWER, run.desk.replace(ALICE, old.order_id, OrderChange(qty=D(1060))))
    assert run.desk.order(ALICE, old.order_id).state is State.LIVE
    assert run.desk.book.reserved_cash("alice") == D(950)
    bigger = await run.desk.replace(ALICE, old.order_id, OrderChange(qty=D(1050)))
    assert run.desk.book.reserved_cash("alice") == D(99_750)
    assert bigger.state is State.LIVE


async def test_halts_stop_new_orders_and_survive_a_restart(run):
    """A halt of a user, a strategy, a symbol or the desk refuses new orders of exactly those."""
    for scope, name, hits in (
        ("user", "alice", [ALICE]),
        ("strategy", "alice/manual", [ALICE]),
        ("symbol", "AAPL", [ALICE, BOB]),
        ("desk", "", [ALICE, BOB]),
    ):
        await run.desk.set_halt(ADMIN, scope, name, True, "a test")
        for who in (ALICE, BOB):
            if who in hits:
                await refused(Code.HALTED, run.desk.place(who, BID))
            else:
                await run.desk.place(who, BID)
        await run.desk.set_halt(ADMIN, scope, name, False, "over")
    await run.desk.set_halt(ADMIN, "desk", "", True, "overnight")
    second = await run.restarted()
    second.line()
    await refused(Code.HALTED, second.desk.place(ALICE, BID))
    await refused(Code.FORBIDDEN, second.desk.set_halt(ALICE, "desk", "", False, "please"))
    await second.stop()


async def test_a_halt_between_intent_and_broker_stops_the_order(run, monkeypatch):
    """The kill switch is looked at once more just before the broker is called."""
    record = run.keeper.record

    async def halt_first(*events):
        await record(*events)
        if isinstance(events[0], OrderIntended):
            await run.desk.set_halt(ADMIN, "desk", "", True, "now")

    monkeypatch.setattr(run.keeper, "record", halt_first)
    error = await refused(Code.HALTED, run.desk.place(ALICE, named(BID, "r1")))
    assert run.broker.submits == []
    assert run.desk.book.orders[error.order_id].state is State.NOT_SENT
    assert run.desk.book.reserved_cash("alice") == 0


async def test_without_a_ledger_nothing_is_sent(run, monkeypatch):
    """A ledger that cannot be written refuses the order with 503; when it can again, the same request works."""
    await run.desk.place(BOB, BID)
    await run.desk.place(ALICE, BID)
    sent = len(run.broker.submits)
    append = run.ledger.append

    def full(*_events):
        future = asyncio.get_running_loop().create_future()
        future.set_exception(LedgerUnavailable("disk full"))
        return future

    monkeypatch.setattr(run.ledger, "append", full)
    await refused(Code.LEDGER, run.desk.place(ALICE, named(BID, "r1")))
    assert run.desk.problems()
    assert len(run.broker.submits) == sent
    monkeypatch.setattr(run.ledger, "append", append)
    # The problem is over when something could be written: the next order tries.
    await run.desk.place(ALICE, named(BID, "r1"))
    assert run.desk.problems() == []
    assert run.desk.book.reserved_cash("alice") == 2 * D(950)


async def test_a_bracket_comes_with_its_legs(run):
    """The legs are orders of their own, held until the entry has filled, and one ends the other."""
    bracket = replace(BUY, order_class=OrderClass.BRACKET, take_profit=D(110), stop_loss=StopLoss(D(90)))
    entry = await run.desk.place(ALICE, bracket)
    legs = run.desk.book.legs(entry)
    assert [leg.leg.value for leg in legs] == ["take_profit", "stop_loss"]
    await run.ended(entry, "filled")
    await run.until(lambda: all(run.now(leg).state is State.LIVE for leg in legs))
    assert run.desk.book.available_qty("alice", "AAPL") == 0
    run.line(bid="111", ask="111.01")
    await run.ended(legs[0], "filled")
    await run.ended(legs[1], "canceled")
    assert run.desk.book.position("alice", "AAPL").qty == 0
    assert run.desk.book.accounts["alice"].cash == D(100_000) - D(1000) + D(1110)
