"""A broker that answers late answers with what has become of the order: the book decides when it is filled."""

from decimal import Decimal as D

from msgspec.structs import replace

from desk_server.domain import OrderChange, State
from tests.desk.conftest import ALICE
from tests.desk.test_order_path import BID


async def test_an_order_is_filled_when_its_executions_are_booked(run):
    """An acceptance that says "filled" does not make an order look filled before its executions have come."""
    submit, swap = run.broker.paper.submit, run.broker.paper.replace

    async def submitted(order, legs=()):
        return replace(await submit(order, legs), status="filled")

    async def replaced(order, new, change):
        return replace(await swap(order, new, change), status="partially_filled")

    run.broker.paper.submit, run.broker.paper.replace = submitted, replaced
    order = await run.desk.place(ALICE, BID)
    assert (order.state, order.status, order.filled_qty) == (State.LIVE, "new", 0)
    new = await run.desk.replace(ALICE, order.order_id, OrderChange(limit_price=D(96)))
    assert (new.state, new.status, new.filled_qty) == (State.LIVE, "new", 0)
    run.line(bid="95", ask="95.5")
    assert (await run.ended(new, "filled")).filled_qty == new.qty
