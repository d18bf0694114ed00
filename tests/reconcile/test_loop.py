"""The loop in real time: on start, when asked, faster while in doubt, and again after a failure."""

import asyncio
import time
from collections.abc import Callable
from decimal import Decimal as D

import pytest
from msgspec.structs import replace as changed

from desk_server.clock import SystemClock
from desk_server.domain import State
from desk_server.reconcile import Reconciler
from tests.desk.conftest import ALICE
from tests.reconcile.ground import Ground, request

PATIENCE_S = 15.0


async def until(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, "it did not come to pass"
        await asyncio.sleep(0.005)


@pytest.fixture
async def looping(ground: Ground):
    """A reconciler that looks once an hour, unless there is a reason; every 20 ms while in doubt."""
    loop = Reconciler(
        ground.keeper,
        ground.broker,
        ground.broker,
        SystemClock(),
        allotment=D(100_000),
        poll_s=3600,
        poll_in_doubt_s=0.02,
        reconcile_s=3600,
        grace_s=0.2,
    )
    await loop.start()
    await until(lambda: loop.problem() == "")
    yield loop
    await loop.close()


async def test_it_rests_when_all_is_well(ground, looping):
    """One look, and no more requests."""
    requests = ground.broker.requests
    await asyncio.sleep(0.3)
    assert ground.broker.requests == requests


async def test_it_looks_when_asked(ground, looping):
    """A gap in the stream is made good at once."""
    ground.broker.stream = lambda said: []
    order = await ground.desk.place(ALICE, request())
    looping.soon()
    await until(lambda: ground.now(order).state is State.FILLED)


async def test_it_looks_when_an_update_cannot_be_settled(ground, looping):
    """An end whose executions were lost asks for them by itself."""
    order = await ground.desk.place(ALICE, request(limit_price=D(90)))
    await until(lambda: ground.now(order).state is State.LIVE)
    ground.broker.stream = lambda said: [] if said.qty else [said]
    ground.broker.exchange._execute(ground.broker.exchange._orders[order.client_order_id], D(4), D(90))
    await ground.desk.cancel(ALICE, order.order_id)
    await until(lambda: ground.now(order).state is State.CANCELED)
    assert ground.now(order).filled_qty == 4


async def test_it_polls_fast_while_no_updates_stream(ground):
    """The stream's problem is a doubt of its own; when it ends there is a look at once."""
    problem = ["the stream broke"]
    loop = Reconciler(
        ground.keeper,
        ground.broker,
        ground.broker,
        SystemClock(),
        allotment=D(0),
        poll_s=3600,
        poll_in_doubt_s=0.02,
        stream_problem=lambda: problem[0],
    )
    await loop.start()
    await until(lambda: loop.passes > 5)
    problem[0] = ""
    passes = loop.passes
    await until(lambda: loop.passes > passes)
    await loop.close()


async def test_a_failing_broker_is_asked_again(ground, looping):
    """Later and later, and the reason is told; nothing is lost."""
    ground.broker.stream = lambda said: []
    ground.broker.is_down = True
    order = await ground.desk.place(ALICE, request())
    looping.soon()
    await until(lambda: looping.failures >= 2)
    ground.broker.is_down = False
    await until(lambda: ground.now(order).state is State.FILLED)


async def test_a_bug_in_one_answer_does_not_end_it(ground, looping):
    """What nobody thought of is logged, counted, and tried again."""
    orders = ground.broker.orders

    async def nonsense(since):
        return [changed(one, filled_qty=None) for one in await orders(since)]

    order = await ground.desk.place(ALICE, request(limit_price=D(90)))
    await until(lambda: ground.now(order).state is State.LIVE)
    ground.broker.orders = nonsense
    looping.soon()
    await until(lambda: looping.failures >= 1)
    ground.broker.orders = orders
    passes = looping.passes
    looping.soon()
    await until(lambda: looping.passes > passes)


async def test_another_brokers_ledger_is_refused(tmp_path, broker):
    """Orders that were sent before any opening balance was known went to the embedded exchange: they are no order of
    this account, and what they bought is not in it."""
    ground = await Ground(tmp_path, broker).start()
    await ground.desk.place(ALICE, request())
    await ground.heard()
    await ground.reconciler.start()
    assert "give the desk another DESK_RUN_DIR" in ground.reconciler.problem()
    assert ground.reconciler.passes == 0
    await ground.reconciler.close()
    await ground.stop()


async def test_a_recovery_that_was_cut_off_goes_on(ground, tmp_path):
    """Recovered orders without an opening balance are this broker's: the next start looks on."""
    await ground.desk.place(ALICE, request())
    await ground.look()
    anew = await Ground(tmp_path / "empty", ground.broker).start()
    await anew.look()
    assert "" not in anew.book.opened
    await anew.stop()
    again = await Ground(tmp_path / "empty", ground.broker).start()
    await again.reconciler.start()
    assert "another DESK_RUN_DIR" not in again.reconciler.problem()
    await until(lambda: again.reconciler.passes >= 1)
    await again.reconciler.close()
    await again.look(7)
    again.agree()
    await again.stop()


async def test_thousands_of_orders_are_recovered(ground, tmp_path):
    """In many commits; a second desk reads what the first one wrote."""
    count = 1500
    for n in range(count):
        await ground.broker.external(request().side, "1", name=f"d1.user{n % 7}.bulk.01JGXK3V5Q{n:016d}")
    anew = await Ground(tmp_path / "empty", ground.broker).start()
    await anew.look(7)
    assert anew.reconciler.report().recovered == count
    assert sum(anew.held(f"user{n}") for n in range(7)) == count
    anew.agree()
    await anew.stop()
