"""The hub: one feed in, many strategies out, the tape on disk. docs/market-lines.md is its contract.

A line is validated, numbered, and shown to the taps as soon as it is published; lines of the same turn of the
event loop are then written to the tape together, and delivered together.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import datetime

import structlog

from desk_server.clock import Clock
from desk_server.domain import Quote, Symbol
from desk_server.lines import BadLine, decode_head, parse
from desk_server.quotes import Quotes
from desk_server.recent import Recent
from desk_server.sinks import BUFFERED_BYTES_LOW, QueueSink, Sink
from desk_server.subscriptions import Group, Line, Mode, Subscription, Symbols
from desk_server.tape import Tape, TapeError, seq_of

log = structlog.get_logger()

KEEP_ALIVE_S = 15.0
# What publishers may pile up within one turn of the loop.
_BATCH_LINES_MAX = 1000
_BATCH_BYTES_MAX = 128 * 2**10
_BAD_LOG_S = 60.0
_NEVER_S = float("-inf")

Tap = Callable[[Quote], None]


class Hub:
    """Lives on one event loop; publish and subscribe are called on it."""

    def __init__(self, tape: Tape, clock: Clock, lines_kept: int, keep_alive_s: float = KEEP_ALIVE_S) -> None:
        self.last_at: datetime | None = None
        self.last_seq = tape.last_seq
        self.bad_lines = 0
        self.taps: list[Tap] = []
        self.subscriptions: set[Subscription] = set()
        self._tape = tape
        self._clock = clock
        self._recent = Recent(tape, lines_kept)
        self._quotes = Quotes()
        self._batch: list[Line] = []
        self._batch_bytes = 0
        self._scheduled = False
        self._groups: dict[tuple[Symbols, Callable[[bytes], bytes]], Group] = {}
        self._by_symbol: dict[str, list[Group]] = {}
        self._for_all: list[Group] = []
        self._keep_alive_s = keep_alive_s
        self._timer: asyncio.TimerHandle | None = None
        self._bad_logged_s = _NEVER_S
        self._take_up(lines_kept)

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
        quote = self._quotes.take(head, seq, self._clock.monotonic_s())
        if quote is not None:
            for tap in self.taps:
                tap(quote)
        if len(self._batch) >= _BATCH_LINES_MAX or self._batch_bytes >= _BATCH_BYTES_MAX:
            self._deliver()
        return seq

    def latest(self, symbol: Symbol) -> Quote | None:
        return self._quotes.latest(symbol)

    def quotes(self) -> dict[Symbol, Quote]:
        """The newest quote of every symbol seen. Those from before a restart were received at minus infinity."""
        return self._quotes.all()

    def problem(self) -> str:
        return self._tape.problem()

    # Subscribing

    def subscribe(self, symbols: Symbols, after: int | None, sink: Sink) -> Subscription:
        """Send lines of these symbols (None: all) to `sink`: those behind `after` first, without one from now on.

        An `after` beyond the newest line means from now on, too.
        """
        self._deliver()
        group = self._join(symbols, sink)
        subscription = Subscription(
            self._recent, group, sink, self._start(after), connected_at=self._clock.now(), on_close=self._forget
        )
        self.subscriptions.add(subscription)
        subscription.resume()
        if self._timer is None:
            self._tick()
        return subscription

    def first_seq(self, after: int | None) -> int:
        """The seq that a subscription made now would begin with at the earliest."""
        self._deliver()
        return max(self._start(after) + 1, self._recent.first_seq)

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

    # Below: the way of a line, in order

    def _drop(self, line: bytes, error: BadLine) -> None:
        self.bad_lines += 1
        now_s = self._clock.monotonic_s()
        if now_s - self._bad_logged_s >= _BAD_LOG_S:
            self._bad_logged_s = now_s
            log.warning("bad_line_dropped", error=str(error), line=repr(line[:200]), dropped_so_far=self.bad_lines)

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
        self._recent.add(batch)
        now_s = self._clock.monotonic_s()
        for group in self._for_all:
            group.write(data, len(batch), last, now_s)
        for group in self._sorted(batch):
            lines, group.lines = group.lines, []
            group.write(b"".join(lines), len(lines), last, now_s)

    def _sorted(self, batch: list[Line]) -> list[Group]:
        """The groups that want some of the lines, with these lines."""
        touched = []
        for line in batch:
            for group in self._by_symbol.get(line.symbol, ()):
                if not group.lines:
                    touched.append(group)
                group.lines.append(line.data)
        return touched

    # Groups, keep-alive, restart

    def _start(self, after: int | None) -> int:
        newest = self._recent.delivered_seq
        return newest if after is None else min(max(after, 0), newest)

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

    def _forget(self, subscription: Subscription, reason: str) -> None:
        self.subscriptions.discard(subscription)
        self._leave(subscription.group)
        log.debug("subscription_closed", reason=reason, sent=subscription.lines_sent, missed=subscription.missed)

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

    def _take_up(self, lines_kept: int) -> None:
        """Go on where the last run ended. Its quotes are shown, but too old to trade on."""
        seq = 0
        try:
            for data in self._tape.tail(lines_kept):
                seq = seq_of(data)
                head = decode_head(data)
                self._recent.add([Line(seq, head.symbol, head.type, data)])
                self._quotes.take(head, seq, _NEVER_S)
                if self.last_at is None or head.timestamp > self.last_at:
                    self.last_at = head.timestamp
        except (OSError, ValueError) as error:
            raise TapeError(f"The tape is damaged behind line {seq}: {error}. Move its directory away.") from error
        self._recent.skip_to(self.last_seq)
