"""One TCP connection, down to its bytes: HTTP/1.1 in, whatever should come out; websockets and event streams."""

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import httptools
import msgspec
from websockets.frames import Frame, Opcode
from websockets.http11 import Request as WebsocketRequest
from websockets.server import ServerProtocol

from tests.alpaca.messages import Reply, Request

if TYPE_CHECKING:
    from tests.alpaca.server import Server

_REASONS = {
    200: "OK",
    204: "No Content",
    207: "Multi-Status",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    422: "Unprocessable Entity",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
_RESET = struct.pack("ii", 1, 0)


def encoded(reply: Reply) -> bytes:
    """The whole answer as it goes over the wire."""
    body = reply.raw
    kind = "application/json"
    if body is None:
        body = b"" if reply.body is None else msgspec.json.encode(reply.body)
    elif body.startswith(b"<"):
        kind = "text/html"
    head = f"HTTP/1.1 {reply.status} {_REASONS.get(reply.status, 'Unknown')}\r\n"
    if reply.status != 204:
        head += f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    for name, value in reply.headers.items():
        head += f"{name}: {value}\r\n"
    return f"{head}\r\n".encode() + body


class Connection(asyncio.Protocol):
    """Parses requests and hands each to the server, which answers by one of the verbs below, or not at all."""

    def __init__(self, server: "Server") -> None:
        self._server = server
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.gone = False
        self._raw = b""
        self._last = False
        self._next()
        # Once the connection is a websocket.
        self._websocket: ServerProtocol | None = None
        self._on_message: Callable[[Any], None] = lambda message: None
        self._on_gone: Callable[[], None] = lambda: None

    def _next(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._body = b""
        self._headers: dict[str, str] = {}
        self._complete = False

    # From the socket.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        found = self.transport.get_extra_info("socket")
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._server.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.gone = True
        self._server.forget(self)
        self._on_gone()

    def data_received(self, data: bytes) -> None:
        if self._websocket is not None:
            self._websocket_received(data)
            return
        self._raw += data
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._upgrade()
            return
        except httptools.HttpParserError:
            self.write(encoded(Reply(400, {"message": "not HTTP"})))
            self.close()
            return
        if self._complete:
            request = Request(
                self._parser.get_method().decode(),
                *self._split_url(),
                headers=self._headers,
                body=self._body,
            )
            self._last = not self._parser.should_keep_alive()
            self._raw = b""
            self._next()
            self._server.handle(request, self)

    def _split_url(self) -> tuple[str, str]:
        path, _, query = self._url.decode("latin-1").partition("?")
        return path, query

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self._complete = True

    # Answers.

    def write(self, data: bytes) -> None:
        if not self.gone:
            self.transport.write(data)

    def reply(self, reply: Reply) -> None:
        self.write(encoded(reply))
        if self._last:
            self.close()

    def close(self) -> None:
        """FIN."""
        if not self.gone:
            self.transport.close()

    def reset(self) -> None:
        """RST: what was sent and not yet read is lost to the client."""
        if not self.gone:
            found = self.transport.get_extra_info("socket")
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.abort()

    def freeze(self) -> None:
        """As if the peer's machine were gone: nothing is read or written any more, and nothing closed."""
        if not self.gone:
            self.transport.pause_reading()

    def trickle(self, data: bytes, gap_s: float) -> None:
        """A byte at a time."""
        if data and not self.gone:
            self.write(data[:1])
            asyncio.get_running_loop().call_later(gap_s, self.trickle, data[1:], gap_s)

    # Streams: the Sink of a Listener.

    def stream_events(self, on_gone: Callable[[], None]) -> None:
        """Become a stream of server-sent events."""
        self._on_gone = on_gone
        self.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
            b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        )

    def _upgrade(self) -> None:
        self._websocket = ServerProtocol(max_size=1 << 20)
        self._websocket.receive_data(self._raw)
        self._raw = b""
        request = self._websocket.events_received()[0]
        assert isinstance(request, WebsocketRequest)
        path = request.path.partition("?")[0].rstrip("/")
        accepted = self._server.upgrade(path, self)
        response = (
            self._websocket.accept(request) if accepted else self._websocket.reject(404, "no stream has this path\n")
        )
        self._websocket.send_response(response)
        self._flush()

    def on_messages(self, on_message: Callable[[Any], None], on_gone: Callable[[], None]) -> None:
        self._on_message, self._on_gone = on_message, on_gone

    def _websocket_received(self, data: bytes) -> None:
        assert self._websocket is not None
        self._websocket.receive_data(data)
        for frame in self._websocket.events_received():
            if isinstance(frame, Frame) and frame.opcode in (Opcode.TEXT, Opcode.BINARY):
                try:
                    message = msgspec.json.decode(frame.data)
                except msgspec.DecodeError:
                    message = None
                self._on_message(message)
        self._flush()

    def _flush(self) -> None:
        assert self._websocket is not None
        for data in self._websocket.data_to_send():
            if data:
                self.write(data)
            else:
                self.close()
        if self._websocket.close_expected() and self._websocket.close_code is not None:
            self.close()

    def send(self, data: bytes) -> None:
        """One message: a binary websocket frame, or a chunk of an event stream."""
        if self.gone:
            return
        if self._websocket is None:
            self.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        else:
            self._websocket.send_binary(data)
            self._flush()

    def finish(self) -> None:
        """The event stream is at its end: status 200 and no error."""
        self.write(b"0\r\n\r\n")
        self.close()

    def cut(self, *, reset: bool) -> None:
        if reset:
            self.reset()
        else:
            self.close()
