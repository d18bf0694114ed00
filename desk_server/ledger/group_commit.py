"""Many callers, one commit: what both ledgers do alike between an append on the loop and a store by a thread.

While a commit syncs, the next batch gathers on the loop: many callers share one sync, and one change of threads.
"""

import asyncio
import logging
import queue
import threading
from abc import ABC, abstractmethod
from asyncio import Future
from collections import deque
from collections.abc import Callable, Sequence

from msgspec import Struct

from desk_server.events import AnyEvent, can_be_asked_again
from desk_server.ledger import DuplicateEvent, LedgerUnavailable, Stored
from desk_server.ledger.chain import Chain, Columns, PostingRow, Row, columns_of, posting_rows
from desk_server.postings import Posting, postings

log = logging.getLogger(__name__)

# One commit takes at most this many events, so that the loop is not blocked for long when it folds them.
BATCH_MAX = 500
# More events than this waiting for the disk: new ones are refused at once.
WAITING_MAX = 100_000
# How long events that need not be synced wait for one that must be.
_ALONE_S = 0.001


class Call(Struct, frozen=True):
    """One append: its events, the columns of their rows, what they move (by place), whether the disk must have
    them, and who waits."""

    events: tuple[AnyEvent, ...]
    columns: list[Columns]
    entries: list[tuple[int, tuple[Posting, ...]]]
    must_sync: bool
    future: "Future[int]"
    # The hash before it and its rows, if all that was appended before it is stored as was foreseen.
    foreseen: tuple[bytes, list[Row]] | None

    def rows(self, chain: Chain) -> tuple[list[Row], list[PostingRow]]:
        """As they follow on the chain, which goes on behind them."""
        before = chain.seq
        if self.foreseen is not None and self.foreseen[0] == chain.hash:
            rows = chain.follow(self.events, self.foreseen[1])
        else:
            rows = [chain.link(event, columns) for event, columns in zip(self.events, self.columns, strict=True)]
        if not self.entries:
            return rows, []
        return rows, [row for place, entry in self.entries for row in posting_rows(before + 1 + place, entry)]

    def duplicate(self) -> DuplicateEvent:
        return DuplicateEvent(f"already stored: one of {', '.join(self.dedupe_keys())}")

    def dedupe_keys(self) -> list[str]:
        return [columns[4] for columns in self.columns if columns[4]]


# What became of a call: the seq of its last event, or why it was not stored.
Outcome = tuple[Call, int | Exception]
Done = tuple[list[Stored], list[Outcome]]


def refused(batch: Sequence[Call], why: LedgerUnavailable) -> Done:
    return [], [(call, why) for call in batch]


class GroupCommit(ABC):
    """The half of a ledger that gathers, hands over to its writer thread, and answers.

    `commits` counts the transactions that stored something.
    """

    # Where the chain goes on: the last event's. The writer's own, but while it has nothing to do.
    _seq: int
    _hash: bytes

    def __init__(self, *, waiting_max: int, batch_max: int) -> None:
        self.commits = 0
        self._waiting_max = waiting_max
        self._batch_max = batch_max
        # Events appended and not answered; counted on the loop only.
        self._waiting = 0
        # What the writer has not been given yet, and whether the disk must have any of it.
        self._gathered: deque[Call] = deque()
        self._is_urgent = False
        # Where the chain will go on when all that was appended is stored, as is foreseen until something is not:
        # rows are made on the loop, which has what they are made of at hand, and not by the writer.
        self._tail: Chain | None = None
        # Whether this turn of the loop ends with a batch for the writer, or one comes within `_ALONE_S`.
        self._is_due = False
        self._is_timed = False
        # Whether the writer has one.
        self._is_writing = False
        # The writer is given one batch at a time, and None to end.
        self._batches: queue.SimpleQueue[list[Call] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_committed: Callable[[Sequence[Stored]], None] | None = None
        self._on_lost: Callable[[str], None] | None = None
        self._closed = False
        # Why nothing can be appended: for the moment; until a restart, as the disk or an event that could not be
        # folded wants it; for ever, because another process has the ledger.
        self._interrupted = ""
        self._broken = ""
        self._unfolded = ""
        self._lost = ""
        self._lost_lock = threading.Lock()

    @abstractmethod
    def _store(self, batch: list[Call]) -> Done:
        """In the writer thread: store each call whole or not at all. What can be foreseen is an outcome."""

    @abstractmethod
    def _abandon(self) -> None:
        """In the writer thread: undo what a `_store` that raised has left open."""

    @abstractmethod
    def _let_go(self) -> None:
        """The last thing done with the ledger, in the writer thread if there is one. Raises nothing."""

    def open(
        self, on_committed: Callable[[Sequence[Stored]], None], on_lost: Callable[[str], None] = log.critical
    ) -> None:
        """Start the writer thread; see the protocol. Where `on_committed` raises, the ledger takes no more."""
        if self._thread is not None or self._closed:
            raise RuntimeError("a ledger is opened once")
        with self._lost_lock:
            if self._lost:
                raise LedgerUnavailable(self._lost)
            self._loop = asyncio.get_running_loop()
            self._on_committed, self._on_lost = on_committed, on_lost
        self._thread = threading.Thread(target=self._write, name="ledger", daemon=True)
        self._thread.start()

    def append(self, *events: AnyEvent) -> "Future[int]":
        """See the protocol. Call it on the loop that opened the ledger. Cancelling the future undoes nothing.

        Raises ValueError for no events, and for one that moves something without saying whose it is.
        """
        if self._loop is None:
            raise RuntimeError("open the ledger before appending to it")
        if not events:
            raise ValueError("append needs at least one event")
        future: Future[int] = self._loop.create_future()
        problem = self._problem(len(events))
        if problem:
            future.set_exception(LedgerUnavailable(problem))
            return future
        must_sync, columns, entries = False, [], []
        for place, event in enumerate(events):
            must_sync = must_sync or not can_be_asked_again(event)
            columns.append(columns_of(event))
            if entry := postings(event):
                entries.append((place, entry))
        if self._tail is None and not self._is_writing and not self._gathered:
            self._tail = Chain(self._seq, self._hash)
        foreseen = None
        if self._tail is not None:
            foreseen = self._tail.hash, [self._tail.row(each) for each in columns]
        self._gathered.append(Call(events, columns, entries, must_sync, future, foreseen))
        self._waiting += len(events)
        self._is_urgent = self._is_urgent or must_sync
        if not self._is_writing and (must_sync or len(self._gathered) == 1):
            self._hand_over_soon()
        return future

    def problem(self) -> str:
        """See the protocol."""
        return self._problem(0)

    async def close(self) -> None:
        """Commit what waits, let go of the ledger. Closing twice is harmless."""
        if self._closed:
            return
        self._closed = True
        if self._thread is not None:
            while self._gathered:
                self._batches.put(self._next_batch())
            self._batches.put(None)
            await asyncio.to_thread(self._thread.join)
        else:
            self._let_go()

    def _problem(self, count: int) -> str:
        if self._closed:
            return "the ledger is closed: the desk is stopping"
        if why := self._lost or self._broken or self._unfolded or self._interrupted:
            return why
        if self._waiting + count > self._waiting_max:
            return f"{self._waiting} events wait for the disk, which cannot keep up: try again later"
        return ""

    # On the loop: batches for the writer

    def _hand_over_soon(self) -> None:
        """When this turn of the loop is over; what need not be synced waits a moment longer, for what must be."""
        assert self._loop is not None
        if self._is_urgent and not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._hand_over)
        elif not self._is_urgent and not self._is_timed:
            self._is_timed = True
            self._loop.call_later(_ALONE_S, self._hand_over_alone)

    def _hand_over_alone(self) -> None:
        self._is_timed = False
        self._hand_over()

    def _hand_over(self) -> None:
        self._is_due = False
        if self._gathered and not self._is_writing:
            self._is_writing = True
            self._batches.put(self._next_batch())

    def _next_batch(self) -> list[Call]:
        batch: list[Call] = []
        count = 0
        while self._gathered and count < self._batch_max:
            batch.append(call := self._gathered.popleft())
            count += len(call.events)
        self._is_urgent = bool(self._gathered)
        return batch

    def _refuse_gathered(self, why: str) -> None:
        """What the writer was not given is surely not stored."""
        refused_calls = list(self._gathered)
        self._gathered.clear()
        self._is_urgent = False
        self._answer_calls([(call, LedgerUnavailable(why)) for call in refused_calls])

    # The writer thread

    def _write(self) -> None:
        for batch in iter(self._batches.get, None):
            self._tell(*self._store_safely(batch))
        self._let_go()

    def _store_safely(self, batch: list[Call]) -> Done:
        if why := self._lost or self._broken or self._unfolded:
            return refused(batch, LedgerUnavailable(why))
        try:
            return self._store(batch)
        except Exception:
            # A bug, or no memory: whoever waits must hear of it, and nothing may be stored on top.
            log.critical("the ledger's writer failed", exc_info=True)
            self._broken = "the ledger's writer failed, see the log: restart the desk"
            self._abandon()
            return refused(batch, LedgerUnavailable(self._broken))

    def _tell(self, stored: list[Stored], outcomes: list[Outcome]) -> None:
        if not self._on_loop(self._answer, stored, outcomes):
            log.error("the loop is gone: %d stored events are folded at the next start", len(stored))

    # Any thread

    def _on_loop(self, call: Callable[..., object], *arguments: object) -> bool:
        """False where there is no loop (any more)."""
        try:
            if self._loop is None:
                return False
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            return False
        return True

    def _lose(self, why: str) -> None:
        """Another process has the ledger, or may have it: this one writes and sends nothing any more."""
        with self._lost_lock:
            if self._lost:
                return
            self._lost = why
        log.critical("the ledger is lost: %s", why)
        if self._on_lost is not None:
            self._on_loop(self._on_lost, why)

    # Back on the loop

    def _answer(self, stored: list[Stored], outcomes: list[Outcome]) -> None:
        assert self._on_committed is not None
        self._is_writing = False
        if self._is_urgent:
            self._hand_over()
        elif self._gathered:
            self._hand_over_soon()
        if stored and not self._unfolded:
            try:
                self._on_committed(stored)
            except Exception:
                # The book no longer equals the ledger: nothing may be built on it.
                self._unfolded = "an event was stored that the desk could not take in: restart the desk"
                log.critical(
                    "folding failed at an event between %d and %d", stored[0].seq, stored[-1].seq, exc_info=True
                )
        self._answer_calls(outcomes)

    def _answer_calls(self, outcomes: list[Outcome]) -> None:
        for call, outcome in outcomes:
            self._waiting -= len(call.events)
            future = call.future
            if future.done():
                self._tail = None
                continue
            if isinstance(outcome, Exception):
                self._tail = None
                future.set_exception(outcome)
            elif self._unfolded:
                future.set_exception(LedgerUnavailable(self._unfolded))
            else:
                future.set_result(outcome)
