"""Market lines: each one once, in order, whatever happens to the desk or the connection."""

import io
import json
import os
import pickle
import subprocess
import sys
import threading

import pytest
from client_desk import answer, client_of, error, hang_up, until

from desk_client import AuthenticationError, ProtocolError
from desk_client.hand import Hand, Line
from desk_client.market_lines import MarketLines
from desk_client.stdin import MarketStdin


def lines_of(desk, notices=None, **options):
    notice = notices.append if notices is not None else lambda _: None
    return MarketLines(client_of(desk).caller, after=0, notice=notice, **options)


def seqs(lines, count):
    return [json.loads(lines.readline())["seq"] for _ in range(count)]


def test_every_cut_of_the_stream_is_invisible(desk):
    """Connections that end after any number of bytes, in the middle of a line or not, lose and double nothing."""
    desk.publish(*["AAPL"] * 40)
    line = len(json.dumps(desk.tape[-1])) + 2
    for cut in range(line, 2 * line + 3, 7):
        desk.cut_after = cut
        assert seqs(lines_of(desk), 40) == list(range(1, 41))


def test_a_restart_of_the_desk_is_invisible(any_desk):
    """What came while it was away is read after it is back."""
    notices = []
    lines = lines_of(any_desk, notices)
    any_desk.publish("AAPL", "MSFT")
    assert seqs(lines, 2) == [1, 2]
    any_desk.stop()
    any_desk.publish("AAPL")
    threading.Timer(0.3, any_desk.start).start()
    assert seqs(lines, 1) == [3]
    any_desk.publish("MSFT")
    assert seqs(lines, 1) == [4]
    assert any_desk.seen("/v1/market/stream")[-1].query == {"after": "2"}
    assert any("broke off" in notice for notice in notices)


def test_a_desk_that_sends_known_lines_again_is_not_believed(desk):
    """After a reconnection, what was read is left out."""
    desk.publish("AAPL", "AAPL", "AAPL")
    lines = lines_of(desk)
    assert seqs(lines, 3) == [1, 2, 3]
    desk.publish("AAPL")
    again = b"".join(json.dumps(line).encode() + b"\n" for line in desk.tape)
    desk.replies += [hang_up, answer(200, body=again, kind="application/x-ndjson")]
    desk.drop_connections()
    desk.publish("AAPL")
    assert seqs(lines, 2) == [4, 5]


def test_a_desk_that_counts_anew_is_followed(desk):
    """Its lines are new ones, whatever their numbers; people are told."""
    desk.publish("AAPL", "AAPL", "AAPL")
    notices = []
    lines = lines_of(desk, notices)
    assert seqs(lines, 3) == [1, 2, 3]
    fresh = b'{"seq": 1, "symbol": "NEW"}\n'
    desk.replies.append(answer(200, body=fresh, kind="application/x-ndjson", Desk_First_Seq="1"))
    desk.drop_connections()
    assert lines.readline() == fresh
    assert "anew" in notices[-1]


def test_only_the_chosen_symbols_are_asked_for(desk):
    """Names are encoded."""
    desk.publish("AAPL", "BTC/USD", "AAPL")
    lines = lines_of(desk, symbols=["BTC/USD", "ETH/USD"])
    assert seqs(lines, 1) == [2]
    assert desk.requests[0].query["symbols"] == "BTC/USD,ETH/USD"


def test_a_child_reads_a_stream_of_its_own(desk):
    """After a fork, parent and child each get every line."""
    desk.publish("AAPL")
    lines = lines_of(desk)
    assert seqs(lines, 1) == [1]
    child = os.fork()
    if child == 0:
        os._exit(0 if seqs(lines, 3) == [2, 3, 4] else 1)
    until(lambda: len(desk.requests) == 2)
    desk.publish("AAPL", "MSFT", "AAPL")
    assert seqs(lines, 3) == [2, 3, 4]
    assert os.waitpid(child, 0)[1] == 0


def test_a_silent_connection_is_dead(desk):
    """A desk sends a sign of life; where none comes, the connection is made anew."""

    def silent(connection, request):
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.recv(1)

    desk.replies.append(silent)
    desk.publish("AAPL")
    assert seqs(lines_of(desk, silence_max_s=0.3), 1) == [1]
    assert len(desk.requests) == 2


def test_lines_that_the_desk_no_longer_has_are_told(desk):
    """A notice for people; the strategy gets what there is."""
    desk.publish(*["AAPL"] * 9)
    notices = []

    def from_seven(connection, request):
        request.query["after"] = "6"
        desk._stream(connection, request)

    desk.replies.append(from_seven)
    assert seqs(lines_of(desk, notices), 1) == [7]
    assert notices == ["the desk no longer has the market lines 1 to 6"]


def test_a_refused_token_ends_the_wait(desk):
    """But a desk that is not ready does not."""
    desk.replies.append(error(503, "NOT_READY"))
    desk.publish("AAPL")
    lines = lines_of(desk)
    assert seqs(lines, 1) == [1]
    desk.token = "another"
    desk.drop_connections()
    with pytest.raises(AuthenticationError):
        lines.readline()


def test_a_line_without_end_is_not_waited_for(desk):
    """More than a MiB without a newline is no market line."""

    def endless(connection, _):
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(20):
            connection.sendall(b"20000\r\n" + b"x" * 0x20000 + b"\r\n")

    desk.replies.append(endless)
    with pytest.raises(ProtocolError):
        lines_of(desk).readline()


class _Lines:
    def __init__(self, *lines):
        self.lines = list(lines)

    def readline(self):
        return self.lines.pop(0) if self.lines else b""


def stdin_of(*lines):
    def failed(error):
        raise error

    return MarketStdin(_Lines(*lines), Hand(), failed)


def test_standard_input_reads_as_a_text_stream_does():
    """As io.TextIOWrapper on the same bytes, call by call."""
    data = ['{"a":"é"}\n'.encode(), b"12345\n", b"x\n", b"{}\n", b"last\n"]
    ours, reference = stdin_of(*data), io.TextIOWrapper(io.BytesIO(b"".join(data)))
    for read in [
        lambda stream: stream.readline(),
        lambda stream: stream.readline(3),
        lambda stream: stream.readline(0),
        lambda stream: stream.readline(),
        lambda stream: stream.read(4),
        list,
        lambda stream: stream.readline(),
        lambda stream: stream.read(1),
    ]:
        assert read(ours) == read(reference)


def test_standard_input_has_bytes_too():
    """`sys.stdin.buffer` reads lines, counts and whole buffers."""
    stream = stdin_of(b"ab\n", b"cdef\n", b"g\n", b"h\n").buffer
    assert (stream.readline(), stream.read1(), stream.read(2)) == (b"ab\n", b"cdef\n", b"g\n")
    assert (list(stream), stream.read(5)) == ([b"h\n"], b"")
    assert stdin_of(b"ab\n", b"c\n").readlines(2) == ["ab\n"]
    target = bytearray(2)
    assert (stdin_of(b"ab\n").buffer.readinto(target), bytes(target)) == (2, b"ab")


@pytest.mark.parametrize("method", ["read", "readlines", "fileno"])
def test_what_a_stream_without_end_cannot_do_is_said_so(method):
    """Instead of waiting for ever."""
    for stream in (stdin_of(b"x\n"), stdin_of(b"x\n").buffer):
        with pytest.raises(io.UnsupportedOperation, match="market stream"):
            getattr(stream, method)()


def test_a_line_notes_the_fields_that_are_read():
    """By key, by get, by asking for one, and all of them by items or values."""
    line = Line({"symbol": "A", "price": 1, "seq": 7, "note": None})
    assert (line["price"], line.get("volume"), "seq" in line) == (1, None, True)
    assert line.fields_read == {"price", "volume", "seq"}
    assert dict(line.items()) == {"symbol": "A", "price": 1, "seq": 7, "note": None}
    assert line.fields_read == {"price", "volume", "seq", "symbol", "note"}
    assert json.loads(json.dumps(line)) == dict(line) == pickle.loads(pickle.dumps(line))


@pytest.mark.parametrize("read", [dict, lambda line: {**line}, json.dumps, lambda line: list(line.values())])
def test_a_line_that_is_taken_as_a_whole_was_read_as_a_whole(read):
    """As a plain dict, as arguments, or as JSON."""
    line = Line({"symbol": "A", "price": 1})
    read(line)
    assert line.fields_read == {"symbol", "price"}


def test_market_reads_standard_input_and_the_order_says_so(desk, strategies):
    """The line in hand goes along with its hash and the fields read; without run.py, with a plain pipe."""
    code = (
        "from desk_client import market, place_order\n"
        "for line in market(['AAPL']):\n"
        "    if line['price'] > 1:\n"
        "        print(place_order(line['symbol'], 1, 'buy').status)\n"
    )
    process = strategies.start(code, via=(), stdin=subprocess.PIPE)
    text = '{"symbol": "MSFT", "price": 9, "seq": 6}\n\n{"symbol": "AAPL", "price": 145.50, "seq": 7}\n'
    out, err = process.communicate(text, timeout=20)
    assert (out, err, process.returncode) == ("success\n", "", 0)
    line = desk.seen("/v1/orders")[0].order.line
    assert (line.seq, list(line.fields_read)) == (7, ["price", "symbol"])
    # sha256sum of {"symbol": "AAPL", "price": 145.50, "seq": 7}
    digest = subprocess.run(["sha256sum"], input=text.splitlines()[2].encode(), capture_output=True, check=True)
    assert line.sha256 == digest.stdout.decode()[:16]


@pytest.mark.parametrize("text", ["hello\n", "[1]\n", "[" * 100_000 + "\n"])
def test_a_line_that_is_no_object_is_a_protocol_error(monkeypatch, desk, text):
    """With the line, so that it can be found."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    with pytest.raises(ProtocolError, match="market line"):
        next(client_of(desk).market())


def test_market_asks_the_desk_where_nobody_gives_lines(desk, monkeypatch):
    """With /dev/null as standard input, or with a place to start from."""
    desk.publish("AAPL", "MSFT", "AAPL")
    hand = Hand()
    client = client_of(desk, hand)
    market = client.market(["AAPL"], after=1)
    assert next(market)["seq"] == 3
    assert (hand.in_hand().seq, list(hand.in_hand().fields_read)) == (3, ["seq"])
    with open("/dev/null") as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        market = client.market()
        threading.Timer(0.2, lambda: until(lambda: len(desk.requests) == 2) and desk.publish("TSLA")).start()
        assert next(market)["symbol"] == "TSLA"


def test_the_line_in_hand_is_whatever_was_read():
    """Also what is not JSON, or has no number."""
    hand = Hand()
    assert hand.in_hand() is None
    for line, seq in [
        (b"tick\n", 0),
        (b'{"seq":"7"}\n', 0),
        (b'{"seq":true}\n', 0),
        (b"[1]\n", 0),
        (b'{"seq":7}\r\n', 7),
    ]:
        hand.take(line)
        assert hand.in_hand().seq == seq
        assert len(hand.in_hand().sha256) == 16
    assert hand.lines_read == 5
