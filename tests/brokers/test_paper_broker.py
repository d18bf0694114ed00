"""The paper exchange behind the protocol: its queue, its end, its refusals and its races."""

import asyncio
import time
from decimal import Decimal

import pytest
from msgspec.structs import replace
from paper_samples import ASSETS, NOON, FixedClock, Market, limit, line, make_order, whats

from desk_server.brokers import BrokerRejected, BrokerThrottled
from desk_server.brokers.paper import PaperBroker, fill_model
from desk_server.domain import OrderChange, State, TimeInForce
from desk_server.settings import Settings
from tests.counting import calls_in


def D(text):
    return Decimal(str(text))


def new_broker(**options) -> PaperBroker:
    return PaperBroker(ASSETS, clock=FixedClock(NOON), **options)


async def eventually(true, what: str) -> None:
    deadline = time.monotonic() + 5
    while not true():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.002)


class Reader:
    """Takes events, or stands still until told to go on."""

    def __init__(self) -> None:
        self.events = []
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, event) -> None:
        await self.go.wait()
        self.events.append(event)


async def test_it_has_a_problem_until_the_first_line():
    """Without a market there is no exchange."""
    broker = new_broker()
    assert broker.problem() == "no market line seen yet"
    broker.on_quote(line(100))
    assert broker.problem() == ""


async def test_it_answers_first():
    """What follows from a request is told after its answer: an execution, a cancel."""
    broker, reader = new_broker(), Reader()
    await broker.connect(reader)
    broker.on_quote(line(100))
    await broker.submit(make_order("buy"))
    assert reader.events == []
    await eventually(lambda: whats(reader.events) == ["fill"], "no fill")
    await broker.submit(resting := limit("buy", "50"))
    await broker.cancel(resting)
    assert whats(reader.events) == ["fill"]
    await eventually(lambda: whats(reader.events) == ["fill", "canceled"], "no cancel")
    await broker.close()


async def test_a_full_queue_refuses_requests_and_loses_nothing():
    """New orders are throttled and lines wait; when the reader goes on, everything arrives."""
    broker, reader = new_broker(events_waiting_max=5), Reader()
    await broker.connect(reader)
    broker.on_quote(line(100))
    reader.go.clear()
    resting = limit("buy", "50")
    await broker.submit(resting)
    with pytest.raises(BrokerThrottled):
        for _ in range(10):
            await broker.submit(make_order("buy"))
    with pytest.raises(BrokerThrottled):
        await broker.cancel(resting)
    broker.on_quote(line(50))
    assert (await broker.find(resting)).filled_qty == 0
    reader.go.set()
    await eventually(lambda: "fill" in whats(reader.events, resting), "the late line was lost")
    assert len(reader.events) == 6
    await broker.close()


async def test_close_delivers_what_was_said():
    """And then takes no more."""
    broker, reader = new_broker(), Reader()
    await broker.connect(reader)
    broker.on_quote(line(100))
    for _ in range(1000):
        await broker.submit(make_order("buy", "1"))
    await broker.close()
    assert len(reader.events) == 1000
    assert broker.problem()
    with pytest.raises(BrokerThrottled):
        await broker.submit(make_order("buy"))


async def test_close_does_not_wait_for_ever(monkeypatch):
    """A reader that stands still does not hold up the end."""
    monkeypatch.setattr("desk_server.brokers.paper.CLOSE_TIMEOUT_S", 0.05)
    broker, reader = new_broker(), Reader()
    await broker.connect(reader)
    broker.on_quote(line(100))
    reader.go.clear()
    await broker.submit(make_order("buy"))
    await asyncio.wait_for(broker.close(), 5)
    assert reader.events == []


async def test_a_reader_that_fails_stops_the_exchange():
    """Rather than to trade on without anybody knowing."""
    broker = new_broker()

    async def fail(_) -> None:
        raise OSError("disk full")

    await broker.connect(fail)
    broker.on_quote(line(100))
    await broker.submit(make_order("buy"))
    await eventually(lambda: "cannot deliver" in broker.problem(), "the failure went unseen")
    with pytest.raises(BrokerThrottled):
        await broker.submit(make_order("buy"))
    await broker.close()


async def test_it_connects_once():
    """Two readers would each see half."""
    broker = new_broker()
    await broker.connect(Reader())
    with pytest.raises(RuntimeError):
        await broker.connect(Reader())
    await broker.close()


async def test_restored_orders_speak_after_connect():
    """What the ledger was not told is delivered first."""
    broker, reader = new_broker(), Reader()
    order = replace(limit("buy", "50", tif="ioc"), state=State.LIVE, broker_status="new")
    broker.restore([order])
    await broker.connect(reader)
    await eventually(lambda: whats(reader.events) == ["canceled"], "nothing was said")
    await broker.close()


def test_the_settings_make_the_fill_model():
    """Every paper setting arrives."""
    settings = Settings(
        paper_slippage_bps="1",
        paper_fee_per_share="2",
        paper_fee_bps="3",
        paper_crypto_fee_bps="4",
        paper_partial_percent=5,
        paper_size_limited=True,
    )
    model = fill_model(settings)
    assert (model.slippage_bps, model.fee_per_share, model.fee_bps, model.crypto_fee_bps) == (1, 2, 3, 4)
    assert (model.partial_percent, model.size_limited) == (5, True)


# Races of cancel and replace with fills


def change(market: Market, old, **fields):
    new = limit("buy", "1")
    ack = market.exchange.replace(old, new, OrderChange(**fields))
    return new, ack


def test_a_fill_that_came_first_is_told_before_the_cancel():
    """A part filled, then cancelled: the fill stands, the rest is gone."""
    market = Market(size_limited=True)
    order = limit("buy", "95")
    market.send(order)
    market.line(95, 94, 95, sizes=(4, 4))
    market.exchange.cancel(order)
    assert whats(market.said) == ["fill", "canceled"]
    assert market.line(95) == []
    assert market.exchange.positions() == {"AAPL": D(4)}


def test_a_cancel_loses_against_a_complete_fill():
    """Even where nobody has heard of the fill yet."""
    market = Market()
    order = make_order("buy")
    market.send(order)
    with pytest.raises(BrokerRejected, match='already in "filled" state'):
        market.exchange.cancel(order)


def test_cancelling_twice_is_rejected_the_second_time():
    """It is cancelled already, and says so."""
    market = Market()
    order = limit("buy", "50")
    market.send(order)
    market.exchange.cancel(order)
    with pytest.raises(BrokerRejected, match='already in "canceled" state'):
        market.exchange.cancel(order)


def test_a_replace_counts_what_had_filled():
    """The new total is 20, four had filled: sixteen remain; then a smaller total leaves less."""
    market = Market(size_limited=True)
    order = limit("buy", "95")
    market.send(order)
    market.line(95, 94, 95, sizes=(4, 4))
    new, ack = change(market, order, qty=D(20))
    assert ack.qty == 16
    newer, ack = change(market, new, qty=D(6), limit_price=D(90))
    assert ack.qty == 6
    assert market.status(order) == market.status(new) == "replaced"
    market.line(90)
    assert market.exchange.positions() == {"AAPL": D(10)}
    assert market.status(newer) == "filled"


@pytest.mark.parametrize("qty", [3, 4])
def test_a_replace_below_what_has_filled_is_rejected(qty):
    """The old order stands."""
    market = Market(size_limited=True)
    order = limit("buy", "95")
    market.send(order)
    market.line(95, 94, 95, sizes=(4, 4))
    with pytest.raises(BrokerRejected, match="qty must be > filled_qty 4"):
        change(market, order, qty=D(qty))
    assert market.status(order) == "partially_filled"


def test_a_marketable_replacement_fills_at_once():
    """After its acknowledgement, as any order."""
    market = Market()
    order = limit("buy", "95")
    market.send(order)
    new, ack = change(market, order, limit_price=D(100))
    assert ack.status == "new"
    assert whats(market.said) == ["replaced", "fill"]
    assert market.status(new) == "filled"


def test_a_replaced_stop_waits_for_its_new_price():
    """And a trailing stop keeps its high-water mark under a new trail."""
    market = Market()
    stop = make_order("sell", type="stop", stop_price="95")
    market.send(stop)
    change(market, stop, stop_price=D(90))
    assert market.line(94) == []
    assert whats(market.line(90)) == ["fill"]
    trailing = make_order("sell", type="trailing_stop", trail_price="5")
    market.send(trailing)
    market.line(110)
    market.line(109)
    change(market, trailing, trail=D(2))
    assert market.line("108.01") == []
    assert whats(market.line(108)) == ["fill"]


def test_a_replaced_time_in_force_counts_from_now():
    """day becomes gtc, and outlives the close."""
    market = Market()
    order = limit("buy", "50")
    market.send(order)
    new, _ = change(market, order, time_in_force=TimeInForce.GTC)
    assert market.line(100, at="2026-11-19T16:00") == []
    assert market.status(new) == "new"


@pytest.mark.parametrize(
    ("order", "state"),
    [
        (make_order("buy"), "filled"),
        (make_order("buy", tif="cls"), "accepted"),
        (limit("buy", "50", tif="ioc"), "canceled"),
    ],
)
def test_only_working_orders_are_replaced(order, state):
    """Accepted ones have not got there yet, ended ones are over."""
    market = Market()
    market.send(order)
    with pytest.raises(BrokerRejected, match=f'cannot replace an order in "{state}" state'):
        change(market, order, limit_price=D(10))


def test_a_replacement_needs_a_new_name():
    """Its name is as unique as any."""
    market = Market()
    order = limit("buy", "50")
    market.send(order)
    with pytest.raises(BrokerRejected, match="client_order_id must be unique"):
        market.exchange.replace(order, order, OrderChange(limit_price=D(51)))


@pytest.mark.parametrize(
    ("order", "code", "said"),
    [
        (make_order("buy", symbol="STUCK"), "42210000", "not tradable"),
        (limit("buy", "9.99", "1", symbol="BTC/USD", tif="gtc"), "40310000", "minimal amount of order 10"),
        (make_order("buy", symbol="BTC/USD", tif="gtc", notional="9.99"), "40310000", "minimal amount of order 10"),
    ],
)
def test_what_the_account_may_not_is_rejected(order, code, said):
    """As Alpaca rejects it; and nothing of it exists."""
    market = Market()
    with pytest.raises(BrokerRejected, match=said) as no:
        market.exchange.submit(order)
    assert no.value.code == code
    assert market.exchange.find(order.client_order_id) is None


def test_a_line_that_concerns_nobody_costs_the_same_whatever_rests():
    """However many orders rest, and however many filled before."""

    def work(orders: int) -> int:
        market = Market()
        for _ in range(orders):
            market.exchange.submit(limit("buy", "101"))
            market.exchange.submit(limit("buy", "50"))
        market.exchange.submit(limit("buy", "99"))
        market.line(99)
        market.line(100)
        return calls_in(lambda: market.line(100))

    assert work(2000) == work(2)
