"""The desk's market stream, read line by line: a source of bytes that outlives a desk's restart."""

from __future__ import annotations

import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from desk_client.calls import Backoff, Caller, path_with
from desk_client.errors import DeskUnavailable, ProtocolError
from desk_client.hand import seq_of
from desk_client.http1 import Connection, Response

# The desk sends at least an empty line every 15 s.
SILENCE_MAX_S = 45.0
LINE_BYTES_MAX = 1024 * 1024
NDJSON = "application/x-ndjson"


def to_stderr(message: str) -> None:
    print(f"desk: {message}", file=sys.stderr)


class MarketLines:
    """The market's lines in order, none twice and none left out that the desk still has.

    Only whole lines are handed out: what a lost connection cut short is asked for again. For any number
    of threads, each line to one of them.
    """

    def __init__(
        self,
        caller: Caller,
        symbols: Sequence[str] = (),
        after: int | None = None,
        *,
        notice: Callable[[str], None] = to_stderr,
        silence_max_s: float = SILENCE_MAX_S,
    ) -> None:
        self._caller = caller
        self._symbols = ",".join(symbols)
        self._notice = notice
        self._silence_max_s = silence_max_s
        self._connection: Connection | None = None
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._stopped = False
        # Whole lines that were received and not handed out yet; and the beginning of the next one.
        self._ready: Iterator[bytes] = iter(())
        self._partial = b""
        # Where to resume: the last whole line received, parsed when it is needed, or else this number.
        self._newest: bytes | None = None
        self._after = after
        # After a reconnection: lines up to this number were already received.
        self._skip_to = 0

    def readline(self) -> bytes:
        """The next line with its newline, for as long as it takes; b"" after `stop`.

        Raises AuthenticationError, Refused or ProtocolError where waiting would not help.
        """
        with self._lock:
            while not self._stopped:
                line = next(self._ready, None)
                if line is not None:
                    return line
                self._receive()
            return b""

    def stop(self) -> None:
        """Ends the lines. Safe in a signal handler: it takes no lock."""
        self._stopped = True

    def _receive(self) -> None:
        if self._pid != os.getpid():
            # After a fork the connection is the parent's: two readers would each get scraps of lines.
            self._pid = os.getpid()
            self._drop()
        connection = self._connection or self._connect()
        if connection is None:
            return
        try:
            data = connection.read_some(time.monotonic() + self._silence_max_s)
        except (OSError, ProtocolError) as error:
            self._lost(str(error))
            return
        if not data:
            self._lost("the desk ended the stream")
            return
        self._take(data)

    def _take(self, data: bytes) -> None:
        # Not splitlines(), which also splits at a carriage return, white space in JSON.
        lines = io.BytesIO(self._partial + data if self._partial else data).readlines()
        self._partial = b"" if lines[-1].endswith(b"\n") else lines.pop()
        if len(self._partial) > LINE_BYTES_MAX:
            raise ProtocolError(f"a market line is longer than {LINE_BYTES_MAX} bytes. Is DESK_SERVER_URL right?")
        # The desk's signs of life are empty lines.
        whole = [line for line in lines if len(line) > 2 or line.strip()]
        if self._skip_to:
            whole = self._without_known(whole)
        if whole:
            self._newest = whole[-1]
            self._ready = iter(whole)

    def _without_known(self, lines: list[bytes]) -> list[bytes]:
        for at, line in enumerate(lines):
            if seq_of(line) > self._skip_to:
                self._skip_to = 0
                return lines[at:]
        return []

    def _lost(self, reason: str) -> None:
        self._notice(f"the market stream broke off ({reason}); connecting again")
        self._drop()

    def _drop(self) -> None:
        self._partial = b""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> Connection | None:
        """A connection whose next bytes are the lines after the last one; None after `stop`."""
        if self._newest is not None:
            self._after = seq_of(self._newest) or self._after
            self._newest = None
        after = "" if self._after is None else str(self._after)
        path = path_with("/v1/market/stream", {"symbols": self._symbols, "after": after})
        backoff, told = Backoff(max_s=2.0), False
        while not self._stopped:
            try:
                connection, answer = self._caller.stream(path, NDJSON, connect_s=10.0)
            except (OSError, DeskUnavailable) as error:
                if not told:
                    self._notice(f"no market lines yet: {error}; trying again until there are")
                    told = True
                time.sleep(backoff.next_s())
                continue
            if told:
                self._notice("connected to the market stream")
            self._connection = connection
            self._compare_start(answer)
            return connection
        return None

    def _compare_start(self, answer: Response) -> None:
        """Tells of lines that the desk no longer has, and of a desk that counts anew."""
        text = answer.headers.get("desk-first-seq", "")
        first = int(text) if text.isascii() and text.isdigit() else None
        self._skip_to = self._after or 0
        if self._after is None and first is not None:
            # So that nothing is lost either where the connection breaks before the first line.
            self._after = first - 1
        if self._after is None or first is None or first == self._after + 1:
            return
        if first > self._after:
            self._notice(f"the desk no longer has the market lines {self._after + 1} to {first - 1}")
            return
        self._notice(f"the desk numbers its market lines anew: it is at {first}, after {self._after}")
        self._skip_to = 0
