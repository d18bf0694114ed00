"""A ledger's SQLite file: taking it for one process, bringing its tables up to date, reading and checking it."""

import contextlib
import fcntl
import hashlib
import os
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import msgspec

from desk_server.events import AnyEvent, decode, dedupe_key, encode, owner, subject
from desk_server.ledger import LedgerUnavailable
from desk_server.ledger.schema import APPLICATION_ID, MIGRATIONS

# What the first event's hash covers in the place of a hash before it.
START_HASH = bytes(32)
# The write-ahead log is copied into the file when it has grown to so many pages (of 4 KiB).
_CHECKPOINT_PAGES = 1000
_READ_PAGE = 1000
_SELECT = "SELECT seq, at, kind, user, order_id, dedupe, body, hash FROM events WHERE seq > ? ORDER BY seq LIMIT ?"

# What stands in a row between seq and hash: at, kind, user, order_id, dedupe, body.
Columns = tuple[str, str, str, str, str | None, bytes]
Row = tuple[int, str, str, str, str, str | None, bytes, bytes]


def take(path: Path) -> int:
    """Lock the file for this process: the descriptor that holds the lock, as long as it stays open."""
    lock_path = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock_fd = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LedgerUnavailable(f"the ledger {path} cannot be opened: {error}") from error
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock_fd, 0)
        os.pwrite(lock_fd, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError as error:
        holder = os.pread(lock_fd, 32, 0).decode(errors="replace").strip() or "?"
        os.close(lock_fd)
        raise LedgerUnavailable(
            f"the ledger {path} is in use by another desk (process {holder}): stop that one first, "
            "or give this one another DESK_RUN_DIR"
        ) from error
    except OSError as error:
        os.close(lock_fd)
        raise LedgerUnavailable(f"the ledger {path} cannot be locked: {error}") from error
    return lock_fd


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
    application_id = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if application_id != APPLICATION_ID and (application_id or version or tables):
        raise _not_a_ledger(path)
    if version > len(MIGRATIONS):
        raise LedgerUnavailable(
            f"the ledger {path} was written by a newer desk (schema {version}, this one knows {len(MIGRATIONS)}): "
            "install that version"
        )
    path.chmod(0o600)
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise LedgerUnavailable(f"the ledger {path} lies where SQLite cannot keep a write-ahead log: use a local disk")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        marks = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {number};"
        connection.executescript(f"BEGIN IMMEDIATE; {script} {marks} COMMIT;")
    last_of(connection)
    if is_new:
        _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    """A new file's name is on the disk only when its directory is."""
    directory_fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory_fd)
    finally:
        os.close(directory_fd)


def _not_a_ledger(path: Path) -> LedgerUnavailable:
    return LedgerUnavailable(f"{path} is not a desk's ledger: move it away, or give the desk another DESK_RUN_DIR")


def columns_of(event: AnyEvent, body: bytes | None = None) -> Columns:
    return (
        _time_text(event.at),
        type(event).__name__,
        owner(event),
        subject(event),
        dedupe_key(event),
        encode(event) if body is None else body,
    )


def _time_text(at: datetime) -> str:
    """As `isoformat` writes it, of UTC, but at a third of the cost: it is done for every event."""
    return f"{msgspec.to_builtins(at)[:-1]}+00:00" if at.tzinfo is UTC else at.isoformat()


def last_event(path: Path) -> tuple[int, bytes]:
    """Seq and hash of the last event (0 and zeros when there is none); to compare with what a backup knows.

    Raises LedgerUnavailable for what cannot be read as a ledger.
    """
    try:
        with contextlib.closing(_connect_to_read(path)) as connection:
            return last_of(connection)
    except sqlite3.Error as error:
        raise LedgerUnavailable(f"{path} cannot be read as a desk's ledger: {error}") from error


def last_of(connection: sqlite3.Connection) -> tuple[int, bytes]:
    row = connection.execute("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
    return (int(row[0]), bytes(row[1])) if row else (0, START_HASH)


def verify(path: Path) -> int | None:
    """As SqliteLedger.verify, of a ledger that another process may have open. What was cut off at the end
    leaves no trace in the chain: compare the last seq with what is known from elsewhere (backups, logs).
    """
    expected = 1
    try:
        for row, event in checked_rows(path, 0):
            if row[1:7] != columns_of(event, body=row[6]):
                return row[0]
            expected = row[0] + 1
    except _Damaged as damaged:
        return damaged.seq
    except LedgerUnavailable:
        return expected
    return None


def checked_rows(path: Path, after: int) -> Iterator[tuple[Row, AnyEvent]]:
    """Rows with seq > after and their events, by a read-only connection, a page at a time so that no long read
    keeps the write-ahead log from being reused. Raises LedgerUnavailable (_Damaged where a row is at fault)."""
    try:
        with contextlib.closing(_connect_to_read(path)) as connection:
            last = START_HASH
            if after:
                row = connection.execute("SELECT hash FROM events WHERE seq = ?", (after,)).fetchone()
                if row is None:
                    return
                last = bytes(row[0])
            while page := connection.execute(_SELECT, (after, _READ_PAGE)).fetchall():
                for row in page:
                    event, last = _check(path, after + 1, row, last)
                    yield row, event
                    after = row[0]
    except sqlite3.Error as error:
        raise LedgerUnavailable(f"the ledger {path} cannot be read: {error}") from error


def _check(path: Path, expected: int, row: Row, last: bytes) -> tuple[AnyEvent, bytes]:
    if row[0] != expected:
        raise _Damaged(path, expected, "is missing")
    body = row[6]
    if not isinstance(body, bytes) or hashlib.sha256(last + body).digest() != row[7]:
        raise _Damaged(path, expected, "is not what was written")
    try:
        return decode(body), row[7]
    except msgspec.MsgspecError as error:
        raise _Damaged(path, expected, f"cannot be read by this version of the desk ({error})") from error


def _connect_to_read(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, isolation_level=None, timeout=1.0)


class _Damaged(LedgerUnavailable):
    def __init__(self, path: Path, seq: int, what: str) -> None:
        super().__init__(f"the ledger {path} is damaged: event {seq} {what}. Restore it from a backup")
        self.seq = seq
