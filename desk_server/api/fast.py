"""The fast door: uvicorn's own HTTP protocol, which answers orders and market streams without going through ASGI.

It takes only what is plain (`POST /order` or `/v1/orders` with a known length, `GET /v1/market/stream` without a
body); everything else, and every odd form of these, goes on to FastAPI unchanged. Both doors call the same
handlers, so an answer is the same bytes by either; tests/api/test_doors.py proves it.

A client that keeps its connection sends the same headers again and again, often byte for byte. What came in one
piece is remembered by the bytes of its head; where they come again, between two requests and with as long a body,
they mean the same again, and are not parsed anew.

It also holds the limits that uvicorn leaves open for every request: the size of the headers, and the time that a
request may take to arrive.
"""

import asyncio
import os
import socket
import struct
from collections import Counter
from contextvars import copy_context
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from desk_server.api import exchange
from desk_server.api.auth import UNIX_PEER
from desk_server.api.exchange import Answer, Head
from desk_server.api.orders import PATHS, OrderRoute
from desk_server.api.streams import MarketStream, Streams
from desk_server.errors import Code, DeskError

HEADER_BYTES_MAX = 16 * 1024
HEADERS_MAX = 100
ARRIVAL_S_MAX = 30.0
# Of one uid over the unix socket.
CONNECTIONS_MAX = 64
# Heads that a connection remembers: one for each length of a body that its client sends.
KNOWN_MAX = 16
_HEAD_END = b"\r\n\r\n"
_ORDER_URLS = {path.encode(): path for path in PATHS}
_MARKET_URL = b"/v1/market/stream"


class _Nothing:
    def set(self) -> None:
        """Nobody waits for a cycle of the fast door."""


class Cycle:
    """One request on the fast door; named and shaped as uvicorn's own, which it stands beside in the pipeline."""

    __slots__ = (
        "body",
        "disconnected",
        "head",
        "keep_alive",
        "more_body",
        "response_complete",
        "started",
    )
    message_event = _Nothing()

    def __init__(self, head: Head, keep_alive: bool) -> None:
        self.head = head
        self.keep_alive = keep_alive
        self.body = b""
        self.more_body = True
        self.disconnected = False
        self.response_complete = False
        self.started = False


class OrderCycle(Cycle):
    __slots__ = ("path",)

    def __init__(self, head: Head, keep_alive: bool, path: str) -> None:
        super().__init__(head, keep_alive)
        self.path = path

    def again(self, body: bytes) -> None:
        """The same request once more, but for its body: of a cycle that is over."""
        self.head.again()
        self.body = body
        self.disconnected = self.response_complete = False


class MarketCycle(Cycle):
    __slots__ = ("query",)

    def __init__(self, head: Head, keep_alive: bool, query: bytes) -> None:
        super().__init__(head, keep_alive)
        self.query = query


def _ended() -> Cycle:
    """Stands where a request's cycle would, and takes nothing more."""
    cycle = Cycle(exchange.head_of([]), keep_alive=False)
    cycle.response_complete = True
    return cycle


class Outbox:
    """Answers of one turn of the loop, sent together at its end: a commit answers many orders at once, and to wake
    their sender for each would cost more than to send. Until then they count as unanswered.
    """

    def __init__(self) -> None:
        self._answers: list[tuple[DeskProtocol, Cycle, Answer]] = []

    def put(self, connection: "DeskProtocol", cycle: Cycle, answer: Answer) -> None:
        if not self._answers:
            connection.loop.call_soon(self._send)
        self._answers.append((connection, cycle, answer))

    def _send(self) -> None:
        answers, self._answers = self._answers, []
        for connection, cycle, answer in answers:
            connection.write(cycle, answer)


class DeskProtocol(HttpToolsProtocol):
    """Made per connection by uvicorn; `bind` gives it the desk's handlers."""

    orders: OrderRoute
    streams: Streams
    # Orders under way: the server's end waits for them, and nobody cancels them.
    running: set[asyncio.Task[None]]
    outbox: Outbox
    # Open connections by the uid on the other side of the socket: each strategy has one of its own.
    connections_of: Counter[int]
    fast = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._in_headers = True
        self._header_bytes = 0
        self._piece_bytes = 0
        self._stream: MarketStream | None = None
        self.waiting_since: float | None = self.loop.time()
        # Nothing has come yet.
        self._is_new = True
        # Since when a connection that is kept has had nothing to do.
        self.idle_since: float | None = None
        # Requests that came in one piece and were answered, by the bytes of their heads.
        self._known: dict[bytes, OrderCycle] = {}
        # What has come last, where it began a request.
        self._piece = b""
        self._uid: int | None = None
        connection = transport.get_extra_info("socket")
        if connection is not None and connection.family == socket.AF_UNIX:
            # Told from the socket itself: an unknown peer must not pass for a local one.
            self.client = (UNIX_PEER, 0)
            self._uid = _uid_of(connection)
            if self._uid is not None:
                self._count_connection(self._uid)

    def _count_connection(self, uid: int) -> None:
        """One strategy must not take all of the desk's connections. The desk's own user may."""
        self.connections_of[uid] += 1
        if self.connections_of[uid] > CONNECTIONS_MAX and uid != os.geteuid():
            self._refuse(
                DeskError(
                    Code.OVERLOADED,
                    f"you have {CONNECTIONS_MAX} connections open: use one for many requests, or close some",
                    limit=str(CONNECTIONS_MAX),
                ),
                HTTPStatus.SERVICE_UNAVAILABLE,
            )

    @property
    def peer(self) -> str:
        return self.client[0] if self.client else ""

    def data_received(self, data: bytes) -> None:
        cycle = self.cycle
        if self.waiting_since is None and (cycle is None or cycle.response_complete):
            # Between two requests: the parser waits for the first byte of one.
            start = data.find(_HEAD_END) + len(_HEAD_END)
            known = self._known.get(data[:start])
            if known is not None and len(data) - start == known.head.content_length and not self.transport.is_closing():
                known.again(data[start:])
                self.cycle, self.idle_since = known, None  # type: ignore[assignment]
                self._launch(known)
                return
            self._piece = data
        else:
            self._piece = data if self._is_new else b""
        self._is_new = False
        self._piece_bytes = len(data)
        self.idle_since = None
        super().data_received(data)
        self._piece = b""
        if self._in_headers and self.parser is not None:
            self._header_bytes += len(data)
            if self._header_bytes > 2 * HEADER_BYTES_MAX:
                self._refuse(_headers_too_large(), HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def _remember(self, cycle: OrderCycle) -> None:
        """What has just come whole, if one piece was all of it and nothing else."""
        piece, length = self._piece, cycle.head.content_length
        start = piece.find(_HEAD_END) + len(_HEAD_END)
        if not cycle.keep_alive or start < len(_HEAD_END) or len(piece) - start != length:
            return
        if len(self._known) >= KNOWN_MAX:
            self._known.clear()
        self._known[piece[:start]] = cycle

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers = True
        self._header_bytes = 0
        self.waiting_since = self.loop.time()

    def on_headers_complete(self) -> None:
        self._in_headers = False
        if self.transport.is_closing():
            # What was sent behind a request that ended the connection is not carried out.
            self.cycle = _ended()  # type: ignore[assignment]
            return
        if len(self.headers) > HEADERS_MAX or self._headers_are_too_large():
            head = exchange.head_of(self.headers)
            self._refuse(_headers_too_large(), HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, head)
            return
        cycle = self._fast_cycle() if self.fast else None
        if cycle is None:
            super().on_headers_complete()
            return
        existing, self.cycle = self.cycle, cycle  # type: ignore[assignment]
        if existing is None or existing.response_complete:
            self._start_asgi_task(cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))  # type: ignore[arg-type]

    def _headers_are_too_large(self) -> bool:
        if self._header_bytes + self._piece_bytes <= HEADER_BYTES_MAX:
            # Not even with all that came so far: no need to add up.
            return False
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        return size > HEADER_BYTES_MAX

    def on_message_complete(self) -> None:
        self.waiting_since = None
        cycle: Any = self.cycle
        if not isinstance(cycle, Cycle):
            super().on_message_complete()
            return
        cycle.more_body = False
        if self._piece and isinstance(cycle, OrderCycle):
            self._remember(cycle)
        if cycle.started and not cycle.response_complete:
            self._launch(cycle)

    def connection_lost(self, exc: Exception | None) -> None:
        self.waiting_since = None
        if self._stream is not None:
            self.streams.closed_raw(self._stream)
        if self._uid is not None:
            self.connections_of[self._uid] -= 1
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """uvicorn's drain: a stream ends here, other requests finish first."""
        if self._stream is not None:
            self._stream.end("the desk is stopping")
        else:
            super().shutdown()

    def time_out(self, now: float) -> None:
        """Called by the server now and then: who sends nothing, or a request that trickles in, gives the place up."""
        if self.idle_since is not None and now - self.idle_since > self.timeout_keep_alive:
            self.timeout_keep_alive_handler()
            return
        if self.flow.read_paused or self.waiting_since is None:
            return
        if now - self.waiting_since > ARRIVAL_S_MAX:
            self._refuse(
                DeskError(Code.DEADLINE, f"the request took longer than {ARRIVAL_S_MAX:.0f} s to arrive"),
                HTTPStatus.REQUEST_TIMEOUT,
            )

    def _fast_cycle(self) -> Cycle | None:
        """A cycle for what this door answers itself; None for everything else."""
        method = self.parser.get_method()
        path = _ORDER_URLS.get(self.url) if method == b"POST" else None
        is_market = method == b"GET" and self.url.partition(b"?")[0] == _MARKET_URL
        if (path is None and not is_market) or self.parser.get_http_version() != "1.1":
            return None
        head = exchange.head_of(self.headers)
        if head.odd:
            return None
        if path is not None:
            length = head.content_length
            if length is None or not 0 <= length <= exchange.BODY_BYTES_MAX:
                return None
            return OrderCycle(head, self.parser.should_keep_alive(), path)
        if head.content_length:
            return None
        return MarketCycle(head, self.parser.should_keep_alive(), self.url.partition(b"?")[2])

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if not isinstance(cycle, Cycle):
            super()._start_asgi_task(cycle, app)
            return
        cycle.started = True
        if not cycle.more_body:
            self._launch(cycle)

    def _launch(self, cycle: Cycle) -> None:
        if isinstance(cycle, MarketCycle):
            # The connection's context is everybody's: the ids of this request must not stay in it.
            copy_context().run(self._open_stream, cycle)
        elif isinstance(cycle, OrderCycle):
            task = self.loop.create_task(self._answer_order(cycle))
            self.running.add(task)
            task.add_done_callback(self.running.discard)

    async def _answer_order(self, cycle: OrderCycle) -> None:
        answer = await self.orders.handle(cycle.path, cycle.head, cycle.body, self.peer)
        if self.flow.write_paused and not self.transport.is_closing():
            await self.flow.drain()
        self.outbox.put(self, cycle, answer)

    def write(self, cycle: Cycle, answer: Answer) -> None:
        if self.transport.is_closing():
            return
        status, headers, body = answer
        parts = [STATUS_LINE[status]]
        parts += [b"%b: %b\r\n" % header for header in self.server_state.default_headers]
        parts += [b"%b: %b\r\n" % header for header in headers]
        if len(headers) > exchange.USUAL_HEADERS and any(name == b"connection" for name, _ in headers):
            cycle.keep_alive = False
        elif not cycle.keep_alive:
            parts.append(b"connection: close\r\n")
        parts += (b"\r\n", body)
        self.transport.write(b"".join(parts))
        cycle.response_complete = True
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def on_response_complete(self) -> None:
        """As uvicorn's, but that time is looked at now and then (`time_out`), without a timer for each request."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        else:
            self.idle_since = self.loop.time()

    def _open_stream(self, cycle: MarketCycle) -> None:
        """Hand the connection to the hub: from here on lines are written to it without any task of its own."""
        opened = self.streams.open_raw(cycle.head, cycle.query, self.peer)
        if isinstance(opened, Answer):
            self.write(cycle, opened)
            return
        cycle.keep_alive = False
        parts = [STATUS_LINE[HTTPStatus.OK]]
        for name, value in self.server_state.default_headers + opened.headers:
            parts += (name, b": ", value, b"\r\n")
        parts.append(b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n")
        self.transport.write(b"".join(parts))
        # What a reader sends behind its request is of no interest; that it hangs up is.
        self.flow.resume_reading()
        self._stream = opened.start(self.transport, self)

    def _refuse(self, error: DeskError, status: HTTPStatus, head: Head | None = None) -> None:
        """Answer at once and hang up, whatever else is on the way."""
        self.waiting_since = None
        if self.cycle is None or self.cycle.response_complete:
            answer = exchange.refusal(head or exchange.head_of([]), error, status)
            if all(name != b"connection" for name, _ in answer.headers):
                answer.headers.append((b"connection", b"close"))
            parts = [STATUS_LINE[answer.status]]
            for name, value in self.server_state.default_headers + answer.headers:
                parts += (name, b": ", value, b"\r\n")
            self.transport.write(b"".join((*parts, b"\r\n", answer.body)))
        self.cycle = _ended()  # type: ignore[assignment]
        self.transport.close()


def bind(
    orders: OrderRoute, streams: Streams, running: set[asyncio.Task[None]], *, fast: bool = True
) -> type[DeskProtocol]:
    """A protocol class that knows these handlers. `fast=False` sends every request through FastAPI."""
    handlers = {
        "orders": orders,
        "streams": streams,
        "running": running,
        "outbox": Outbox(),
        "connections_of": Counter[int](),
        "fast": fast,
    }
    return type("BoundDeskProtocol", (DeskProtocol,), handlers)


def _uid_of(connection: Any) -> int | None:
    """Of the process that connected; None on systems that do not tell it in Linux's way (unix(7))."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i")))
    return int(uid)


def _headers_too_large() -> DeskError:
    return DeskError(
        Code.TOO_LARGE, f"the headers are larger than {HEADER_BYTES_MAX} bytes: send less", limit=str(HEADER_BYTES_MAX)
    )
