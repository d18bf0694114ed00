"""Order updates: each one once, in order, whatever happens to the connection."""

import pytest
from client_desk import client_of, error, hang_up
from desk.v1 import orders_pb2 as pb

from desk_client import AuthenticationError, Client, DeskUnavailable, ProtocolError, Refused, Settings, Token, parse_url


def update(seq, size=0):
    return pb.OrderUpdate(seq=seq, event="fill", order=pb.Order(order_id=f"o{seq}", message="x" * size))


def delimited(*updates):
    data = b""
    for message in updates:
        body, length = message.SerializeToString(), message.ByteSize()
        while length > 127:
            data += bytes([length & 127 | 128])
            length >>= 7
        data += bytes([length]) + body
    return data


def stream(*pieces, headers="", end=True):
    """A stream of these pieces, each a chunk, then the connection's end."""

    def reply(connection, request):
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\n{headers}Transfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        for piece in pieces:
            connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        if end:
            hang_up(connection, request)

    return reply


def take(updates, count):
    return [next(updates).seq for _ in range(count)]


def test_updates_are_read_as_they_come(desk):
    """Also the large ones; signs of life are left out."""
    data = delimited(update(1), update(5, size=40_000))
    desk.replies.append(stream(b"\0", data[:3], data[3:50], data[50:], b"\0\0", delimited(update(9)), end=False))
    with client_of(desk).updates(after=0) as updates:
        assert take(updates, 3) == [1, 5, 9]
    assert desk.requests[0].query == {"after": "0"}
    assert list(updates) == []


def test_a_lost_connection_is_resumed_behind_the_last_update(desk):
    """No update is lost where a message was cut short, and none comes twice."""
    whole = delimited(update(3), update(4))
    for end in range(len(delimited(update(3))), len(whole)):
        desk.requests.clear()
        desk.replies.clear()
        desk.replies += [stream(whole[:end]), hang_up, stream(delimited(update(3), update(4), update(6)), end=False)]
        with client_of(desk).updates(after=2) as updates:
            assert take(updates, 3) == [3, 4, 6]
        assert [request.query["after"] for request in desk.requests] == ["2", "3", "3"]


def test_nothing_is_lost_before_the_first_update(desk):
    """Where the desk says how far it is, a connection lost before the first update is resumed from there."""
    desk.replies += [stream(headers="Desk-Last-Seq: 41\r\n"), stream(delimited(update(42)), end=False)]
    with client_of(desk).updates() as updates:
        assert take(updates, 1) == [42]
    assert [request.query for request in desk.requests] == [{}, {"after": "41"}]


def test_the_stream_is_there_when_the_call_returns(desk):
    """So an order that follows is not missed."""
    desk.replies.append(stream(end=False))
    client_of(desk).updates()
    assert [request.path for request in desk.requests] == ["/v1/updates"]


def test_a_desk_that_cannot_resume_says_so(desk):
    """GONE: list the orders instead."""
    desk.replies.append(error(410, "GONE"))
    with pytest.raises(Refused, match="GONE"):
        client_of(desk).updates(after=1)


def test_no_desk_and_no_right_are_said_so(desk):
    """Within the timeout."""
    with pytest.raises(AuthenticationError):
        Client(Settings(parse_url(desk.url), Token("bad"))).updates()
    desk.stop()
    with pytest.raises(DeskUnavailable):
        client_of(desk).updates(timeout=0.2)


@pytest.mark.parametrize("data", [b"\xff" * 12, b"\xff\xff\xff\xff\x7f", b"\x03\xff\xff\xff"])
def test_what_is_no_update_is_a_protocol_error(desk, data):
    """And never an endless wait for a message of gigabytes."""
    desk.replies.append(stream(data, end=False))
    with pytest.raises(ProtocolError):
        next(client_of(desk).updates(after=0))
