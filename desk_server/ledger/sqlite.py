"""The embedded ledger: one SQLite file, one thread that writes, one commit for all that waits.

One connection does all writing and checkpointing: SQLite before 3.51.3 can corrupt a write-ahead log that two
connections checkpoint or write at once (sqlite.org/wal.html). Readers have read-only connections of their own.

One desk at a time: the lock on a file beside it, which ends with the process that has it, keeps a second one out.
Each commit also finds its own mark in the file and the event that it stored last, and while the desk runs the
lock's file and the ledger's must be the ones that it opened: a desk whose lock was removed, or whose file was
exchanged under its feet, writes and sends nothing more.
"""

import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

from desk_server.ledger import LedgerUnavailable, Stored
from desk_server.ledger.chain import Chain, PostingRow, Row
from desk_server.ledger.group_commit import BATCH_MAX, WAITING_MAX, Call, Done, GroupCommit, Outcome, refused
from desk_server.ledger.holder import now_s
from desk_server.ledger.sqlite_file import (
    checked_rows,
    connect,
    insert,
    last_of,
    lock_of,
    take,
    verify,
)

log = logging.getLogger(__name__)

# After a sync has failed nobody knows what is on the disk, and a later sync may not tell the truth either.
_SYNC_FAILED = frozenset({"SQLITE_IOERR_FSYNC", "SQLITE_IOERR_DIR_FSYNC"})
# How long it is believed, without another look, that the files are the ones that were opened.
_BELIEVED_S = 0.01


class SqliteLedger(GroupCommit):
    """A ledger in the SQLite file at `path`, made with its directory (0700) where missing; the file is 0600.

    Making one takes the file for this process and brings its tables up to date. Raises LedgerUnavailable, saying
    what to do, where another process has it, it is no desk's ledger, a newer desk's, or cannot be written.
    """

    def __init__(self, path: Path, *, waiting_max: int = WAITING_MAX, batch_max: int = BATCH_MAX) -> None:
        super().__init__(waiting_max=waiting_max, batch_max=batch_max)
        self.path = path
        # Whether a commit waits for the disk, as `connect` leaves it.
        self._syncs = True
        self._mark = uuid4().hex
        self._lock_fd = take(path)
        try:
            self._connection = connect(path)
            self._take_over()
        except BaseException:
            os.close(self._lock_fd)
            raise
        self._files = self._seen_files()
        self._believed_until = 0.0

    def _take_over(self) -> None:
        try:
            self._connection.execute("UPDATE lease SET epoch = epoch + 1, holder = ?", (self._mark,))
            # Where the chain goes on: the last event's.
            self._seq, self._hash = last_of(self._connection)
        except sqlite3.Error as error:
            self._connection.close()
            raise LedgerUnavailable(f"the ledger {self.path} cannot be written: {error}") from error

    def read(self, after: int = 0) -> Iterator[Stored]:
        """See the protocol; every event's hash is checked on the way. Works before `open` and beside appends."""
        yield from (Stored(row[0], event) for row, event in checked_rows(self.path, after))

    def verify(self) -> int | None:
        """The first seq whose row is missing, changed or unreadable; None when all is as it was written."""
        return verify(self.path)

    def fenced(self) -> str:
        """See the protocol. The lock is this process's while it lives, unless somebody removes its file."""
        if self._lost or self._closed:
            return self._lost or "the ledger is closed: the desk is stopping"
        now = now_s()
        if now < self._believed_until:
            return ""
        if self._seen_files() != self._files:
            self._lose(
                f"{self.path} or its lock {lock_of(self.path).name} was removed or exchanged while this desk used it: "
                "end this desk, look what happened, then start one"
            )
        self._believed_until = now + _BELIEVED_S
        return self._lost

    def _seen_files(self) -> list[tuple[int, int]]:
        seen = []
        for path in (self.path, lock_of(self.path)):
            try:
                found = path.stat()
                seen.append((found.st_dev, found.st_ino))
            except OSError:
                seen.append((0, 0))
        return seen

    # The writer thread

    def _store(self, batch: list[Call]) -> Done:
        try:
            try:
                return self._commit(batch, self._insert_together)
            except sqlite3.IntegrityError:
                # Some event is a duplicate: only its own call may fail.
                self._abandon()
                return self._commit(batch, self._insert_one_by_one)
        except sqlite3.Error as error:
            self._abandon()
            return refused(batch, self._unavailable(error))

    def _commit(self, batch: list[Call], insert_all: Callable[[list[Call], Chain], list[Outcome]]) -> Done:
        chain = Chain(self._seq, self._hash)
        self._sync_next(any([call.must_sync for call in batch]))
        self._connection.execute("BEGIN IMMEDIATE")
        if not self._is_ours():
            self._abandon()
            return refused(batch, LedgerUnavailable(self._lost))
        outcomes = insert_all(batch, chain)
        self._connection.execute("COMMIT")
        self._seq, self._hash = chain.seq, chain.hash
        if chain.stored:
            self.commits += 1
        return chain.stored, outcomes

    def _is_ours(self) -> bool:
        row = self._connection.execute("SELECT holder, (SELECT max(seq) FROM events) FROM lease").fetchone()
        if row == (self._mark, self._seq or None):
            return True
        self._lose(
            f"{self.path} was written by another desk, or exchanged, while this desk used it: "
            "end this desk, look what happened, then start one"
        )
        return False

    def _sync_next(self, must: bool) -> None:
        """Choose whether the next commit waits for the disk; in the order of the file it is there in any case."""
        if must != self._syncs:
            self._connection.execute(f"PRAGMA synchronous={'FULL' if must else 'NORMAL'}")
            self._syncs = must

    def _insert_together(self, batch: list[Call], chain: Chain) -> list[Outcome]:
        outcomes: list[Outcome] = []
        rows: list[Row] = []
        moved: list[PostingRow] = []
        for call in batch:
            more_rows, more_moved = call.rows(chain)
            rows += more_rows
            moved += more_moved
            outcomes.append((call, chain.seq))
        insert(self._connection, rows, moved)
        return outcomes

    def _insert_one_by_one(self, batch: list[Call], chain: Chain) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for call in batch:
            mark = chain.mark()
            self._connection.execute("SAVEPOINT call")
            try:
                insert(self._connection, *call.rows(chain))
            except sqlite3.IntegrityError as error:
                self._connection.execute("ROLLBACK TO call")
                chain.back_to(mark)
                is_double = error.sqlite_errorname == "SQLITE_CONSTRAINT_UNIQUE"
                outcomes.append((call, call.duplicate() if is_double else self._unavailable(error)))
            else:
                outcomes.append((call, chain.seq))
            self._connection.execute("RELEASE call")
        return outcomes

    def _unavailable(self, error: sqlite3.Error) -> LedgerUnavailable:
        name = getattr(error, "sqlite_errorname", "")
        if name in _SYNC_FAILED:
            self._broken = f"the disk failed to sync the ledger {self.path}: check the disk, then restart the desk"
        log.error("the ledger could not be written: %s (%s)", error, name or "no code")
        return LedgerUnavailable(
            self._broken
            or f"the ledger {self.path} cannot be written: {error}. Nothing was stored; free or mend the disk"
        )

    def _abandon(self) -> None:
        if self._connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")

    def _let_go(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()
        os.close(self._lock_fd)
