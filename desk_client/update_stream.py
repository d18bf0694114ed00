"""What happens to a user's orders, as it happens: a stream that outlives a desk's restart."""

from __future__ import annotations

import time

from desk.v1.orders_pb2 import OrderUpdate
from google.protobuf.message import DecodeError

from desk_client.calls import PROTOBUF, Backoff, Caller
from desk_client.errors import DeskUnavailable, ProtocolError
from desk_client.http1 import Connection

# The desk sends at least a sign of life every 15 s.
SILENCE_MAX_S = 45.0
MESSAGE_BYTES_MAX = 1024 * 1024
VARINT_BYTES_MAX = 10


class Updates:
    """An endless iterator of OrderUpdate. It resumes where it was after a lost connection.

    The connection is made at once, so that an order sent after this call is not missed.
    """

    def __init__(self, caller: Caller, after: int | None, timeout_s: float) -> None:
        """Raises DeskUnavailable where there is no stream within `timeout_s`, or what Caller.stream raises."""
        self._caller = caller
        self._after = after
        self._connection: Connection | None = None
        self._buffer = b""
        self._closed = False
        self._connect(time.monotonic() + timeout_s)

    def __iter__(self) -> Updates:
        return self

    def __next__(self) -> OrderUpdate:
        """Waits for the next update, for as long as it takes."""
        while not self._closed:
            update = self._buffered()
            if update is not None:
                # After a reconnection, the desk may send again what was already read.
                if self._after is not None and update.seq <= self._after:
                    continue
                self._after = update.seq
                return update
            self._receive()
        raise StopIteration

    def close(self) -> None:
        """Ends the iteration, also of another thread's at its next update."""
        self._closed = True
        self._drop()

    def __enter__(self) -> Updates:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _buffered(self) -> OrderUpdate | None:
        """The next whole message of what was received."""
        while self._buffer:
            length, at = _varint(self._buffer)
            if at == 0 or len(self._buffer) < at + length:
                return None
            message, self._buffer = self._buffer[at : at + length], self._buffer[at + length :]
            if length == 0:
                continue  # a sign of life
            try:
                return OrderUpdate.FromString(message)
            except DecodeError as error:
                raise ProtocolError("an update of the desk cannot be read") from error
        return None

    def _receive(self) -> None:
        if self._connection is None:
            self._connect(None)
        connection = self._connection
        if connection is None:
            return
        try:
            data = connection.read_some(time.monotonic() + SILENCE_MAX_S)
        except OSError:
            data = b""
        if data:
            self._buffer += data
        else:
            self._drop()

    def _connect(self, deadline: float | None) -> None:
        """Until it works, or the deadline has passed."""
        backoff = Backoff(max_s=2.0)
        path = "/v1/updates" if self._after is None else f"/v1/updates?after={self._after}"
        while not self._closed:
            try:
                connection, answer = self._caller.stream(path, PROTOBUF, connect_s=5.0)
            except (OSError, DeskUnavailable) as error:
                wait_s = backoff.next_s()
                if deadline is not None and time.monotonic() + wait_s > deadline:
                    raise DeskUnavailable(f"no stream of updates: {error}") from error
                time.sleep(wait_s)
                continue
            if answer.content_type != PROTOBUF:
                connection.close()
                raise ProtocolError("the stream of updates is not one of a desk. Is DESK_SERVER_URL right?")
            self._connection = connection
            if self._after is None:
                # Where the desk says at which update the stream starts, none is lost even before the first.
                first = answer.headers.get("desk-last-seq", "")
                self._after = int(first) if first.isascii() and first.isdigit() else None
            return

    def _drop(self) -> None:
        self._buffer = b""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _varint(data: bytes) -> tuple[int, int]:
    """(value, bytes it took) of the varint at the start; (0, 0) where it is not complete yet."""
    value = 0
    for at, byte in enumerate(data[:VARINT_BYTES_MAX]):
        value |= (byte & 0x7F) << (7 * at)
        if byte < 0x80:
            if value > MESSAGE_BYTES_MAX:
                raise ProtocolError(f"an update of {value} bytes is larger than any of a desk")
            return value, at + 1
    if len(data) >= VARINT_BYTES_MAX:
        raise ProtocolError("the stream of updates cannot be read")
    return 0, 0
