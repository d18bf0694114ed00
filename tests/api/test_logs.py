"""What the desk logs: the ids at hand, one line an event, never a secret."""

import asyncio
import json
import logging
import subprocess
import sys

import httpx
import pytest
import structlog

from desk_server import logs
from desk_server.settings import Settings
from tests.api.running import wait_until
from tests.conftest import PROJECT

TOKEN = "desk_user_0123456789abcdef_" + "9" * 64


@pytest.fixture
def written(capsys):
    """Configure the logs; what is given back reads them. Everything is put back afterwards."""
    root = logging.getLogger()
    before = (structlog.get_config(), root.handlers[:], root.level)

    def configure(**settings):
        logs.configure(Settings(**settings))
        return lambda: capsys.readouterr().err

    yield configure
    structlog.reset_defaults()
    structlog.configure(**before[0])
    root.handlers[:], root.level = before[1], before[2]


def read(out) -> list[dict]:
    return [json.loads(line) for line in out().splitlines()]


def test_lines_carry_the_ids_at_hand(written):
    """What is bound in a task stands in each of its lines, and in no other task's."""
    out = written(log_format="json")
    log = structlog.get_logger("t")

    async def one(user):
        logs.bind_only({"request_id": user})
        logs.bind(user=user, deployment_id="")
        await asyncio.sleep(0)
        log.info("done")

    async def both():
        await asyncio.gather(asyncio.create_task(one("alice")), asyncio.create_task(one("bob")))
        log.info("outside")

    asyncio.run(both())
    first, second, outside = read(out)
    assert (first["user"], first["request_id"], second["user"]) == ("alice", "alice", "bob")
    assert "user" not in outside
    assert "deployment_id" not in first


def test_orders_and_refusals_are_logged_with_their_ids(tmp_path):
    """One line each: who asked, which request, which order, how it stands or why it was refused."""
    env = {
        **{"DESK_RUN_DIR": str(tmp_path), "PORT": "0", "GRPC_PORT": "0"},
        # One symbol, so that the first line makes it ready.
        **{"DESK_TRUST_USER_HEADER": "1", "DESK_WALK_SYMBOLS": "AAPL"},
    }
    log = tmp_path / "log"
    with log.open("wb") as file:
        server = subprocess.Popen([sys.executable, "-m", "desk_server"], env=env, stderr=file, cwd=PROJECT)
    try:
        transport = httpx.HTTPTransport(uds=str(tmp_path / "desk" / "desk.sock"), retries=0)
        with httpx.Client(base_url="http://desk", transport=transport, headers={"X-User-ID": "alice"}) as client:
            wait_until(lambda: _is_ready(client), "ready")
            order = {"symbol": "AAPL", "qty": "1", "side": "buy"}
            taken = client.post("/v1/orders", json=order, headers={"X-Request-ID": "mine"}).json()
            refused = client.post("/v1/orders", json=order | {"side": "sell", "qty": "5"}).json()
            client.post("/v1/orders", json=order | {"qty": "-1"})
            client.delete(f"/v1/orders/{taken['order_id']}x")
    finally:
        server.terminate()
        server.wait(20)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    by_event = {}
    for line in lines:
        by_event.setdefault(line["event"], []).append(line)
    (sent,) = by_event["order"]
    assert (sent["user"], sent["request_id"], sent["order_id"]) == ("alice", "mine", taken["order_id"])
    assert [(line["code"], line.get("order_id")) for line in by_event["order refused"]] == [
        ("NOT_OWNED", refused["order_id"]),
        ("INVALID", None),
    ]
    assert by_event["cancel refused"][0]["code"] == "NOT_FOUND"


def _is_ready(client):
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("form", ["json", "console"])
def test_secrets_are_never_written(written, form):
    """Under their names, inside of texts, lists and exceptions, from structlog and from the standard library."""
    out = written(log_format=form)
    log = structlog.get_logger("t")
    log.info("hello", token=TOKEN, authorization="Bearer abc", api_key="k-1", headers={"Authorization": "Bearer abc"})
    log.warning(f"bad credential {TOKEN}", seen=[TOKEN, {"x": (TOKEN,)}], raw=b"Bearer opensesame")
    logging.getLogger("other").warning("token %s", TOKEN)
    try:
        raise ValueError(f"cannot use {TOKEN}")
    except ValueError:
        log.exception("failed")
    text = out()
    assert "9999999999" not in text
    for secret in ("abc", "k-1", "opensesame"):
        assert secret not in text
    assert text.count(logs.REDACTED) >= 9
    assert "failed" in text


def test_what_is_no_secret_stays(written):
    """Token ids, counts and messages are there to be read."""
    out = written(log_format="json")
    structlog.get_logger("t").info("made", token_id="0123", tokens=3, key_count=2, reason="a key was reused")
    (line,) = read(out)
    assert (line["token_id"], line["tokens"], line["reason"]) == ("0123", 3, "a key was reused")


def test_the_least_level(written):
    """Below it nothing is written; other libraries speak from warnings on."""
    out = written(log_format="json", log_level="warning")
    structlog.get_logger("t").info("no")
    structlog.get_logger("t").warning("yes")
    logging.getLogger("other").info("no")
    assert [line["event"] for line in read(out)] == ["yes"]


def test_brief_lines_are_like_all_others(written):
    """With the same ids and the same words, in order with other lines, and without secrets."""
    out = written(log_format="json")
    log = structlog.get_logger("t")

    async def some():
        logs.bind_only({"request_id": "r-1", "user": "alice"})
        logs.brief("order", symbol="AAPL")
        log.info("order", symbol="AAPL")
        logs.brief("order", symbol=TOKEN)
        logs.brief("order", symbol="last")
        await asyncio.sleep(0)
        return len(out_so_far := out().splitlines()), out_so_far

    count, lines = asyncio.run(some())
    assert count == 4
    first, second, third, last = (json.loads(line) for line in lines)
    assert first.pop("timestamp") <= second.pop("timestamp")
    assert first == second
    assert third["symbol"] == logs.REDACTED
    assert last["symbol"] == "last"


def test_brief_lines_keep_to_the_level(written):
    """Nothing is written below the level that is shown; without a loop, at once."""
    out = written(log_format="json", log_level="warning")
    logs.brief("order")
    assert out() == ""
    out = written(log_format="json")
    logs.brief("order")
    assert [line["event"] for line in read(out)] == ["order"]


def test_brief_lines_are_readable_on_a_console(written):
    """In the other format they are written like all others."""
    out = written(log_format="console")
    logs.brief("order", symbol="AAPL")
    assert "symbol" in out()
