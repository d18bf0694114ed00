"""Every fault that the misbehaving Alpaca can show, and what the adapter makes of it. A fault without a test fails."""

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from paper_samples import limit, make_order, whats
from rigs import DEADLINE_S, FAST, AlpacaRig, connected

from desk_server.brokers import BrokerHasIt, BrokerRejected, BrokerThrottled, BrokerUnknown, What
from desk_server.domain import OrderChange
from tests.alpaca.faults import FAULTS

SHOWN = {}


def shows(fault: str):
    def keep(test):
        SHOWN[fault] = test
        return test

    return keep


@pytest.fixture
async def rig():
    async with connected(AlpacaRig(FAST)) as rig:
        yield rig


@pytest.mark.parametrize("fault", FAULTS)
async def test_the_adapter_survives(fault, rig):
    """The fault shows itself, is met as it must be, and leaves nothing behind."""
    await SHOWN[fault](rig)
    assert rig.control.counts()[fault] >= 1
    rig.control.heal()
    await rig.eventually(lambda: not rig.broker.problem(), rig.broker.problem)
    await rig.eventually(lambda: not rig.broker.stream_problem(), rig.broker.stream_problem)
    after = make_order("buy", symbol="MSFT")
    await rig.submit(after)
    await rig.until(after, "fill")


def test_every_fault_is_met():
    """The broker's table and this file name the same faults."""
    assert SHOWN.keys() == FAULTS.keys()


def lives(rig, order) -> bool:
    return any(one["client_order_id"] == order.client_order_id for one in rig.truth()["orders"])


async def unheard(rig, **more):
    """An order whose fate the adapter does not claim to know. It was sent once."""
    order = limit("buy", "50", **more)
    with pytest.raises(BrokerUnknown):
        await rig.submit(order)
    assert len(rig.posts(order)) == 1
    return order


async def never_came(rig, fault, **params) -> None:
    """Not accepted: looked up it is not there, and it can be sent again under its name."""
    rig.control.arm(fault, on="submit", **params)
    order = await unheard(rig)
    assert not lives(rig, order)
    assert await rig.broker.find(order) is None
    await rig.submit(order)
    assert (await rig.broker.find(order)).is_open


async def came_unheard(rig, fault, **params) -> None:
    """Accepted: looked up it is there, and its name is taken."""
    rig.control.arm(fault, on="submit", **params)
    order = await unheard(rig)
    assert lives(rig, order)
    found = await rig.broker.find(order)
    assert found.client_order_id == order.client_order_id
    with pytest.raises(BrokerHasIt):
        await rig.submit(order)


@shows("reset")
async def _reset(rig):
    await never_came(rig, "reset")


@shows("half_open_tcp")
async def _half_open(rig):
    await never_came(rig, "half_open_tcp")
    rig.control.arm("half_open_tcp", on="event")
    gaps = rig.gaps
    await rig.submit(make_order("buy"))
    await rig.eventually(lambda: rig.gaps > gaps)


@shows("503")
async def _503(rig):
    await never_came(rig, "503")


@shows("429")
async def _429(rig):
    for headers, low, high in ((True, 0.1, 65), (False, 3.0, 3.0)):
        rig.control.arm("429", on="submit", headers=headers)
        order = limit("buy", "50")
        with pytest.raises(BrokerThrottled) as no:
            await rig.submit(order)
        assert low <= no.value.retry_after_s <= high
        assert len(rig.posts(order)) == 1 and not lives(rig, order)
    for ask in (rig.broker.find(order), rig.broker.cancel(order), rig.broker.orders(datetime.now(UTC))):
        rig.control.arm("429")
        with pytest.raises(BrokerThrottled):
            await ask


@shows("html_403")
async def _html(rig):
    await never_came(rig, "html_403")
    rig.control.arm("html_403", on="lookup")
    with pytest.raises(BrokerUnknown):
        await rig.broker.find(limit("buy", "50"))


@shows("lookup_503")
async def _lookup_503(rig):
    await rig.submit(order := limit("buy", "50"))
    rig.control.arm("lookup_503", 2)
    for ask in (rig.broker.find(order), rig.broker.orders(datetime.now(UTC))):
        with pytest.raises(BrokerUnknown):
            await ask
    assert await rig.broker.find(order) is not None


@shows("late_landing")
async def _late_landing(rig):
    for how in ("drop", "silence"):
        rig.control.arm("late_landing", how=how, delay_ms=1500)
        order = await unheard(rig)
        assert await rig.broker.find(order) is None
        await rig.eventually(lambda order=order: lives(rig, order))
        assert (await rig.broker.find(order)).is_open
    await writes_unheard(rig, "late_landing", how="drop", delay_ms=300)


async def writes_unheard(rig, fault, **params) -> None:
    """A cancel and a replace that are carried out without a usable answer are unknown."""
    for what in ("cancel", "replace"):
        await rig.submit(order := limit("buy", "50"))
        await rig.eventually(lambda order=order: "new" in [event.status for event in rig.about(order)])
        rig.control.arm(fault, on=what, **params)
        new = limit("buy", "51")
        with pytest.raises(BrokerUnknown):
            if what == "cancel":
                await rig.broker.cancel(rig.known(order))
            else:
                await rig.broker.replace(rig.known(order), new, OrderChange(limit_price=Decimal(51)))
        if what == "cancel":
            await rig.until(order, "canceled")
        else:
            await rig.until(order, "replaced")
            assert (await rig.broker.find(new)).replaces == rig.known(order).broker_order_id


@shows("accepted_then_dropped")
async def _dropped(rig):
    await came_unheard(rig, "accepted_then_dropped")
    await writes_unheard(rig, "accepted_then_dropped")


@shows("accepted_then_504")
async def _504(rig):
    await came_unheard(rig, "accepted_then_504")
    await writes_unheard(rig, "accepted_then_504")


@shows("accepted_then_hang")
async def _hang(rig):
    await came_unheard(rig, "accepted_then_hang")


@shows("slow_success")
async def _slow(rig):
    rig.control.arm("slow_success", on="submit", delay_ms=400)
    assert (await rig.submit(make_order("buy"))).broker_order_id


@shows("truncated_json")
async def _truncated(rig):
    for how in ("body", "wire"):
        await came_unheard(rig, "truncated_json", how=how)
        rig.control.arm("truncated_json", on="list", how=how)
        with pytest.raises(BrokerUnknown):
            await rig.broker.orders(datetime.now(UTC))


@shows("byte_by_byte")
async def _byte_by_byte(rig):
    rig.control.arm("byte_by_byte", on="submit", gap_ms=0.1)
    assert (await rig.submit(make_order("buy"))).broker_order_id
    # One that never stays silent, and never ends either: the deadline ends it, for every thread of the lane.
    threads = rig.tuning.order_threads
    rig.control.arm("byte_by_byte", threads, on="submit", gap_ms=40)
    orders = [limit("buy", "50") for _ in range(threads)]
    results = await asyncio.gather(*(rig.submit(order) for order in orders), return_exceptions=True)
    assert {type(result) for result in results} == {BrokerUnknown}
    assert (await rig.submit(make_order("buy"))).broker_order_id


@shows("wrong_echo")
async def _wrong_echo(rig):
    await rig.submit(limit("buy", "50"))
    await came_unheard(rig, "wrong_echo")
    await rig.submit(order := limit("buy", "49"))
    rig.control.arm("wrong_echo", 2, on="lookup")
    for asked in (order, rig.known(order)):
        with pytest.raises(BrokerUnknown, match="describes another order"):
            await rig.broker.find(asked)
    assert await rig.broker.find(order) is not None


@shows("unknown_enum")
async def _unknown_enum(rig):
    start = datetime.now(UTC)
    orders = [limit("buy", "50") for _ in range(3)]
    for order in orders:
        await rig.submit(order)
    rig.control.arm("unknown_enum")
    listed = await rig.broker.orders(start)
    assert [one.client_order_id for one in listed] == [order.client_order_id for order in orders]
    (odd,) = [one for one in listed if one.status not in ("new", "pending_new")]
    assert odd.is_open and odd.end is None, "what nobody understands has not ended"


@shows("lookup_404_just_after_acceptance")
async def _lookup_404(rig):
    rig.control.arm("lookup_404_just_after_acceptance", lag_ms=600)
    await rig.submit(order := limit("buy", "50"))
    assert await rig.broker.find(order) is None
    assert await rig.broker.find(rig.known(order)) is None
    for _ in range(int(DEADLINE_S / 0.02)):
        if found := await rig.broker.find(order):
            break
        await asyncio.sleep(0.02)
    assert found.broker_order_id == rig.known(order).broker_order_id


@shows("fill_before_ack")
async def _fill_before_ack(rig):
    rig.control.arm("fill_before_ack")
    order = make_order("buy")
    await rig.submit(order)
    await rig.until(order, "fill")
    assert len(rig.fills(order)) == 1


@shows("reject_later")
async def _reject_later(rig):
    rig.control.arm("reject_later")
    order = limit("buy", "50")
    assert (await rig.submit(order)).broker_order_id
    await rig.until(order, "rejected")
    (said,) = [event for event in rig.about(order) if event.what is What.REJECTED]
    assert said.code and said.message
    assert (await rig.broker.find(order)).end is What.REJECTED


@shows("manual_external_order")
async def _external(rig):
    start = datetime.now(UTC)
    rig.control.arm("manual_external_order")
    await rig.submit(order := make_order("buy", "5"))
    await rig.eventually(lambda: len({event.broker_order_id for event in rig.fills()}) == 2)
    (other,) = [one for one in await rig.broker.orders(start) if one.client_order_id != order.client_order_id]
    assert other.symbol == "AAPL" and not other.client_order_id.startswith("d1.")
    assert {one.broker_order_id for one in await rig.broker.executions(start)} == {
        other.broker_order_id,
        rig.known(order).broker_order_id,
    }


@shows("fill_after_cancel")
async def _fill_after_cancel(rig):
    for how in ("race", "late"):
        await rig.submit(order := limit("buy", "50", "1000"))
        rig.control.arm("fill_after_cancel", how=how)
        await rig.broker.cancel(rig.known(order))
        await rig.until(order, "fill")
        (fill,) = rig.fills(order)
        assert fill.filled_qty == fill.qty
        truth = rig.truth_of(order)
        if truth["status"] == "canceled":
            await rig.until(order, "canceled")
            (end,) = [event for event in rig.about(order) if event.what is What.CANCELED]
            assert end.filled_qty == (fill.qty if how == "race" else 0)
        assert (await rig.broker.find(order)).filled_qty == fill.qty


@shows("stuck_pending_cancel")
async def _stuck(rig):
    await rig.submit(order := limit("buy", "50"))
    rig.control.arm("stuck_pending_cancel", lag_ms=60_000)
    for _ in range(2):
        await rig.broker.cancel(rig.known(order))
    found = await rig.broker.find(order)
    assert (found.status, found.is_open) == ("pending_cancel", True)
    rig.control.heal()
    await rig.until(order, "canceled")


@shows("cancel_refused")
async def _cancel_refused(rig):
    await rig.submit(order := limit("buy", "50"))
    rig.control.arm("cancel_refused")
    with pytest.raises(BrokerRejected) as no:
        await rig.broker.cancel(rig.known(order))
    assert no.value.code == "42210000"
    await rig.until(order, "cancel_rejected")
    await rig.broker.cancel(rig.known(order))
    await rig.until(order, "canceled")


@shows("stale")
async def _stale(rig):
    start = datetime.now(UTC) - timedelta(minutes=1)
    await rig.submit(order := make_order("buy"))
    await rig.until(order, "fill")
    rig.control.arm("stale", on="positions", lag_ms=60_000)
    assert (await rig.broker.holdings())[0].positions == ()
    assert (await rig.broker.holdings())[0].positions[0].qty == 10
    rig.control.arm("stale", on="list", lag_ms=60_000)
    assert await rig.broker.orders(start) == []
    assert len(await rig.broker.orders(start)) == 1


@shows("bust_and_correction")
async def _bust(rig):
    start = datetime.now(UTC)
    rig.control.arm("bust_and_correction", how="bust", delay_ms=20)
    await rig.submit(busted := make_order("buy", "2"))
    await rig.until(busted, "busted")
    fill, bust = (event for event in rig.about(busted) if event.what in (What.FILL, What.BUSTED))
    assert bust.broker_execution_id == fill.broker_execution_id != ""
    assert await rig.broker.executions(start) == []
    rig.control.arm("bust_and_correction", how="correct", delay_ms=20)
    await rig.submit(order := make_order("buy", "2"))
    await rig.until(order, "fill", times=2)
    fill, bust, again = (event for event in rig.about(order) if event.what in (What.FILL, What.BUSTED))
    assert bust.broker_execution_id == fill.broker_execution_id != again.broker_execution_id
    assert (again.qty, again.price) == (2, Decimal("100.01"))
    assert [one.price for one in await rig.broker.executions(start)] == [again.price]


@shows("stream_lost")
async def _stream_lost(rig):
    """What the stream never told, the records have."""
    start = datetime.now(UTC)
    await rig.submit(order := limit("buy", "50"))
    await rig.eventually(lambda: "new" in [event.status for event in rig.about(order)])
    rig.control.arm("stream_lost")
    rig.control.fill(order.client_order_id)
    (recorded,) = await rig.broker.executions(start)
    assert (recorded.broker_order_id, recorded.cum_qty) == (rig.known(order).broker_order_id, 10)
    assert rig.fills(order) == []


@shows("stream_tripled")
async def _stream_tripled(rig):
    rig.control.arm("stream_tripled", 3)
    await rig.submit(order := make_order("buy"))
    await rig.until(order, "fill", times=3)
    assert len({(fill.broker_execution_id, fill.filled_qty) for fill in rig.fills(order)}) == 1


@shows("stream_reordered")
async def _stream_reordered(rig):
    rig.control.arm("stream_reordered")
    await rig.submit(order := make_order("buy"))
    await rig.eventually(lambda: len(rig.about(order)) == 3)
    assert [event.status for event in rig.about(order)] == ["new", "pending_new", "filled"]


@shows("stream_disconnect")
async def _stream_disconnect(rig):
    await rig.submit(order := limit("buy", "50"))
    await rig.eventually(lambda: "new" in [event.status for event in rig.about(order)])
    gaps = rig.gaps
    rig.control.arm("stream_disconnect")
    rig.control.fill(order.client_order_id)
    await rig.eventually(lambda: rig.gaps > gaps)
    assert rig.broker.stream_problem() == "" and rig.broker.problem() == ""
    assert "fill" not in whats(rig.events)


@shows("stream_silent")
async def _stream_silent(rig):
    """It answers pings; that it says nothing after an order gives it away."""
    gaps = rig.gaps
    rig.control.arm("stream_silent")
    await rig.submit(order := make_order("buy"))
    await rig.eventually(lambda: rig.gaps > gaps)
    assert rig.about(order) == []
    assert (await rig.broker.find(order)).end is What.FILL
    await rig.submit(heard := make_order("buy"))
    await rig.until(heard, "fill")
