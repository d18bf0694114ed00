"""What every broker must do, whatever it is. A new one joins by a row in BROKERS.

A rig is a broker, a market that it can be made to see, and the events it has delivered.
"""

import asyncio
import time
from collections import Counter
from contextlib import asynccontextmanager
from decimal import Decimal
from uuid import UUID

import pytest
from paper_samples import ASSETS, NOON, FixedClock, fills, limit, line, make_group, make_order, whats

from desk_server.brokers import BrokerRejected, What
from desk_server.brokers.paper import PaperBroker
from desk_server.domain import OrderChange

DEADLINE_S = 5.0


class PaperRig:
    def __init__(self) -> None:
        self.broker = PaperBroker(ASSETS, clock=FixedClock(NOON))
        self.events = []

    async def on_event(self, event) -> None:
        self.events.append(event)

    async def market(self, price, symbol: str = "AAPL") -> None:
        self.broker.on_quote(line(price, symbol=symbol))

    async def until(self, order, what: str) -> None:
        """Wait for that event; fails after a while."""
        deadline = time.monotonic() + DEADLINE_S
        while what not in whats(self.events, order):
            assert time.monotonic() < deadline, f"no {what}; came: {whats(self.events)}"
            await asyncio.sleep(0.002)


BROKERS = {"paper": PaperRig}


@pytest.fixture(params=sorted(BROKERS))
async def rig(request):
    async with connected(BROKERS[request.param]()) as rig:
        yield rig


@asynccontextmanager
async def connected(rig):
    await rig.broker.connect(rig.on_event)
    await rig.market(100)
    try:
        yield rig
    finally:
        await rig.broker.close()


async def test_an_order_is_acknowledged_then_fills(rig):
    """The acknowledgement comes first, with an id; the execution comes later, as an event of the same id."""
    order = make_order("buy")
    ack = await rig.broker.submit(order)
    assert ack.broker_order_id and ack.status in ("new", "pending_new", "accepted")
    assert rig.events == []
    await rig.until(order, "fill")
    (event,) = [event for event in rig.events if event.what is What.FILL]
    assert event.broker_order_id == ack.broker_order_id
    assert (event.symbol, event.side, event.qty) == ("AAPL", "buy", Decimal(10))
    assert event.price > 0 and event.fee >= 0 and event.at.utcoffset() is not None
    assert UUID(event.execution_id)


async def test_a_resting_order_is_found_under_its_own_name(rig):
    """find gives what the broker has; None for a name it never saw."""
    order = limit("buy", "50")
    ack = await rig.broker.submit(order)
    found = await rig.broker.find(order)
    assert found.broker_order_id == ack.broker_order_id
    assert (found.symbol, found.side, found.qty, found.filled_qty) == ("AAPL", "buy", Decimal(10), Decimal(0))
    assert await rig.broker.find(limit("buy", "50")) is None


async def test_a_name_is_taken_once_and_for_ever(rig):
    """A second order of the same name is rejected, even after the first was cancelled; nothing happens twice."""
    order = limit("buy", "50")
    await rig.broker.submit(order)
    for _ in range(2):
        with pytest.raises(BrokerRejected) as no:
            await rig.broker.submit(order)
        assert (no.value.code, no.value.message) == ("40010001", "client_order_id must be unique")
        if not rig.events:
            await rig.broker.cancel(order)
            await rig.until(order, "canceled")


async def test_a_cancel_ends_the_order_with_an_event(rig):
    """The call only asks; the event tells."""
    order = limit("buy", "50")
    await rig.broker.submit(order)
    await rig.broker.cancel(order)
    assert rig.events == []
    await rig.until(order, "canceled")
    assert (await rig.broker.find(order)).status == "canceled"


async def test_a_filled_order_cannot_be_cancelled(rig):
    """The broker says what state it is in."""
    order = make_order("buy")
    await rig.broker.submit(order)
    await rig.until(order, "fill")
    with pytest.raises(BrokerRejected) as no:
        await rig.broker.cancel(order)
    assert (no.value.code, no.value.message) == ("42210000", 'order is already in "filled" state')


async def test_an_unknown_order_cannot_be_cancelled_or_replaced(rig):
    """404, in the broker's words."""
    for ask in (
        rig.broker.cancel(limit("buy", "50")),
        rig.broker.replace(limit("buy", "50"), limit("buy", "51"), OrderChange()),
    ):
        with pytest.raises(BrokerRejected) as no:
            await ask
        assert no.value.code == "40410000"
        assert "order not found for" in no.value.message


async def test_a_replace_gives_a_new_order_in_the_old_ones_place(rig):
    """Another id, what remains as its quantity, and the old one is over."""
    old, new = limit("buy", "50"), limit("buy", "60")
    first = await rig.broker.submit(old)
    ack = await rig.broker.replace(old, new, OrderChange(limit_price=Decimal(60), qty=Decimal(12)))
    assert ack.broker_order_id != first.broker_order_id
    assert ack.qty == 12
    await rig.until(old, "replaced")
    (said,) = [event for event in rig.events if event.what is What.REPLACED]
    assert (said.replaced_by, said.new_broker_order_id, said.qty) == (new.client_order_id, ack.broker_order_id, 12)
    await rig.market(60)
    await rig.until(new, "fill")
    assert fills(rig.events)[0][0] == 12


async def test_a_held_bracket_leg_works_after_its_entry(rig):
    """Legs are acknowledged with their entry, released after its fill, and end each other."""
    order, (profit, loss) = make_group("bracket")
    ack = await rig.broker.submit(order, (profit, loss))
    assert len({ack.broker_order_id, *(leg.broker_order_id for leg in ack.legs)}) == 3
    await rig.until(loss, "released")
    await rig.market(110)
    await rig.until(profit, "fill")
    await rig.until(loss, "canceled")
    assert whats(rig.events, order) == ["fill"]


async def test_what_the_broker_does_not_list_it_does_not_trade(rig):
    """No asset, no order."""
    assert (await rig.broker.asset("AAPL")).symbol == "AAPL"
    assert await rig.broker.asset("NONE") is None
    with pytest.raises(BrokerRejected) as no:
        await rig.broker.submit(order := make_order("buy", symbol="NONE"))
    assert (no.value.code, no.value.message) == ("42210000", 'asset "NONE" not found')
    assert await rig.broker.find(order) is None


async def test_events_come_one_at_a_time_and_in_order(rig):
    """The next comes when the last has been taken, and a hundred orders are told of in their order."""
    seen, busy, all_seen = [], Counter(), asyncio.Event()
    other = type(rig)()

    async def slowly(event) -> None:
        busy["now"] += 1
        busy["most"] = max(busy["most"], busy["now"])
        await asyncio.sleep(0)
        seen.append(event.client_order_id)
        busy["now"] -= 1
        if len(seen) == 100:
            all_seen.set()

    other.on_event = slowly
    async with connected(other):
        orders = [make_order("buy", "1") for _ in range(100)]
        for order in orders:
            await other.broker.submit(order)
        await asyncio.wait_for(all_seen.wait(), DEADLINE_S)
    assert seen == [order.client_order_id for order in orders]
    assert busy["most"] == 1


async def test_positions_are_the_accounts(rig):
    """Signed sums of all executions."""
    bought, sold = make_order("buy", "10"), make_order("sell", "4")
    for order in (bought, sold):
        await rig.broker.submit(order)
        await rig.until(order, "fill")
    (account,) = await rig.broker.holdings()
    assert {held.symbol: held.qty for held in account.positions} == {"AAPL": Decimal(6)}


async def test_capabilities_name_the_broker_and_whether_money_is_real(rig):
    """The desk promises nothing else."""
    assert rig.broker.capabilities.name
    assert rig.broker.capabilities.live is False
    assert rig.broker.problem() == ""
