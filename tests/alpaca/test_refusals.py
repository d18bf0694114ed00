"""What Alpaca refuses, this refuses too: with the same HTTP status, code and message."""

from typing import Any

import pytest
from alpaca.common.exceptions import APIError
from alpaca.trading.client import TradingClient

from tests.alpaca.conftest import eventually, limit, market
from tests.alpaca.server import running_alpaca

_BUY = {"symbol": "AAPL", "side": "buy", "qty": "1", "type": "market", "time_in_force": "day"}
_LIMIT = {**_BUY, "type": "limit", "limit_price": "180", "time_in_force": "gtc"}
_COIN = {**_BUY, "symbol": "BTC/USD", "time_in_force": "gtc"}
_LEGS = {"take_profit": {"limit_price": "200"}, "stop_loss": {"stop_price": "170"}}

REFUSED: list[tuple[str, dict[str, Any], int, int, str]] = [
    ("no quantity", {**_BUY, "qty": None}, 422, 40010001, "qty or notional is required"),
    ("both sizes", {**_BUY, "notional": 5}, 422, 40010001, "only one of qty or notional is accepted"),
    ("nothing", {**_BUY, "qty": 0}, 422, 40010001, "qty must be > 0"),
    ("negative", {**_BUY, "qty": -1}, 422, 40010001, "qty must be > 0"),
    ("ten decimals", {**_BUY, "qty": "0.0000000001"}, 422, 40010001, "increment"),
    ("a float's dust", {**_BUY, "qty": 0.1 + 0.2}, 422, 40010001, "increment"),
    ("not a number", {**_BUY, "qty": "many"}, 422, 40010001, "invalid qty"),
    ("true", {**_BUY, "qty": True}, 422, 40010001, "invalid qty"),
    ("NaN", {**_BUY, "qty": "NaN"}, 422, 40010001, "invalid qty"),
    ("small notional", {**_BUY, "qty": None, "notional": "0.99"}, 422, 40010001, "notional amount must be >= 1.00"),
    ("no such side", {**_BUY, "side": "hold"}, 422, 40010001, "invalid side"),
    ("no side", {**_BUY, "side": None}, 422, 40010001, "side is required"),
    ("no such type", {**_BUY, "type": "peg"}, 422, 40010001, "invalid type"),
    ("no such tif", {**_BUY, "time_in_force": "gtd"}, 422, 40010001, "invalid time_in_force"),
    ("no such class", {**_BUY, "order_class": "mleg"}, 422, 40010001, "invalid order_class"),
    ("no such asset", {**_BUY, "symbol": "NOPE"}, 422, 42210000, 'asset "NOPE" not found'),
    ("limit without price", {**_BUY, "type": "limit"}, 422, 40010001, "limit orders require a limit price"),
    ("market with price", {**_BUY, "limit_price": "1"}, 422, 40010001, "market orders require no limit price"),
    ("stop without stop", {**_BUY, "type": "stop"}, 422, 40010001, "stop orders require a stop price"),
    ("trail without trail", {**_BUY, "type": "trailing_stop"}, 422, 40010001, "trail_price or trail_percent"),
    ("sub-penny", {**_LIMIT, "limit_price": "180.005"}, 422, 42210000, "sub-penny increment does not fulfill"),
    ("five decimals", {**_LIMIT, "limit_price": "0.12345"}, 422, 42210000, "sub-penny"),
    ("price zero", {**_LIMIT, "limit_price": "0"}, 422, 40010001, "limit_price must be > 0"),
    ("fractional gtc", {**_LIMIT, "qty": "0.5"}, 422, 42210000, "fractional orders must be DAY orders"),
    ("notional gtc", {**_LIMIT, "qty": None, "notional": 5}, 422, 42210000, "fractional orders must be DAY orders"),
    ("fractional short", {**_BUY, "side": "sell", "qty": "0.5"}, 422, 42210000, "cannot be sold short"),
    ("extended market", {**_BUY, "extended_hours": True}, 422, 42210000, "extended hours"),
    ("ioc stop", {**_BUY, "type": "stop", "stop_price": 1, "time_in_force": "ioc"}, 422, 42210000, "time_in_force ioc"),
    ("opg at noon", {**_BUY, "time_in_force": "opg"}, 422, 42210000, "not accepted between 9:28am and 7:00pm"),
    ("coin for a day", {**_COIN, "time_in_force": "day"}, 422, 42210000, "invalid crypto time_in_force"),
    ("coin stop", {**_COIN, "type": "stop", "stop_price": "1"}, 422, 42210000, "invalid order type for crypto"),
    ("coin bracket", {**_COIN, **_LEGS, "order_class": "bracket"}, 422, 42210000, "advanced order_class"),
    ("coin for 6 dollars", {**_COIN, "qty": "0.0001"}, 403, 40310000, "minimal amount of order 10"),
    ("coin not owned", {**_COIN, "side": "sell", "qty": "0.1"}, 403, 40310000, "insufficient qty available"),
    (
        "half a bracket",
        {**_LIMIT, "order_class": "bracket", "take_profit": {"limit_price": 200}},
        422,
        40010001,
        "bracket",
    ),
    ("legs swapped", {**_LIMIT, **_LEGS, "side": "sell", "order_class": "bracket"}, 422, 42210000, "profitable side"),
    (
        "legs beside entry",
        {**_LIMIT, **_LEGS, "limit_price": 210, "order_class": "bracket"},
        422,
        42210000,
        "both sides",
    ),
    ("two-legged oto", {**_LIMIT, **_LEGS, "order_class": "oto"}, 422, 40010001, "oto orders require either"),
    ("market oco", {**_BUY, **_LEGS, "order_class": "oco"}, 422, 42210000, "oco orders must be limit orders"),
    (
        "oco entry",
        {**_LIMIT, "order_class": "oco", "stop_loss": {"stop_price": "200"}},
        422,
        42210000,
        "oco orders must be exit orders",
    ),
    ("legs, no class", {**_LIMIT, **_LEGS}, 422, 42210000, "need an order_class"),
    ("too dear", {**_BUY, "qty": "100000"}, 403, 40310000, "insufficient buying power"),
    ("long name", {**_BUY, "client_order_id": "x" * 129}, 422, 40010001, "no more than 128"),
]


@pytest.fixture(scope="module")
def refusing():
    with running_alpaca() as alpaca:
        client = TradingClient(alpaca.key, alpaca.secret, url_override=alpaca.url)
        client._retry = 0
        yield alpaca, client


@pytest.mark.parametrize(("body", "status", "code", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_a_bad_order_is_refused(refusing, body, status, code, message):
    """With Alpaca's status, code and words; and the book has no order."""
    alpaca, client = refusing
    with pytest.raises(APIError) as caught:
        client.post("/orders", {name: value for name, value in body.items() if value is not None})
    assert (caught.value.status_code, caught.value.code) == (status, code)
    assert message in caught.value.message
    dump = alpaca.control.dump()
    assert dump["accounts"][dump["main"]]["orders"] == []
    assert (dump["posts"][-1]["answer"], dump["posts"][-1]["order_id"]) == (status, None)


def test_a_bad_key_is_refused_without_a_code(alpaca):
    """401, and alpaca-py's APIError.code raises on it."""
    client = TradingClient("key", "wrong", url_override=alpaca.url)
    with pytest.raises(APIError) as caught:
        client.get_account()
    assert caught.value.status_code == 401
    assert caught.value.message == "unauthorized."
    with pytest.raises(KeyError):
        assert caught.value.code


def test_a_name_is_taken_for_ever(client, truth):
    """A duplicate client_order_id is refused even after the first order was cancelled; nothing is placed."""
    first = client.submit_order(limit("AAPL", 1, 1, name="a"))
    for _ in range(2):
        with pytest.raises(APIError) as caught:
            client.submit_order(limit("AAPL", 1, 1, name="a"))
        assert (caught.value.status_code, caught.value.code) == (422, 40010001)
        assert caught.value.message == "client_order_id must be unique"
        if truth.order("a")["status"] != "canceled":
            client.cancel_order_by_id(first.id)
            eventually(lambda: truth.order("a")["status"] == "canceled")
    assert truth.names() == ["a"]


def test_orders_without_a_name_are_never_duplicates(client, truth):
    """Identical ones are all accepted, and each is given a name."""
    for _ in range(2):
        client.submit_order(limit("AAPL", 1, 1))
    assert len(set(truth.names())) == 2


@pytest.mark.parametrize(
    ("resting", "coming", "refused"),
    [
        (limit("AAPL", 1, 180), market("AAPL", 1, "sell"), True),
        (limit("AAPL", 1, 180), limit("AAPL", 1, 180, side="sell"), True),
        (limit("AAPL", 1, 180), limit("AAPL", 1, 181, side="sell"), False),
        (limit("AAPL", 1, 180), limit("MSFT", 1, 100, side="sell"), False),
        (
            limit("AAPL", 1, 180),
            limit(
                "AAPL",
                1,
                179,
                side="sell",
                order_class="bracket",
                take_profit={"limit_price": 170},
                stop_loss={"stop_price": 200},
            ),
            False,
        ),
    ],
    ids=["market", "at its price", "above it", "another symbol", "bracket"],
)
def test_a_wash_trade_is_refused(client, resting, coming, refused):
    """Opposite sides of one account may not meet: complex orders are exempt."""
    first = client.submit_order(resting)
    if not refused:
        client.submit_order(coming)
        return
    with pytest.raises(APIError) as caught:
        client.submit_order(coming)
    assert (caught.value.status_code, caught.value.code) == (403, 40310000)
    assert caught.value.message == "potential wash trade detected. use complex orders"
    assert str(first.id) in str(caught.value)


def test_what_orders_hold_cannot_be_sold_again(client, truth):
    """insufficient qty available, with what is held; and a position cannot be turned round by one order."""
    client.submit_order(market("AAPL", 10))
    eventually(lambda: truth.position("AAPL") == 10)
    client.submit_order(limit("AAPL", 6, 250, side="sell"))
    assert client.get_open_position("AAPL").qty_available == "4"
    with pytest.raises(APIError) as caught:
        client.submit_order(market("AAPL", 5, "sell"))
    assert caught.value.message == "insufficient qty available for order (requested: 5, available: 4)"
    assert '"held_for_orders":"6"' in str(caught.value)
    client.cancel_orders()
    eventually(lambda: client.get_open_position("AAPL").qty_available == "10")
    with pytest.raises(APIError, match="requested: 11, available: 10"):
        client.submit_order(market("AAPL", 11, "sell"))


def test_shorting_can_be_forbidden(client, alpaca):
    """Then a sale of what is not owned is refused."""
    alpaca.control.account(shorting=False)
    with pytest.raises(APIError, match="account is not allowed to short"):
        client.submit_order(market("AAPL", 1, "sell"))


def test_open_orders_count_against_buying_power(client):
    """What resting purchases may cost is gone from buying_power until they end."""
    assert client.get_account().buying_power == "200000"
    client.submit_order(limit("AAPL", 1000, 150))
    assert client.get_account().buying_power == "50000"
    with pytest.raises(APIError) as caught:
        client.submit_order(limit("AAPL", 1000, 60))
    assert '"buying_power":"50000"' in str(caught.value)
    client.cancel_orders()
    eventually(lambda: client.get_account().buying_power == "200000")


def test_the_rate_limit_is_told_and_kept(client, alpaca):
    """Headers on every answer; 429/42910000 above the limit."""
    alpaca.control.settings(rate_limit=5)
    response = client._session.get(f"{alpaca.url}/v2/account", headers=client._get_default_headers())
    assert response.headers["X-RateLimit-Limit"] == "5"
    assert int(response.headers["X-RateLimit-Reset"]) > 1_700_000_000
    with pytest.raises(APIError) as caught:
        for _ in range(12):
            client.get_account()
    assert (caught.value.status_code, caught.value.code) == (429, 42910000)


def test_malformed_bodies_are_a_400(client, alpaca):
    """Neither a bad JSON nor an array becomes an order."""
    for body in ("{", "[]", "nonsense"):
        response = client._session.post(f"{alpaca.url}/v2/orders", data=body, headers=client._get_default_headers())
        assert (response.status_code, response.json()["code"]) == (400, 40010000)
    assert [post["order_id"] for post in alpaca.control.dump()["posts"]] == [None] * 3
