"""Real money is traded only when two settings say so, and then everything says it."""

import json

import pytest
import structlog
from pydantic import ValidationError

from desk_server import logs
from desk_server.settings import Settings

LIVE = {
    "broker": "alpaca",
    "alpaca_key_id": "k",
    "alpaca_secret_key": "s",
    "alpaca_base_url": "https://api.alpaca.markets",
    "feed": "none",
}


@pytest.mark.parametrize(
    ("given", "live"),
    [
        ({"broker": "paper", "alpaca_base_url": "https://api.alpaca.markets"}, False),
        ({"alpaca_base_url": ""}, False),
        ({"alpaca_base_url": "https://paper-api.alpaca.markets/"}, False),
        ({"alpaca_base_url": "http://127.0.0.1:4321"}, False),
        ({}, True),
        ({"alpaca_base_url": "https://api.alpaca.markets:443/"}, True),
        ({"alpaca_base_url": "https://paper-api.alpaca.markets.example.org"}, True),
        ({"alpaca_base_url": "https://somewhere.example"}, True),
    ],
)
def test_every_host_that_is_not_known_to_have_no_real_money_has_it(given, live):
    """An unknown host is taken for a live one."""
    assert Settings(**(LIVE | {"allow_live": True} | given)).is_live is live


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({}, "DESK_ALLOW_LIVE=1"),
        ({"allow_live": True, "feed": "walk"}, "makes prices up"),
        ({"allow_live": True, "trust_user_header": True}, "needs tokens"),
        ({"alpaca_base_url": "", "trust_user_header": True}, "needs tokens"),
        ({"alpaca_key_id": ""}, "APCA_API_KEY_ID_FILE"),
        ({"alpaca_secret_key": ""}, "APCA_API_SECRET_KEY_FILE"),
        ({"broker": "alpaca-broker"}, "DESK_CONFIG"),
        ({"alpaca_base_url": "https://paper-api.alpaca.markets/v2"}, "leave /v2"),
        ({"alpaca_base_url": "paper-api.alpaca.markets"}, "must look like https"),
        ({"alpaca_base_url": "http://paper-api.alpaca.markets"}, "clear text"),
        ({"alpaca_base_url": "http://127.0.0.1.example.org"}, "clear text"),
    ],
)
def test_what_is_missing_is_named(given, what):
    """The message says which setting would do."""
    with pytest.raises(ValidationError, match=what):
        Settings(**(LIVE | given))


def test_a_secret_is_read_from_its_file_and_never_shown(tmp_path):
    """The file wins; neither the settings' text nor their dump tells a secret."""
    (tmp_path / "key").write_text("from-the-file\n")
    settings = Settings(**(LIVE | {"allow_live": True, "alpaca_secret_key_file": tmp_path / "key"}))
    assert (settings.secret("alpaca_secret_key"), settings.secret("alpaca_key_id")) == ("from-the-file", "k")
    told = Settings(
        **(LIVE | {"allow_live": True, "alpaca_secret_key": "hush-hush", "database_url": "postgresql://a:hush@b"})
    )
    assert "hush" not in f"{told!r} {told.model_dump()}"


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe"])
def test_a_secret_s_file_that_holds_none_is_named(tmp_path, content):
    """Missing, empty or no text: the variable that names it is told."""
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    settings = Settings(**(LIVE | {"allow_live": True, "alpaca_secret_key_file": file}))
    with pytest.raises(OSError, match="APCA_API_SECRET_KEY_FILE"):
        settings.secret("alpaca_secret_key")


@pytest.mark.parametrize("live", [True, False])
def test_every_log_line_of_a_live_desk_says_so(capsys, live):
    """Also the lines of other libraries' loggers."""
    settings = Settings(**(LIVE | {"allow_live": True})) if live else Settings(feed="none")
    try:
        logs.configure(settings)
        structlog.get_logger("desk").info("an order")
        line = json.loads(capsys.readouterr().err)
        assert (line.get("account") == "LIVE") is live
    finally:
        structlog.reset_defaults()
