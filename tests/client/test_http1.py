"""The answer's bytes may come in any pieces."""

import socket
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from desk_client.errors import ProtocolError
from desk_client.http1 import Closed, Connection
from desk_client.settings import Address

LINES = [b'{"seq":1}\n', b"\n", b'{"seq":22}\n', b"x" * 300 + b"\n"]
CHUNKED = (
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nX: y\r\n\r\n"
    + b"".join(b"%X;note=1\r\n%b\r\n" % (len(line), line) for line in LINES)
    + b"0\r\nTrailer: z\r\n\r\n"
)
BODY = b"".join(LINES)
LENGTH = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY)
CLOSE = b"HTTP/1.0 200 OK\r\n\r\n" + BODY


class _Pieces:
    """A socket that hands out given pieces, then its end."""

    def __init__(self, pieces):
        self.pieces = list(pieces)

    def settimeout(self, _):
        pass

    def recv(self, _):
        return self.pieces.pop(0) if self.pieces else b""

    def close(self):
        pass


def _connection(pieces):
    connection = Connection.__new__(Connection)
    connection._sock, connection._buffer, connection.reusable = _Pieces(pieces), b"", True
    return connection


def _later():
    return time.monotonic() + 5


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([CHUNKED, LENGTH, CLOSE]), st.lists(st.integers(0, len(CHUNKED)), max_size=30))
def test_an_answer_is_the_same_however_it_is_cut(raw, cuts):
    """Chunked, of known length, or until the connection's end."""
    ends = sorted({min(cut, len(raw)) for cut in cuts} | {len(raw)})
    pieces = [raw[start:end] for start, end in zip([0, *ends], ends, strict=False) if end > start]
    connection = _connection(pieces)
    answer = connection.response(_later())
    assert (answer.status, answer.body) == (200, BODY)
    assert connection._buffer == b""
    assert connection.reusable == (raw is not CLOSE)


@pytest.mark.parametrize("raw", [CHUNKED, LENGTH])
def test_an_answer_that_is_cut_short_is_not_an_answer(raw):
    """Wherever the connection ends before the answer does."""
    for end in range(len(raw)):
        with pytest.raises(Closed):
            _connection([raw[:end]] if end else []).response(_later())


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/2 200\r\n\r\n",
        b"hello\r\n\r\n",
        b"x" * 70_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 2000,
    ],
)
def test_what_is_not_http_is_a_protocol_error(raw):
    """And nothing is read without end."""
    with pytest.raises(ProtocolError):
        _connection([raw]).response(_later())


def test_an_ipv6_address_goes_in_brackets():
    """In the Host header."""
    assert Address("http", "::1", 80, "").host_header == "[::1]:80"


def test_an_idle_connection_knows_that_the_desk_hung_up():
    """Also where bytes nobody asked for came instead."""
    here, there = socket.socketpair()
    connection = _connection([])
    connection._sock = here
    from desk_client.http1 import _Body  # noqa: PLC0415

    connection._body = _Body(0)
    assert connection.idle_and_alive()
    there.sendall(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    assert not connection.idle_and_alive()
    here.recv(100)
    assert connection.idle_and_alive()
    there.close()
    assert not connection.idle_and_alive()
    here.close()
