"""What the desk logs: the ids at hand, one line an event, never a secret."""

import asyncio
import json
import logging

import pytest
import structlog

from desk_server import logs
from desk_server.settings import Settings

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
