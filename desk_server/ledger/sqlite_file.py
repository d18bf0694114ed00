"""A ledger's SQLite file: taking it for one process, bringing its tables up to date, reading it."""

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from urllib.parse import quote

from desk_server.events import AnyEvent
from desk_server.ledger import LedgerUnavailable
from desk_server.ledger.chain import START_HASH, Entries, PostingRow, Row, posting_rows
from desk_server.ledger.chain import checked_rows as checked_rows_of
from desk_server.ledger.chain import verify as verify_reader
from desk_server.ledger.schema import APPLICATION_ID, MIGRATIONS, POSTINGS

_INSERT_EVENT = "INSERT INTO events (seq, at, kind, user, order_id, dedupe, body, hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
# Of one statement, as a power of two; there is a statement for each smaller one.
_ROWS_MAX = 128
_INSERT_EVENTS = {
    1 << n: _INSERT_EVENT + ", (?, ?, ?, ?, ?, ?, ?, ?)" * ((1 << n) - 1) for n in range(_ROWS_MAX.bit_length())
}
_INSERT_POSTING = "INSERT INTO postings (seq, n, account, asset, amount) VALUES (?, ?, ?, ?, ?)"
# The write-ahead log is copied into the file when it has grown to so many pages (of 4 KiB).
_CHECKPOINT_PAGES = 1000
_SELECT_EVENTS = (
    "SELECT seq, at, kind, user, order_id, dedupe, body, hash FROM events WHERE seq > ? ORDER BY seq LIMIT ?"
)
_SELECT_POSTINGS = "SELECT seq, n, account, asset, amount FROM postings WHERE seq > ? AND seq <= ? ORDER BY seq, n"


def take(path: Path) -> int:
    """Lock the file for this process: the descriptor that holds the lock, as long as it stays open."""
    lock_path = lock_of(path)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock_fd = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LedgerUnavailable(f"the ledger {path} cannot be opened: {error}") from error
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock_fd, 0)
        os.pwrite(
            lock_fd,
            f"{os.getpid()} on {os.uname().nodename}, since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC\n".encode(),
            0,
        )
    except BlockingIOError as error:
        holder = os.pread(lock_fd, 200, 0).decode(errors="replace").strip() or "?"
        os.close(lock_fd)
        raise LedgerUnavailable(
            f"the ledger {path} is in use by another desk (process {holder}): stop that one first, "
            "or give this one another DESK_RUN_DIR"
        ) from error
    except OSError as error:
        os.close(lock_fd)
        raise LedgerUnavailable(f"the ledger {path} cannot be locked: {error}") from error
    return lock_fd


def lock_of(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def connect(path: Path) -> sqlite3.Connection:
    """The one connection that writes, on a ledger whose tables are those of this version."""
    try:
        is_new = not path.exists() or path.stat().st_size == 0
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
    except (OSError, sqlite3.Error) as error:
        raise LedgerUnavailable(f"the ledger {path} cannot be opened: {error}") from error
    try:
        _prepare(connection, path, is_new)
    except (OSError, sqlite3.Error) as error:
        connection.close()
        if getattr(error, "sqlite_errorname", "") == "SQLITE_NOTADB":
            raise _not_a_ledger(path) from error
        raise LedgerUnavailable(f"the ledger {path} cannot be opened: {error}") from error
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path, is_new: bool) -> None:
    version = _version(connection, path)
    path.chmod(0o600)
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise LedgerUnavailable(f"the ledger {path} lies where SQLite cannot keep a write-ahead log: use a local disk")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
    migrate(connection, path, version)
    last_of(connection)
    if is_new:
        sync_directory(path.parent)


def _version(connection: sqlite3.Connection, path: Path) -> int:
    """0 for a new file. Raises LedgerUnavailable for what this desk must leave alone."""
    application_id = connection.execute("PRAGMA application_id").fetchone()[0]
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if application_id != APPLICATION_ID and (application_id or version or tables):
        raise _not_a_ledger(path)
    if version > len(MIGRATIONS):
        raise LedgerUnavailable(
            f"the ledger {path} was written by a newer desk (schema {version}, this one knows {len(MIGRATIONS)}): "
            "install that version"
        )
    return version


def migrate(connection: sqlite3.Connection, path: Path, version: int = 0) -> None:
    """Every step after `version`, each whole or not at all. Raises LedgerUnavailable, sqlite3.Error."""
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        _migrate(connection, path, number, script)


def _migrate(connection: sqlite3.Connection, path: Path, number: int, script: str) -> None:
    """One step in one transaction: after a crash it is there or it is not."""
    try:
        connection.executescript(f"BEGIN IMMEDIATE; {script}")
        if number == POSTINGS:
            _post_old_events(connection, path)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {number}")
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _post_old_events(connection: sqlite3.Connection, path: Path) -> None:
    entries = Entries()
    reader = SqliteReader(connection, str(path))
    for row, event in checked_rows_of(reader):
        if entry := entries.of(reader.name, row[0], event):
            connection.executemany(_INSERT_POSTING, posting_rows(row[0], entry))


def sync_directory(path: Path) -> None:
    """A new file's name is on the disk only when its directory is."""
    directory_fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory_fd)
    finally:
        os.close(directory_fd)


def _not_a_ledger(path: Path) -> LedgerUnavailable:
    return LedgerUnavailable(f"{path} is not a desk's ledger: move it away, or give the desk another DESK_RUN_DIR")


def insert(connection: sqlite3.Connection, rows: Sequence[Row], moved: Sequence[PostingRow]) -> None:
    """A statement lets go of the interpreter while it works, and must get it back: so few, of many rows each."""
    at, left = 0, len(rows)
    while left:
        count = 1 << min(left, _ROWS_MAX).bit_length() - 1
        connection.execute(_INSERT_EVENTS[count], list(chain.from_iterable(rows[at : at + count])))
        at, left = at + count, left - count
    if moved:
        connection.executemany(_INSERT_POSTING, moved)


def last_of(connection: sqlite3.Connection) -> tuple[int, bytes]:
    row = connection.execute("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
    return (int(row[0]), bytes(row[1])) if row else (0, START_HASH)


class SqliteReader:
    """See chain.Reader."""

    def __init__(self, connection: sqlite3.Connection, name: str) -> None:
        self.name = name
        self._connection = connection
        self.version = int(connection.execute("PRAGMA user_version").fetchone()[0])

    def events(self, after: int, limit: int) -> list[Row]:
        return self._all(_SELECT_EVENTS, (after, limit))

    def postings(self, after: int, upto: int) -> list[PostingRow]:
        return self._all(_SELECT_POSTINGS, (after, upto))

    def integrity(self) -> str:
        try:
            found = [str(row[0]) for row in self._connection.execute("PRAGMA integrity_check(3)")]
        except sqlite3.Error as error:
            raise self._unreadable(error) from error
        return "" if found == ["ok"] else f"the file is damaged: {'; '.join(found)}"

    def last(self) -> tuple[int, bytes]:
        try:
            return last_of(self._connection)
        except sqlite3.Error as error:
            raise self._unreadable(error) from error

    def close(self) -> None:
        self._connection.close()

    def _all(self, statement: str, arguments: tuple[int, int]) -> list[tuple]:  # type: ignore[type-arg]
        try:
            return self._connection.execute(statement, arguments).fetchall()
        except sqlite3.Error as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: sqlite3.Error) -> LedgerUnavailable:
        return LedgerUnavailable(f"the ledger {self.name} cannot be read: {error}")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[SqliteReader]:
    """By a read-only connection of its own. Raises LedgerUnavailable for what cannot be read as a ledger."""
    if not path.exists():
        raise LedgerUnavailable(f"there is no ledger at {path}: give its path, or set DESK_RUN_DIR")
    try:
        connection = sqlite3.connect(
            f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, isolation_level=None, timeout=1.0
        )
    except sqlite3.Error as error:
        raise LedgerUnavailable(f"{path} cannot be read as a desk's ledger: {error}") from error
    with contextlib.closing(connection):
        try:
            _version(connection, path)
            reader = SqliteReader(connection, str(path))
        except sqlite3.Error as error:
            raise LedgerUnavailable(f"{path} cannot be read as a desk's ledger: {error}") from error
        yield reader


def checked_rows(path: Path, after: int) -> Iterator[tuple[Row, AnyEvent]]:
    """As chain.checked_rows."""
    with reading(path) as reader:
        yield from checked_rows_of(reader, after)


def verify(path: Path) -> int | None:
    """The first seq whose row is missing, changed, unreadable or wrongly posted; None when all is as written."""
    try:
        with reading(path) as reader:
            damaged = verify_reader(reader)
    except LedgerUnavailable:
        return 1
    return damaged.seq if damaged else None


def last_event(path: Path) -> tuple[int, bytes]:
    """Seq and hash of the last event; raises LedgerUnavailable for what cannot be read as a ledger."""
    with reading(path) as reader:
        return reader.last()
