"""Lag is no difference; what is explained is booked to whom it is for; the rest freezes, and becomes the house's."""

from decimal import Decimal as D

import pytest
from msgspec.structs import replace as changed

from desk_server.brokers import Holding, Holdings, What
from desk_server.compare import Kind
from desk_server.domain import Side, State, Symbol, UserId
from desk_server.order_records import FINDS_MAX
from tests.desk.conftest import ALICE, BOB
from tests.reconcile.ground import ADOPT_S, GRACE_S, Ground, HandClock, Records, request


def cash(ground: Ground, user: str) -> D:
    return ground.book.accounts[UserId(user)].cash


async def test_an_order_by_hand_is_the_houses(ground):
    """It is listed as nobody's, its executions are the house's, and no user's book moves."""
    await ground.desk.place(ALICE, request())
    name = await ground.broker.external(Side.BUY, "3")
    await ground.look(2)
    (seen,) = ground.book.foreign_orders()
    assert (seen.broker_order_id, seen.qty, seen.side) == (name, 3, Side.BUY)
    assert (ground.held("alice"), ground.held("$house")) == (10, 3)
    assert ground.reconciler.report().foreign_orders == 1
    ground.agree()


async def test_an_order_by_hand_that_was_over_before_anyone_looked(ground):
    """Placed long before the last look, and executed since: found by its execution."""
    ground.broker.stream = lambda said: []
    name = await ground.broker.external(Side.BUY, "3")
    ground.broker.created[name] = ground.clock.now().replace(year=2020)
    await ground.look(2)
    assert ground.held("$house") == 3
    ground.agree()


async def test_the_brokers_lag_is_no_difference(ground):
    """Positions that come some seconds after their executions freeze nothing."""
    late = dict(ground.broker.held)
    holdings = ground.broker.holdings

    async def lagging():
        (now,) = await holdings()
        return [Holdings("", None, now.cash, now.cash, tuple(Holding(s, q) for s, q in late.items() if q))]

    ground.broker.holdings = lagging
    await ground.desk.place(ALICE, request())
    await ground.look(4, every_s=2)
    assert [one.found.kind for one in ground.reconciler.report().differences] == [Kind.POSITION]
    assert ground.reconciler.frozen("AAPL") == ""
    late.update(ground.broker.held)
    await ground.look()
    assert not ground.reconciler.report().differences


async def test_what_nothing_explains_freezes_and_becomes_the_houses(ground):
    """Shares out of nowhere: told and frozen after the grace, adopted after a long time, then all is well."""
    await ground.desk.place(ALICE, request())
    await ground.look()
    ground.broker.held[Symbol("AAPL")] += 5
    await ground.look(2, every_s=2)
    assert ground.reconciler.frozen("AAPL") == ""
    ground.clock.advance(GRACE_S)
    await ground.look()
    assert "the desk has 10 and the broker 15 shares" in ground.reconciler.frozen("AAPL")
    assert ground.reconciler.frozen("SPY") == ""
    assert "AAPL" in ground.reconciler.report().frozen
    ground.clock.advance(ADOPT_S)
    await ground.look(2)
    assert (ground.held("alice"), ground.held("$house")) == (10, 5)
    assert ground.reconciler.frozen("AAPL") == ""
    assert (ground.reconciler.report().adopted, ground.reconciler.report().differences) == (1, ())
    ground.agree()


async def test_missing_cash_becomes_the_houses(ground):
    """It freezes nothing: it has no symbol."""
    ground.broker.cash -= D("12.34")
    await ground.look(2, every_s=GRACE_S)
    (one,) = ground.reconciler.report().differences
    assert (one.found.kind, one.found.amount, one.counts) == (Kind.CASH, D("-12.34"), True)
    ground.clock.advance(ADOPT_S)
    await ground.look(2)
    assert cash(ground, "$house") == 50_000 - D("12.34")
    ground.agree()


async def test_an_execution_that_the_list_shows_late_is_booked_not_made_up(ground):
    """While the broker's lists are out of step the order waits; nothing is adopted in its place."""
    ground.broker.stream = lambda said: []
    order = await ground.desk.place(ALICE, request())
    (hidden,) = ground.broker.list
    ground.broker.unlisted.add(hidden)
    for _ in range(4):
        await ground.look(1, every_s=ADOPT_S)
    assert ground.now(order).filled_qty == 0
    assert ground.now(order).state.is_open
    assert "has executed 0 by the desk's books and 10 by the broker's" in ground.reconciler.frozen("AAPL")
    ground.broker.unlisted.clear()
    await ground.look(2)
    assert (ground.now(order).state, ground.held("alice")) == (State.FILLED, 10)
    assert ground.held("$house") == 0
    assert ground.reconciler.frozen("AAPL") == ""
    ground.agree()


async def test_an_old_execution_is_found_when_positions_differ(ground):
    """Listed long after its time, outside of what is read again: a difference makes the desk read everything."""
    ground.broker.stream = lambda said: []
    await ground.broker.external(Side.BUY, "3")
    (hidden,) = ground.broker.list
    ground.broker.unlisted.add(hidden)
    ground.clock.advance(4000)
    await ground.look(3, every_s=1)
    ground.broker.unlisted.clear()
    await ground.look(3, every_s=GRACE_S)
    assert len(ground.book.fills) == 1
    assert ground.held("$house") == 3
    assert ground.reconciler.report().adopted == 0
    ground.agree()


async def test_an_order_that_the_broker_lost_stays_open_and_is_shown(ground):
    """Not being there ends nothing; the symbol takes no new risk."""
    order = await ground.desk.place(ALICE, request(limit_price=D(90)))
    await ground.look()
    del ground.broker.exchange._orders[order.client_order_id]
    await ground.look(3, every_s=GRACE_S)
    assert ground.now(order).state is State.LIVE
    assert f"order {order.order_id} is new at the desk and not there at the broker" in ground.reconciler.frozen("AAPL")


async def test_lost_orders_do_not_keep_others_from_being_looked_up(ground):
    """A look asks for so many single orders at most: those that were missing before come last."""
    orders = [await ground.desk.place(ALICE, request(limit_price=D(90), qty="1")) for _ in range(FINDS_MAX + 2)]
    ended = orders[-1]
    await ground.look(2, every_s=4000)
    ground.broker.stream = lambda said: []
    await ground.broker.cancel(ground.now(ended))
    for order in orders[:-1]:
        del ground.broker.exchange._orders[order.client_order_id]
    await ground.look()
    assert ground.now(ended).state is State.LIVE
    await ground.look()
    assert ground.now(ended).state is State.CANCELED


@pytest.mark.parametrize("tell", [True, False])
async def test_an_execution_taken_back(ground, tell):
    """Told by the stream, or only to be seen from the broker's records: shares and cash go back, once."""
    order = await ground.desk.place(ALICE, request())
    await ground.look()
    before = cash(ground, "alice")
    (execution,) = list(ground.broker.list)
    await ground.broker.bust(execution, tell=tell)
    ground.clock.advance(GRACE_S)
    await ground.look(3, every_s=GRACE_S)
    assert (ground.now(order).filled_qty, ground.held("alice")) == (0, 0)
    assert cash(ground, "alice") == before + 1000
    assert ground.book.fills_of(UserId("alice"))[0] == []
    ground.agree()


@pytest.mark.parametrize("tell", [True, False])
async def test_an_old_execution_taken_back(ground, tell):
    """Of an order that is long over and no more listed; told under a name that the desk never heard."""
    order = await ground.desk.place(ALICE, request())
    await ground.look()
    ground.clock.advance(4000)
    await ground.look()
    (execution,) = list(ground.broker.list)
    ground.broker.stream_id[execution] = "never heard"
    await ground.broker.bust(execution, tell=tell)
    await ground.look(8, every_s=GRACE_S)
    assert (ground.now(order).filled_qty, ground.held("alice")) == (0, 0)
    assert ground.reconciler.report().adopted == 0
    ground.agree()


@pytest.mark.parametrize("tell", [True, False])
async def test_the_houses_executions_are_taken_back_and_corrected_too(ground, tell):
    """What is nobody's follows the broker's list like what is a user's."""
    for _ in range(2):
        await ground.broker.external(Side.BUY, "3")
    await ground.look()
    first, second = list(ground.broker.list)
    await ground.broker.bust(first, tell=tell)
    await ground.broker.correct(second, "98", tell=tell)
    await ground.look(4, every_s=GRACE_S)
    assert ground.held("$house") == 3
    assert not ground.reconciler.report().differences
    ground.agree()


@pytest.mark.parametrize("tell", [True, False])
@pytest.mark.parametrize("place", [0, 1])
async def test_a_corrected_price(ground, tell, place):
    """Of the first or the last of two executions; the books follow the broker's list, digit by digit."""
    order = await ground.desk.place(ALICE, request(limit_price=D(90)))
    resting = ground.broker.exchange._orders[order.client_order_id]
    for qty in ("6", "4"):
        ground.broker.exchange._execute(resting, D(qty), D(90))
        await ground.broker.tell()
    await ground.look()
    await ground.broker.correct(list(ground.broker.list)[place], "89.5", tell=tell)
    await ground.look(4, every_s=GRACE_S)
    assert ground.now(order).filled_qty == 10
    assert ground.held("alice") == 10
    ground.agree()
    assert not ground.reconciler.report().differences


async def test_a_dividend_goes_to_those_who_held(ground):
    """To the cent, the rest to the house, and who bought later gets nothing."""
    await ground.desk.place(ALICE, request(qty="10"))
    await ground.desk.place(BOB, request(qty="5"))
    await ground.broker.external(Side.BUY, "1")
    await ground.look()
    paid = await ground.broker.activity("DIV", "5.33", "AAPL", per_share=D("0.333"))
    ground.clock.advance(60)
    await ground.desk.place(BOB, request(qty="100"))
    before = {user: cash(ground, user) for user in ("alice", "$house")}
    bought = ground.book.accounts["bob"].cash
    await ground.look(2)
    (posted,) = ground.book.activities
    assert {share.user: share.cash for share in posted.shares} == {
        "alice": D("3.33"),
        "bob": D("1.66"),
        "$house": D("0.34"),
    }
    assert sum(share.cash for share in posted.shares) == paid.cash
    assert cash(ground, "alice") - before["alice"] == D("3.33")
    assert bought >= cash(ground, "bob") - D("1.66")
    await ground.look(2)
    ground.agree()


async def test_a_split_goes_to_holders(ground):
    """Shares double, cost stays, and so does everybody's part."""
    await ground.desk.place(ALICE, request(qty="10"))
    await ground.desk.place(BOB, request(qty="5"))
    await ground.look()
    await ground.broker.activity("SPLIT", symbol="AAPL", qty="15")
    await ground.look(2)
    assert (ground.held("alice"), ground.held("bob")) == (20, 10)
    assert ground.book.position("alice", "AAPL").avg_entry_price == 50
    ground.agree()


async def test_a_fee_goes_to_whose_it_is(ground):
    """To the order's user where it names the order; else to who traded that day, by what they traded."""
    order = await ground.desk.place(ALICE, request(qty="10"))
    await ground.desk.place(BOB, request(qty="30"))
    await ground.look()
    await ground.broker.activity("FEE", "-0.40")
    await ground.broker.activity("FEE", "-0.05", broker_order_id=ground.now(order).broker_order_id)
    await ground.look(2)
    assert ground.book.accounts["alice"].fees == D("0.15")
    assert ground.book.accounts["bob"].fees == D("0.30")
    ground.agree()


async def test_transfers_are_the_houses(ground):
    """Cash that comes or goes is nobody's here, and neither profit nor loss."""
    await ground.desk.place(ALICE, request())
    await ground.look()
    await ground.broker.activity("CSD", "1000")
    await ground.broker.activity("JNLC", "-300.5")
    await ground.look(2)
    house = ground.book.accounts["$house"]
    assert (house.cash, house.realized_pl) == (D("50699.5"), 0)
    ground.agree()


async def test_an_activity_is_posted_once(ground, tmp_path):
    """However often it is told, and after a restart."""
    await ground.desk.place(ALICE, request())
    await ground.look()
    await ground.broker.activity("DIV", "1", "AAPL")
    await ground.look(3)
    await ground.stop()
    again = await Ground(tmp_path / "first", ground.broker).start()
    await again.look(3)
    assert len(again.book.activities) == 1
    again.agree()
    await again.stop()


async def test_each_account_has_its_own_house(tmp_path):
    """Users with accounts of their own: what nobody placed is that account's house's."""
    broker = Records(HandClock())
    ground = await Ground(tmp_path, broker).start()
    one = broker.holdings

    async def two():
        (first,) = await one()
        mine = Holdings("acc-1", frozenset({UserId("alice")}), first.cash, None, first.positions)
        return [mine, Holdings("acc-2", frozenset({UserId("bob")}), D(77), None, (Holding(Symbol("SPY"), D(2)),))]

    broker.holdings = two
    await ground.look()
    await ground.desk.place(ALICE, request())
    await ground.look(2, every_s=GRACE_S)
    assert not ground.reconciler.report().differences
    assert ground.held("$house.acc-2", "SPY") == 2
    assert ground.book.accounts["$house.acc-1"].cash == 50_000
    assert "$house" not in ground.book.accounts
    await ground.stop()


async def test_an_account_that_comes_later_is_opened_with_its_history(ground, tmp_path):
    """What its orders executed before is booked as such, and not in the opening balance, too."""
    await ground.broker.external(Side.BUY, "3")
    await ground.look(1, every_s=4000)
    await ground.stop()
    one = ground.broker.holdings

    async def renamed():
        (only,) = await one()
        return [Holdings("acc-2", None, only.cash, None, only.positions)]

    ground.broker.holdings = renamed
    await ground.broker.external(Side.BUY, "2")
    ground.clock.advance(4000)
    again = await Ground(tmp_path / "first", ground.broker).start()
    await again.look(2)
    assert again.held("$house.acc-2") == 5
    assert [fill.qty for fill in again.book.fills] == [3, 2]
    assert not again.reconciler.report().differences
    await again.stop()


async def test_an_execution_under_anothers_place_is_not_booked(ground):
    """Half of it is booked already: shown as a difference, not made to fit."""
    order = await ground.desk.place(ALICE, request(limit_price=D(90)))
    resting = ground.broker.exchange._orders[order.client_order_id]
    ground.broker.exchange._execute(resting, D(6), D(90))
    told = []
    ground.broker.stream = lambda said: told.append(said) or [said]
    await ground.broker.tell()
    (fill,) = [said for said in told if said.what is What.FILL]
    odd = changed(fill, qty=D(4), filled_qty=D(8), broker_execution_id="odd")
    await ground.keeper.on_broker_event(odd)
    await ground.look(2)
    assert ground.now(order).filled_qty == 6
    ground.agree()
