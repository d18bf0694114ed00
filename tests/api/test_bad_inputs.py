"""Every bad input, over HTTP (JSON and protobuf) and gRPC: refused by name, never 500, never at the broker."""

import json
import threading
import uuid

import grpc
import pytest
from desk.v1 import orders_pb2 as pb

from desk_server.api.errors import TABLE
from desk_server.errors import Code
from tests.api.running import RunningDesk, post

GOOD = {"symbol": "AAPL", "qty": "1", "side": "buy"}
LIMIT = {**GOOD, "order_type": "limit", "limit_price": "100.00"}
PROTOBUF = "application/x-protobuf"


def order(**changes) -> dict:
    return {name: value for name, value in {**GOOD, **changes}.items() if value is not None}


def raw(text: str) -> bytes:
    return text.encode()


# name: (body, status, code)
BODIES = {
    "empty body": (b"", 400, "MALFORMED"),
    "blank body": (b"  \n", 400, "MALFORMED"),
    "malformed JSON": (b'{"symbol": "AAPL",', 400, "MALFORMED"),
    "top-level array": (b"[]", 422, "INVALID"),
    "top-level string": (b'"AAPL"', 422, "INVALID"),
    "top-level null": (b"null", 422, "INVALID"),
    "16,385 bytes": (b'{"symbol": "' + b"A" * 16371 + b'"}', 413, "TOO_LARGE"),
    "very deep": (b'{"notes":' * 2000 + b"1" + b"}" * 2000, 413, "TOO_LARGE"),
    "very deep arrays": (b"[" * 16000, 400, "MALFORMED"),
    "deep objects": (b'{"a":' * 1000 + b"1" + b"}" * 1000, 400, "MALFORMED"),
    "invalid UTF-8": (b'{"symbol": "\xff\xfe"}', 400, "MALFORMED"),
    "half a surrogate pair": (rb'{"symbol": "\ud800", "qty": "1", "side": "buy"}', 422, "INVALID"),
    "half a surrogate pair in a key": (rb'{"\ud800": "1"}', 422, "INVALID"),
    "half a surrogate pair in a note": (rb'{"notes": {"\ud800": "1"}}', 422, "INVALID"),
    "half a surrogate pair in a list": (rb'{"line": {"fields_read": ["\udfff"]}}', 422, "INVALID"),
    "a NUL": (rb'{"symbol": "AA\u0000PL", "qty": "1", "side": "buy"}', 422, "INVALID"),
    "duplicate key": (b'{"symbol": "AAPL", "qty": "1", "qty": "2", "side": "buy"}', 400, "MALFORMED"),
    "duplicate key inside": (b'{"notes": {"a": "1", "a": "2"}}', 400, "MALFORMED"),
    "qty NaN": (b'{"symbol": "AAPL", "qty": NaN, "side": "buy"}', 422, "INVALID"),
    "qty Infinity": (b'{"symbol": "AAPL", "qty": Infinity, "side": "buy"}', 422, "INVALID"),
    "qty -Infinity": (b'{"symbol": "AAPL", "qty": -Infinity, "side": "buy"}', 422, "INVALID"),
    "qty 1e400": (b'{"symbol": "AAPL", "qty": 1e400, "side": "buy"}', 422, "INVALID"),
    "qty 1e-400": (b'{"symbol": "AAPL", "qty": 1e-400, "side": "buy"}', 422, "INVALID"),
    "qty 1e999999999999999999999": (
        b'{"symbol": "AAPL", "qty": 1e999999999999999999999, "side": "buy"}',
        422,
        "INVALID",
    ),
    "qty of 5,000 digits": (b'{"symbol": "AAPL", "qty": ' + b"9" * 5000 + b', "side": "buy"}', 422, "INVALID"),
    "qty -1": (b'{"symbol": "AAPL", "qty": -1, "side": "buy"}', 422, "INVALID"),
    "symbol a number": (b'{"symbol": 1, "qty": "1", "side": "buy"}', 422, "INVALID"),
    "symbol NaN": (b'{"symbol": NaN, "qty": "1", "side": "buy"}', 422, "INVALID"),
}

# name: (fields, status, code); also as protobuf and over gRPC where the message can say it
ORDERS = {
    "no symbol": (order(symbol=None), 422, "INVALID"),
    "symbol empty": (order(symbol=""), 422, "INVALID"),
    "symbol unknown": (order(symbol="ZZZZ"), 422, "INVALID"),
    "symbol lower case": (order(symbol="aapl"), 422, "INVALID"),
    "symbol a path": (order(symbol="../"), 422, "INVALID"),
    "symbol SQL": (order(symbol="AAPL'; DROP TABLE orders;--"), 422, "INVALID"),
    "symbol emoji": (order(symbol="😀"), 422, "INVALID"),
    "symbol homoglyph": (order(symbol="ААPL"), 422, "INVALID"),
    "symbol with a space": (order(symbol="AAPL "), 422, "INVALID"),
    "symbol with a newline": (order(symbol="AAPL\n"), 422, "INVALID"),
    "symbol of 10,000 characters": (order(symbol="A" * 10000), 422, "INVALID"),
    "no qty, no notional": (order(qty=None), 422, "INVALID"),
    "qty and notional": (order(notional="100"), 422, "INVALID"),
    "qty 0": (order(qty="0"), 422, "INVALID"),
    "qty 0.0": (order(qty="0.000"), 422, "INVALID"),
    "qty negative": (order(qty="-1"), 422, "INVALID"),
    "qty plus": (order(qty="+1"), 422, "INVALID"),
    "qty NaN as text": (order(qty="NaN"), 422, "INVALID"),
    "qty Infinity as text": (order(qty="Infinity"), 422, "INVALID"),
    "qty 1e400 as text": (order(qty="1e400"), 422, "INVALID"),
    "qty 1e2 as text": (order(qty="1e2"), 422, "INVALID"),
    "qty hexadecimal": (order(qty="0x10"), 422, "INVALID"),
    "qty with a space": (order(qty=" 1"), 422, "INVALID"),
    "qty with an underscore": (order(qty="1_0"), 422, "INVALID"),
    "qty in Arabic digits": (order(qty="١٠"), 422, "INVALID"),
    "qty of ten decimals": (order(qty="0.0000000001"), 422, "INVALID"),
    "qty 10^30": (order(qty="1" + "0" * 30), 422, "INVALID"),
    "qty words": (order(qty="ten"), 422, "INVALID"),
    "no side": (order(side=None), 422, "INVALID"),
    "side unknown": (order(side="hold"), 422, "INVALID"),
    "side upper case": (order(side="BUY"), 422, "INVALID"),
    "order_type unknown": (order(order_type="iceberg"), 422, "INVALID"),
    "time_in_force unknown": (order(time_in_force="forever"), 422, "INVALID"),
    "order_class unknown": (order(order_class="basket"), 422, "INVALID"),
    "limit without a price": (order(order_type="limit"), 422, "INVALID"),
    "market with a price": (order(limit_price="100"), 422, "INVALID"),
    "stop without a price": (order(order_type="stop"), 422, "INVALID"),
    "price 0": (order(order_type="limit", limit_price="0"), 422, "INVALID"),
    "price negative": (order(order_type="limit", limit_price="-5"), 422, "INVALID"),
    "price sub-penny": (order(order_type="limit", limit_price="100.001"), 422, "INVALID"),
    "price sub-penny below a dollar": (order(order_type="limit", limit_price="0.12345"), 422, "INVALID"),
    "price outside the collar": (order(order_type="limit", limit_price="9000.00"), 403, "COLLAR"),
    "notional 0.50": (order(qty=None, notional="0.50"), 422, "INVALID"),
    "notional of a limit order": ({**LIMIT, "qty": "", "notional": "100"}, 422, "INVALID"),
    "extended hours and market": (order(extended_hours=True), 422, "INVALID"),
    "fractional and gtc": (order(qty="0.5", time_in_force="gtc"), 422, "INVALID"),
    "fractional trailing stop": (
        order(qty="0.5", order_type="trailing_stop", trail_percent="1"),
        422,
        "INVALID",
    ),
    "trail of a market order": (order(trail_price="1"), 422, "INVALID"),
    "bracket without legs": (order(order_class="bracket"), 422, "INVALID"),
    "bracket with an empty leg": (
        order(order_class="bracket", take_profit={}, stop_loss={"stop_price": "90"}),
        422,
        "INVALID",
    ),
    "bracket legs on the wrong side": (
        {
            **LIMIT,
            "order_class": "bracket",
            "take_profit": {"limit_price": "90.00"},
            "stop_loss": {"stop_price": "110.00"},
        },
        422,
        "INVALID",
    ),
    "crypto day order": (order(symbol="BTC/USD", time_in_force="day"), 422, "INVALID"),
    "more than owned": (order(side="sell"), 403, "NOT_OWNED"),
    "more than can be paid": (order(qty="99999"), 403, None),
    "qty above the limit": (order(qty="1000000"), 403, "MAX_QTY"),
    "request id of 65 characters": (order(request_id="k" * 65), 422, "INVALID"),
    "request id with a control character": (order(request_id="a\tb"), 422, "INVALID"),
    "request id not ASCII": (order(request_id="schlüssel"), 422, "INVALID"),
    "17 notes": (order(notes={str(n): "x" for n in range(17)}), 422, "INVALID"),
    "note of 513 bytes": (order(notes={"why": "x" * 513}), 422, "INVALID"),
    "line hash that is none": (order(line={"seq": 1, "sha256": "no"}), 422, "INVALID"),
    "65 fields read": (order(line={"seq": 1, "fields_read": [str(n) for n in range(65)]}), 422, "INVALID"),
}

# What only JSON can say: (fields, words that the message must have)
JSON_ONLY = {
    "qty true": (order(qty=True), "qty"),
    "qty null": ({**GOOD, "qty": None}, "qty"),
    "qty a list": (order(qty=["1"]), "qty"),
    "qty an object": (order(qty={"value": 1}), "qty"),
    "side a number": (order(side=1), "side"),
    "extended_hours a string": (order(extended_hours="true"), "extended_hours"),
    "line a list": (order(line=[1]), "line"),
    "line.seq negative": (order(line={"seq": -1}), "line.seq"),
    "line.seq a fraction": (order(line={"seq": 1.5}), "line.seq"),
    "line.seq too large": (order(line={"seq": 2**64}), "line.seq"),
    "notes a list": (order(notes=["x"]), "notes"),
    "notes with a number": (order(notes={"a": 1}), "notes"),
    "unknown field": (order(colour="red"), "colour"),
    "unknown field nearly right": (order(limit_prise="1"), 'did you mean "limit_price"'),
    "type instead of order_type": (order(type="limit"), 'did you mean "order_type"'),
    "client_order_id instead of request_id": (order(client_order_id="x"), 'did you mean "request_id"'),
    "unknown field inside": (order(stop_loss={"price": "1"}), "stop_loss.price"),
    "user in the body": (order(user_id="bob"), "user_id"),
}


def message(fields: dict) -> pb.OrderRequest:
    parts = dict(fields)
    for name, kind in (("take_profit", pb.TakeProfit), ("stop_loss", pb.StopLoss), ("line", pb.LineInHand)):
        if name in parts:
            parts[name] = kind(**parts[name])
    return pb.OrderRequest(**parts)


@pytest.fixture(autouse=True)
def nothing_sent(desk):
    """No bad input of this file reaches the broker."""
    before = desk.sent
    yield
    assert desk.sent == before


def refused(answer, status, code):
    body = answer.json()
    assert answer.status_code == status, body
    assert set(body) == {"code", "message", "limit", "observed", "order_id"}
    assert body["message"]
    assert code is None or body["code"] == code
    assert TABLE[Code(body["code"])].http == status
    return body


@pytest.mark.parametrize("path", ["/v1/orders", "/order"])
@pytest.mark.parametrize("name", BODIES)
def test_a_bad_json_body_is_refused(desk, alice, path, name):
    """What is not a JSON object with the right fields is refused with the right status."""
    body, status, code = BODIES[name]
    with desk.http(alice) as client:
        answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
    refused(answer, status, code)


@pytest.mark.parametrize("name", ORDERS)
def test_a_bad_order_is_refused_as_json(desk, alice, name):
    """Each bad order is refused over JSON."""
    fields, status, code = ORDERS[name]
    with desk.http(alice) as client:
        refused(client.post("/v1/orders", json=fields), status, code)


@pytest.mark.parametrize("name", ORDERS)
def test_a_bad_order_is_refused_as_protobuf(desk, alice, name):
    """Each bad order is refused over protobuf, with an OrderResponse that says what to do."""
    fields, status, code = ORDERS[name]
    with desk.http(alice) as client:
        answer = client.post("/order", content=message(fields).SerializeToString(), headers={"Content-Type": PROTOBUF})
    got = pb.OrderResponse.FromString(answer.content)
    assert answer.status_code == status, got
    assert answer.headers["content-type"] == PROTOBUF
    assert (got.status, bool(got.message)) == ("error", True)
    assert code is None or got.code == code


@pytest.mark.parametrize("name", ORDERS)
def test_a_bad_order_is_refused_over_grpc(desk, alice, name):
    """Each bad order is refused over gRPC, with the status of the same table and the code in the trailer."""
    fields, _, code = ORDERS[name]
    with desk.grpc(alice) as stubs, pytest.raises(grpc.RpcError) as caught:
        stubs.orders.PlaceOrder(message(fields), metadata=stubs.metadata, timeout=5)
    trailer = dict(caught.value.trailing_metadata())
    assert caught.value.code() == TABLE[Code(trailer["desk-code"])].grpc
    assert caught.value.details()
    assert code is None or trailer["desk-code"] == code


@pytest.mark.parametrize("name", JSON_ONLY)
def test_what_only_json_can_say_wrongly(desk, alice, name):
    """A value of the wrong kind and an unknown field are refused by name."""
    fields, words = JSON_ONLY[name]
    with desk.http(alice) as client:
        body = refused(client.post("/v1/orders", json=fields), 422, "INVALID")
    assert words in body["message"]


def test_all_bad_orders_on_one_grpc_stream(desk, alice):
    """On a stream of orders each error is an answer, in order, and the stream goes on."""
    with desk.grpc(alice) as stubs:
        call = stubs.orders.PlaceOrders(
            iter([message(fields) for fields, _, _ in ORDERS.values()]), metadata=stubs.metadata, timeout=20
        )
        answers = list(call)
    assert len(answers) == len(ORDERS)
    for answer, (name, (_, _, code)) in zip(answers, ORDERS.items(), strict=True):
        assert answer.status == "error", name
        assert code is None or answer.code == code, name


@pytest.mark.parametrize("body", [b"\xff\xff\xff", b"hello", b"\x0a\x02\xff\xfe", b"\x0a\x7f", b"\x12"])
def test_a_body_that_is_no_protobuf_is_malformed(desk, alice, body):
    """What protobuf cannot decode is 400 over HTTP and INVALID_ARGUMENT over gRPC, not an internal error."""
    with desk.http(alice) as client:
        answer = client.post("/order", content=body, headers={"Content-Type": PROTOBUF})
    assert (answer.status_code, pb.OrderResponse.FromString(answer.content).code) == (400, "MALFORMED")
    with desk.grpc(alice) as stubs:
        place = stubs.channel.unary_unary("/desk.v1.OrderService/PlaceOrder")
        with pytest.raises(grpc.RpcError) as caught:
            place(body, metadata=stubs.metadata, timeout=5)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert dict(caught.value.trailing_metadata())["desk-code"] == "MALFORMED"


def test_an_empty_grpc_order_is_malformed(desk, alice):
    """An OrderRequest without any field is refused."""
    with desk.grpc(alice) as stubs, pytest.raises(grpc.RpcError) as caught:
        stubs.orders.PlaceOrder(pb.OrderRequest(), metadata=stubs.metadata, timeout=5)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("size", [17_000, 70_000])
def test_a_grpc_message_that_is_too_large(desk, alice, size):
    """Above 16 KiB the answer is RESOURCE_EXHAUSTED."""
    with desk.grpc(alice) as stubs, pytest.raises(grpc.RpcError) as caught:
        stubs.orders.PlaceOrder(pb.OrderRequest(symbol="A" * size), metadata=stubs.metadata, timeout=5)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_a_body_of_another_kind(desk, alice, kind):
    """A content type that is neither JSON nor protobuf is 415."""
    with desk.http(alice) as client:
        answer = client.post("/v1/orders", content=json.dumps(GOOD), headers={"Content-Type": kind})
    refused(answer, 415, "UNSUPPORTED_MEDIA")


def test_a_body_without_a_kind(desk, alice):
    """On /v1/orders a body must say what it is."""
    connection = desk.raw(post("/v1/orders", json.dumps(GOOD).encode(), token=alice))
    assert connection.answer().status == 415
    connection.close()


def test_a_body_that_says_it_is_huge_is_not_read(desk, alice):
    """A Content-Length above the limit is refused before the body comes, and the connection ends."""
    head = post("/v1/orders", b"", "Content-Type: application/json", token=alice)
    connection = desk.raw(head.replace(b"Content-Length: 0", b"Content-Length: 100000000"))
    assert connection.answer().status == 413
    assert connection.is_closed()
    connection.close()


def test_a_chunked_body_that_grows_too_large(desk, alice):
    """A chunked body is refused as soon as it is over the limit."""
    head = f"POST /v1/orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAuthorization: Bearer {alice}\r\n"
    connection = desk.raw(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n")
    for _ in range(3):
        connection.send(b"2000\r\n" + b" " * 0x2000 + b"\r\n")
    assert connection.answer().status == 413
    connection.close()


# Who asks


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        ("", 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        ("Basic YWxpY2U6c2VjcmV0", 401),
        ("Bearer nonsense", 401),
        ("Bearer desk_user_0000000000000000_" + "0" * 64, 401),
        ("Bearer " + "x" * 5000, 401),
        ("Bearer schl\xfcssel", 401),
        ("Bearer " + "x" * 20000, 431),
        ("Bearer " + "x" * 200000, 431),
    ],
)
def test_a_bad_credential(desk, header, status):
    """No token, a malformed, unknown or huge one: 401 or 431, and the same words whatever is wrong with it."""
    lines = ["Content-Type: application/json"] + ([f"Authorization: {header}"] if header is not None else [])
    connection = desk.raw()
    try:
        connection.send(post("/v1/orders", json.dumps(GOOD).encode(), *lines))
    except OSError:
        pass  # the desk hung up while the header was on its way: its answer is there all the same
    answer = connection.answer()
    assert answer.status == status
    assert answer.json()["code"] == ("UNAUTHENTICATED" if status == 401 else "TOO_LARGE")
    connection.close()


@pytest.mark.parametrize("value", ["", "Bearer", "Basic x", "Bearer nonsense", "Bearer " + "x" * 4000])
def test_a_bad_credential_over_grpc(desk, value):
    """gRPC says UNAUTHENTICATED where HTTP says 401."""
    with desk.grpc() as stubs, pytest.raises(grpc.RpcError) as caught:
        stubs.orders.PlaceOrder(message(GOOD), metadata=(("authorization", value),) if value else (), timeout=5)
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_a_revoked_token(desk):
    """A revoked token is as good as none, over HTTP and gRPC."""
    token_id, token = desk.call(desk.desk.registry.create_user_token("carol", "trade", "test"))
    with desk.http(desk.admin_token) as admin:
        assert admin.delete(f"/v1/tokens/{token_id}").status_code == 200
    with desk.http(token) as client:
        refused(client.post("/v1/orders", json=GOOD), 401, "UNAUTHENTICATED")
    with desk.grpc(token) as stubs, pytest.raises(grpc.RpcError) as caught:
        stubs.orders.PlaceOrder(message(GOOD), metadata=stubs.metadata, timeout=5)
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_a_token_that_may_only_read(desk):
    """It reads, but places, replaces and cancels nothing."""
    token = desk.token("dora", "read")
    with desk.http(token) as client:
        refused(client.post("/v1/orders", json=GOOD), 403, "FORBIDDEN")
        refused(client.post("/v1/orders:cancel-all", json={}), 403, "FORBIDDEN")
        assert client.get("/v1/orders").status_code == 200
    with desk.grpc(token) as stubs, pytest.raises(grpc.RpcError) as caught:
        stubs.orders.PlaceOrder(message(GOOD), metadata=stubs.metadata, timeout=5)
    assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED


def test_another_users_name_in_the_header(desk, alice):
    """X-User-ID must be the token's user; sent twice it is nobody's."""
    with desk.http(alice, **{"X-User-ID": "bob"}) as client:
        refused(client.post("/v1/orders", json=GOOD), 403, "FORBIDDEN")
        refused(client.get("/v1/account"), 403, "FORBIDDEN")
    twice = ["Content-Type: application/json", "X-User-ID: alice", "X-User-ID: bob"]
    connection = desk.raw(post("/v1/orders", json.dumps(GOOD).encode(), *twice, token=alice))
    assert connection.answer().status == 401
    connection.close()
    with desk.grpc(alice) as stubs, pytest.raises(grpc.RpcError) as caught:
        stubs.orders.PlaceOrder(message(GOOD), metadata=(*stubs.metadata, ("x-user-id", "bob")), timeout=5)
    assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED


# Order ids that are nobody's


@pytest.mark.parametrize(
    "order_id", ["nothing", "01ARZ3NDEKTSV4RRFFQ69G5FAV", "%2e%2e", "%00", "x" * 2000, "%F0%9F%98%80"]
)
def test_an_unknown_order_id(desk, alice, order_id):
    """Asking for, changing or cancelling an order that is not there is 404."""
    with desk.http(alice) as client:
        for method in ("GET", "DELETE", "PATCH"):
            body = {"json": {"qty": "2"}} if method == "PATCH" else {}
            refused(client.request(method, f"/v1/orders/{order_id}", **body), 404, "NOT_FOUND")


def test_bad_questions(desk, alice):
    """Unknown parameters, words out of the list, pages out of range and broken times are 422."""
    questions = [
        "/v1/orders?colour=red",
        "/v1/orders?status=maybe",
        "/v1/orders?side=hold",
        "/v1/orders?limit=501",
        "/v1/orders?limit=-1",
        "/v1/orders?limit=x",
        "/v1/orders?limit=1&limit=2",
        "/v1/orders?page_token=abc",
        "/v1/orders?after=yesterday",
        "/v1/orders?after=2026-01-02T14:30:00",
        "/v1/orders?symbols=aapl",
        "/v1/orders?symbols=%FF",
        "/v1/orders/x?verbose=1",
        "/v1/fills?symbol=%27",
        "/v1/fills?page_token=-1",
        "/v1/market/latest?symbols=" + ",".join(f"A{n}" for n in range(1001)),
        "/v1/market/stream?after=-1",
        "/v1/market/stream?after=x",
        "/v1/market/stream?symbols=../",
        "/v1/updates?after=99999999999999999999999",
        "/v1/account?user=bob",
    ]
    with desk.http(alice) as client:
        for question in questions:
            refused(client.get(question), 422, "INVALID")


def test_paths_that_lead_nowhere(desk, alice):
    """An unknown path is 404, a wrong method 405 with what is allowed, both in the desk's own words."""
    with desk.http(alice) as client:
        refused(client.get("/v2/orders"), 404, "NOT_FOUND")
        answer = client.put("/v1/orders", json=GOOD)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST")
    assert answer.json()["code"] == "INVALID"


# The same request twice


def test_the_same_key_with_another_body(desk, alice):
    """A request id is for one order: the same content gives the same answer, other content is KEY_REUSED."""
    key = str(uuid.uuid4())
    too_much = order(qty="99999", request_id=key)
    with desk.http(alice) as client:
        first = refused(client.post("/v1/orders", json=too_much), 403, None)
        again = refused(client.post("/v1/orders", json=too_much), 403, None)
        assert again == first
        assert first["order_id"]
        refused(client.post("/v1/orders", json=order(qty="2", request_id=key)), 422, "KEY_REUSED")


# Not now


def test_old_prices_refuse_orders(tmp_path):
    """Market data that is too old is 503 STALE_DATA with a Retry-After, and nothing is sent."""
    desk = RunningDesk(tmp_path, quote_age_s_max=1e-9)
    try:
        token = desk.token()
        with desk.http(token) as client:
            answer = client.post("/v1/orders", json=GOOD)
        refused(answer, 503, "STALE_DATA")
        assert int(answer.headers["retry-after"]) >= 1
        with desk.grpc(token) as stubs, pytest.raises(grpc.RpcError) as caught:
            stubs.orders.PlaceOrder(message(GOOD), metadata=stubs.metadata, timeout=5)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert desk.sent == 0
    finally:
        desk.stop()


def test_halted_and_hurried(tmp_path):
    """A halt is 403, too many requests are 429 with a Retry-After; and cancels still go through."""
    desk = RunningDesk(tmp_path, orders_per_minute_max=3)
    try:
        token = desk.token()
        with desk.http(desk.admin_token) as admin, desk.http(token) as client:
            placed = client.post("/v1/orders", json=LIMIT)
            assert placed.status_code == 201, placed.text
            halt = {"scope": "user", "name": "alice", "halted": True, "reason": "test"}
            assert admin.post("/v1/halts", json=halt).status_code == 200
            refused(client.post("/v1/orders", json=GOOD), 403, "HALTED")
            assert admin.post("/v1/halts", json={**halt, "halted": False}).status_code == 200
            answers = [client.post("/v1/orders", json=LIMIT) for _ in range(5)]
            assert answers[-1].status_code == 429
            assert int(answers[-1].headers["retry-after"]) >= 1
            cancelled = client.delete(f"/v1/orders/{placed.json()['order_id']}")
            assert cancelled.status_code == 200, cancelled.text
    finally:
        desk.stop()


def test_fifty_with_one_key_are_one_order(tmp_path):
    """Fifty callers with one request id at the same moment get one order, sent once."""
    desk = RunningDesk(tmp_path)
    try:
        token = desk.token()
        fields = {**LIMIT, "request_id": "the-same"}
        answers, start = [], threading.Barrier(50)

        def one():
            with desk.http(token) as client:
                start.wait()
                answers.append(client.post("/v1/orders", json=fields))

        threads = [threading.Thread(target=one) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {answer.status_code for answer in answers} == {201}
        assert len({answer.json()["order_id"] for answer in answers}) == 1
        assert desk.sent == 1
    finally:
        desk.stop()
