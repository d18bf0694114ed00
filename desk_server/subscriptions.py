"""One subscriber of the hub: live, behind, or catching up. See docs/market-lines.md for the promise made to it.

Live subscribers of the same symbols form a Group that shares its bytes; a subscriber that is not live costs
nothing per line: it remembers how far it got, and what it is sent next is worked out when it can take more.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from msgspec import Struct

from desk_server.sinks import BUFFERED_BYTES_MAX, Sink
from desk_server.tape import PIECE_BYTES

# A reader that resumes gets every line as long as it is this close behind, or gains on the market.
_RESUME_SLACK_LINES = 1000

Symbols = frozenset[str] | None


class Line(Struct, frozen=True, gc=False):
    """A published line; `data` ends with a newline."""

    seq: int
    symbol: str
    kind: str
    data: bytes


class Source(Protocol):
    """Where the lines come from that are not live: see recent.py."""

    @property
    def delivered_seq(self) -> int:
        """The last line handed to live subscribers."""
        ...

    def count(self, symbols: Symbols) -> int:
        """How many lines of these symbols were delivered since the hub was made."""
        ...

    def waiting(self, after: int, symbols: Symbols) -> int:
        """How many lines of these symbols lie behind `after`; at most, where some are no longer in memory."""
        ...

    def piece(self, after: int, symbols: Symbols) -> tuple[list[Line], int, int]:
        """Some lines behind `after`, the seq that they reach, and how many before them are lost for ever."""
        ...

    def newest(self, after: int, symbols: Symbols) -> list[Line]:
        """What is left of the lines behind `after` for a reader who could not keep up, in order of seq."""
        ...


class Group:
    """The live subscribers that get the same bytes."""

    def __init__(self, symbols: Symbols, frame: Callable[[bytes], bytes]) -> None:
        self.symbols = symbols
        self.frame = frame
        self.live: set[Subscription] = set()
        # Live ones whose next line must say that lines were left out before it.
        self.telling: set[Subscription] = set()
        self.members = 0
        self.lines: list[bytes] = []
        self.written_s = 0.0

    def write(self, data: bytes, lines: int, last_seq: int, now_s: float) -> None:
        framed = self.frame(data)
        self.written_s = now_s
        late = []
        if self.telling:
            self._tell(data, lines, last_seq)
        for subscription in self.live:
            subscription.lines_sent += lines
            if lines:
                subscription.last_seq = last_seq
            sink = subscription.sink
            sink.write(framed)
            if sink.buffered() > BUFFERED_BYTES_MAX:
                late.append(subscription)
        for subscription in late:
            subscription.fall_behind()
        if lines:
            self.live |= self.telling
            self.telling.clear()

    def _tell(self, data: bytes, lines: int, last_seq: int) -> None:
        for subscription in self.telling:
            if lines:
                subscription.lines_sent += lines
                subscription.last_seq = last_seq
            subscription.sink.write(self.frame(subscription.told(data) if lines else data))


class Mode(StrEnum):
    LIVE = "live"
    RESUMING = "resuming"
    BEHIND = "behind"
    CLOSED = "closed"


class Subscription:
    """`lines_sent`, `missed` (lines left out), `last_seq` (sent last; 0: none) and `connected_at` are for showing."""

    def __init__(
        self,
        source: Source,
        group: Group,
        sink: Sink,
        after: int,
        *,
        connected_at: datetime,
        on_close: Callable[["Subscription", str], None],
    ) -> None:
        self.sink = sink
        self.group = group
        self.symbols = group.symbols
        self.connected_at = connected_at
        self.lines_sent = 0
        self.missed = 0
        self.last_seq = 0
        self.mode = Mode.RESUMING
        self._source = source
        self._on_close = on_close
        # Every line up to here was sent, is staged, or was counted as missed.
        self._position = after
        self._target = source.delivered_seq
        self._round_lines = max(self._target - after, 0)
        self._staged: deque[Line] = deque()
        # Lines of its symbols that the hub had delivered when it fell behind.
        self._counted = 0
        # Left out since the last line sent; the next one says so.
        self._untold = 0
        self._scheduled = False
        sink.attach(self.resume, lambda: self.close("the reader has gone"))

    @property
    def buffered(self) -> int:
        return self.sink.buffered()

    def resume(self) -> None:
        """The sink has room again."""
        if self.mode in (Mode.RESUMING, Mode.BEHIND) and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._advance)

    def fall_behind(self) -> None:
        """Too much waits in the sink: write nothing more until it has room."""
        self.group.live.discard(self)
        self.mode = Mode.BEHIND
        self._position = self._source.delivered_seq
        self._counted = self._source.count(self.symbols)

    def close(self, reason: str) -> None:
        """No more lines. Closing twice is no error."""
        if self.mode is Mode.CLOSED:
            return
        self.mode = Mode.CLOSED
        self.group.live.discard(self)
        self.group.telling.discard(self)
        self._staged.clear()
        self.sink.close(reason)
        self._on_close(self, reason)

    def told(self, data: bytes) -> bytes:
        """The lines, the first of which says how many were left out before it, if any were."""
        missed, self._untold = self._untold, 0
        return with_missed(data, missed) if missed else data

    def _advance(self) -> None:
        """Send one piece; more of them on later turns of the loop, so that nobody else waits.

        It goes on until the sink holds more than the bound: only then is the sink sure to call `resume`.
        """
        self._scheduled = False
        if self.mode not in (Mode.RESUMING, Mode.BEHIND) or self.sink.buffered() > BUFFERED_BYTES_MAX:
            return
        if not self._staged and self._position >= self._source.delivered_seq:
            self._go_live()
            return
        if not self._staged:
            self._stage()
        self._send_staged()
        self.resume()

    def _stage(self) -> None:
        if self.mode is Mode.RESUMING and self._position >= self._target:
            self._next_round()
        if self.mode is Mode.RESUMING:
            lines, self._position, lost = self._source.piece(self._position, self.symbols)
            self._leave_out(lost)
        else:
            lines = self._source.newest(self._position, self.symbols)
            total = self._source.count(self.symbols)
            self._leave_out(total - self._counted - len(lines))
            self._position, self._counted = self._source.delivered_seq, total
        self._staged.extend(lines)

    def _next_round(self) -> None:
        """What came while it was catching up is sent whole, too, unless the reader is slower than the market."""
        left = self._source.delivered_seq - self._position
        if left > _RESUME_SLACK_LINES and left >= self._round_lines:
            self.mode = Mode.BEHIND
            self._counted = self._source.count(self.symbols) - self._source.waiting(self._position, self.symbols)
        self._target, self._round_lines = self._source.delivered_seq, left

    def _leave_out(self, lines: int) -> None:
        self.missed += lines
        self._untold += lines

    def _send_staged(self) -> None:
        size = 0
        batch: list[bytes] = []
        while self._staged and size < PIECE_BYTES:
            line = self._staged.popleft()
            data = self.told(line.data)
            batch.append(data)
            size += len(data)
            self.last_seq = line.seq
        if batch:
            self.lines_sent += len(batch)
            self.sink.write(self.group.frame(b"".join(batch)))

    def _go_live(self) -> None:
        self.mode = Mode.LIVE
        (self.group.telling if self._untold else self.group.live).add(self)


def with_missed(data: bytes, missed: int) -> bytes:
    """`data` with `"missed":n` put into its first line, behind the seq."""
    comma = data.index(b",")
    return b'%b,"missed":%d%b' % (data[:comma], missed, data[comma:])
