"""What was refused stays refused: asking again does not carry it out behind the caller's back."""

from datetime import timedelta
from decimal import Decimal as D

from msgspec.structs import replace

from desk_server.brokers import BrokerEvent, What
from desk_server.domain import OrderChange, State, TimeInForce
from desk_server.errors import Code
from tests.desk.conftest import ADMIN, ALICE
from tests.desk.test_order_path import BID, refused

RAISE = OrderChange(limit_price=D(96), request_id="raise")


async def test_what_could_not_be_replaced_is_not_replaced_by_asking_again(run):
    """The order works again, the request is the old one: so is its answer, and nothing is sent."""
    order = await run.desk.place(ALICE, BID)
    await run.desk.set_halt(ADMIN, "user", "alice", True, "lunch")
    first = await refused(Code.HALTED, run.desk.replace(ALICE, order.order_id, RAISE))
    await run.desk.set_halt(ADMIN, "user", "alice", False, "")
    again = await refused(Code.HALTED, run.desk.replace(ALICE, order.order_id, RAISE))
    assert first.order_id == again.order_id == order.order_id
    assert str(first) == str(again)
    assert run.now(order).state is State.LIVE
    other = await run.desk.replace(ALICE, order.order_id, OrderChange(limit_price=D(96), request_id="another"))
    assert other.replaces == order.order_id


async def test_a_refused_replacement_is_refused_after_a_restart(run):
    """The refusal is in the ledger; with other content the same request id is an error."""
    order = await run.desk.place(ALICE, BID)
    too_dear = OrderChange(qty=D(100_000), request_id="raise")
    await refused(Code.MAX_QTY, run.desk.replace(ALICE, order.order_id, too_dear))
    later = await run.restarted()
    later.line()
    await refused(Code.MAX_QTY, later.desk.replace(ALICE, order.order_id, too_dear))
    await refused(Code.KEY_REUSED, later.desk.replace(ALICE, order.order_id, RAISE))
    assert later.now(order).state is State.LIVE
    await later.stop()


async def test_a_moment_that_has_passed_does_not_let_the_same_request_through(run):
    """What came too early (the broker had not put the order to work yet) stays refused; another request goes."""
    submit = run.broker.paper.submit

    async def submitted(order, legs=()):
        return replace(await submit(order, legs), status="pending_new")

    run.broker.paper.submit = submitted
    order = await run.desk.place(ALICE, BID)
    assert order.status == "pending_new"
    await refused(Code.NOT_REPLACEABLE, run.desk.replace(ALICE, order.order_id, RAISE))
    await run.keeper.on_broker_event(
        BrokerEvent(What.RELEASED, order.client_order_id, order.broker_order_id, order.created_at, status="new")
    )
    await run.until(lambda: run.now(order).status == "new")
    await refused(Code.NOT_REPLACEABLE, run.desk.replace(ALICE, order.order_id, RAISE))
    other = await run.desk.replace(ALICE, order.order_id, OrderChange(limit_price=D(96), request_id="another"))
    assert other.replaces == order.order_id


async def test_a_market_that_opens_does_not_let_the_same_request_through(run):
    """An order for the opening that came too late for it is refused for ever, also when the time has passed."""
    late = replace(BID, time_in_force=TimeInForce.OPG, request_id="opening")
    first = await refused(Code.CLOSED, run.desk.place(ALICE, late))
    run.at += timedelta(hours=10)
    run.line()
    again = await refused(Code.CLOSED, run.desk.place(ALICE, late))
    assert first.order_id == again.order_id != ""
    assert run.desk.book.orders[first.order_id].state is State.REFUSED
