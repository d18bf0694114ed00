"""What is done to a ledger besides running a desk on it: checking it, backing it up, restoring it, moving it.

A place is a SQLite file or the address of a PostgreSQL database. A backup is a SQLite ledger in one file, whatever
it was made of, so that a ledger moves between the two by a backup and a restore.
"""

import contextlib
import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
from msgspec import Struct

from desk_server.ledger import LedgerUnavailable, postgres_file, sqlite_file
from desk_server.ledger.chain import (
    START_HASH,
    Damaged,
    Entries,
    PostingRow,
    Reader,
    Row,
    checked_rows,
    columns_of,
    posting_rows,
    says_its_columns,
    verify,
)
from desk_server.ledger.postgres_lease import Lease
from desk_server.ledger.postgres_link import connect, name_of

Place = Path | str
# Rows, and the postings of their events, in order.
_Insert = Callable[[list[Row], list[PostingRow]], None]

_AT_ONCE = 1000
# So much of a hash must be told for it to be one event's.
_HASH_LETTERS_MIN = 16
# A desk that does not answer is waited for so long, when its ledger is to be restored.
_LEASE_S = 10.0


class Mark(Struct, frozen=True):
    """An event, as it is noted down: `SEQ:HASH`. Whoever has the last one can tell that none was cut off."""

    seq: int
    hash: str

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"


def mark_of(text: str) -> Mark:
    """Raises ValueError."""
    found = re.fullmatch(rf"(\d{{1,18}}):([0-9a-f]{{{_HASH_LETTERS_MIN},64}})", text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not SEQ:HASH, as `verify-ledger` and `backup` print it")
    return Mark(int(found[1]), found[2])


class Report(Struct, frozen=True):
    """`last` is the last event that is there; `problem` says what is wrong, "" when nothing is."""

    name: str
    last: Mark
    problem: str


def check(place: Place, expected: Mark | None = None) -> Report:
    """The whole ledger, also of a running desk, and whether it has the expected event. Raises LedgerUnavailable
    where there is none."""
    with _reading(place) as reader:
        last = _mark(*reader.last())
        damaged = verify(reader)
        problem = "" if damaged is None else f"event {damaged.seq} {damaged.what}"
        return Report(reader.name, last, problem or reader.integrity() or _missing(reader, expected))


def backup(place: Place, file: Path) -> Mark:
    """Copy the ledger, also of a running desk, into a new file (0600), and check it: the last event that it has.

    Raises LedgerUnavailable where the ledger is damaged, the file is there already or cannot be written; then
    there is no file.
    """
    partial = file.with_name(file.name + ".partial")
    if file.exists():
        raise LedgerUnavailable(f"{file} is there already: choose another name")
    try:
        os.close(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        raise LedgerUnavailable(f"another backup writes {partial}, or one broke off: remove it") from None
    except OSError as error:
        raise LedgerUnavailable(f"{file} cannot be written: {error}") from error
    try:
        with _reading(place) as reader:
            last = _write(reader, partial)
        copied = check(partial)
        if copied.problem or copied.last != last:
            raise LedgerUnavailable(f"{file} was not written as it should be: check the disk ({copied.problem})")
        partial.rename(file)
        sqlite_file.sync_directory(file.absolute().parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return last


def _write(reader: Reader, path: Path) -> Mark:
    try:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            # Should this break off, the file is thrown away.
            connection.execute("PRAGMA journal_mode = OFF")
            connection.execute("PRAGMA synchronous = OFF")
            sqlite_file.migrate(connection, path)
            connection.execute("BEGIN")
            last = _copy(reader, lambda rows, moved: sqlite_file.insert(connection, rows, moved))
            connection.execute("COMMIT")
        with path.open("rb") as written:
            os.fsync(written.fileno())
    except (OSError, sqlite3.Error) as error:
        raise LedgerUnavailable(f"{path} cannot be written: {error}") from error
    return last


def restore(file: Path, place: Place, expected: Mark | None = None) -> Mark:
    """Make the ledger at `place`, which has no events yet, from a backup: the last event that it has then.

    All or nothing. Raises LedgerUnavailable where there are events, a desk runs on it, or the backup is damaged or
    does not have the expected event.
    """
    with _reading(file) as reader:
        if problem := _missing(reader, expected):
            raise LedgerUnavailable(f"{file}: {problem}")
        with _writing(place) as insert:
            return _copy(reader, insert)


def _copy(reader: Reader, insert: _Insert) -> Mark:
    """Every event, checked on the way, with its postings reckoned anew: the last one's mark. Raises Damaged."""
    entries = Entries()
    rows: list[Row] = []
    moved: list[PostingRow] = []
    seq, last = 0, START_HASH
    for row, event in checked_rows(reader):
        seq, last = row[0], row[7]
        if not says_its_columns(row, event):
            raise Damaged(reader.name, seq, "says something else in its columns than in its body")
        rows.append((seq, *columns_of(event, body=row[6]), last))
        moved += posting_rows(seq, entries.of(reader.name, seq, event))
        if len(rows) >= _AT_ONCE:
            insert(rows, moved)
            rows, moved = [], []
    if rows:
        insert(rows, moved)
    return _mark(seq, last)


def _missing(reader: Reader, expected: Mark | None) -> str:
    if expected is None or not expected.seq:
        return ""
    found = reader.events(expected.seq - 1, 1)
    if not found or found[0][0] != expected.seq:
        return f"event {expected.seq} is missing: what came last was cut off, or this is an older copy"
    if not found[0][7].hex().startswith(expected.hash):
        return f"event {expected.seq} is not the expected one: this is another history"
    return ""


def _mark(seq: int, last: bytes) -> Mark:
    return Mark(seq, last.hex())


# Where


def _is_postgres(place: Place) -> bool:
    return isinstance(place, str) and "://" in place


def _reading(place: Place) -> contextlib.AbstractContextManager[Reader]:
    return postgres_file.reading(str(place)) if _is_postgres(place) else sqlite_file.reading(Path(place))


def _writing(place: Place) -> contextlib.AbstractContextManager[_Insert]:
    return _writing_postgres(str(place)) if _is_postgres(place) else _writing_sqlite(Path(place))


@contextlib.contextmanager
def _writing_sqlite(path: Path) -> Iterator[_Insert]:
    lock_fd = sqlite_file.take(path)
    try:
        with contextlib.closing(sqlite_file.connect(path)) as connection:
            _refuse_events(str(path), sqlite_file.last_of(connection)[0])
            connection.execute("BEGIN IMMEDIATE")
            yield lambda rows, moved: sqlite_file.insert(connection, rows, moved)
            connection.execute("COMMIT")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.Error as error:
        raise LedgerUnavailable(f"the ledger {path} cannot be written: {error}. Nothing was restored") from error
    finally:
        os.close(lock_fd)


@contextlib.contextmanager
def _writing_postgres(url: str) -> Iterator[_Insert]:
    name = name_of(url)
    lost: list[str] = []
    lease = Lease(url, _LEASE_S, lost.append)
    with contextlib.closing(connect(url, "restore")) as link:
        try:
            postgres_file.make(link, name)
            epoch = lease.take(link)
            lease.start()
            postgres_file.migrate(link, name, epoch)
            _refuse_events(name, postgres_file.last_of(link)[0])
            link.answer_s = None

            def insert(rows: list[Row], moved: list[PostingRow]) -> None:
                if lost or not postgres_file.insert(link, epoch, rows[0][0] - 1, rows, moved):
                    raise LedgerUnavailable(f"another desk has taken the ledger {name} over. Nothing was restored")

            with link.transaction():
                link.execute("SET LOCAL statement_timeout = 0")
                link.execute("SET CONSTRAINTS ALL IMMEDIATE")
                yield insert
        except psycopg.Error as error:
            raise LedgerUnavailable(f"the ledger {name} cannot be written: {error}. Nothing was restored") from error
        finally:
            lease.let_go(link)


def _refuse_events(name: str, last: int) -> None:
    if last:
        raise LedgerUnavailable(
            f"the ledger {name} has events (the last one is {last}), and none is ever overwritten: back it up, move it "
            "away, and restore into an empty place"
        )
