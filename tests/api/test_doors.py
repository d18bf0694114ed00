"""The fast door and FastAPI answer the same bytes, for good requests and bad, however they arrive."""

import json
import re
import time

import pytest
from desk.v1 import orders_pb2 as pb

from tests.api.running import post, wait_until
from tests.api.test_bad_inputs import BODIES, GOOD, LIMIT, ORDERS, message

PROTOBUF = "Content-Type: application/x-protobuf"
JSON = "Content-Type: application/json"
REQUEST = "X-Request-ID: the-same"


@pytest.fixture
def doors(desk, slow_desk):
    """(desk, its token) for the fast door and for FastAPI."""
    return [(desk, desk.token("twin")), (slow_desk, slow_desk.token("twin"))]


def asked(doors, request) -> list:
    """The answers of both doors to `request(token)`, made comparable."""
    answers = []
    for desk, token in doors:
        connection = desk.raw(request(token))
        answers.append(comparable(connection.answer()))
        connection.close()
    return answers


def comparable(answer):
    """Ids, times and prices are each desk's own; everything else must be the same."""
    headers = [(name, value) for name, value in answer.headers if name != b"date"]
    if dict(headers).get(b"content-type") == b"application/x-protobuf":
        response = pb.OrderResponse.FromString(answer.body)
        assert response.SerializeToString() == answer.body
        masked = mask(str(response))
    else:
        masked = mask(answer.body.decode())
    kept = [(name, value) for name, value in headers if name != b"content-length"]
    assert dict(headers)[b"content-length"] == str(len(answer.body)).encode()
    return answer.status, kept, masked


def mask(text: str) -> str:
    text = re.sub(r"01[0-9A-HJKMNP-TV-Z]{24}", "<ulid>", text)
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "<uuid>", text)
    text = re.sub(r"20\d\d-\d\d-\d\dT[\d:.]+Z", "<time>", text)
    return re.sub(r"\d+\.\d+", "<number>", text)


def same(doors, request) -> tuple:
    fast, slow = asked(doors, request)
    assert fast == slow
    return fast


@pytest.mark.parametrize("path", ["/order", "/v1/orders"])
def test_a_good_order_is_answered_alike(doors, path):
    """A resting order, as JSON and as protobuf, with the answer in either language."""
    resting = {**LIMIT, "limit_price": "1.00"}
    for kind, body in ((JSON, json.dumps(resting).encode()), (PROTOBUF, message(resting).SerializeToString())):
        for accept in ("Accept: */*", "Accept: application/json", "Accept: application/x-protobuf"):
            status, headers, _ = same(
                doors, lambda token, k=kind, b=body, a=accept: post(path, b, k, a, REQUEST, token=token)
            )
            assert status == 201
            assert dict(headers)[b"x-request-id"] == b"the-same"


@pytest.mark.parametrize("name", BODIES)
def test_a_bad_body_is_refused_alike(doors, name):
    """Every bad body of the table."""
    same(doors, lambda token: post("/v1/orders", BODIES[name][0], JSON, REQUEST, token=token))


@pytest.mark.parametrize("name", ORDERS)
def test_a_bad_order_is_refused_alike(doors, name):
    """Every bad order of the table, as protobuf."""
    body = message(ORDERS[name][0]).SerializeToString()
    same(doors, lambda token: post("/order", body, PROTOBUF, REQUEST, token=token))


@pytest.mark.parametrize(
    "headers",
    [
        [],
        ["Authorization: Bearer nonsense"],
        ["Authorization: Basic x"],
        ["Authorization: Bearer a", "Authorization: Bearer b"],
        ["X-User-ID: somebody"],
        ["Authorization: Bearer " + "x" * 20000],
        [f"X-Header-{n}: x" for n in range(120)],
    ],
)
def test_a_bad_credential_is_refused_alike(doors, headers):
    """Without a good token, and with too many or too large headers."""
    same(doors, lambda _: post("/order", b"x", PROTOBUF, REQUEST, *headers))


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/json; charset=utf-8", "APPLICATION/JSON", "", "application/octet-stream"]
)
def test_content_types_are_read_alike(doors, kind):
    """Parameters, case and other kinds."""
    for path in ("/order", "/v1/orders"):
        same(doors, lambda token, p=path: post(p, b'{"symbol": "zz"}', f"Content-Type: {kind}", REQUEST, token=token))


@pytest.mark.parametrize("method", ["HEAD", "GET", "PUT", "OPTIONS", "DELETE", "TRACE"])
def test_other_methods_are_answered_alike(doors, method):
    """What is not a POST is not the fast door's."""
    heads = []
    for desk, token in doors:
        connection = desk.raw(
            f"{method} /order HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n{REQUEST}\r\n\r\n".encode()
        )
        answer = connection.answer(head_only=method == "HEAD")
        heads.append((answer.status, [header for header in answer.headers if header[0] != b"date"], answer.body))
        connection.close()
    assert heads[0] == heads[1]
    assert heads[0][0] == 405


def test_a_body_in_chunks_is_answered_alike(doors):
    """Transfer-Encoding: chunked, in pieces, each byte a chunk of its own."""
    body = json.dumps({**LIMIT, "limit_price": "1.00"}).encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"

    def request(token):
        head = f"POST /v1/orders HTTP/1.1\r\nHost: x\r\n{JSON}\r\n{REQUEST}\r\nAuthorization: Bearer {token}\r\n"
        return head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + chunks

    assert same(doors, request)[0] == 201


def test_a_request_byte_by_byte(doors):
    """However the bytes are cut."""
    for desk, token in doors:
        connection = desk.raw()
        for byte in post("/v1/orders", json.dumps(LIMIT).encode(), JSON, token=token):
            connection.send(bytes([byte]))
        assert connection.answer().status == 201
        connection.close()


def test_expect_100_continue(doors):
    """The client waits for `100 Continue` before it sends the body; a body too large is refused instead."""
    body = json.dumps(LIMIT).encode()
    for desk, token in doors:
        request = post("/v1/orders", body, JSON, "Expect: 100-continue", token=token)
        connection = desk.raw(request[: -len(body)])
        assert connection.answer().status == 100
        connection.send(body)
        assert connection.answer().status == 201
        connection.close()
        connection = desk.raw(
            request[: -len(body)].replace(b"Content-Length: %d" % len(body), b"Content-Length: 99999")
        )
        assert connection.answer().status == 413
        connection.close()


def test_many_requests_on_one_connection(doors):
    """Keep-alive: the connection stays open between orders and other requests, good and bad."""
    for desk, token in doors:
        connection = desk.raw()
        for _ in range(3):
            connection.send(post("/v1/orders", json.dumps(LIMIT).encode(), JSON, token=token))
            assert connection.answer().status == 201
            connection.send(post("/v1/orders", b"{", JSON, token=token))
            assert connection.answer().status == 400
            connection.send(f"GET /v1/account HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
            assert connection.answer().status == 200
        connection.close()


def test_pipelined_requests_are_answered_in_order(doors):
    """Requests sent without waiting are answered one after the other, whichever door each goes through."""
    for desk, token in doors:
        wanted, requests = [], b""
        for number in range(12):
            if number % 3 == 2:
                requests += f"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Request-ID: n{number}\r\n\r\n".encode()
                wanted.append((200, None))
            else:
                fields = {**LIMIT, "limit_price": "1.00"} if number % 3 else {**GOOD, "symbol": "no"}
                body = json.dumps(fields).encode()
                requests += post("/v1/orders", body, JSON, f"X-Request-ID: n{number}", token=token)
                wanted.append((201 if number % 3 else 422, f"n{number}".encode()))
        connection = desk.raw(requests)
        for status, request_id in wanted:
            answer = connection.answer()
            assert answer.status == status
            assert request_id is None or dict(answer.headers)[b"x-request-id"] == request_id
        connection.close()


def test_connection_close_is_kept(doors):
    """`Connection: close` and HTTP/1.0 end the connection after the answer."""
    for desk, token in doors:
        body = json.dumps(LIMIT).encode()
        connection = desk.raw(post("/v1/orders", body, JSON, "Connection: close", token=token))
        answer = connection.answer()
        assert (answer.status, dict(answer.headers)[b"connection"]) == (201, b"close")
        assert connection.is_closed()
        connection.close()
        connection = desk.raw(post("/v1/orders", body, JSON, token=token).replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert connection.answer().status == 201
        assert connection.is_closed()
        connection.close()


def test_what_is_not_http_is_refused(doors):
    """Nonsense, a lying Content-Length and two of them are 400, and the connection ends."""
    nonsense = [
        b"hello\r\n\r\n",
        b"POST /order HTTP/1.1\r\nHost: x\r\nContent-Length: ten\r\n\r\n",
        b"POST /order HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"POST /order HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello",
        b"POST /order HTTP/9.9\r\nHost: x\r\n\r\n",
    ]
    for desk, _ in doors:
        for request in nonsense:
            connection = desk.raw(request)
            assert connection.answer().status == 400, request
            assert connection.is_closed()
            connection.close()


def test_a_caller_who_hangs_up_cancels_nothing(doors):
    """The order of a caller who is gone before the answer stands, and the retry tells the truth."""
    for number, (desk, token) in enumerate(doors):
        fields = {**LIMIT, "limit_price": "1.00", "request_id": f"gone-{number}"}
        for _ in range(5):
            connection = desk.raw(post("/v1/orders", json.dumps(fields).encode(), JSON, token=token))
            connection.close()
        with desk.http(token) as client:

            def found(client=client, fields=fields):
                orders = client.get("/v1/orders?limit=500").json()["orders"]
                return [order for order in orders if order["request_id"] == fields["request_id"]]

            (stored,) = wait_until(found, "the order")
            again = client.post("/v1/orders", json=fields)
        assert (again.status_code, again.json()["order_id"]) == (201, stored["order_id"])


def test_a_header_that_never_ends(doors):
    """Bytes without an end of the headers are cut off, not collected."""
    for desk, _ in doors:
        connection = desk.raw(b"POST /order HTTP/1.1\r\nX-Endless: ")
        try:
            for _ in range(200):
                connection.send(b"x" * 1024)
                time.sleep(0)
        except OSError:
            pass  # hung up while we were still talking
        assert connection.answer().status == 431
        connection.close()


def test_nothing_is_carried_out_behind_a_refused_request(doors):
    """What is pipelined behind a request that ends the connection is not an order."""
    for desk, token in doors:
        before = desk.sent
        order = post("/v1/orders", json.dumps(LIMIT).encode(), JSON, token=token)
        too_large = post("/v1/orders", b"{}", JSON, "X-Large: " + "x" * 20000, token=token)
        connection = desk.raw(too_large + order + order)
        assert connection.answer().status == 431
        assert connection.is_closed()
        connection.close()
        with desk.http(token) as client:
            assert client.get("/healthz").status_code == 200
        assert desk.sent == before


def test_a_caller_who_pipelines_and_hangs_up(doors):
    """The desk goes on; each request is carried out at most once."""
    for number, (desk, token) in enumerate(doors):
        requests = b""
        for place in range(30):
            body = json.dumps({**LIMIT, "limit_price": "1.00", "request_id": f"cut-{number}-{place}"}).encode()
            requests += post("/v1/orders", body, JSON, token=token)
        connection = desk.raw(requests)
        assert connection.answer().status == 201
        connection.close()
        with desk.http(token) as client:
            orders = client.get("/v1/orders?limit=500").json()["orders"]
        names = [order["request_id"] for order in orders if order["request_id"].startswith(f"cut-{number}-")]
        assert names
        assert len(names) == len(set(names))
