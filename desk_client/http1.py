"""HTTP/1.1 on a plain socket: what a strategy needs of it, and nothing that is slow to import.

A Connection sends one request after the other and reads the answers: whole (`response`), or as a stream
(`head`, then `read_some`). Deadlines are of `time.monotonic()`.
"""

from __future__ import annotations

import select
import socket
import time

from desk_client.errors import ProtocolError
from desk_client.settings import Address

HEAD_BYTES_MAX = 64 * 1024
BODY_BYTES_MAX = 64 * 1024 * 1024
# Below malloc's threshold for a mapping of its own: a larger buffer costs every order 30 µs.
RECV_BYTES = 64 * 1024


class ConnectFailed(OSError):
    """No connection came about: the desk has not seen anything."""


class Closed(OSError):
    """The connection ended before the answer did: the desk may have seen the request."""


class Response:
    """An answer: its status, its headers (names in lower case) and its whole body."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


class Connection:
    """One connection to a desk. Not for two threads at once."""

    def __init__(self, address: Address, deadline: float) -> None:
        """Raises ConnectFailed, or TimeoutError at the deadline."""
        self._sock = connect(address, deadline)
        self._buffer = b""
        self._body: _Body = _Body(0)
        self.reusable = True

    def send(self, request: bytes, deadline: float) -> None:
        """Raises Closed, or TimeoutError: the desk may have seen the request."""
        try:
            self._sock.settimeout(_left(deadline))
            self._sock.sendall(request)
        except TimeoutError:
            raise
        except OSError as error:
            raise Closed(f"the desk closed the connection ({error})") from error

    def response(self, deadline: float) -> Response:
        """The whole answer. Raises Closed, TimeoutError or ProtocolError."""
        answer = self.head(deadline)
        first = self.read_some(deadline)
        parts, size = [first], len(first)
        while parts[-1]:
            parts.append(self.read_some(deadline))
            size += len(parts[-1])
            if size > BODY_BYTES_MAX:
                raise ProtocolError(f"the answer is larger than {BODY_BYTES_MAX} bytes")
        answer.body = b"".join(parts)
        return answer

    def head(self, deadline: float) -> Response:
        """Status and headers; the body is left to `read_some`."""
        while True:
            while (end := self._buffer.find(b"\r\n\r\n")) < 0:
                if len(self._buffer) > HEAD_BYTES_MAX:
                    raise ProtocolError("what answers at DESK_SERVER_URL does not speak HTTP/1.1")
                self._buffer += self._recv(deadline)
            head, self._buffer = self._buffer[:end], self._buffer[end + 4 :]
            answer = _parse_head(head)
            if answer.status >= 200:
                break
        self._body = _body_of(answer)
        close = "close" in answer.headers.get("connection", "").lower() or head.startswith(b"HTTP/1.0")
        self.reusable = not close and not isinstance(self._body, _UntilClose)
        return answer

    def read_some(self, deadline: float) -> bytes:
        """The next bytes of the body as they come; b"" at its end. Raises Closed where it is cut short."""
        while not self._body.ended:
            if self._buffer:
                data, self._buffer = self._body.decode(self._buffer)
                if data:
                    return data
                if self._body.ended:
                    break
            try:
                received = self._recv(deadline)
            except Closed:
                if isinstance(self._body, _UntilClose):
                    self._body.ended = True
                    break
                raise
            self._buffer = self._buffer + received if self._buffer else received
        return b""

    def idle_and_alive(self) -> bool:
        """True where the next request may go out here: nothing is left to read, and the desk has not hung up."""
        if not self.reusable or not self._body.ended or self._buffer:
            return False
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        # An idle connection has nothing to read: what is readable now is its end.
        return not poll.poll(0)

    def close(self) -> None:
        self._sock.close()

    def _recv(self, deadline: float) -> bytes:
        try:
            self._sock.settimeout(_left(deadline))
            data = self._sock.recv(RECV_BYTES)
        except TimeoutError:
            raise
        except OSError as error:
            raise Closed(f"the connection to the desk broke ({error})") from error
        if not data:
            raise Closed("the desk closed the connection")
        return data


def connect(address: Address, deadline: float) -> socket.socket:
    """A connected socket. Raises ConnectFailed, or TimeoutError at the deadline."""
    try:
        if address.scheme == "unix":
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.settimeout(_left(deadline))
                sock.connect(address.path)
            except BaseException:
                sock.close()
                raise
            return sock
        sock = socket.create_connection((address.host, address.port), timeout=_left(deadline))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return _with_tls(sock, address.host) if address.scheme == "https" else sock
    except TimeoutError as error:
        # The desk's queue of waiting connections is full, or nothing answers at the address.
        raise ConnectFailed(f"no connection to the desk at {address} in time") from error
    except OSError as error:
        raise ConnectFailed(f"no connection to the desk at {address}: {error.strerror or error}") from error


def _with_tls(sock: socket.socket, host: str) -> socket.socket:
    import ssl  # noqa: PLC0415  (4 MiB that only https needs)

    try:
        return ssl.create_default_context().wrap_socket(sock, server_hostname=host)
    except BaseException:
        sock.close()
        raise


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the deadline has passed")
    return left


def _parse_head(head: bytes) -> Response:
    first, *rest = head.decode("latin-1").split("\r\n")
    if not first.startswith("HTTP/1.") or not first[9:12].isdigit():
        raise ProtocolError("what answers at DESK_SERVER_URL does not speak HTTP/1.1")
    headers: dict[str, str] = {}
    for line in rest:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return Response(int(first[9:12]), headers)


class _Body:
    """A body of known length."""

    def __init__(self, length: int) -> None:
        self._length = length
        self.ended = length == 0

    def decode(self, received: bytes) -> tuple[bytes, bytes]:
        """(bytes of the body, bytes still to be decoded)."""
        data = received[: self._length]
        self._length -= len(data)
        self.ended = self._length == 0
        return data, received[len(data) :]


class _UntilClose(_Body):
    """A body that ends with the connection."""

    def __init__(self) -> None:
        super().__init__(-1)

    def decode(self, received: bytes) -> tuple[bytes, bytes]:
        return received, b""


class _Chunked(_Body):
    """Chunks, each after its length in hex (RFC 9112, 7.1)."""

    def __init__(self) -> None:
        super().__init__(-1)
        # Bytes left of the present chunk with its closing CRLF; 0 where a length comes next.
        self._left = 0
        self._in_trailers = False

    def decode(self, received: bytes) -> tuple[bytes, bytes]:
        parts: list[bytes] = []
        at, size = 0, len(received)
        while at < size and not self.ended:
            if self._left:
                taken = min(self._left, size - at)
                if self._left > 2:
                    parts.append(received[at : at + min(taken, self._left - 2)])
                self._left -= taken
                at += taken
                continue
            end = received.find(b"\r\n", at)
            if end < 0:
                if size - at > 1024:
                    raise ProtocolError("a chunk's length is longer than 1 KiB")
                break
            self._line(received[at:end])
            at = end + 2
        return (parts[0] if len(parts) == 1 else b"".join(parts)), received[at:]

    def _line(self, line: bytes) -> None:
        if self._in_trailers:
            self.ended = not line
            return
        try:
            length = int(line.partition(b";")[0], 16)
        except ValueError:
            raise ProtocolError("a chunk's length is not a number") from None
        if length < 0:
            raise ProtocolError("a chunk's length is negative")
        self._in_trailers = length == 0
        self._left = length + 2 if length else 0


def _body_of(answer: Response) -> _Body:
    if answer.status in (204, 304):
        return _Body(0)
    if "chunked" in answer.headers.get("transfer-encoding", "").lower():
        return _Chunked()
    length = answer.headers.get("content-length")
    if length is None:
        return _UntilClose()
    if not (length.isascii() and length.isdigit()) or int(length) > BODY_BYTES_MAX:
        raise ProtocolError("the answer's Content-Length cannot be right")
    return _Body(int(length))
