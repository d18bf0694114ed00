"""Everything at once from a seed: whatever clients are told, the broker's own book stays true to itself."""

import functools
import random
import threading
from collections import Counter
from contextlib import suppress
from decimal import Decimal

import pytest
import requests
from alpaca.common.exceptions import APIError
from alpaca.trading.client import TradingClient
from alpaca.trading.requests import GetOrdersRequest, ReplaceOrderRequest
from pydantic import ValidationError

from tests.alpaca.conftest import Listening, eventually, limit, market
from tests.alpaca.faults import FAULTS
from tests.alpaca.server import running_alpaca

# How an answer that is none ends in alpaca-py.
ILL = (APIError, requests.exceptions.RequestException, ValidationError)
BROTHERS = 4
ROUNDS = 150
# A stream that is mute, frozen or away hears of no other fault: these come at the end.
CHANCES = {"*": 0.02, "stream_silent": 0, "half_open_tcp@event": 0, "stream_disconnect": 0}


def trade(alpaca, number: int) -> None:
    """One client that trades on, whatever it is told."""
    client = TradingClient(alpaca.key, alpaca.secret, url_override=alpaca.url)
    client._retry = 0
    client._session.request = functools.partial(client._session.request, timeout=0.1)
    chance = random.Random(number)
    for index in range(ROUNDS):
        side = chance.choice(("buy", "sell"))
        symbol = chance.choice(("AAPL", "F", "BTC/USD"))
        qty, name = chance.randint(1, 5), f"{number}-{index}"
        with suppress(*ILL):
            if chance.random() < 0.5:
                client.submit_order(market(symbol, qty if symbol != "BTC/USD" else 0.01, side, name))
            else:
                near = {"AAPL": 190, "F": 12, "BTC/USD": 60_000}[symbol] * (0.98 if side == "buy" else 1.02)
                size = qty if symbol != "BTC/USD" else 0.01
                order = client.submit_order(limit(symbol, size, round(near, 2), side=side, name=name))
                if chance.random() < 0.3:
                    client.replace_order_by_id(order.id, ReplaceOrderRequest(qty=7, client_order_id=f"{name}r"))
        with suppress(*ILL):
            client.get_order_by_client_id(name)
        with suppress(*ILL):
            for order in client.get_orders(GetOrdersRequest(limit=3)):
                client.cancel_order_by_id(order.id)
        with suppress(*ILL):
            client.get_all_positions()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_book_is_true_whatever_is_told():
    """Every fault is shown; then orders, executions, activities, positions, cash and POSTs agree."""
    with running_alpaca(seed=11, cash=10_000_000) as alpaca:
        control = alpaca.control
        control.settings(partial=0.3, again_ms=[1, 5], cancel_ms=[0, 10], work_ms=[0, 3])
        control.walk(every_ms=20, step_bps=8)
        stream = Listening(alpaca)
        control.faults(CHANCES, params={"byte_by_byte": {"gap_ms": 0.05}})
        threads = [threading.Thread(target=trade, args=(alpaca, number)) for number in range(BROTHERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        control.faults({})
        for fault in ("stream_disconnect", "stream_silent"):
            stream.wait_until_connected()
            control.arm(fault)
            control.external("SPY", "buy", 1)
        counts = control.heal()
        eventually(lambda: control.dump(posts=False)["pending_landings"] == 0)
        control.walk(every_ms=0)
        client = TradingClient(alpaca.key, alpaca.secret, url_override=alpaca.url)
        client.cancel_orders()
        eventually(lambda: not client.get_orders())
        stream.stop()
        account = client.get_account()
        reserved = Decimal(account.cash) - Decimal(account.non_marginable_buying_power)
        assert 0 <= reserved < Decimal("0.01")
        assert {name for name in FAULTS if not counts[name]} == set()
        _check(control.dump())


def _check(dump) -> None:
    account = dump["accounts"][dump["main"]]
    _orders_have_what_their_executions_say(account)
    _money_is_the_sum_of_executions(account)
    names = [order["client_order_id"] for order in account["orders"]]
    assert len(names) == len(set(names))
    told = [line["id"] for line in account["activities"] if line["activity_type"] == "FILL"]
    assert Counter(told) == Counter(done["activity_id"] for done in account["executions"] if not done["busted"])
    accepted = Counter(post["order_id"] for post in dump["posts"] if post["order_id"])
    placed = {o["id"] for o in account["orders"] if not o["external"] and not o["replaces"]}
    assert accepted == Counter(placed)


def _orders_have_what_their_executions_say(account) -> None:
    filled: Counter[str] = Counter()
    for done in account["executions"]:
        if not done["busted"]:
            filled[done["order_id"]] += Decimal(done["qty"])
    for order in account["orders"]:
        assert Decimal(order["filled_qty"]) == filled[order["id"]] <= Decimal(order["qty"])
        assert order["status"] in ("filled", "canceled", "rejected", "replaced", "expired"), order


def _money_is_the_sum_of_executions(account) -> None:
    cash, positions = Decimal(10_000_000), Counter()
    for done in account["executions"]:
        if done["busted"]:
            continue
        way = 1 if done["side"] == "buy" else -1
        qty, fee = Decimal(done["qty"]), Decimal(done["fee"])
        cash -= way * qty * Decimal(done["price"])
        symbol = done["symbol"].replace("/", "")
        positions[symbol] += way * qty
        if done["fee_asset"] == "USD":
            cash -= fee
        else:
            positions[symbol] -= fee
    assert Decimal(account["cash"]) == cash
    held = {symbol: Decimal(position["qty"]) for symbol, position in account["positions"].items()}
    assert held == {symbol: qty for symbol, qty in positions.items() if qty}
