"""What every broker must do, whatever it is. A new one joins by a rig (see rigs.py) and a row in BROKERS."""

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import pytest
from paper_samples import limit, make_group, make_order, whats
from rigs import DEADLINE_S, AlpacaRig, PaperRig, SubAccountRig, connected

from desk_server.brokers import BrokerHasIt, BrokerRejected, What
from desk_server.domain import OrderChange

BROKERS = {"paper": PaperRig, "alpaca": AlpacaRig, "alpaca-broker": SubAccountRig}
# Those with a memory of their own: BrokerRecords.
WITH_RECORDS = {name: BROKERS[name] for name in ("alpaca", "alpaca-broker")}


@pytest.fixture(params=sorted(BROKERS))
async def rig(request):
    async with connected(BROKERS[request.param]()) as rig:
        yield rig


@pytest.fixture(params=sorted(WITH_RECORDS))
async def recorder(request):
    async with connected(WITH_RECORDS[request.param]()) as rig:
        yield rig


async def test_an_order_is_acknowledged_and_fills(rig):
    """The acknowledgement has an id; the execution comes as an event of the same id."""
    order = make_order("buy")
    ack = await rig.submit(order)
    assert ack.broker_order_id and ack.status in ("new", "pending_new", "accepted")
    await rig.until(order, "fill")
    (event,) = rig.fills()
    assert event.broker_order_id == ack.broker_order_id
    assert event.client_order_id == order.client_order_id
    assert (event.symbol, event.side, event.qty) == ("AAPL", "buy", Decimal(10))
    assert event.price > 0 and event.fee >= 0 and event.at.utcoffset() is not None
    assert UUID(event.execution_id or event.broker_execution_id)


async def test_a_resting_order_is_found_under_its_own_name(rig):
    """find gives what the broker has; None for a name it never saw."""
    order = limit("buy", "50")
    ack = await rig.submit(order)
    for asked in (order, rig.known(order)):
        found = await rig.broker.find(asked)
        assert found.broker_order_id == ack.broker_order_id
        assert (found.symbol, found.side, found.qty, found.filled_qty) == ("AAPL", "buy", Decimal(10), Decimal(0))
        assert found.is_open and found.end is None
    assert await rig.broker.find(limit("buy", "50")) is None


async def test_a_name_is_taken_once_and_for_ever(rig):
    """A second order of the same name is rejected, even after the first was cancelled; nothing happens twice."""
    order = limit("buy", "50")
    await rig.submit(order)
    for is_over in (False, True):
        with pytest.raises(BrokerHasIt) as no:
            await rig.submit(order)
        assert (no.value.code, no.value.message) == ("40010001", "client_order_id must be unique")
        if not is_over:
            await rig.broker.cancel(order)
            await rig.until(order, "canceled")


async def test_a_cancel_ends_the_order_with_an_event(rig):
    """The call only asks; the event tells."""
    order = limit("buy", "50")
    await rig.submit(order)
    await rig.broker.cancel(rig.known(order))
    await rig.until(order, "canceled")
    found = await rig.broker.find(order)
    assert (found.status, found.is_open, found.end) == ("canceled", False, What.CANCELED)


async def test_a_filled_order_cannot_be_cancelled(rig):
    """The broker says what state it is in."""
    order = make_order("buy")
    await rig.submit(order)
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
    old, new = limit("buy", "50"), limit("buy", "60", "12")
    first = await rig.submit(old)
    await rig.eventually(lambda: first.status == "new" or "new" in [event.status for event in rig.about(old)])
    ack = await rig.broker.replace(rig.known(old), new, OrderChange(limit_price=Decimal(60), qty=Decimal(12)))
    assert ack.broker_order_id != first.broker_order_id
    assert ack.qty == 12
    await rig.until(old, "replaced")
    (said,) = [event for event in rig.events if event.what is What.REPLACED]
    assert (said.replaced_by, said.new_broker_order_id, said.qty) == (new.client_order_id, ack.broker_order_id, 12)
    assert (await rig.broker.find(old)).end is What.REPLACED
    await rig.market(60)
    await rig.until(new, "fill")
    assert [event.qty for event in rig.fills(new)] == [12]


async def test_a_held_bracket_leg_works_after_its_entry(rig):
    """Legs are acknowledged with their entry, released after its fill, and end each other."""
    order, (profit, loss) = make_group("bracket")
    ack = await rig.submit(order, (profit, loss))
    assert len({ack.broker_order_id, *(leg.broker_order_id for leg in ack.legs)}) == 3
    await rig.until(loss, "released")
    await rig.market(110)
    await rig.until(profit, "fill")
    await rig.until(loss, "canceled")
    assert len(rig.fills(order)) == 1
    (exit_fill,) = rig.fills(profit)
    assert (exit_fill.side, exit_fill.qty) == ("sell", 10)


async def test_legs_are_told_in_the_order_they_were_sent_in(rig):
    """Take-profit and stop-loss are not mistaken for each other, in the answer and when looked up."""
    order, legs = make_group("bracket", entry="limit", limit_price="99", loss_limit="89")
    ack = await rig.submit(order, legs)
    found = (await rig.broker.find(order)).legs
    assert [leg.broker_order_id for leg in found] == [leg.broker_order_id for leg in ack.legs]
    assert {leg.status for leg in found} == {"held"}
    for leg in legs:
        one = await rig.broker.find(rig.known(leg))
        assert (one.broker_order_id, one.side) == (rig.known(leg).broker_order_id, "sell")
        if one.request is not None:
            assert one.request.stop_price == leg.request.stop_price


KINDS = {
    "market": lambda: (make_order("buy"), ()),
    "market ioc": lambda: (make_order("buy", tif="ioc"), ()),
    "notional": lambda: (make_order("buy", notional="250.50"), ()),
    "fraction": lambda: (make_order("buy", "0.123456789"), ()),
    "limit": lambda: (limit("buy", "50.01", tif="gtc"), ()),
    "limit in extended hours": lambda: (limit("buy", "50", extended_hours=True), ()),
    "stop": lambda: (make_order("buy", type="stop", stop_price="150"), ()),
    "stop limit": lambda: (make_order("buy", type="stop_limit", stop_price="150", limit_price="151"), ()),
    "trail by price": lambda: (make_order("buy", type="trailing_stop", trail_price="1.5"), ()),
    "trail by percent": lambda: (make_order("buy", type="trailing_stop", trail_percent="2.5"), ()),
    "crypto": lambda: (limit("buy", "30000", "0.001", symbol="BTC/USD", tif="gtc"), ()),
    "bracket": lambda: make_group("bracket", tif="gtc"),
    "bracket with a stop limit": lambda: make_group("bracket", entry="limit", limit_price="95", loss_limit="89"),
    "oto profit": lambda: make_group("oto", loss=None),
    "oto loss": lambda: make_group("oto", profit=None),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_every_kind_of_order_is_taken(rig, kind):
    """All types, times and classes go through as they are, and are found as they went."""
    order, legs = KINDS[kind]()
    ack = await rig.submit(order, legs)
    assert len(ack.legs) == len(legs)
    found = await rig.broker.find(order)
    assert (found.broker_order_id, found.symbol, found.side) == (ack.broker_order_id, order.request.symbol, "buy")
    if found.request is not None:
        assert found.request == order.request


async def test_an_oco_is_two_exits_of_which_one_fills(rig):
    """The order is its take-profit, the leg its stop; when one is done the other is cancelled."""
    await rig.submit(entry := make_order("buy"))
    await rig.until(entry, "fill")
    order, (loss,) = make_group("oco", side="sell")
    ack = await rig.submit(order, (loss,))
    assert len(ack.legs) == 1
    await rig.market(89)
    await rig.until(loss, "fill")
    await rig.until(order, "canceled")


async def test_what_the_broker_does_not_list_it_does_not_trade(rig):
    """No asset, no order."""
    assert (await rig.broker.asset("AAPL")).symbol == "AAPL"
    for nothing in ("NONE", "", "aapl", "../account", "A B", "AAPL/../x", "É"):
        assert await rig.broker.asset(nothing) is None
    with pytest.raises(BrokerRejected) as no:
        await rig.submit(order := make_order("buy", symbol="NONE"))
    assert (no.value.code, no.value.message) == ("42210000", 'asset "NONE" not found')
    assert await rig.broker.find(order) is None


async def test_assets_tell_what_they_are(rig):
    """A pair has its slash, and is no share."""
    pair = await rig.broker.asset("BTC/USD")
    assert (pair.symbol, pair.asset_class, pair.tradable) == ("BTC/USD", "crypto", True)
    assert (await rig.broker.asset("AAPL")).asset_class == "us_equity"


async def test_events_come_one_at_a_time_and_in_order(rig):
    """The next comes when the last has been taken, and a hundred orders are told of in their order."""
    seen, busy, all_seen = [], Counter(), asyncio.Event()
    other = type(rig)()

    async def slowly(event) -> None:
        busy["now"] += 1
        busy["most"] = max(busy["most"], busy["now"])
        await asyncio.sleep(0)
        if event.what is What.FILL:
            seen.append(event.client_order_id)
        busy["now"] -= 1
        if len(seen) == 100:
            all_seen.set()

    other.on_event = slowly
    async with connected(other):
        orders = [make_order("buy", "1") for _ in range(100)]
        for order in orders:
            await other.submit(order)
        await asyncio.wait_for(all_seen.wait(), DEADLINE_S)
    assert seen == [order.client_order_id for order in orders]
    assert busy["most"] == 1


async def test_positions_are_the_accounts(rig):
    """Signed sums of all executions."""
    bought, sold = make_order("buy", "10"), make_order("sell", "4")
    for order in (bought, sold):
        await rig.submit(order)
        await rig.until(order, "fill")
    mine = [one for one in await rig.broker.holdings() if one.users is None or "alice" in one.users]
    (account,) = mine
    assert {held.symbol: held.qty for held in account.positions} == {"AAPL": Decimal(6)}
    assert account.problem == ""


async def test_the_calendar_tells_trading_days(rig):
    """Thanksgiving 2026 is none, and the day after is a short one."""
    days = await rig.broker.calendar(datetime(2026, 11, 23).date(), datetime(2026, 11, 29).date())  # noqa: DTZ001
    assert [day.open.isoformat() for day in days] == [f"2026-11-{day}T14:30:00+00:00" for day in (23, 24, 25, 27)]
    assert [day.close.hour for day in days] == [21, 21, 21, 18]
    assert all(day.early < day.open < day.close < day.late for day in days)


async def test_the_market_clock_tells_what_comes_next(rig):
    """Aware times, after now."""
    clock = await rig.broker.market_clock()
    assert clock.is_open is True
    assert clock.at.utcoffset() is not None
    assert clock.next_open > clock.at


async def test_capabilities_name_the_broker_and_whether_money_is_real(rig):
    """The desk promises nothing else."""
    assert rig.broker.capabilities.name
    assert rig.broker.capabilities.live is False
    assert rig.broker.problem() == ""


async def test_the_records_have_every_order_once(recorder):
    """Open ones and recent ones, legs inside their entries."""
    rig, start = recorder, datetime.now(UTC)
    filled, resting = make_order("buy", "3"), limit("buy", "50")
    group, legs = make_group("bracket")
    await rig.submit(filled)
    await rig.submit(resting)
    ack = await rig.submit(group, legs)
    await rig.until(filled, "fill")
    await rig.until(legs[0], "released")
    listed = await rig.broker.orders(start)
    names = [order.client_order_id for order in listed]
    assert names == [filled.client_order_id, resting.client_order_id, group.client_order_id]
    assert [leg.broker_order_id for leg in listed[2].legs] == [leg.broker_order_id for leg in ack.legs]
    assert {leg.parent_id for leg in listed[2].legs} == {ack.broker_order_id}
    assert [(order.is_open, order.end) for order in listed] == [
        (False, What.FILL),
        (True, None),
        (False, What.FILL),
    ]
    # Later on, what is open is still there: the legs too, though their entry is over.
    later = await rig.broker.orders(datetime.now(UTC) + timedelta(seconds=1))
    everything = [one for order in later for one in (order, *order.legs)]
    assert sorted(one.broker_order_id for one in everything if one.is_open) == sorted(
        (listed[1].broker_order_id, *(leg.broker_order_id for leg in ack.legs))
    )


async def test_the_records_have_every_execution_once(recorder):
    """As the stream told them: the place in the order makes them the same ones."""
    rig, start = recorder, datetime.now(UTC)
    rig.control.settings(fills="held")
    order = limit("buy", "150", "10")
    await rig.submit(order)
    for qty in (3, 5, 2):
        rig.control.fill(order.client_order_id, qty=qty, price=101)
    await rig.until(order, "fill", times=3)
    told = [(event.qty, event.price, event.filled_qty) for event in rig.fills(order)]
    recorded = await rig.broker.executions(start)
    assert [(one.qty, one.price, one.cum_qty) for one in recorded] == told == [(3, 101, 3), (5, 101, 8), (2, 101, 10)]
    assert {one.broker_order_id for one in recorded} == {rig.known(order).broker_order_id}
    assert len({one.execution_id for one in recorded}) == 3
    assert await rig.broker.executions(datetime.now(UTC) + timedelta(minutes=1)) == []


async def test_the_records_have_what_moved_money_besides(recorder):
    """Dividends, fees and splits, signed; executions are not among them."""
    rig, account = recorder, recorder.account
    await rig.submit(order := make_order("buy"))
    await rig.until(order, "fill")
    rig.control.activity("DIV", net_amount="2.40", symbol="AAPL", per_share_amount="0.24", account=account)
    rig.control.activity("FEE", net_amount="-0.02", description="TAF fee", account=account)
    rig.control.activity("SPLIT", symbol="AAPL", qty="10", account=account)
    found = {one.kind: one for one in await rig.broker.activities(datetime.now(UTC))}
    assert set(found) == {"DIV", "FEE", "SPLIT"}
    assert (found["DIV"].cash, found["DIV"].symbol, found["DIV"].qty) == (Decimal("2.40"), "AAPL", 0)
    assert found["DIV"].per_share == Decimal("0.24")
    assert (found["FEE"].cash, found["FEE"].description) == (Decimal("-0.02"), "TAF fee")
    assert (found["SPLIT"].cash, found["SPLIT"].qty) == (0, 10)


async def test_holdings_are_the_brokers_own(recorder):
    """Cash, buying power and positions agree with the broker's book, and coins have their slash."""
    rig = recorder
    for order in (make_order("buy", "3"), make_order("buy", "0.5", symbol="BTC/USD", tif="gtc")):
        await rig.submit(order)
        await rig.until(order, "fill")
    account = next(one for one in await rig.broker.holdings() if one.users is None or "alice" in one.users)
    truth = rig.truth()
    assert account.cash == Decimal(truth["cash"])
    assert account.buying_power > 0
    held = {one.symbol.replace("/", ""): str(one.qty) for one in account.positions}
    assert held == {symbol: position["qty"] for symbol, position in truth["positions"].items()}
    assert "BTC/USD" in [one.symbol for one in account.positions]
    assert whats(rig.events).count("fill") == 2
