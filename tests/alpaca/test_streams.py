"""The trade_updates websocket, down to its frames."""

import json

import pytest
from websockets.sync.client import connect

from tests.alpaca.conftest import eventually, limit, market


def said(socket, message: dict) -> dict:
    socket.send(json.dumps(message))
    return json.loads(socket.recv(timeout=5))


def greeting(key: str, secret: str) -> dict:
    return {"action": "authenticate", "data": {"key_id": key, "secret_key": secret}}


LISTEN = {"action": "listen", "data": {"streams": ["trade_updates"]}}


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_handshake(alpaca, client, slash):
    """Authorization, listening, then binary frames that hold JSON; with and without the trailing slash."""
    with connect(alpaca.stream_url + slash) as socket:
        told = said(socket, greeting("key", "secret"))
        assert told == {"stream": "authorization", "data": {"status": "authorized", "action": "authenticate"}}
        assert said(socket, LISTEN) == {"stream": "listening", "data": {"streams": ["trade_updates"]}}
        client.submit_order(market("AAPL", 1, name="a"))
        frames = [socket.recv(timeout=5) for _ in range(3)]
        assert all(isinstance(frame, bytes) for frame in frames)
        updates = [json.loads(frame) for frame in frames]
        assert {update["stream"] for update in updates} == {"trade_updates"}
        assert "execution_id" not in updates[0]["data"]
        assert updates[2]["data"]["order"]["client_order_id"] == "a"


def test_a_bad_key_is_told_and_hears_nothing(alpaca, client):
    """status unauthorized; listening is refused."""
    with connect(alpaca.stream_url) as socket:
        assert said(socket, greeting("key", "guess"))["data"]["status"] == "unauthorized"
        assert "error" in said(socket, LISTEN)["data"]
        client.submit_order(market("AAPL", 1))
        with pytest.raises(TimeoutError):
            socket.recv(timeout=0.2)


def test_nothing_is_replayed(alpaca, client, stream, truth):
    """What happened while nobody listened is only in REST."""
    client.submit_order(limit("AAPL", 1, 180, name="a"))
    eventually(lambda: stream.events("a") == ["pending_new", "new"])
    stream._stream._reconnect_min_backoff = 0.5
    assert alpaca.control.disconnect() == 1
    alpaca.control.fill("a")
    stream.wait_until_connected()
    alpaca.control.external("MSFT", "buy", 1, client_order_id="b")
    eventually(lambda: "fill" in stream.events("b"))
    assert stream.events("a") == ["pending_new", "new"]
    assert client.get_order_by_client_id("a").status == "filled"


def test_every_listener_hears(alpaca, client):
    """Two connections of one account are told the same."""
    with connect(alpaca.stream_url) as one, connect(alpaca.stream_url) as two:
        for socket in (one, two):
            said(socket, greeting("key", "secret"))
            said(socket, LISTEN)
        client.submit_order(market("AAPL", 1))
        assert [one.recv(timeout=5) for _ in range(3)] == [two.recv(timeout=5) for _ in range(3)]


def test_another_path_is_no_stream(alpaca):
    """404 instead of an upgrade."""
    with pytest.raises(Exception, match="404"):
        connect(alpaca.stream_url.replace("/stream", "/v2/iex"))
