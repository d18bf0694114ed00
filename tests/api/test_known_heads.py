"""A connection that sends the same headers again is answered as if they had been read anew."""

import json

import pytest
from desk.v1 import orders_pb2 as pb

from desk_server.api import fast, serve
from tests.api.running import post, wait_until

PROTOBUF = "Content-Type: application/x-protobuf"
JSON = "Content-Type: application/json"


def order(token: str, request_id: str, *headers: str, qty: str = "1") -> bytes:
    body = pb.OrderRequest(
        symbol="AAPL", qty=qty, side="buy", order_type="limit", limit_price="1.00", request_id=request_id
    )
    return post("/order", body.SerializeToString(), PROTOBUF, *headers, token=token)


def response(answer):
    assert answer.status == 201, answer
    return pb.OrderResponse.FromString(answer.body)


@pytest.fixture
def learned(desk, monkeypatch):
    """How often a head was known, and the connection that sent it the first time."""
    again = []
    original = fast.OrderCycle.again

    def counted(cycle, body):
        again.append(body)
        original(cycle, body)

    monkeypatch.setattr(fast.OrderCycle, "again", counted)
    return again


def test_each_order_is_its_own(desk, learned):
    """Orders behind the same head differ by their bodies, and each answer has a request id of its own."""
    token = desk.token("again")
    connection = desk.raw(order(token, "again-0"))
    answers = [connection.answer()]
    for number in range(1, 5):
        connection.send(order(token, f"again-{number}"))
        answers.append(connection.answer())
    connection.close()
    assert len(learned) == 4
    assert [response(answer).order.request_id for answer in answers] == [f"again-{n}" for n in range(5)]
    assert len({dict(answer.headers)[b"x-request-id"] for answer in answers}) == 5


def test_a_name_that_the_caller_gave_comes_back(desk, learned):
    """X-Request-ID is part of the head: the same head names the same request."""
    token = desk.token("again")
    connection = desk.raw(order(token, "named-0", "X-Request-ID: mine"))
    names = [dict(connection.answer().headers)[b"x-request-id"]]
    connection.send(order(token, "named-1", "X-Request-ID: mine"))
    names.append(dict(connection.answer().headers)[b"x-request-id"])
    connection.close()
    assert names == [b"mine", b"mine"]
    assert len(learned) == 1


def test_a_revoked_token_ends_with_its_next_request(desk, learned):
    """What a connection has proved once holds only as long as the token does."""
    token_id, token = desk.call(desk.desk.registry.create_user_token("gone", "trade", "test"))
    connection = desk.raw(order(token, "gone-0"))
    assert connection.answer().status == 201
    connection.send(order(token, "gone-1"))
    assert connection.answer().status == 201
    desk.call(desk.desk.registry.revoke_token(token_id))
    connection.send(order(token, "gone-2"))
    assert connection.answer().status == 401
    connection.close()
    assert len(learned) == 2


def test_bodies_of_other_lengths_have_heads_of_their_own(desk, learned):
    """Content-Length is in the head, so a longer order is read anew, once."""
    token = desk.token("again")
    connection = desk.raw(order(token, "length-0"))
    response(connection.answer())
    for number, qty in enumerate(("100", "2", "200", "3"), start=1):
        connection.send(order(token, f"length-{number}", qty=qty))
        assert response(connection.answer()).qty == qty
    connection.close()
    assert len(learned) == 3


def test_pieces_and_pipelines_are_read_as_ever(desk, learned):
    """A known head in two pieces, two requests in one piece, and one right behind another."""
    token = desk.token("again")
    connection = desk.raw(order(token, "piece-00"))
    response(connection.answer())
    whole = order(token, "piece-01")
    for cut in (1, len(whole) - 5, whole.index(b"\r\n\r\n") + 4):
        connection.send(whole[:cut])
        wait_until(lambda: any(c.waiting_since is not None for c in connections(desk)), "a piece of a request")
        connection.send(whole[cut:])
        assert response(connection.answer()).order.request_id == "piece-01"
    connection.send(order(token, "piece-02") + order(token, "piece-03"))
    connection.send(order(token, "piece-04"))
    seen = [response(connection.answer()).order.request_id for _ in range(3)]
    assert seen == ["piece-02", "piece-03", "piece-04"]
    connection.close()


def test_a_body_that_is_too_short_waits_for_its_rest(desk, learned):
    """A known head whose body is still on its way is no request yet."""
    token = desk.token("again")
    connection = desk.raw(order(token, "short-0"))
    response(connection.answer())
    whole = order(token, "short-1")
    connection.send(whole[:-1])
    wait_until(lambda: any(c.waiting_since is not None for c in connections(desk)), "a piece of a request")
    connection.send(whole[-1:])
    assert response(connection.answer()).order.request_id == "short-1"
    connection.close()
    assert not learned


def test_errors_are_said_in_the_language_of_the_head(desk, learned):
    """A bad order behind a known head of JSON is refused in JSON."""
    token = desk.token("again")
    good = json.dumps({"symbol": "AAPL", "qty": "1", "side": "buy", "order_type": "limit", "limit_price": "1.00"})
    bad = good.replace('"buy"', '"bye"')
    connection = desk.raw(post("/v1/orders", good.encode(), JSON, token=token))
    assert connection.answer().status == 201
    connection.send(post("/v1/orders", bad.encode(), JSON, token=token))
    answer = connection.answer()
    assert answer.status == 422
    assert json.loads(answer.body)["code"] == "INVALID"
    connection.send(post("/v1/orders", good.encode(), JSON, token=token))
    assert connection.answer().status == 201
    connection.close()
    assert len(learned) == 2


def test_a_connection_remembers_only_so_many_heads(desk, learned):
    """Heads that never come again do not pile up."""
    token = desk.token("again")
    connection = desk.raw(order(token, "many-0"))
    response(connection.answer())
    for number in range(1, 3 * fast.KNOWN_MAX):
        connection.send(order(token, f"many-{number}", f"X-Other: {number}"))
        response(connection.answer())
    assert max(len(c._known) for c in connections(desk)) <= fast.KNOWN_MAX
    connection.close()
    assert not learned


def test_who_is_silent_for_long_is_hung_up_on(desk):
    """A kept connection without a request is closed after the time for it, and not before."""
    token = desk.token("again")
    connection = desk.raw(order(token, "silent-0"))
    response(connection.answer())
    (mine,) = [c for c in connections(desk) if c._known]
    now = desk.on_loop(mine.loop.time)
    desk.on_loop(lambda: mine.time_out(now + serve.KEEP_ALIVE_S - 1))
    connection.send(order(token, "silent-1"))
    response(connection.answer())
    desk.on_loop(lambda: mine.time_out(now + 2 * serve.KEEP_ALIVE_S))
    assert connection.is_closed()


def connections(desk) -> list:
    return [c for c in desk.doors._http.server_state.connections if isinstance(c, fast.DeskProtocol)]
