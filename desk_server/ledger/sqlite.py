"""The embedded ledger: one SQLite file, one thread that writes, one commit for all that waits.

While a commit syncs, the next batch gathers on the loop: many callers share one sync, and one change of threads.
One connection does all writing and checkpointing: SQLite before 3.51.3 can corrupt a write-ahead log that two
connections checkpoint or write at once (sqlite.org/wal.html). Readers have read-only connections of their own.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import queue
import sqlite3
import threading
from asyncio import Future
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from desk_server.events import AnyEvent, can_be_asked_again
from desk_server.ledger import DuplicateEvent, LedgerUnavailable, Stored
from desk_server.ledger.sqlite_file import Columns, Row, checked_rows, columns_of, connect, last_of, take, verify

log = logging.getLogger(__name__)

# One commit takes at most this many events, so that the loop is not blocked for long when it folds them.
BATCH_MAX = 500
# More events than this waiting for the disk: new ones are refused at once.
WAITING_MAX = 100_000
# How long events that need not be synced wait for one that must be.
_ALONE_S = 0.001
_INSERT = "INSERT INTO events (seq, at, kind, user, order_id, dedupe, body, hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
# After a sync has failed nobody knows what is on the disk, and a later sync may not tell the truth either.
_SYNC_FAILED = frozenset({"SQLITE_IOERR_FSYNC", "SQLITE_IOERR_DIR_FSYNC"})


class _Call(Struct, frozen=True):
    """One append: its events, the columns of their rows, whether the disk must have them, and who waits."""

    events: tuple[AnyEvent, ...]
    columns: list[Columns]
    must_sync: bool
    future: "Future[int]"


# What became of a call: the seq of its last event, or why it was not stored.
_Outcome = tuple[_Call, int | Exception]


class SqliteLedger:
    """A ledger in the SQLite file at `path`, made with its directory (0700) where missing; the file is 0600.

    Making one takes the file for this process and brings its tables up to date. Raises LedgerUnavailable, saying
    what to do, where another process has it, it is no desk's ledger, a newer desk's, or cannot be written.
    `commits` counts the transactions that stored something.
    """

    def __init__(self, path: Path, *, waiting_max: int = WAITING_MAX, batch_max: int = BATCH_MAX) -> None:
        self.path = path
        self.commits = 0
        self._waiting_max = waiting_max
        self._batch_max = batch_max
        # Events appended and not answered; counted on the loop only.
        self._waiting = 0
        # What the writer has not been given yet, and whether the disk must have any of it.
        self._gathered: deque[_Call] = deque()
        self._is_urgent = False
        # Whether this turn of the loop ends with a batch for the writer, or one comes within `_ALONE_S`.
        self._is_due = False
        self._is_timed = False
        # Whether the writer has one.
        self._is_writing = False
        # The writer is given one batch at a time, and None to end.
        self._batches: queue.SimpleQueue[list[_Call] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_committed: Callable[[Sequence[Stored]], None] | None = None
        self._closed = False
        # Why nothing can be appended any more, until a restart: the disk, or an event that could not be folded.
        self._broken = ""
        self._unfolded = ""
        # Whether a commit waits for the disk, as `connect` leaves it.
        self._syncs = True
        self._lock_fd = take(path)
        try:
            self._connection = connect(path)
        except BaseException:
            os.close(self._lock_fd)
            raise
        # Where the chain goes on: the last event's.
        self._seq, self._hash = last_of(self._connection)

    def open(self, on_committed: Callable[[Sequence[Stored]], None]) -> None:
        """Start the writer thread; see the protocol. Where `on_committed` raises, the ledger takes no more."""
        if self._thread is not None or self._closed:
            raise RuntimeError("a ledger is opened once")
        self._loop = asyncio.get_running_loop()
        self._on_committed = on_committed
        self._thread = threading.Thread(target=self._write, name="ledger", daemon=True)
        self._thread.start()

    def append(self, *events: AnyEvent) -> "Future[int]":
        """See the protocol. Call it on the loop that opened the ledger. Cancelling the future undoes nothing."""
        if self._loop is None:
            raise RuntimeError("open the ledger before appending to it")
        future: Future[int] = self._loop.create_future()
        if not events:
            raise ValueError("append needs at least one event")
        problem = self._problem(len(events))
        if problem:
            future.set_exception(LedgerUnavailable(problem))
            return future
        must_sync = not all([can_be_asked_again(event) for event in events])
        self._gathered.append(_Call(events, [columns_of(event) for event in events], must_sync, future))
        self._waiting += len(events)
        self._is_urgent = self._is_urgent or must_sync
        if not self._is_writing and (must_sync or len(self._gathered) == 1):
            self._hand_over_soon()
        return future

    def read(self, after: int = 0) -> Iterator[Stored]:
        """See the protocol; every event's hash is checked on the way. Works before `open` and beside appends."""
        yield from (Stored(row[0], event) for row, event in checked_rows(self.path, after))

    def verify(self) -> int | None:
        """The first seq whose row is missing, changed or unreadable; None when all is as it was written."""
        return verify(self.path)

    def problem(self) -> str:
        """Why nothing can be appended; "" when all is well, as far as the last commit showed."""
        return self._problem(0)

    async def close(self) -> None:
        """Commit what waits, copy the write-ahead log into the file, let go of it. Closing twice is harmless."""
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
        if self._broken or self._unfolded:
            return self._broken or self._unfolded
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

    def _next_batch(self) -> list[_Call]:
        batch: list[_Call] = []
        count = 0
        while self._gathered and count < self._batch_max:
            batch.append(call := self._gathered.popleft())
            count += len(call.events)
        self._is_urgent = bool(self._gathered)
        return batch

    # The writer thread

    def _write(self) -> None:
        for batch in iter(self._batches.get, None):
            self._tell(*self._store_safely(batch))
        self._let_go()

    def _store_safely(self, batch: list[_Call]) -> tuple[list[Stored], list[_Outcome]]:
        try:
            return self._store(batch)
        except Exception:
            # A bug, or no memory: whoever waits must hear of it, and nothing may be stored on top.
            log.critical("the ledger's writer failed", exc_info=True)
            self._broken = "the ledger's writer failed, see the log: restart the desk"
            self._roll_back()
            return [], [(call, LedgerUnavailable(self._broken)) for call in batch]

    def _store(self, batch: list[_Call]) -> tuple[list[Stored], list[_Outcome]]:
        if self._broken or self._unfolded:
            return [], [(call, LedgerUnavailable(self._broken or self._unfolded)) for call in batch]
        try:
            try:
                return self._commit(batch, self._insert_together)
            except sqlite3.IntegrityError:
                # Some event is a duplicate: only its own call may fail.
                self._roll_back()
                return self._commit(batch, self._insert_one_by_one)
        except sqlite3.Error as error:
            self._roll_back()
            return [], [(call, self._unavailable(error)) for call in batch]

    def _commit(
        self, batch: list[_Call], insert: "Callable[[list[_Call], _Chain], list[_Outcome]]"
    ) -> tuple[list[Stored], list[_Outcome]]:
        chain = _Chain(self._seq, self._hash)
        self._sync_next(any(call.must_sync for call in batch))
        self._connection.execute("BEGIN IMMEDIATE")
        outcomes = insert(batch, chain)
        self._connection.execute("COMMIT")
        self._seq, self._hash = chain.seq, chain.hash
        if chain.stored:
            self.commits += 1
        return chain.stored, outcomes

    def _sync_next(self, must: bool) -> None:
        """Choose whether the next commit waits for the disk; in the order of the file it is there in any case."""
        if must != self._syncs:
            self._connection.execute(f"PRAGMA synchronous={'FULL' if must else 'NORMAL'}")
            self._syncs = must

    def _insert_together(self, batch: list[_Call], chain: "_Chain") -> list[_Outcome]:
        outcomes: list[_Outcome] = []
        rows: list[Row] = []
        for call in batch:
            rows += chain.link(call)
            outcomes.append((call, chain.seq))
        self._connection.executemany(_INSERT, rows)
        return outcomes

    def _insert_one_by_one(self, batch: list[_Call], chain: "_Chain") -> list[_Outcome]:
        outcomes: list[_Outcome] = []
        for call in batch:
            mark = chain.mark()
            self._connection.execute("SAVEPOINT call")
            try:
                self._connection.executemany(_INSERT, chain.link(call))
            except sqlite3.IntegrityError as error:
                self._connection.execute("ROLLBACK TO call")
                chain.back_to(mark)
                outcomes.append((call, self._refusal(call, error)))
            else:
                outcomes.append((call, chain.seq))
            self._connection.execute("RELEASE call")
        return outcomes

    def _refusal(self, call: _Call, error: sqlite3.IntegrityError) -> Exception:
        if error.sqlite_errorname != "SQLITE_CONSTRAINT_UNIQUE":
            return self._unavailable(error)
        keys = ", ".join(columns[4] for columns in call.columns if columns[4])
        return DuplicateEvent(f"already stored: one of {keys}")

    def _unavailable(self, error: sqlite3.Error) -> LedgerUnavailable:
        name = getattr(error, "sqlite_errorname", "")
        if name in _SYNC_FAILED:
            self._broken = f"the disk failed to sync the ledger {self.path}: check the disk, then restart the desk"
        log.error("the ledger could not be written: %s (%s)", error, name or "no code")
        return LedgerUnavailable(
            self._broken
            or f"the ledger {self.path} cannot be written: {error}. Nothing was stored; free or mend the disk"
        )

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")

    def _tell(self, stored: list[Stored], outcomes: list[_Outcome]) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._answer, stored, outcomes)
        except RuntimeError:
            log.error("the loop is gone: %d stored events are folded at the next start", len(stored))

    def _let_go(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()
        os.close(self._lock_fd)

    # Back on the loop

    def _answer(self, stored: list[Stored], outcomes: list[_Outcome]) -> None:
        assert self._on_committed is not None
        self._is_writing = False
        if self._is_urgent:
            self._hand_over()
        elif self._gathered:
            self._hand_over_soon()
        self._waiting -= sum(len(call.events) for call, _ in outcomes)
        if stored and not self._unfolded:
            try:
                self._on_committed(stored)
            except Exception:
                # The book no longer equals the ledger: nothing may be built on it.
                self._unfolded = "an event was stored that the desk could not take in: restart the desk"
                log.critical(
                    "folding failed at an event between %d and %d", stored[0].seq, stored[-1].seq, exc_info=True
                )
        for call, outcome in outcomes:
            if call.future.done():
                continue
            if isinstance(outcome, Exception):
                call.future.set_exception(outcome)
            elif self._unfolded:
                call.future.set_exception(LedgerUnavailable(self._unfolded))
            else:
                call.future.set_result(outcome)


class _Chain:
    """Gives rows their seq and hash: each hash covers the one before and the event's body."""

    def __init__(self, seq: int, last_hash: bytes) -> None:
        self.seq = seq
        self.hash = last_hash
        self.stored: list[Stored] = []

    def link(self, call: _Call) -> list[Row]:
        rows: list[Row] = []
        for event, columns in zip(call.events, call.columns, strict=True):
            self.seq += 1
            self.hash = hashlib.sha256(self.hash + columns[5]).digest()
            rows.append((self.seq, *columns, self.hash))
            self.stored.append(Stored(self.seq, event))
        return rows

    def mark(self) -> tuple[int, bytes, int]:
        return self.seq, self.hash, len(self.stored)

    def back_to(self, mark: tuple[int, bytes, int]) -> None:
        self.seq, self.hash, count = mark
        del self.stored[count:]
