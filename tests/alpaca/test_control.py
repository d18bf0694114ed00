"""The control API and the process: what a crash loop stands on."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.alpaca.conftest import eventually, limit, market
from tests.alpaca.control_client import Control, ControlError
from tests.alpaca.faults import FAULTS

PROJECT = Path(__file__).resolve().parents[2]


def test_it_runs_as_a_process_and_ends_on_sigterm(tmp_path):
    """One line with its addresses; the dump is written at the end."""
    state = tmp_path / "state.json"
    command = [
        sys.executable,
        "-m",
        "tests.alpaca",
        "--seed",
        "7",
        "--accounts",
        "2",
        "--cash",
        "500",
        "--state",
        state,
    ]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        assert (told["pid"], told["seed"], len(told["accounts"])) == (process.pid, 7, 2)
        control = Control(told["url"])
        control.external("AAPL", "buy", 1)
        eventually(lambda: control.dump()["accounts"][control.dump()["main"]]["executions"])
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(10) == 0
    written = json.loads(state.read_text())
    assert written["accounts"][written["main"]]["cash"] == "310"


def test_a_mistake_is_answered_with_a_sentence(alpaca):
    """400, what was wrong, and what there is."""
    control = alpaca.control
    for name, body, words in (
        ("settings", {"fills": "maybe"}, "fills is one of auto, held"),
        ("settings", {"filled": "auto"}, "unknown field `filled`"),
        ("price", {"AAPL": 0}, "must be above zero"),
        ("price", {"AAPL": "dear"}, "Invalid"),
        ("fill", {"order": "nobody"}, "no order is called 'nobody'"),
        ("external", {"symbol": "AAPL", "side": "hold", "qty": 1}, "side is buy or sell"),
        ("external", {"symbol": "NOPE", "side": "buy", "qty": 1}, "set its price first"),
        ("external", {"side": "buy", "qty": 1}, "needs 'symbol'"),
        ("activity", {"activity_type": "FILL"}, "use /control/fill"),
        ("bust", {"execution": "x"}, "no execution is called 'x'"),
        ("disconnect", {"how": "softly"}, "how is close or reset"),
        ("dance", {}, "no control is called 'dance'; there are settings"),
        ("heal", {"all": True}, "there is no 'all' here"),
    ):
        with pytest.raises(ControlError, match=words):
            control.call(name, body)


def test_the_control_api_speaks_to_curl(alpaca):
    """Plain JSON over HTTP, GET for what only shows."""
    with urllib.request.urlopen(f"{alpaca.url}/control/faults", timeout=5) as response:
        table = json.load(response)
    assert table.keys() == FAULTS.keys()
    assert table["late_landing"]["params"] == {"delay_ms": [20, 400], "how": "any"}
    assert all(fault["says"] and fault["on"] for fault in table.values())


def test_the_dump_tells_everything(alpaca, client, truth):
    """Each order with its history, each POST with its answer, each change."""
    told = client.submit_order(limit("AAPL", 1, 1, name="a"))
    eventually(lambda: truth.order("a")["status"] == "new")
    client.cancel_order_by_id(told.id)
    eventually(lambda: truth.order("a")["status"] == "canceled")
    dump = truth.dump()
    history = [(event, status) for _, event, status, _ in truth.order("a")["history"]]
    assert history == [
        ("pending_new", "pending_new"),
        ("new", "new"),
        ("pending_cancel", "pending_cancel"),
        ("canceled", "canceled"),
    ]
    [post] = dump["posts"]
    assert (post["client_order_id"], post["answer"], post["order_id"]) == ("a", 200, str(told.id))
    assert post["body"]["limit_price"] == 1
    [change] = dump["changes"]
    assert (change["method"], change["path"], change["answer"]) == ("DELETE", f"/v2/orders/{told.id}", 204)
    assert dump["requests"] == {"submit": 1, "cancel": 1}
    assert dump["counts"] == dict.fromkeys(FAULTS, 0)
    short = alpaca.control.dump(posts=False, history=False)
    assert short["posts"] == []
    assert "history" not in short["accounts"][short["main"]]["orders"][0]


def test_a_reset_forgets_everything(alpaca, client, truth):
    """Orders, money, settings, prices, faults; what was on its way lands nowhere."""
    alpaca.control.settings(work_ms=[50, 50])
    alpaca.control.price(AAPL=5)
    client.submit_order(market("AAPL", 1, name="a"))
    alpaca.control.arm("503")
    accounts = alpaca.control.reset(cash=700, accounts=1)
    dump = alpaca.control.dump()
    assert set(accounts) | {dump["main"]} == set(dump["accounts"])
    assert truth.account["cash"] == "700"
    assert truth.names() == dump["posts"] == []
    assert dump["prices"]["AAPL"] == "190"
    client.submit_order(market("AAPL", 1, name="a"))
    eventually(lambda: truth.order("a")["status"] == "filled")


def test_accounts_can_be_made_and_changed(alpaca, broker):
    """A sub-account by an id of the caller's own."""
    name = "22222222-2222-4222-8222-222222222222"
    alpaca.control.account(id=name, cash=1234)
    assert broker.get_trade_account_by_id(name).cash == "1234"
    alpaca.control.account(id=name, cash="99.5", multiplier=1)
    assert broker.get_trade_account_by_id(name).buying_power == "99.5"


def test_a_new_symbol_is_made_by_its_price(alpaca, client):
    """As an equity, or as a coin where it has a slash."""
    alpaca.control.price({"NEWCO": "12.5", "SOL/USD": 150})
    assert client.get_asset("NEWCO").asset_class == "us_equity"
    assert client.get_asset("SOL/USD").exchange == "CRYPTO"
