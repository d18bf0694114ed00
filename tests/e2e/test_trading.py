"""Strategies in real containers trade real prices through a real desk."""

import hashlib
import json
import re

import pytest

from tests.e2e.conftest import PROJECT, until

pytestmark = pytest.mark.timeout(240)

EXAMPLES = sorted(path.name for path in (PROJECT / "strategies").iterdir() if (path / "strategy.py").exists())

READS_EVERYTHING = """
import json, sys
from desk_client import place_order

last = None
lines = 0
for raw in sys.stdin:
    line = json.loads(raw)
    if last is not None and line["seq"] != last + 1:
        print(f"GAP {last} {line['seq']}", flush=True)
    last = line["seq"]
    lines += 1
    if lines % 100 == 0:
        answer = place_order("SPY", 1, "buy", "limit", limit_price=100, timeout=30)
        print(f"ORDER {answer.status} {answer.order_id} {answer.message}", flush=True)
"""


def test_the_example_strategies_trade_under_their_own_users(either):
    """Each reads lines, sends orders and gets fills; every order and fill is its own user's and its own."""
    names = {example: either.example(example) for example in EXAMPLES}
    either.manager("start")

    def all_trade() -> bool:
        rows = either.status()
        assert {row["state"] for row in rows.values()} == {"running"}, rows
        return all(row["lines_read"] and row["fills"] for row in rows.values())

    until(all_trade, "every example has a fill", 120)
    for example, name in names.items():
        config = PROJECT / "strategies" / example / "config.json"
        user = json.loads(config.read_text())["user_id"] if config.exists() else name
        orders = either.desk.get(f"/v1/orders?user_id=*&strategy={name}&limit=500")["orders"]
        fills = [fill for fill in either.desk.get("/v1/fills?user_id=*&limit=500")["fills"] if fill["strategy"] == name]
        assert orders
        assert fills
        assert {order["user_id"] for order in orders} == {user}
        assert {fill["user_id"] for fill in fills} == {user}
        for order in orders:
            assert re.fullmatch(rf"d1\.{user}\.{name}\.[0-9A-Z]{{26}}", order["client_order_id"])
            assert int(order["line"]["seq"]) > 0 or order["order_type"] == "limit"


def test_a_desk_killed_under_running_strategies_is_not_noticed(either):
    """kill -9 and a restart, twice: no line is lost or doubled, orders go through, nobody is restarted."""
    name = either.strategy("reader", READS_EVERYTHING, user_id="alice")
    either.manager("start")
    until(lambda: either.printed(name).count("ORDER success") >= 2, "orders before the kill")
    for _ in range(2):
        either.desk.kill()
        either.desk.start()
        before = either.printed(name).count("ORDER success")
        until(lambda before=before: either.printed(name).count("ORDER success") >= before + 2, "orders after the kill")
    printed = either.printed(name)
    assert "GAP" not in printed
    assert "ORDER error" not in printed
    row = either.status()[name]
    assert (row["state"], row["restarts"]) == ("running", 0)
    acknowledged = set(re.findall(r"ORDER success (\w+)", printed))
    booked = {order["order_id"] for order in either.desk.get("/v1/orders?user_id=alice&limit=500")["orders"]}
    assert acknowledged <= booked


def test_each_order_says_which_line_was_in_hand(either):
    """The desk can look up the very line that a strategy had read when it decided."""
    name = either.strategy("reader", READS_EVERYTHING, user_id="alice")
    either.manager("start")
    until(lambda: "ORDER success" in either.printed(name), "an order")
    (order, *_) = either.desk.get(f"/v1/orders?user_id=*&strategy={name}")["orders"]
    tape = b"".join(path.read_bytes() for path in sorted((either.desk.run_dir / "tape").glob("*.jsonl")))
    lines = {json.loads(line)["seq"]: line for line in tape.splitlines()}
    line = lines[int(order["line"]["seq"])]
    assert order["line"]["sha256"] == hashlib.sha256(line).hexdigest()[:16]


def test_a_crashing_strategy_is_quarantined_and_shown(either):
    """It is tried again a few times, then left alone, with its exit code and last error in the status."""
    name = either.strategy(
        "broken", "raise ValueError('no such luck')", user_id="alice", restart={"max_crashes": 2, "window_s": 60}
    )
    either.manager("start", expect=1)
    until(lambda: either.status()[name]["state"] == "quarantined", "it is quarantined", 90)
    row = either.status()[name]
    assert row["exit_code"] == 1
    assert "no such luck" in row["last_error"]


@pytest.mark.docker
def test_thirty_strategies_start_at_once_and_all_read(containers):
    """Thirty containers, started by one command, each under its own user, all reading."""
    code = "import sys\nfor line in sys.stdin:\n    pass\n"
    names = [containers.strategy(f"s{number:02}", code, user_id=f"user{number:02}") for number in range(30)]
    containers.manager("start")
    until(lambda: all(row["lines_read"] for row in containers.status().values()), "all thirty have read lines")
    rows = containers.status()
    assert {rows[name]["state"] for name in names} == {"running"}
    assert {rows[name]["user"] for name in names} == {f"user{number:02}" for number in range(30)}


@pytest.mark.docker
def test_a_stopped_strategy_s_token_is_worth_nothing(containers):
    """Stopping revokes the token; the desk's list of deployments shows it as revoked."""
    name = containers.strategy("reader", READS_EVERYTHING, user_id="alice")
    containers.manager("start")
    token_file = next((containers.desk.run_dir / "deployments").glob("*/token"))
    token = token_file.read_text().strip()
    http = containers.desk._http
    headers = {"Authorization": f"Bearer {token}"}
    assert http.get("/v1/account", headers=headers).json()["user_id"] == "alice"
    containers.manager("stop", name)
    assert http.get("/v1/account", headers=headers).status_code == 401
    assert not token_file.exists()
    assert containers.desk.get("/v1/deployments")["deployments"] == []
    (revoked,) = containers.desk.get("/v1/deployments?all=1")["deployments"]
    assert revoked["revoked_at"]
    assert token not in containers.desk.log()
