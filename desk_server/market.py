"""The hub: one feed in, many strategies out, the tape on disk. docs/market-lines.md is its contract.

A line is validated, numbered, and shown to the taps as soon as it is published; lines of the same turn of the
event loop are then written to the tape together, and delivered together.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import islice

import msgspec
import structlog
from msgspec import Struct

from desk_server.clock import Clock
from desk_server.domain import Quote, Symbol
from desk_server.lines import BadLine, Head, decode_head, parse
from desk_server.sinks import BUFFERED_BYTES_LOW, QueueSink, Sink
from desk_server.subscriptions import Group, Line, Mode, Subscription, Symbols, select
from desk_server.tape import Tape, TapeError, seq_of

log = structlog.get_logger()

KEEP_ALIVE_S = 15.0
# Only these types of line say what a symbol is worth now.
PRICED = frozenset({"quote", "trade", "bar"})
# Of these a reader who cannot keep up gets the newest one only.
CONFLATED = frozenset({"quote", "trade"})
# A trade or a bar keeps the bid and ask of a quote that is no older than this, in market time.
QUOTE_KEPT = timedelta(seconds=60)
# Of all other types a reader who cannot keep up gets this many at most.
_KEPT_PER_READER = 4096
_KEPT_LINES = 4 * _KEPT_PER_READER
# What publishers may pile up within one turn of the loop.
_BATCH_LINES_MAX = 1000
_BATCH_BYTES_MAX = 128 * 2**10
_PIECE_LINES = 512
_BAD_LOG_S = 60.0
_NEVER_S = float("-inf")

Tap = Callable[[Quote], None]


class _Quoted(Struct, frozen=True, gc=False):
    bid: Decimal | None
    ask: Decimal | None
    bid_size: Decimal | None
    ask_size: Decimal | None
    at: datetime


class _SymbolOnly(Struct, gc=False):
    symbol: str


_symbol = msgspec.json.Decoder(_SymbolOnly)


class Hub:
    """Lives on one event loop; publish and subscribe are called on it."""

    def __init__(self, tape: Tape, clock: Clock, lines_kept: int, keep_alive_s: float = KEEP_ALIVE_S) -> None:
        self.last_at: datetime | None = None
        self.last_seq = tape.last_seq
        self.bad_lines = 0
        self.taps: list[Tap] = []
        self.subscriptions: set[Subscription] = set()
        self.delivered_seq = tape.last_seq
        self._tape = tape
        self._clock = clock
        self._ring: list[Line | None] = [None] * lines_kept
        self._ring_first = tape.last_seq + 1
        self._quotes: dict[Symbol, Quote] = {}
        self._quoted: dict[Symbol, _Quoted] = {}
        self._newest: dict[tuple[str, str], Line] = {}
        self._kept: deque[Line] = deque(maxlen=_KEPT_LINES)
        self._counts: defaultdict[str, int] = defaultdict(int)
        self._delivered = 0
        self._batch: list[Line] = []
        self._batch_bytes = 0
        self._scheduled = False
        self._groups: dict[tuple[Symbols, Callable[[bytes], bytes]], Group] = {}
        self._by_symbol: dict[str, list[Group]] = {}
        self._for_all: list[Group] = []
        self._keep_alive_s = keep_alive_s
        self._timer: asyncio.TimerHandle | None = None
        self._bad_logged_s = _NEVER_S
        self._refill()

    # Publishing

    def publish(self, line: bytes) -> int:
        """Number a feed's line and send it on its way; its seq, or 0 for a bad line, which is dropped.

        The quote and the taps have it when this returns; the tape and the subscribers within this turn of the loop.
        """
        line = line.strip()
        try:
            head = parse(line)
        except BadLine as error:
            self._drop(line, error)
            return 0
        self.last_seq = seq = self.last_seq + 1
        if self.last_at is None or head.timestamp > self.last_at:
            self.last_at = head.timestamp
        numbered = b'{"seq":%d,%b\n' % (seq, line[1:].lstrip())
        self._batch.append(Line(seq, head.symbol, head.type, numbered))
        self._batch_bytes += len(numbered)
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)
        if head.type in PRICED:
            quote = self._price(head, seq, self._clock.monotonic_s())
            if quote is not None:
                for tap in self.taps:
                    tap(quote)
        if len(self._batch) >= _BATCH_LINES_MAX or self._batch_bytes >= _BATCH_BYTES_MAX:
            self._deliver()
        return seq

    def latest(self, symbol: Symbol) -> Quote | None:
        return self._quotes.get(symbol)

    def quotes(self) -> dict[Symbol, Quote]:
        """The newest quote of every symbol seen. Those from before a restart were received at minus infinity."""
        return dict(self._quotes)

    def problem(self) -> str:
        return self._tape.problem()

    # Subscribing

    def subscribe(self, symbols: Symbols, after: int | None, sink: Sink) -> Subscription:
        """Send lines of these symbols (None: all) to `sink`: those behind `after` first, without one from now on.

        An `after` beyond the newest line means from now on, too.
        """
        self._deliver()
        group = self._join(symbols, sink)
        subscription = Subscription(self, group, sink, self._start(after), connected_at=self._clock.now())
        self.subscriptions.add(subscription)
        subscription.resume()
        if self._timer is None:
            self._tick()
        return subscription

    def first_seq(self, after: int | None) -> int:
        """The seq that a subscription made now would begin with at the earliest."""
        self._deliver()
        return max(self._start(after) + 1, min(self._tape.first_seq, self._ring_first))

    async def lines(self, symbols: Symbols, after: int | None) -> AsyncIterator[tuple[int, bytes]]:
        """(seq, line without its newline), within the same bounds as any subscription; ends when the hub closes."""
        sink = QueueSink()
        subscription = self.subscribe(symbols, after, sink)
        try:
            async for line in sink.lines():
                yield seq_of(line), line
        finally:
            subscription.close("the reader has gone")

    def close(self) -> None:
        """Deliver what waits, end all subscriptions in good order, let go of the tape."""
        self._deliver()
        for subscription in list(self.subscriptions):
            subscription.close("the desk is stopping")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._tape.close()

    # What subscriptions ask for: see subscriptions.Source

    def count(self, symbols: Symbols) -> int:
        return self._delivered if symbols is None else sum(self._counts.get(symbol, 0) for symbol in symbols)

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

    def soon(self, call: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_soon(call)

    def dropped(self, subscription: Subscription, reason: str) -> None:
        self.subscriptions.discard(subscription)
        self._leave(subscription.group)
        log.debug("subscription_closed", reason=reason, sent=subscription.lines_sent, missed=subscription.missed)

    # Below: the way of a line, in order

    def _drop(self, line: bytes, error: BadLine) -> None:
        self.bad_lines += 1
        now_s = self._clock.monotonic_s()
        if now_s - self._bad_logged_s >= _BAD_LOG_S:
            self._bad_logged_s = now_s
            log.warning("bad_line_dropped", error=str(error), line=repr(line[:200]), dropped_so_far=self.bad_lines)

    def _price(self, head: Head, seq: int, received_s: float) -> Quote | None:
        """The symbol's new quote; None for a line older than the one there, which changes nothing."""
        symbol = Symbol(head.symbol)
        old = self._quotes.get(symbol)
        if old is not None and head.timestamp < old.at:
            return None
        if head.type == "quote" or head.bid is not None or head.ask is not None:
            quoted = _Quoted(head.bid or None, head.ask or None, head.bid_size, head.ask_size, head.timestamp)
            self._quoted[symbol] = quoted
        else:
            last = self._quoted.get(symbol)
            fresh = last is not None and last.at >= head.timestamp - QUOTE_KEPT
            quoted = last if last is not None and fresh else _Quoted(None, None, None, None, head.timestamp)
        quote = Quote(
            symbol=symbol,
            price=head.price,
            bid=quoted.bid,
            ask=quoted.ask,
            at=head.timestamp,
            seq=seq,
            received_s=received_s,
            kind=head.type,
            bid_size=quoted.bid_size,
            ask_size=quoted.ask_size,
        )
        self._quotes[symbol] = quote
        return quote

    def _flush(self) -> None:
        self._scheduled = False
        self._deliver()

    def _deliver(self) -> None:
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        if not batch:
            return
        data = b"".join([line.data for line in batch])
        last = batch[-1].seq
        self._tape.append(batch[0].seq, last, data)
        touched = self._sort(batch)
        self._delivered += len(batch)
        self.delivered_seq = last
        now_s = self._clock.monotonic_s()
        for group in self._for_all:
            group.write(data, len(batch), last, now_s)
        for group in touched:
            lines, group.lines = group.lines, []
            group.write(b"".join(lines), len(lines), last, now_s)

    def _sort(self, batch: list[Line]) -> list[Group]:
        """Keep the lines for those who come later; hand them to the groups of their symbols."""
        ring, size = self._ring, len(self._ring)
        touched = []
        for line in batch:
            self._keep(line, ring, size)
            self._counts[line.symbol] += 1
            for group in self._by_symbol.get(line.symbol, ()):
                if not group.lines:
                    touched.append(group)
                group.lines.append(line.data)
        self._ring_first = max(self._ring_first, batch[-1].seq - size + 1)
        return touched

    def _keep(self, line: Line, ring: list[Line | None], size: int) -> None:
        ring[line.seq % size] = line
        if line.kind in CONFLATED:
            self._newest[line.symbol, line.kind] = line
        else:
            self._kept.append(line)

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

    # Groups, keep-alive, restart

    def _start(self, after: int | None) -> int:
        return self.delivered_seq if after is None else min(max(after, 0), self.delivered_seq)

    def _join(self, symbols: Symbols, sink: Sink) -> Group:
        key = (symbols, type(sink).frame)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(*key)
            group.written_s = self._clock.monotonic_s()
            if symbols is None:
                self._for_all.append(group)
            for symbol in symbols or ():
                self._by_symbol.setdefault(symbol, []).append(group)
        group.members += 1
        return group

    def _leave(self, group: Group) -> None:
        group.members -= 1
        if group.members == 0:
            del self._groups[group.symbols, group.frame]
            if group.symbols is None:
                self._for_all.remove(group)
            for symbol in group.symbols or ():
                self._by_symbol[symbol].remove(group)
                if not self._by_symbol[symbol]:
                    del self._by_symbol[symbol]

    def _tick(self) -> None:
        """Keep silent connections alive; give those a push whose sink did not say that it has room again."""
        now_s = self._clock.monotonic_s()
        for group in list(self._groups.values()):
            if now_s - group.written_s >= self._keep_alive_s:
                group.write(b"\n", 0, 0, now_s)
        for subscription in self.subscriptions:
            if subscription.mode is not Mode.LIVE and subscription.buffered <= BUFFERED_BYTES_LOW:
                subscription.resume()
        self._timer = asyncio.get_running_loop().call_later(self._keep_alive_s / 15, self._tick)

    def _refill(self) -> None:
        """Take up where the last run ended. Its quotes are shown, but too old to trade on."""
        expected = 0
        try:
            for data in self._tape.tail(len(self._ring)):
                line = self._remember(data)
                if line.seq != expected:
                    self._ring_first = line.seq
                expected = line.seq + 1
        except (OSError, ValueError) as error:
            raise TapeError(f"The tape is damaged near line {expected}: {error}. Move the directory away.") from error
        if expected != self.last_seq + 1:
            self._ring_first = self.last_seq + 1

    def _remember(self, data: bytes) -> Line:
        head = decode_head(data)
        line = Line(seq_of(data), head.symbol, head.type, data)
        self._keep(line, self._ring, len(self._ring))
        if self.last_at is None or head.timestamp > self.last_at:
            self.last_at = head.timestamp
        if head.type in PRICED:
            self._price(head, line.seq, _NEVER_S)
        return line
