"""Orders of one account that could trade against each other: found before the broker finds them, or kept back."""

import asyncio
from decimal import Decimal as D

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from desk_server import selftrade
from desk_server.account_cash import AccountCash
from desk_server.domain import OrderChange, OrderClass, OrderRequest, OrderType, State, StopLoss, Symbol, TimeInForce
from desk_server.errors import Code
from desk_server.events import SendIntended
from tests.desk.conftest import ADMIN, ALICE, BOB, DeskUnderTest
from tests.desk.test_order_path import BUY, SELL, named, refused

REFUSING = {"checks_wash_trades": True}
HOLDING = {"checks_wash_trades": True, "holds_wash_trades": True}


def bid(price: str, qty: int = 10) -> OrderRequest:
    return replace(BUY, type=OrderType.LIMIT, limit_price=D(price), qty=D(qty))


def ask(price: str, qty: int = 10) -> OrderRequest:
    return replace(SELL, type=OrderType.LIMIT, limit_price=D(price), qty=D(qty))


def of(request: OrderRequest, kind: OrderType, *, limit: str | None = None, stop: str | None = None) -> OrderRequest:
    prices = {"limit_price": limit and D(limit), "stop_price": stop and D(stop)}
    return replace(request, type=kind, **prices)


MARKET_BUY, MARKET_SELL = of(BUY, OrderType.MARKET), of(SELL, OrderType.MARKET)
STOP_BUY, STOP_SELL = of(BUY, OrderType.STOP, stop="120"), of(SELL, OrderType.STOP, stop="80")
BID, ASK = bid("95"), ask("105")
MEETINGS = [
    (MARKET_BUY, ASK, True),
    (MARKET_BUY, STOP_SELL, True),
    (MARKET_BUY, MARKET_SELL, True),
    (STOP_BUY, ASK, True),
    (STOP_BUY, STOP_SELL, True),
    (BID, STOP_SELL, True),
    (BID, MARKET_SELL, True),
    (BID, ASK, False),
    (bid("104.99"), ASK, False),
    (bid("105"), ASK, True),
    (bid("106"), ASK, True),
    (of(BUY, OrderType.STOP_LIMIT, stop="100", limit="104"), ASK, False),
    (of(BUY, OrderType.STOP_LIMIT, stop="100", limit="105"), ASK, True),
    (bid("105"), of(SELL, OrderType.STOP_LIMIT, stop="90", limit="105"), True),
]


@pytest.mark.parametrize(("buy", "sell", "meet"), MEETINGS)
def test_the_rule_is_the_broker_s(buy, sell, meet):
    """Market and stop orders meet everything; limits meet where the buy's is not below the sell's."""
    assert selftrade.could_meet(buy, sell) is meet
    assert selftrade.could_meet(sell, buy) is meet


def test_brackets_ocos_otos_and_trailing_stops_are_exempt():
    """The broker takes these whatever else is open."""
    assert selftrade.is_exempt(replace(BUY, type=OrderType.TRAILING_STOP, trail_price=D(1)))
    for kind in (OrderClass.BRACKET, OrderClass.OCO, OrderClass.OTO):
        assert selftrade.is_exempt(replace(BUY, order_class=kind))
    assert not selftrade.is_exempt(BUY)


async def owners(directory, desk) -> DeskUnderTest:
    """Alice and Bob own 100 AAPL each, and the market is 99.99 to 100."""
    run = await DeskUnderTest(directory, desk=desk).start()
    run.line()
    for who in (ALICE, BOB):
        await run.ended(await run.desk.place(who, replace(BUY, qty=D(100))), "filled")
    return run


@pytest.fixture
async def refusing(tmp_path):
    run = await owners(tmp_path, REFUSING)
    yield run
    await run.stop()


@pytest.fixture
async def holding(tmp_path):
    run = await owners(tmp_path, HOLDING)
    yield run
    await run.stop()


# Refused


async def test_an_order_that_meets_another_user_s_is_refused_and_told_nothing(refusing):
    """Neither price nor size, id nor name; the same words whoever's order it is and whatever its terms."""
    secret = await refusing.desk.place(ALICE, ask("105.37", 17))
    sent = len(refusing.broker.submits)
    error = await refused(Code.SELF_TRADE, refusing.desk.place(BOB, named(MARKET_BUY, "r1")))
    for leak in ("105", "17", "alice", secret.order_id, secret.client_order_id, "sell"):
        assert leak not in error.message + error.limit + error.observed
    await refusing.desk.cancel(ALICE, secret.order_id)
    await refusing.ended(secret, "canceled")
    again = await refused(Code.SELF_TRADE, refusing.desk.place(BOB, named(MARKET_BUY, "r1")))
    assert (again.message, again.order_id) == (error.message, error.order_id)
    other = await refusing.desk.place(ALICE, of(SELL, OrderType.STOP, stop="81.5"))
    third = await refused(Code.SELF_TRADE, refusing.desk.place(BOB, named(MARKET_BUY, "r2")))
    assert (third.message, third.limit, third.observed) == (error.message, "", "")
    assert len(refusing.broker.submits) == sent + 1
    assert other.state is State.LIVE
    assert refusing.desk.book.reserved_cash("bob") == 0


async def test_an_order_that_meets_one_s_own_is_told_which(refusing):
    """The caller's own order is named, so that it can be cancelled."""
    mine = await refusing.desk.place(ALICE, ASK)
    error = await refused(Code.SELF_TRADE, refusing.desk.place(ALICE, bid("105")))
    assert mine.order_id in error.message
    await refusing.desk.place(ALICE, bid("99"))


async def test_orders_in_doubt_and_on_their_way_count(refusing):
    """While nobody knows whether the broker has it, an order is in the way of others."""
    refusing.broker.gate = asyncio.Event()
    placing = asyncio.create_task(refusing.desk.place(ALICE, ASK))
    await refusing.until(lambda: any(order.state is State.SENDING for order in refusing.desk.book.open_orders()))
    await refused(Code.SELF_TRADE, refusing.desk.place(BOB, bid("105")))
    refusing.broker.gate.set()
    await placing
    refusing.broker.gate = None
    refusing.broker.faults, refusing.broker.find_faults = ["lost"], 10**6
    lost = await refusing.desk.place(BOB, bid("96"))
    assert lost.state is State.UNKNOWN
    await refused(Code.SELF_TRADE, refusing.desk.place(ALICE, ask("96")))
    refusing.broker.find_faults = 0
    await refusing.ended(lost, "new")


async def test_of_two_at_once_that_meet_one_goes(refusing):
    """Both on their way to the ledger: the second is refused."""
    outcomes = await asyncio.gather(
        refusing.desk.place(ALICE, ask("105")), refusing.desk.place(BOB, bid("105")), return_exceptions=True
    )
    assert [getattr(outcome, "code", None) for outcome in outcomes] == ["", Code.SELF_TRADE]


async def test_a_replace_is_checked_like_an_order(refusing):
    """The changed order must not meet anybody's; the old one is no obstacle to it."""
    mine = await refusing.desk.place(BOB, bid("95"))
    await refusing.desk.place(ALICE, ASK)
    await refused(Code.SELF_TRADE, refusing.desk.replace(BOB, mine.order_id, OrderChange(limit_price=D("105"))))
    assert refusing.desk.order(BOB, mine.order_id).state is State.LIVE
    new = await refusing.desk.replace(BOB, mine.order_id, OrderChange(limit_price=D("99")))
    assert new.state is State.LIVE


async def test_exempt_orders_pass(refusing):
    """A bracket may be sent against a resting order, and its legs are in nobody's way."""
    await refusing.desk.place(ALICE, ASK)
    bracket = replace(BUY, order_class=OrderClass.BRACKET, take_profit=D(110), stop_loss=StopLoss(D(90)))
    entry = await refusing.desk.place(BOB, bracket)
    await refusing.ended(entry, "filled")
    await refusing.desk.place(ALICE, bid("99"))


async def test_other_symbols_and_the_same_side_are_no_obstacle(refusing):
    """Only opposite sides of one symbol meet."""
    refusing.line("SPY")
    await refusing.desk.place(ALICE, ASK)
    await refusing.desk.place(BOB, replace(MARKET_BUY, symbol=Symbol("SPY")))
    await refusing.desk.place(BOB, ask("104"))


async def test_users_with_accounts_of_their_own_do_not_meet(tmp_path):
    """Where each user has an account at the broker, nobody's orders are in another's way."""
    run = await owners(tmp_path, REFUSING | {"account_of": lambda user: f"account of {user}"})
    await run.desk.place(ALICE, ASK)
    await run.ended(await run.desk.place(BOB, MARKET_BUY), "filled")
    await refused(Code.SELF_TRADE, run.desk.place(ALICE, MARKET_BUY))
    await run.stop()


async def test_nobody_sells_what_another_user_owns(tmp_path):
    """On the shared account the broker would take it for a long sale; the desk decides on the user's own book."""
    run = await DeskUnderTest(tmp_path, desk=REFUSING).start()
    run.line()
    await run.ended(await run.desk.place(ALICE, BUY), "filled")
    await refused(Code.NOT_OWNED, run.desk.place(BOB, SELL))
    assert len(run.broker.submits) == 1
    await run.stop()


prices = st.integers(9_900, 10_100).map(lambda cents: D(cents) / 100)


@given(buy=prices, sell=prices)
def test_limits_meet_exactly_where_they_could_trade(buy, sell):
    """A pair of limits is refused if and only if the buyer would pay what the seller asks."""
    one, other = replace(BID, limit_price=buy), replace(ASK, limit_price=sell)
    assert selftrade.could_meet(one, other) is (buy >= sell)


# Kept back


async def test_an_order_kept_back_is_sent_when_the_other_is_gone(holding):
    """Until then it is pending, counted, and holds its cash; then it goes under the name it had from the start."""
    other = await holding.desk.place(ALICE, ASK)
    order = await holding.desk.place(BOB, named(bid("106"), "r1"))
    assert (order.status, order.state) == ("pending", State.WAITING)
    assert "alice" not in order.message and other.order_id not in order.message and "105" not in order.message
    assert holding.desk.book.reserved_cash("bob") == D(1060)
    assert order.client_order_id not in holding.broker.submits
    assert (await holding.desk.place(BOB, named(bid("106"), "r1"))).order_id == order.order_id
    await holding.desk.cancel(ALICE, other.order_id)
    filled = await holding.ended(order, "filled")
    assert filled.filled_avg_price == D(100)
    assert holding.broker.submits.count(order.client_order_id) == 1
    assert holding.desk.book.reserved_cash("bob") == 0


async def test_orders_kept_back_go_in_the_order_they_came(holding):
    """First come, first served; one that meets an older one waits for that, too."""
    other = await holding.desk.place(ALICE, ask("100", 50))
    first = await holding.desk.place(BOB, bid("100", 1))
    second = await holding.desk.place(BOB, bid("101", 2))
    late_sell = await holding.desk.place(ALICE, ask("100.50", 3))
    assert [order.state for order in (first, second, late_sell)] == [State.WAITING] * 3
    await holding.desk.cancel(ALICE, other.order_id)
    for order in (first, second, late_sell):
        await holding.until(lambda order=order: holding.now(order).state is not State.WAITING)
    ids = [order.client_order_id for order in (first, second, late_sell)]
    assert [sent for sent in holding.broker.submits if sent in ids] == ids


async def test_an_order_kept_back_can_be_cancelled(holding):
    """It ends at once, holds nothing, and never goes; cancelling it again is the same."""
    other = await holding.desk.place(ALICE, ASK)
    order = await holding.desk.place(BOB, named(bid("106"), "r1"))
    assert (await holding.desk.cancel(BOB, order.order_id)).state is State.NOT_SENT
    assert (await holding.desk.cancel(BOB, order.order_id)).state is State.NOT_SENT
    assert (await holding.desk.place(BOB, named(bid("106"), "r1"))).order_id == order.order_id
    assert holding.desk.book.reserved_cash("bob") == 0
    await holding.desk.cancel(ALICE, other.order_id)
    await holding.ended(other, "canceled")
    await asyncio.sleep(0.3)
    assert order.client_order_id not in holding.broker.submits


async def test_an_order_kept_back_survives_a_restart(holding):
    """It waits on, and nobody asks the broker for what it never had."""
    other = await holding.desk.place(ALICE, ASK)
    order = await holding.desk.place(BOB, bid("106"))
    second = await holding.restarted()
    second.line()
    assert second.now(order).state is State.WAITING
    assert second.desk.book.reserved_cash("bob") == D(1060)
    await second.desk.cancel(ALICE, other.order_id)
    await second.ended(order, "filled")
    await second.stop()


async def test_a_cancel_while_it_leaves_the_queue_cancels(holding, monkeypatch):
    """Between the decision to send it and its way to the broker, a cancel still comes in time."""
    other = await holding.desk.place(ALICE, ASK)
    order = await holding.desk.place(BOB, bid("106"))
    record = holding.keeper.record_stubbornly
    asked = []

    async def slowly(*events):
        if isinstance(events[0], SendIntended) and not asked:
            asked.append(await holding.desk.cancel(BOB, order.order_id))
        await record(*events)

    monkeypatch.setattr(holding.keeper, "record_stubbornly", slowly)
    await holding.desk.cancel(ALICE, other.order_id)
    await holding.ended(order, "not_sent")
    assert asked
    assert order.client_order_id not in holding.broker.submits
    assert holding.desk.book.reserved_cash("bob") == 0


async def test_what_waited_is_judged_again(holding):
    """When it may go it must pass all checks of that moment; if it does not, it ends and says why."""
    other = await holding.desk.place(ALICE, ASK)
    order = await holding.desk.place(BOB, named(bid("106"), "r1"))
    await holding.desk.set_halt(ADMIN, "user", "bob", True, "a test")
    await holding.desk.cancel(ALICE, other.order_id)
    await holding.ended(order, "not_sent")
    error = await refused(Code.NOT_SENT, holding.desk.place(BOB, named(bid("106"), "r1")))
    assert "halted" in error.message
    assert order.client_order_id not in holding.broker.submits


async def test_what_waits_reserves_what_it_costs_in_the_end(holding):
    """The market moved meanwhile: what a market order may cost now is held back before it goes."""
    other = await holding.desk.place(ALICE, ASK)
    order = await holding.desk.place(BOB, MARKET_BUY)
    assert holding.desk.book.reserved_cash("bob") == D(1000)
    holding.line(bid="103.99", ask="104")
    holding.broker.gate = asyncio.Event()
    cancelling = asyncio.create_task(holding.desk.cancel(ALICE, other.order_id))
    await holding.until(lambda: holding.broker.cancels)
    holding.broker.gate.set()
    await cancelling
    await holding.ended(order, "filled")
    assert holding.now(order).filled_avg_price == D(104)
    (due,) = [event for event in _events(holding) if isinstance(event, SendIntended)]
    assert due.reserved_cash == D(1040)


async def test_a_day_order_does_not_wait_beyond_its_day(holding):
    """Its day over, it ends as not sent, though nothing else happened."""
    await holding.desk.place(ALICE, replace(ASK, time_in_force=TimeInForce.GTC))
    order = await holding.desk.place(BOB, bid("106"))
    lasting = await holding.desk.place(BOB, replace(bid("107"), time_in_force=TimeInForce.GTC))
    holding.at = holding.at.replace(hour=21, minute=1)
    holding.line()
    await holding.ended(order, "not_sent")
    assert "day ended" in holding.now(order).message
    assert holding.now(lasting).state is State.WAITING


async def test_one_s_own_order_is_never_waited_for(holding):
    """It would wait for ever: the caller is told to cancel the other one."""
    await holding.desk.place(ALICE, ASK)
    await refused(Code.SELF_TRADE, holding.desk.place(ALICE, bid("105")))


async def test_a_replace_is_never_kept_back(holding):
    """A replacement that meets somebody's order is refused, and the old order stands."""
    await holding.desk.place(ALICE, ASK)
    mine = await holding.desk.place(BOB, bid("95"))
    await refused(Code.SELF_TRADE, holding.desk.replace(BOB, mine.order_id, OrderChange(limit_price=D("105"))))
    assert holding.desk.order(BOB, mine.order_id).state is State.LIVE


# The account's own money


async def test_the_account_s_buying_power_is_a_limit_too(tmp_path):
    """Reservations of all users together stay within what the broker gives, of which nothing is told."""
    told = [D(5_000)]
    run = DeskUnderTest(tmp_path)
    run.desk._account_cash = AccountCash(run.desk.book, run.keeper.holds, lambda _: told[0], lambda _: "")
    await run.start()
    run.line()
    await run.desk.place(ALICE, bid("90", 40))
    error = await refused(Code.BUYING_POWER, run.desk.place(BOB, named(bid("90", 20), "r1")))
    assert (error.limit, error.observed) == ("", "1800.00")
    assert "5000" not in error.message and "1400" not in error.message
    await run.desk.place(BOB, bid("90", 15))
    told[0] = D(9_000)
    await run.desk.place(BOB, bid("90", 20))
    await run.stop()


def _events(run: DeskUnderTest) -> list:
    return [stored.event for stored in run.ledger.read()]
