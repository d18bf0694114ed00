"""Where a subscriber's bytes go: an HTTP connection, or an iterator in this process."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Protocol

# Above this many bytes waiting for a subscriber nothing more is written to it; below the lower mark it goes on.
BUFFERED_BYTES_MAX = 256 * 2**10
BUFFERED_BYTES_LOW = 64 * 2**10
# How long a closed connection may take over its last bytes.
CLOSE_TIMEOUT_S = 5.0


class Sink(Protocol):
    """One subscriber's way out. All calls on the event loop's thread; none blocks."""

    @staticmethod
    def frame(data: bytes) -> bytes:
        """What `write` must be given for these lines; computed once for all subscribers of a kind."""
        ...

    def attach(self, resumed: Callable[[], None], lost: Callable[[], None]) -> None:
        """Call `resumed` when buffered() has fallen low again, `lost` when nobody reads any more."""
        ...

    def write(self, data: bytes) -> None: ...

    def buffered(self) -> int:
        """Bytes written that the subscriber has not taken."""
        ...

    def close(self, reason: str) -> None: ...


def chunk(data: bytes) -> bytes:
    """One chunk of HTTP's chunked transfer coding (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class ChunkedSink:
    """The rest of an HTTP response with `Transfer-Encoding: chunked` whose headers are sent.

    Whoever owns the connection's protocol calls `resume_writing` and `connection_lost`; or give the connection
    to a StreamProtocol, which does.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._resumed: Callable[[], None] = _nothing
        self._lost: Callable[[], None] = _nothing
        transport.set_write_buffer_limits(high=BUFFERED_BYTES_MAX, low=BUFFERED_BYTES_LOW)

    @staticmethod
    def frame(data: bytes) -> bytes:
        return chunk(data)

    def attach(self, resumed: Callable[[], None], lost: Callable[[], None]) -> None:
        self._resumed = resumed
        self._lost = lost

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def buffered(self) -> int:
        return self._transport.get_write_buffer_size()

    def close(self, reason: str) -> None:
        """End the response in good order; a reader who does not take the rest within CLOSE_TIMEOUT_S is cut off.

        `reason` is for the log only.
        """
        if not self._transport.is_closing():
            self._transport.write(b"0\r\n\r\n")
            self._transport.close()
            if self._transport.get_write_buffer_size():
                asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self._transport.abort)

    def pause_writing(self) -> None:
        """Nothing to do: the hub looks at buffered() after each write."""

    def resume_writing(self) -> None:
        self._resumed()

    def connection_lost(self) -> None:
        self._lost()


class StreamProtocol(asyncio.Protocol):
    """Takes a connection over from an HTTP server's protocol: `transport.set_protocol(StreamProtocol(...))`.

    The old protocol learns of the connection's end, so that the server's own accounts stay right; what a reader
    still sends is thrown away.
    """

    def __init__(self, sink: ChunkedSink, old: asyncio.BaseProtocol | None = None) -> None:
        self._sink = sink
        self._old = old

    def data_received(self, data: bytes) -> None: ...

    def eof_received(self) -> bool:
        """A reader who will send nothing more has gone: the two look the same, and HTTP servers close, too."""
        return False

    def pause_writing(self) -> None:
        self._sink.pause_writing()

    def resume_writing(self) -> None:
        self._sink.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        self._sink.connection_lost()
        if self._old is not None:
            self._old.connection_lost(error)


class QueueSink:
    """Lines for a reader in this process. Iterate once: each item is one line, without its newline."""

    def __init__(self) -> None:
        self._batches: deque[bytes] = deque()
        self._buffered = 0
        self._closed = False
        self._woken = asyncio.Event()
        self._resumed: Callable[[], None] = _nothing

    @staticmethod
    def frame(data: bytes) -> bytes:
        return data

    def attach(self, resumed: Callable[[], None], lost: Callable[[], None]) -> None:
        self._resumed = resumed

    def write(self, data: bytes) -> None:
        self._batches.append(data)
        self._buffered += len(data)
        self._woken.set()

    def buffered(self) -> int:
        return self._buffered

    def close(self, reason: str) -> None:
        self._closed = True
        self._woken.set()

    async def lines(self) -> AsyncIterator[bytes]:
        while True:
            while self._batches:
                batch = self._batches.popleft()
                for line in batch.split(b"\n"):
                    if line:
                        yield line
                self._take(len(batch))
            if self._closed:
                return
            self._woken.clear()
            await self._woken.wait()

    def _take(self, size: int) -> None:
        before = self._buffered
        self._buffered -= size
        if self._buffered <= BUFFERED_BYTES_LOW < before:
            self._resumed()


def _nothing() -> None: ...
