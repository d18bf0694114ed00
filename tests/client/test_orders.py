"""Placing, changing and reading orders against a desk that answers, refuses, hangs up and stalls."""

import os
import threading
import time
from datetime import date
from decimal import Decimal

import pytest
from client_desk import answer, client_of, error, hang_up, stall, until
from desk.v1 import books_pb2, market_pb2
from desk.v1 import orders_pb2 as pb

from desk_client import (
    AuthenticationError,
    Client,
    ConfigurationError,
    DeskTimeout,
    DeskUnavailable,
    NotFound,
    OrderRefused,
    OutcomeUnknown,
    ProtocolError,
    Refused,
    Settings,
    Token,
    parse_url,
)


def test_an_order_arrives_whole_and_its_answer_comes_back(any_desk):
    """Every argument of place_order reaches its field, on a unix socket and on TCP."""
    response = client_of(any_desk, user_id="alice").place_order(
        "AAPL",
        Decimal("1.50"),
        "buy",
        "limit",
        "gtc",
        145.5,
        140,
        request_id="r-1",
        extended_hours=True,
        trail_price="0.10",
        trail_percent=1e-7,
        order_class="bracket",
        take_profit_price=160,
        stop_loss_price="120.00",
        stop_loss_limit_price=Decimal("119"),
        notes={"why": "cross", "fast": 10},
    )
    assert (response.status, response.order_id, response.qty) == ("success", "order-1", "1.50")
    request = any_desk.requests[0]
    assert (request.method, request.path) == ("POST", "/v1/orders")
    assert request.headers["authorization"] == "Bearer good-token"
    assert request.headers["x-user-id"] == "alice"
    assert request.headers["content-type"] == request.headers["accept"] == "application/x-protobuf"
    assert request.order == pb.OrderRequest(
        symbol="AAPL",
        qty="1.50",
        side="buy",
        order_type="limit",
        time_in_force="gtc",
        limit_price="145.5",
        stop_price="140",
        request_id="r-1",
        extended_hours=True,
        trail_price="0.10",
        trail_percent="0.0000001",
        order_class="bracket",
        take_profit=pb.TakeProfit(limit_price="160"),
        stop_loss=pb.StopLoss(stop_price="120.00", limit_price="119"),
        notes={"why": "cross", "fast": "10"},
    )


def test_what_is_not_given_is_not_sent(desk):
    """A plain market order has no line, legs, prices or user; its request id is a new one each time."""
    client = client_of(desk)
    client.place_order("AAPL", 1, "buy")
    client.place_order("AAPL", None, "sell", notional=Decimal("100"))
    first, second = (request.order for request in desk.requests)
    assert first == pb.OrderRequest(
        symbol="AAPL", qty="1", side="buy", order_type="market", time_in_force="day", request_id=first.request_id
    )
    assert (second.qty, second.notional) == ("", "100")
    assert len(first.request_id) == len(second.request_id) == 32
    assert first.request_id != second.request_id
    assert "x-user-id" not in desk.requests[0].headers


def test_one_connection_serves_order_after_order(any_desk):
    """The connection is kept alive."""
    client = client_of(any_desk)
    for _ in range(20):
        client.place_order("AAPL", 1, "buy")
    assert any_desk.connections_made == 1


def test_a_lost_answer_is_asked_for_again_under_the_same_request_id(any_desk):
    """Two connections reset after the request was read lead to one order."""
    any_desk.replies += [hang_up, hang_up]
    response = client_of(any_desk).place_order("AAPL", 1, "buy")
    assert response.status == "success"
    assert len(any_desk.requests) == 3
    assert len({request.body for request in any_desk.requests}) == 1
    assert len(any_desk.orders) == 1


def test_a_connection_that_the_desk_closed_meanwhile_is_replaced(any_desk):
    """An idle connection's end is noticed before it is used."""
    client = client_of(any_desk)
    client.place_order("AAPL", 1, "buy")
    any_desk.drop_connections()
    assert client.place_order("AAPL", 1, "buy").status == "success"
    assert len(any_desk.requests) == 2


def test_an_order_waits_for_a_desk_that_is_starting_again(desk):
    """A missing socket is tried again until the timeout."""
    client = client_of(desk)
    desk.stop()
    threading.Timer(0.3, desk.start).start()
    assert client.place_order("AAPL", 1, "buy").status == "success"


def test_no_answer_in_time_is_an_unknown_outcome(any_desk):
    """DeskTimeout carries the request id, and the same call with it gets the one order."""
    any_desk.replies.append(stall)
    started = time.monotonic()
    with pytest.raises(DeskTimeout) as caught:
        client_of(any_desk).place_order("AAPL", 1, "buy", timeout=0.3)
    assert 0.25 < time.monotonic() - started < 8
    request_id = any_desk.requests[0].order.request_id
    assert caught.value.request_id == request_id
    assert request_id in str(caught.value)
    assert isinstance(caught.value, OutcomeUnknown | TimeoutError)
    assert client_of(any_desk).place_order("AAPL", 1, "buy", request_id=request_id).status == "success"
    assert list(any_desk.orders) == [request_id]


def test_a_desk_that_only_hangs_up_leaves_the_outcome_unknown(desk):
    """The request was read, so it may have been done: not DeskUnavailable."""
    desk.replies += [hang_up] * 100
    with pytest.raises(DeskTimeout) as caught:
        client_of(desk).place_order("AAPL", 1, "buy", timeout=0.5)
    assert {request.order.request_id for request in desk.requests} == {caught.value.request_id}


def test_a_desk_that_is_lost_after_a_lost_answer_leaves_the_outcome_unknown(desk):
    """What happened to the first try is not known, whatever the later ones say."""

    def hang_up_and_die(connection, request):
        hang_up(connection, request)
        desk.stop()

    desk.replies.append(hang_up_and_die)
    with pytest.raises(DeskTimeout):
        client_of(desk).place_order("AAPL", 1, "buy", timeout=0.5)


@pytest.mark.parametrize("url", ["unix:///nowhere/desk.sock", "http://127.0.0.1:9"])
def test_no_desk_at_all_is_said_so(url):
    """DeskUnavailable: the order cannot have been placed."""
    with pytest.raises(DeskUnavailable, match="has not got the request"):
        Client(Settings(parse_url(url), Token("t"))).place_order("AAPL", 1, "buy", timeout=0.2)


def test_a_slow_byte_after_byte_answer_keeps_the_deadline(desk):
    """The timeout is for the whole answer, not for each byte of it."""

    def drip(connection, _):
        for _ in range(200):
            connection.sendall(b"H")
            time.sleep(0.05)

    desk.replies.append(drip)
    started = time.monotonic()
    with pytest.raises(DeskTimeout):
        client_of(desk).place_order("AAPL", 1, "buy", timeout=0.4)
    assert time.monotonic() - started < 8


@pytest.mark.parametrize(
    ("status", "code"),
    [(422, "INVALID"), (403, "BUYING_POWER"), (403, "HALTED"), (422, "KEY_REUSED"), (400, "MALFORMED"),
     (409, "NOT_CANCELABLE"), (503, "LEDGER"), (429, "THROTTLED")],
)  # fmt: skip
def test_a_refusal_is_an_answer(desk, status, code):
    """Its code, limit and observed value come back with status "error", after one try."""
    desk.replies.append(error(status, code, limit="10", observed="11", order_id="o-9"))
    response = client_of(desk).place_order("AAPL", 11, "buy")
    assert (response.status, response.code) == ("error", code)
    assert (response.limit, response.observed, response.order_id) == ("10", "11", "o-9")
    assert len(desk.requests) == 1


def test_a_refusal_is_an_exception_for_who_asks_for_one(desk):
    """OrderRefused has the answer and its fields."""
    desk.replies.append(error(403, "COLLAR", limit="5", observed="7.1", message="check the price"))
    with pytest.raises(OrderRefused, match="COLLAR: check the price") as caught:
        client_of(desk).place_order("AAPL", 1, "buy", raise_on_error=True)
    assert (caught.value.code, caught.value.status, caught.value.limit) == ("COLLAR", 403, "5")
    assert caught.value.response.status == "error"


def test_a_refusal_in_json_is_understood_too(desk):
    """Something before the order's route may answer in JSON."""
    body = b'{"code":"TOO_LARGE","message":"send less","limit":"16384","observed":"20000","order_id":""}'
    desk.replies.append(answer(413, body=body, kind="application/json"))
    response = client_of(desk).place_order("AAPL", 1, "buy")
    assert (response.status, response.code, response.limit) == ("error", "TOO_LARGE", "16384")


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), Decimal("NaN"), "NaN", "1e999999999", "abc", "", "1_000"]
)
def test_what_is_no_number_is_refused_without_asking_the_desk(desk, value):
    """The answer is as the desk's own, or an OrderRefused."""
    response = client_of(desk).place_order("AAPL", value, "buy")
    assert (response.status, response.code) == ("error", "INVALID")
    assert "qty" in response.message
    with pytest.raises(OrderRefused, match="limit_price"):
        client_of(desk).place_order("AAPL", 1, "buy", "limit", limit_price=value, raise_on_error=True)
    assert desk.requests == []


def test_retry_after_is_honoured_with_the_same_request_id(desk):
    """A throttled order, and one that came too early, are sent again when the desk says so."""
    desk.replies += [error(429, "THROTTLED", Retry_After="0.2"), error(503, "NOT_READY", Retry_After="0.2")]
    started = time.monotonic()
    assert client_of(desk).place_order("AAPL", 1, "buy").status == "success"
    assert time.monotonic() - started > 0.35
    assert len({request.order.request_id for request in desk.requests}) == 1


def test_retry_after_beyond_the_timeout_is_a_refusal_at_once(desk):
    """Nobody waits for what cannot come in time."""
    desk.replies.append(error(429, "THROTTLED", Retry_After="60"))
    started = time.monotonic()
    assert client_of(desk).place_order("AAPL", 1, "buy", timeout=5).code == "THROTTLED"
    assert time.monotonic() - started < 4


def test_a_desk_that_stays_not_ready_says_so_at_the_timeout(desk):
    """The last answer comes back."""
    desk.replies += [error(503, "NOT_READY")] * 50
    assert client_of(desk).place_order("AAPL", 1, "buy", timeout=0.5).code == "NOT_READY"
    assert len(desk.requests) > 1


@pytest.mark.parametrize(
    "reply", [error(500, "INTERNAL"), error(504, "DEADLINE"), answer(502, body=b"<html>", kind="text/html")]
)
def test_a_broken_desk_leaves_the_outcome_unknown(desk, reply):
    """After some tries under the same id, the caller learns that nothing is known."""
    desk.replies += [reply] * 10
    with pytest.raises(OutcomeUnknown) as caught:
        client_of(desk).place_order("AAPL", 1, "buy")
    assert {request.order.request_id for request in desk.requests} == {caught.value.request_id}
    assert len(desk.requests) == 4


@pytest.mark.parametrize(
    "reply",
    [
        lambda connection, _: connection.sendall(b"SSH-2.0-OpenSSH\r\n\r\n"),
        lambda connection, _: connection.sendall(b"HTTP/1.1 201 X\r\nContent-Length: x\r\n\r\n"),
        lambda connection, _: connection.sendall(b"HTTP/1.1 201 X\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        answer(201, body=b"\xff\xff\xff"),
        answer(200, body=b"hello", kind="text/html"),
        answer(302, body=b"", kind="text/html"),
    ],
)
def test_what_does_not_speak_as_a_desk_is_a_protocol_error(desk, reply):
    """It never passes for an answer, and says which order it is about."""
    desk.replies += [reply] * 10
    with pytest.raises(ProtocolError) as caught:
        client_of(desk).place_order("AAPL", 1, "buy")
    assert caught.value.request_id


def test_a_refused_token_is_an_authentication_error(desk):
    """At once, with the desk's message."""
    client = Client(Settings(parse_url(desk.url), Token("bad-token")))
    with pytest.raises(AuthenticationError, match="unknown or revoked") as caught:
        client.place_order("AAPL", 1, "buy")
    assert (caught.value.status, len(desk.requests)) == (401, 1)


def test_another_users_name_is_an_authentication_error(desk):
    """403 FORBIDDEN is about who asks, and no refusal of the order."""
    desk.replies.append(error(403, "FORBIDDEN"))
    with pytest.raises(AuthenticationError):
        client_of(desk, user_id="bob").place_order("AAPL", 1, "buy")


def test_a_token_file_is_read_again_when_the_token_is_refused(desk, tmp_path):
    """Tokens change when a strategy's deployment does."""
    file = tmp_path / "token"
    file.write_text("old-token\n")
    client = Client(Settings(parse_url(desk.url), Token(path=str(file))))
    with pytest.raises(AuthenticationError):
        client.place_order("AAPL", 1, "buy")
    file.write_text("good-token\n")
    assert client.place_order("AAPL", 1, "buy").status == "success"


def test_a_header_cannot_be_smuggled_in(desk):
    """Neither through the user's id nor through the token."""
    with pytest.raises(ConfigurationError):
        client_of(desk).set_user_id("bob\r\nAuthorization: Bearer x")
    with pytest.raises(ConfigurationError):
        Token("a b\nc")


@pytest.mark.parametrize(
    "url",
    ["", "desk:8080", "ftp://desk", "http://", "http://desk:0", "http://desk:99999", "http://desk:80/v1", "unix://desk.sock",
     "http://a b:80", "http://user@desk:80", "unix:///" + "x" * 120],
)  # fmt: skip
def test_an_address_that_cannot_be_right_is_said_so(url):
    """ConfigurationError names the variable."""
    with pytest.raises(ConfigurationError, match="DESK_SERVER_URL"):
        parse_url(url)


def test_the_environment_is_read_at_the_call(desk, monkeypatch, tmp_path):
    """And set_user_id goes before USER_ID."""
    client = Client()
    (tmp_path / "token").write_text("good-token")
    monkeypatch.delenv("DESK_TOKEN", raising=False)
    monkeypatch.setenv("DESK_SERVER_URL", desk.url)
    monkeypatch.setenv("DESK_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("USER_ID", "alice")
    client.place_order("AAPL", 1, "buy")
    client.set_user_id("bob")
    client.place_order("AAPL", 1, "buy")
    client.set_user_id("")
    client.place_order("AAPL", 1, "buy")
    assert [request.headers.get("x-user-id") for request in desk.requests] == ["alice", "bob", None]


def test_an_order_is_changed_and_cancelled(desk):
    """PATCH and DELETE on the order's own path, which an odd id cannot leave."""
    desk.replies += [answer(200, pb.OrderResponse(status="success", order_id="2"))] * 3
    client = client_of(desk)
    assert client.replace_order("1", qty=5, limit_price="9.50", trail=1, request_id="x").order_id == "2"
    client.cancel_order("../a?b", timeout=3)
    client.replace_order("1", qty=5)
    change, cancel, second = desk.requests
    assert (change.method, change.path) == ("PATCH", "/v1/orders/1")
    assert pb.ReplaceOrderRequest.FromString(change.body) == pb.ReplaceOrderRequest(
        order_id="1", qty="5", limit_price="9.50", trail="1", request_id="x"
    )
    assert (cancel.method, cancel.path) == ("DELETE", "/v1/orders/..%2Fa%3Fb")
    assert len(pb.ReplaceOrderRequest.FromString(second.body).request_id) == 32


def test_cancelling_what_is_not_there_is_a_refusal(desk):
    """As placing: an answer with status "error"."""
    response = client_of(desk).cancel_order("nothing")
    assert (response.status, response.code) == ("error", "NOT_FOUND")
    with pytest.raises(ConfigurationError):
        client_of(desk).cancel_order("")


def test_everything_open_is_cancelled(desk):
    """cancel_all answers for each order."""
    results = [pb.OrderResponse(status="success", order_id=str(number)) for number in (1, 2)]
    desk.replies.append(answer(200, pb.CancelAllResponse(results=results)))
    assert client_of(desk).cancel_all(["AAPL"]) == results
    assert pb.CancelAllRequest.FromString(desk.requests[0].body).symbols == ["AAPL"]
    with pytest.raises(TypeError):
        client_of(desk).cancel_all("AAPL")


def test_orders_are_listed_page_after_page(desk):
    """The filters go along with each page's token."""
    pages = [
        pb.ListOrdersResponse(orders=[pb.Order(order_id="3"), pb.Order(order_id="2")], next_page_token="p/2"),
        pb.ListOrdersResponse(orders=[pb.Order(order_id="1")]),
    ]
    desk.replies += [answer(200, page) for page in pages]
    orders = client_of(desk).list_orders("open", symbols=["AAPL", "BTC/USD"])
    assert [order.order_id for order in orders] == ["3", "2", "1"]
    assert desk.requests[0].query == {"status": "open", "symbols": "AAPL,BTC/USD", "limit": "500"}
    assert desk.requests[1].query == desk.requests[0].query | {"page_token": "p/2"}


def test_books_and_prices_are_read(desk):
    """Positions, account, fills, the newest prices, and one order."""
    position = books_pb2.Position(symbol="AAPL", qty="3")
    account = books_pb2.Account(user_id="alice", cash="97.50")
    latest = market_pb2.LatestLine(symbol="AAPL", price="145.50")
    desk.replies += [
        answer(200, books_pb2.ListPositionsResponse(positions=[position])),
        answer(200, account),
        answer(200, pb.ListFillsResponse(fills=[pb.Fill(execution_id="e")])),
        answer(200, market_pb2.GetLatestResponse(lines=[latest])),
        answer(200, pb.Order(order_id="1")),
    ]
    client = client_of(desk)
    assert client.positions() == [position]
    assert client.account() == account
    assert [fill.execution_id for fill in client.fills(symbol="AAPL")] == ["e"]
    assert client.latest(["AAPL"]) == {"AAPL": latest}
    assert client.get_order("1").order_id == "1"


def test_the_market_s_hours_and_assets_are_read(desk):
    """With the symbol's slash escaped, and days given as dates or as text."""
    bitcoin = market_pb2.Asset(symbol="BTC/USD", asset_class="crypto", tradable=True)
    clock = market_pb2.Clock(at="2026-11-27T18:00:00.000000Z", next_open="2026-11-30T14:30:00.000000Z")
    day = market_pb2.TradingDay(date="2026-11-27", close="2026-11-27T18:00:00.000000Z")
    desk.replies += [
        answer(200, bitcoin),
        answer(200, clock),
        answer(200, market_pb2.Calendar(days=[day])),
        answer(200, market_pb2.Calendar()),
    ]
    client = client_of(desk)
    assert client.asset("BTC/USD") == bitcoin
    assert client.clock() == clock
    assert client.calendar(date(2026, 11, 26), "2026-11-27") == [day]
    assert client.calendar("2026-11-26", date(2026, 11, 26)) == []
    assert [request.path for request in desk.requests[:2]] == ["/v1/assets/BTC%2FUSD", "/v1/clock"]
    assert desk.requests[2].query == {"start": "2026-11-26", "end": "2026-11-27"}


def test_a_broker_that_does_not_tell_is_asked_again_and_then_given_up(desk):
    """503 with Retry-After is waited for while there is time; then it is a Refused with the desk's words."""
    not_now = error(503, "NOT_READY", Retry_After="0.01", message="ask again in a moment")
    desk.replies += [not_now, not_now, answer(200, market_pb2.Clock(is_open=True))]
    client = client_of(desk)
    assert client.clock().is_open
    desk.replies.append(error(503, "NOT_READY", Retry_After="5", message="ask again in a moment"))
    with pytest.raises(Refused, match="ask again in a moment") as caught:
        client.clock(timeout=1)
    assert caught.value.code == "NOT_READY"


def test_reading_what_is_not_there_or_not_allowed_raises(desk):
    """NotFound for an unknown order, Refused for a filter that cannot be."""
    client = client_of(desk)
    with pytest.raises(NotFound) as caught:
        client.get_order("1")
    assert (caught.value.code, caught.value.status) == ("NOT_FOUND", 404)
    desk.replies.append(error(422, "INVALID"))
    with pytest.raises(Refused):
        next(client.list_orders("ajar"))


def test_a_timeout_must_leave_time(desk):
    """Zero, or less, is a mistake and not a question."""
    with pytest.raises(ConfigurationError, match="timeout"):
        client_of(desk).place_order("AAPL", 1, "buy", timeout=0)


def test_many_threads_share_a_client(any_desk):
    """Every thread gets the answer to its own order."""
    client, wrong = client_of(any_desk), []

    def trade(number):
        for turn in range(25):
            qty = str(number * 1000 + turn + 1)
            if client.place_order("AAPL", qty, "buy").qty != qty:
                wrong.append(qty)

    threads = [threading.Thread(target=trade, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(any_desk.orders) == 200
    assert any_desk.connections_made <= 60


def test_a_child_does_not_use_its_parents_connection(desk):
    """After a fork, parent and child each get their own answers."""
    client = client_of(desk)
    client.place_order("AAPL", 1, "buy")
    child = os.fork()
    if child == 0:
        answers = [client.place_order("AAPL", qty, "sell").qty for qty in range(100, 120)]
        os._exit(0 if answers == [str(qty) for qty in range(100, 120)] else 1)
    assert [client.place_order("AAPL", qty, "buy").qty for qty in range(1, 21)] == [str(qty) for qty in range(1, 21)]
    assert os.waitpid(child, 0)[1] == 0
    until(lambda: len(desk.orders) == 41)
    assert desk.connections_made == 2
