"""Streams of order updates and market lines, by both doors and over gRPC."""

import json

import grpc
import pytest
from desk.v1 import market_pb2, orders_pb2

from desk_server import logs
from desk_server.api import streams
from tests.api.running import RunningDesk, wait_until
from tests.api.test_http import RESTING, place


@pytest.fixture
def impatient(monkeypatch):
    """Signs of life every 0.2 s instead of every 15."""
    monkeypatch.setattr(streams, "KEEP_ALIVE_S", 0.2)


def market(desk, token, query="", connection=None):
    """(headers, connection) of a market stream."""
    connection = connection or desk.raw()
    connection.send(
        f"GET /v1/market/stream{query} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    )
    answer = connection.answer(head_only=True)
    assert answer.status == 200
    return dict(answer.headers), connection


def lines(connection, count: int) -> list[dict]:
    got, rest = [], b""
    while len(got) < count:
        *whole, rest = (rest + connection.chunk()).split(b"\n")
        got += [json.loads(line) for line in whole if line]
    return got[:count]


@pytest.mark.parametrize("which", ["desk", "slow_desk"])
def test_market_lines_by_either_door(which, request):
    """Newline-delimited JSON in rising sequence, only the symbols asked for, resumable without a gap."""
    desk = request.getfixturevalue(which)
    token = desk.token("reader")
    headers, connection = market(desk, token)
    assert headers[b"content-type"] == b"application/x-ndjson"
    first = int(headers[b"desk-first-seq"])
    got = lines(connection, 50)
    connection.close()
    assert [line["seq"] for line in got] == list(range(first, first + 50))
    assert {"symbol", "price", "type", "timestamp", "seq"} <= set(got[0])
    headers, connection = market(desk, token, f"?after={got[9]['seq']}")
    assert int(headers[b"desk-first-seq"]) == got[10]["seq"]
    assert lines(connection, 40) == got[10:]
    connection.close()
    headers, connection = market(desk, token, "?symbols=AAPL,MSFT&after=0")
    assert {line["symbol"] for line in lines(connection, 30)} == {"AAPL", "MSFT"}
    connection.close()


def test_both_doors_send_the_same_headers(desk, slow_desk):
    """Names and order; only the values that are each desk's own differ."""
    names = []
    for one in (desk, slow_desk):
        headers, connection = market(one, one.token("reader"))
        names.append([name for name in headers if name != b"connection"])
        connection.close()
    assert names[0] == names[1]


@pytest.mark.parametrize("which", ["desk", "slow_desk"])
def test_a_refused_market_stream(which, request):
    """Without a token 401, with a bad question 422; the connection is still good."""
    desk = request.getfixturevalue(which)
    connection = desk.raw(b"GET /v1/market/stream HTTP/1.1\r\nHost: x\r\n\r\n")
    assert connection.answer().status == 401
    bad = f"GET /v1/market/stream?symbols=- HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {desk.admin_token}\r\n\r\n"
    connection.send(bad.encode())
    assert connection.answer().status == 422
    market(desk, desk.admin_token, connection=connection)
    assert lines(connection, 1)
    connection.close()


@pytest.mark.parametrize("which", ["desk", "slow_desk"])
def test_a_reader_who_hangs_up_is_unsubscribed(which, request):
    """Nothing is left of it at the hub, and its deployment is shown as disconnected."""
    desk = request.getfixturevalue(which)
    with desk.http(desk.admin_token) as admin:
        spec = {"user_id": "tom", "strategy": f"reads-{which.replace('_', '-')}", "code_hash": "ab" * 32}
        created = admin.post("/v1/deployments", json=spec).json()
        token, deployment_id = created["token"], created["deployment"]["deployment_id"]

        def shown():
            found = admin.get("/v1/deployments").json()["deployments"]
            return next(one for one in found if one["deployment_id"] == deployment_id)

        before = desk.on_loop(lambda: len(desk.desk.hub.subscriptions))
        _, connection = market(desk, token)
        lines(connection, 5)
        assert shown()["connected"] is True
        wait_until(lambda: shown()["lines_sent"] >= 5, "lines being counted")
        connection.close()
        wait_until(lambda: not shown()["connected"], "the disconnect")
        assert desk.on_loop(lambda: len(desk.desk.hub.subscriptions)) == before


@pytest.mark.parametrize("which", ["desk", "slow_desk"])
def test_a_stream_ends_with_its_token(which, request):
    """Revoked, the stream ends in good order within seconds, over HTTP and gRPC."""
    desk = request.getfixturevalue(which)
    token_id, token = desk.call(desk.desk.registry.create_user_token("uma", "read", "test"))
    _, connection = market(desk, token)
    with desk.grpc(token) as stubs:
        call = stubs.market.StreamMarket(market_pb2.StreamMarketRequest(), metadata=stubs.metadata, timeout=20)
        next(call)
        desk.call(desk.desk.registry.revoke_token(token_id))
        for _ in call:
            pass
        assert call.code() == grpc.StatusCode.OK
    while connection.chunk():
        pass
    connection.close()


@pytest.mark.parametrize("which", ["desk", "slow_desk"])
def test_a_streams_ids_do_not_stay_behind(which, request):
    """What the hub logs later is not logged under the ids of the request that opened a stream."""
    desk = request.getfixturevalue(which)
    _, connection = market(desk, desk.token("passer-by"))
    lines(connection, 1)
    seen = []

    def spy():
        seen.append(dict(logs.bound()))

    hub = desk.desk.hub
    tick, hub._tick = hub._tick, spy
    try:
        desk.on_loop(lambda: (hub._timer.cancel(), setattr(hub, "_timer", None)))
        _, other = market(desk, desk.token("passer-by"))
        wait_until(lambda: seen, "the hub's timer")
        connection.close()
        other.close()
    finally:
        hub._tick = tick
        desk.on_loop(tick)
    assert seen == [{}]


def test_a_reader_that_does_not_read_holds_nothing_up(desk, alice):
    """One stalled reader bounds what waits for it; another gets every line meanwhile."""
    _, stalled = market(desk, alice, "?after=0")
    headers, reading = market(desk, alice)
    first = int(headers[b"desk-first-seq"])
    assert [line["seq"] for line in lines(reading, 200)] == list(range(first, first + 200))
    stalled.close()
    reading.close()


def updates(client, query=""):
    return client.stream("GET", f"/v1/updates{query}")


def test_updates_as_json_lines(desk):
    """Each update of the caller's orders in rising sequence; resumed behind any of them nothing is lost."""
    with desk.http(desk.token("vera")) as vera, desk.http(desk.token("walter")) as walter:
        place(walter)
        with updates(vera, "?after=0") as stream:
            coming = stream.iter_lines()
            order_id = place(vera)["order_id"]
            seen = [json.loads(next(coming)) for _ in range(2)]
        assert [update["event"] for update in seen] == ["pending", "accepted"]
        assert {update["order"]["order_id"] for update in seen} == {order_id}
        assert seen[0]["seq"] < seen[1]["seq"]
        with updates(vera, f"?after={seen[0]['seq']}") as stream:
            assert json.loads(next(stream.iter_lines())) == seen[1]


def test_a_stream_without_after_starts_now(desk):
    """Desk-Last-Seq says behind which update, so that nothing is lost even before the first."""
    with desk.http(desk.token("xena")) as client:
        place(client)
        with updates(client) as stream:
            behind = int(stream.headers["desk-last-seq"])
            order_id = place(client)["order_id"]
            first, *_ = seen = [json.loads(line) for line in until(stream, order_id)]
        assert [update["event"] for update in seen].count("pending") == 1
        with updates(client, f"?after={behind}") as stream:
            assert json.loads(next(stream.iter_lines())) == first


def until(stream, order_id):
    """Lines up to the first of this order; the broker may have more to say of earlier ones."""
    for line in stream.iter_lines():
        yield line
        if json.loads(line)["order"]["order_id"] == order_id:
            return


def test_updates_as_protobuf(desk, impatient):
    """Messages behind their length as a varint, and a zero length as the sign of life."""
    with desk.http(desk.token("yves"), Accept="application/x-protobuf") as client:
        with updates(client) as stream:
            coming = stream.iter_raw()
            assert stream.headers["content-type"] == "application/x-protobuf"
            assert set(next(coming)) == {0}
            place(
                client.__class__(base_url=client.base_url, headers={"Authorization": client.headers["Authorization"]})
            )
            data = b""
            while len(data.lstrip(b"\0")) < 100:
                data += next(coming)
        data = data.lstrip(b"\0")
        length, at = data[0] & 0x7F | data[1] << 7, 2
        update = orders_pb2.OrderUpdate.FromString(data[at : at + length])
        assert (update.event, update.order.user_id) == ("pending", "yves")


def test_signs_of_life_in_json_lines(desk, alice, impatient):
    """An empty line where nothing happens."""
    with desk.http(alice) as client, updates(client) as stream:
        assert next(stream.iter_raw()) == b"\n"


def test_updates_over_grpc(desk):
    """The same updates, resumable, and an administrator's for everybody."""
    with desk.grpc(desk.token("zoe")) as stubs, desk.grpc(desk.admin_token) as admin:
        wish = orders_pb2.StreamUpdatesRequest(after=0)
        everybody = orders_pb2.StreamUpdatesRequest(user_id="*", after=0)
        call = stubs.orders.StreamUpdates(wish, metadata=stubs.metadata, timeout=20)
        answer = stubs.orders.PlaceOrder(orders_pb2.OrderRequest(**RESTING), metadata=stubs.metadata, timeout=5)
        first = next(call)
        assert (first.event, first.order.order_id) == ("pending", answer.order_id)
        call.cancel()
        for update in admin.orders.StreamUpdates(everybody, metadata=admin.metadata, timeout=20):
            if update == first:
                break


def test_updates_that_are_no_longer_kept(tmp_path):
    """410 GONE, OUT_OF_RANGE over gRPC: list the orders instead."""
    desk = RunningDesk(tmp_path)
    try:
        token = desk.token()
        desk.on_loop(lambda: desk.desk.updates.__init__(kept=3))
        with desk.http(token) as client:
            for _ in range(4):
                place(client)
            answer = client.get("/v1/updates?after=0")
            assert (answer.status_code, answer.json()["code"]) == (410, "GONE")
        with desk.grpc(token) as stubs, pytest.raises(grpc.RpcError) as caught:
            wish = orders_pb2.StreamUpdatesRequest(after=0)
            next(stubs.orders.StreamUpdates(wish, metadata=stubs.metadata, timeout=5))
        assert caught.value.code() == grpc.StatusCode.OUT_OF_RANGE
    finally:
        desk.stop()


def test_market_lines_over_grpc(desk, alice):
    """Each message is one line and its seq."""
    with desk.grpc(alice) as stubs:
        wish = market_pb2.StreamMarketRequest(symbols=["AAPL"], after=0)
        call = stubs.market.StreamMarket(wish, metadata=stubs.metadata, timeout=20)
        for _ in range(10):
            line = next(call)
            assert json.loads(line.json)["seq"] == line.seq
            assert json.loads(line.json)["symbol"] == "AAPL"
        call.cancel()
