"""An empty or older ledger against an account with this desk's orders: rebuilt from the broker alone."""

import shutil
from decimal import Decimal as D

from desk_server.domain import OrderChange, OrderClass, Side, State, StopLoss, Symbol, UserId
from tests.desk.conftest import ALICE, BOB
from tests.reconcile.ground import Ground, HandClock, Records, request


async def some_trading(ground: Ground) -> None:
    """Fills, a cancel, a partly filled order that was replaced, a bracket whose exits wait, an OCO that is done."""
    await ground.desk.place(ALICE, request(qty="10"))
    await ground.desk.place(BOB, request(qty="7", symbol="SPY"))
    await ground.desk.place(ALICE, request("sell", "4"))
    gone = await ground.desk.place(BOB, request(qty="3", limit_price=D(80)))
    await ground.desk.cancel(BOB, gone.order_id)
    old = await ground.desk.place(ALICE, request(qty="9", limit_price=D(90)))
    ground.broker.exchange._execute(ground.broker.exchange._orders[old.client_order_id], D(2), D(90))
    await ground.broker.tell()
    await ground.heard()
    await ground.desk.replace(ALICE, old.order_id, OrderChange(qty=D(6), limit_price=D(91)))
    exits = {"order_class": OrderClass.BRACKET, "take_profit": D(110), "stop_loss": StopLoss(D(90))}
    await ground.desk.place(BOB, request(qty="5", **exits))
    await ground.look(2)
    ground.agree()


def trading_of(ground: Ground) -> dict[str, object]:
    """What a ledger that was lost must get back: whose everything is, and what it did."""
    book = ground.book
    orders = {
        o.broker_order_id: (o.user, o.strategy, o.state, o.filled_qty, o.filled_value, o.request.symbol, o.request.side)
        for o in book.orders.values()
    }
    held = {(u, s): p.qty for u, mine in book.positions.items() for s, p in mine.items() if p.qty}
    return {"orders": orders, "held": held, "cash": {u: a.cash for u, a in book.accounts.items()}}


async def test_everything_is_rebuilt_from_the_broker_alone(ground, tmp_path):
    """Orders and their users, legs through their parents, replaced orders, fills, positions and cash."""
    await some_trading(ground)
    lost = trading_of(ground)
    anew = await Ground(tmp_path / "empty", ground.broker).start()
    assert "not been compared" in anew.reconciler.problem()
    await anew.look(2)
    assert "opening balance" in anew.reconciler.problem()
    await anew.look(5)
    assert trading_of(anew) == lost
    assert anew.reconciler.report().recovered == len(lost["orders"])
    assert anew.reconciler.problem() == ""
    anew.agree()
    await anew.stop()


async def test_what_was_rebuilt_works_on(ground, tmp_path):
    """Its exits fill, its orders are cancelled and replaced, by the stream and by their users."""
    await some_trading(ground)
    anew = await Ground(tmp_path / "empty", ground.broker).start()
    await anew.look(7)
    await anew.line("AAPL", "111", "111.01")
    await anew.look()
    legs = [order for order in anew.book.orders.values() if order.parent_id]
    assert {leg.state for leg in legs} == {State.FILLED, State.CANCELED}
    (left,) = anew.book.open_orders(UserId("alice"))
    assert left.replaces
    await anew.desk.cancel(ALICE, left.order_id)
    await anew.look()
    assert anew.now(left).state is State.CANCELED
    assert (anew.held("alice"), anew.held("bob"), anew.held("bob", "SPY")) == (8, 0, 7)
    anew.agree()
    await anew.stop()


async def test_an_older_ledger_gets_what_came_since(ground, tmp_path):
    """A backup from before the last orders: they are recovered, the others not touched."""
    first = await ground.desk.place(ALICE, request(qty="10"))
    await ground.look()
    backup = tmp_path / "backup"
    shutil.copytree(tmp_path / "first" / "ledger", backup / "ledger")
    await some_trading(ground)
    lost = trading_of(ground)
    anew = await Ground(backup, ground.broker).start()
    await anew.look(2)
    assert trading_of(anew) == lost
    assert anew.now(first).order_id == first.order_id
    anew.agree()
    await anew.stop()


async def test_a_second_start_recovers_nothing(ground, tmp_path):
    """What the ledger knows is not told again; its orders keep the ids they were given."""
    await some_trading(ground)
    anew = await Ground(tmp_path / "empty", ground.broker).start()
    await anew.look()
    lost, ids = trading_of(anew), set(anew.book.orders)
    await anew.stop()
    again = await Ground(tmp_path / "empty", ground.broker).start()
    await again.look(2)
    assert again.reconciler.report().recovered == 0
    assert trading_of(again) == lost
    await again.stop()
    third = await Ground(tmp_path / "third", ground.broker).start()
    await third.look()
    assert set(third.book.orders) == ids
    await third.stop()


async def test_ill_formed_names_are_nobodys(ground):
    """Only d1.<user>.<strategy>.<ulid> tells a user; anything near it is an order of somebody else."""
    ulid = "01JGXK3V5Q0000000000000000"
    names = [
        f"d1.alice.{ulid}",
        f"d1.alice.s.{ulid[:-1]}",
        f"d1.alice.s.{ulid[:-1]}U",
        f"d2.alice.s.{ulid}",
        f"d1.$house.s.{ulid}",
        f"d1.alice.s.x.{ulid}",
        f"d1.alice.S.{ulid}",
        f"d1.alice.s.{ulid}\n",
    ]
    for name in names:
        await ground.broker.external(Side.BUY, "1", name=name)
    await ground.look()
    assert {seen.client_order_id for seen in ground.book.foreign_orders()} == set(names)
    assert ground.held("$house") == len(names)
    assert "alice" not in ground.book.accounts
    ground.agree()


async def test_a_name_with_another_orders_id_is_nobodys(ground):
    """Whoever can trade on the account cannot push an order into a user's books under an id that is taken."""
    mine = await ground.desk.place(ALICE, request())
    await ground.broker.external(Side.BUY, "1", name=f"d1.bob.manual.{mine.order_id}")
    await ground.look(2)
    assert ground.now(mine).user == "alice"
    assert (ground.held("alice"), ground.held("bob"), ground.held("$house")) == (10, 0, 1)


async def test_the_opening_balance_is_the_houses(tmp_path):
    """What the account had before the desk is nobody's here, and the desk is not ready before that is known."""
    broker = Records(HandClock(), cash=D("1234.56"))
    broker.held[Symbol("SPY")] = D("2.5")
    ground = await Ground(tmp_path, broker).start()
    assert ground.reconciler.problem()
    await ground.look()
    assert ground.reconciler.problem() == ""
    assert ground.held("$house", "SPY") == D("2.5")
    assert ground.book.accounts["$house"].cash == D("1234.56")
    assert not ground.reconciler.report().differences
    ground.agree()
    await ground.stop()
