"""The lines of late, for readers who come back or fell behind: in memory as far as it goes, then from the tape."""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from itertools import islice

import msgspec
import structlog
from msgspec import Struct

from desk_server.subscriptions import Line, Symbols
from desk_server.tape import Tape

log = structlog.get_logger()

# Of these a reader who cannot keep up gets the newest one only.
CONFLATED = frozenset({"quote", "trade"})
# Of all other types a reader who cannot keep up gets this many at most.
_KEPT_PER_READER = 4096
_KEPT_LINES = 4 * _KEPT_PER_READER
_PIECE_LINES = 512


class _SymbolOnly(Struct, gc=False):
    symbol: str


_symbol = msgspec.json.Decoder(_SymbolOnly)


class Recent:
    """The source of subscriptions: see subscriptions.Source. Holds `lines_kept` lines, and the newest of each kind."""

    def __init__(self, tape: Tape, lines_kept: int) -> None:
        self.delivered_seq = 0
        self._tape = tape
        self._ring: list[Line | None] = [None] * lines_kept
        self._ring_first = 1
        self._newest: dict[tuple[str, str], Line] = {}
        self._kept: deque[Line] = deque(maxlen=_KEPT_LINES)
        self._counts: defaultdict[str, int] = defaultdict(int)
        self._count = 0

    @property
    def first_seq(self) -> int:
        """The oldest line that can be had."""
        return min(self._tape.first_seq, self._ring_first)

    def add(self, batch: list[Line]) -> None:
        """Lines that are delivered now, in order of seq; a gap before the first is allowed."""
        size = len(self._ring)
        if batch[0].seq != self.delivered_seq + 1:
            self._ring_first = batch[0].seq
        for line in batch:
            self._ring[line.seq % size] = line
            self._counts[line.symbol] += 1
            if line.kind in CONFLATED:
                self._newest[line.symbol, line.kind] = line
            else:
                self._kept.append(line)
        self._count += len(batch)
        self.delivered_seq = batch[-1].seq
        self._ring_first = max(self._ring_first, self.delivered_seq - size + 1)

    def skip_to(self, seq: int) -> None:
        """There are no lines between the last one and `seq`, which counts as delivered."""
        if seq != self.delivered_seq:
            self._ring_first = seq + 1
        self.delivered_seq = seq

    def count(self, symbols: Symbols) -> int:
        return self._count if symbols is None else sum(self._counts.get(symbol, 0) for symbol in symbols)

    def waiting(self, after: int, symbols: Symbols) -> int:
        if symbols is None:
            return self.delivered_seq - after
        start = max(after, self._ring_first - 1)
        return start - after + sum(1 for line in self._in_ring(start) if line.symbol in symbols)

    def piece(self, after: int, symbols: Symbols) -> tuple[list[Line], int, int]:
        if after + 1 < self._ring_first:
            return self._piece_of_tape(after, symbols)
        lines = list(islice(self._in_ring(after), _PIECE_LINES))
        return select(lines, symbols), lines[-1].seq if lines else after, 0

    def newest(self, after: int, symbols: Symbols) -> list[Line]:
        lines = [line for line in self._newest.values() if line.seq > after]
        for line in reversed(self._kept):
            if line.seq <= after:
                break
            lines.append(line)
        lines = sorted(select(lines, symbols), key=lambda line: line.seq)
        surplus = sum(1 for line in lines if line.kind not in CONFLATED) - _KEPT_PER_READER
        if surplus > 0:
            oldest = set(islice((line.seq for line in lines if line.kind not in CONFLATED), surplus))
            lines = [line for line in lines if line.seq not in oldest]
        return lines

    def _in_ring(self, after: int) -> Iterator[Line]:
        ring, size = self._ring, len(self._ring)
        for seq in range(max(after + 1, self._ring_first), self.delivered_seq + 1):
            line = ring[seq % size]
            assert line is not None
            yield line

    def _piece_of_tape(self, after: int, symbols: Symbols) -> tuple[list[Line], int, int]:
        try:
            piece = self._tape.read(after)
        except (OSError, ValueError) as error:
            log.error("tape_read_failed", error=str(error), after=after)
            piece = None
        if piece is None or piece.first > max(self._ring_first, after + 1):
            return [], self._ring_first - 1, self._ring_first - 1 - after
        lines = [
            Line(seq, "" if symbols is None else _symbol.decode(data).symbol, "", data)
            for seq, data in enumerate(piece.data.splitlines(keepends=True), piece.first)
            if seq > after
        ]
        return select(lines, symbols), piece.last, piece.first - 1 - after


def select(lines: Iterable[Line], symbols: Symbols) -> list[Line]:
    return list(lines) if symbols is None else [line for line in lines if line.symbol in symbols]
