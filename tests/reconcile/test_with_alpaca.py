"""The whole of it through the real adapter, at a misbehaving Alpaca: the Trading API and the Broker API.

DESK_FAULTS_SEEDS (like 1-20) tries all faults at random more often.
"""

import asyncio
import os
from decimal import Decimal as D

import pytest

from desk_server.domain import OrderClass, State, StopLoss, TimeInForce
from desk_server.errors import DeskError
from tests.alpaca.server import running_alpaca
from tests.desk.conftest import ALICE, BOB
from tests.reconcile.alpaca_ground import AlpacaGround
from tests.reconcile.ground import request

_FIRST, _, _LAST = os.environ.get("DESK_FAULTS_SEEDS", "11").partition("-")


@pytest.fixture
def alpaca():
    with running_alpaca(seed=7, cash=100_000, accounts=2) as running:
        running.control.price({"AAPL": 100, "SPY": 400, "BTC/USD": 50_000})
        yield running


@pytest.fixture(params=[False, True], ids=["trading", "broker"])
async def ground(tmp_path, alpaca, request):
    run = await AlpacaGround(tmp_path / "first", alpaca, sub_accounts=request.param).start()
    yield run
    await run.stop()


async def test_trading_agrees(ground):
    """Fills, a cancel and a bracket that closes itself."""
    bought = await ground.desk.place(ALICE, request(qty="10"))
    resting = await ground.desk.place(BOB, request(qty="5", limit_price=D(90)))
    exits = {"order_class": OrderClass.BRACKET, "take_profit": D(110), "stop_loss": StopLoss(D(90))}
    entry = await ground.desk.place(BOB, request(qty="4", symbol="AAPL", **exits))
    await ground.until(lambda: ground.now(entry).state is State.FILLED)
    await ground.desk.cancel(BOB, resting.order_id)
    await asyncio.to_thread(ground.control.price, AAPL=111)
    await ground.until(lambda: not ground.book.open_orders())
    assert ground.now(bought).state is State.FILLED
    assert (ground.held("alice"), ground.held("bob")) == (10, 0)
    await ground.agreed()
    assert not ground.book.foreign_orders()


async def test_without_a_stream_polling_suffices(ground):
    """Every update is lost: orders fill and end all the same."""
    await asyncio.to_thread(ground.control.faults, {"stream_lost": 1.0})
    bought = await ground.desk.place(ALICE, request(qty="10"))
    resting = await ground.desk.place(BOB, request(qty="5", limit_price=D(90)))
    await ground.desk.cancel(BOB, resting.order_id)
    await ground.until(lambda: not ground.book.open_orders())
    assert (ground.now(bought).state, ground.now(resting).state) == (State.FILLED, State.CANCELED)
    await ground.agreed()


async def test_an_empty_ledger_is_rebuilt(ground, tmp_path, alpaca):
    """Users, fills, positions, and exits that still wait; with the Broker API, per account."""
    await ground.desk.place(ALICE, request(qty="10"))
    exits = {"order_class": OrderClass.BRACKET, "take_profit": D(110), "stop_loss": StopLoss(D(90))}
    entry = await ground.desk.place(BOB, request(qty="4", **exits))
    await ground.until(lambda: ground.now(entry).state is State.FILLED)
    await ground.agreed()
    await ground.stop()
    anew = await AlpacaGround(tmp_path / "empty", alpaca, sub_accounts=bool(ground.names)).start()
    assert anew.reconciler.report().recovered == 4
    assert (anew.held("alice"), anew.held("bob")) == (10, 4)
    await asyncio.to_thread(ground.control.price, AAPL=111)
    await anew.until(lambda: not anew.book.open_orders())
    assert anew.held("bob") == 0
    await anew.agreed()
    assert not anew.book.foreign_orders()
    await anew.stop()


async def test_what_nobody_here_did(ground):
    """An order by hand, a bust, a correction, a dividend, a split, a fee and a transfer: explained, all of it."""
    mine = {"account": ground.names["alice"]} if ground.names else {}
    first = await ground.desk.place(ALICE, request(qty="10"))
    second = await ground.desk.place(ALICE, request(qty="6"))
    await ground.until(lambda: ground.now(second).state is State.FILLED)
    await asyncio.to_thread(ground.control.external, "AAPL", "buy", 4, **mine)
    await ground.agreed()
    executions = await asyncio.to_thread(_executions, ground)
    await asyncio.to_thread(ground.control.bust, executions[first.client_order_id])
    await asyncio.to_thread(ground.control.correct, executions[second.client_order_id], price=99)
    await ground.until(lambda: ground.held("alice") == 6)
    await ground.agreed()
    await asyncio.to_thread(
        ground.control.activity, "DIV", symbol="AAPL", net_amount="2.50", per_share_amount="0.25", **mine
    )
    await asyncio.to_thread(ground.control.activity, "JNLC", net_amount="-100", **mine)
    await asyncio.to_thread(ground.control.activity, "FEE", net_amount="-0.05", **mine)
    await asyncio.to_thread(ground.control.activity, "SPLIT", symbol="AAPL", qty="10", **mine)
    await ground.until(lambda: ground.held("alice") == 12)
    await ground.agreed()
    assert len(ground.book.foreign_orders()) == 1
    assert ground.reconciler.report().adopted == 0
    houses = sum(account.fees for user, account in ground.book.accounts.items() if user.startswith("$"))
    assert ground.book.accounts["alice"].fees + houses == D("0.05")
    assert ground.book.accounts["alice"].fees > 0


def _executions(ground) -> dict[str, str]:
    accounts = ground.truth()["accounts"].values()
    return {e["client_order_id"]: e["execution_id"] for account in accounts for e in account["executions"]}


async def test_a_crypto_fee_in_coins(ground):
    """Charged in what was bought: the user's position is what the broker's is."""
    order = await ground.desk.place(ALICE, request(qty="0.5", symbol="BTC/USD", time_in_force=TimeInForce.GTC))
    await ground.until(lambda: ground.now(order).state is State.FILLED)
    await ground.agreed()


@pytest.mark.parametrize("seed", range(int(_FIRST), int(_LAST or _FIRST) + 1))
async def test_all_faults_at_random_then_healed(ground, seed):
    """Every fault that the server knows, while users trade; healed, the books are the broker's."""
    await asyncio.to_thread(ground.control.faults, {"*": 0.05}, seed=seed)
    placed = await asyncio.gather(*(_trade(ground, who, n) for n in range(12) for who in (ALICE, BOB)))
    await asyncio.to_thread(ground.control.heal)
    ground.reconciler.soon()
    await ground.until(lambda: all(o.state in (State.LIVE, State.HELD) for o in ground.book.open_orders()))
    await ground.agreed()
    assert sum(placed) > 6


async def _trade(ground, who, n: int) -> bool:
    await asyncio.sleep(n * 0.05)
    more = {} if n % 3 else {"limit_price": D(99)}
    try:
        order = await ground.desk.place(who, request("buy", str(n + 1), **more))
        if n % 4 == 0:
            await ground.desk.cancel(who, order.order_id)
    except DeskError:
        return False
    return True
