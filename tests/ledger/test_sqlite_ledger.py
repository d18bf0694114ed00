"""The SQLite ledger's own promises: shared commits, one desk per file, honest refusals, a chain of hashes."""

import asyncio
import contextlib
import resource
import sqlite3
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ledger_story import AT, Open, executed, intended

from desk_server.events import OrderAccepted
from desk_server.ledger import LedgerUnavailable, sqlite_file, upkeep
from desk_server.ledger.schema import MIGRATIONS
from desk_server.ledger.sqlite import SqliteLedger, verify

Make = Callable[..., SqliteLedger]


async def test_many_callers_share_commits(make_sqlite: Make):
    """While one commit syncs, the others gather: hundreds of appends cost a handful of commits."""
    ledger = Open(make_sqlite()).ledger
    await asyncio.gather(*(ledger.append(executed(number)) for number in range(300)))
    assert ledger.commits <= 30
    for number in range(5):
        await ledger.append(executed(f"alone {number}"))
    assert 5 < ledger.commits <= 35


async def test_a_commit_takes_a_bounded_number_of_events(make_sqlite: Make):
    """So that one commit never keeps the loop folding for long."""
    ledger = Open(make_sqlite(batch_max=10))
    await asyncio.gather(*(ledger.ledger.append(executed(number)) for number in range(95)))
    assert max(len(entry) for entry in ledger.log) <= 10


async def test_every_commit_is_synced(make_sqlite: Make):
    """Write-ahead log with synchronous=FULL: a power cut loses nothing that was acknowledged."""
    ledger = make_sqlite()
    assert ledger._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert ledger._connection.execute("PRAGMA synchronous").fetchone() == (2,)


async def test_only_what_can_be_asked_again_is_stored_without_a_sync(make_sqlite: Make):
    """A commit waits for the disk unless all it holds is an acceptance, which the broker would repeat."""
    ledger = make_sqlite()
    opened_ledger = Open(ledger).ledger
    syncs = []
    commit = ledger._commit

    def watched(batch, insert):
        done = commit(batch, insert)
        syncs.append(ledger._connection.execute("PRAGMA synchronous").fetchone()[0])
        return done

    ledger._commit = watched
    accepted = OrderAccepted(at=AT, order_id="o1", broker_order_id="b1")
    await opened_ledger.append(intended(1))
    await opened_ledger.append(accepted)
    await opened_ledger.append(accepted, executed("e1"))
    await opened_ledger.append(executed("e2"))
    assert syncs == [2, 1, 2, 2]


async def test_nobody_else_may_read_the_files(make_sqlite: Make):
    """Files are 0600 in a directory of 0700, even where the file was there with wider rights."""
    ledger = Open(make_sqlite()).ledger
    await ledger.append(executed("e1"))
    assert stat.S_IMODE(ledger.path.parent.stat().st_mode) == 0o700
    files = list(ledger.path.parent.iterdir())
    assert len(files) >= 3
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    await ledger.close()
    ledger.path.chmod(0o644)
    make_sqlite()
    assert stat.S_IMODE(ledger.path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "make_file, message",
    [
        (lambda path: path.write_bytes(b"not a database " * 100), "is not a desk's ledger"),
        (lambda path: sql(path, "CREATE TABLE notes (a)"), "is not a desk's ledger"),
        (lambda path: sql(path, "PRAGMA application_id = 7"), "is not a desk's ledger"),
        (lambda path: path.mkdir(), "cannot be opened"),
    ],
)
async def test_another_file_is_left_alone(tmp_path: Path, make_file: Callable[[Path], None], message: str):
    """What is not a desk's ledger is refused, untouched, and not kept locked."""
    path = tmp_path / "desk.db"
    make_file(path)
    path.chmod(0o755)
    before = path.read_bytes() if path.is_file() else None
    for _ in range(2):
        with pytest.raises(LedgerUnavailable, match=message):
            SqliteLedger(path)
    assert (path.read_bytes() if path.is_file() else None) == before
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


async def test_an_older_ledger_is_brought_up_to_date(make_sqlite: Make, monkeypatch: pytest.MonkeyPatch):
    """Each step once, whole or not at all: one that fails leaves the ledger as it was for the old desk."""
    ledger = Open(make_sqlite()).ledger
    await ledger.append(executed("e1"))
    await ledger.close()
    broken = (*MIGRATIONS, "CREATE TABLE more (a); CREATE TABLE events (b);")
    monkeypatch.setattr(sqlite_file, "MIGRATIONS", broken)
    with pytest.raises(LedgerUnavailable, match="cannot be opened: table events already exists"):
        make_sqlite()
    monkeypatch.setattr(sqlite_file, "MIGRATIONS", (*MIGRATIONS, "CREATE TABLE more (a);"))
    newer = Open(make_sqlite()).ledger
    assert await newer.append(executed("e2")) == 2
    await newer.close()
    assert [row[0] for row in query(ledger.path, "SELECT count(*) FROM more")] == [0]
    make_sqlite()


async def test_a_writer_that_fails_tells_whoever_waits(make_sqlite: Make, monkeypatch: pytest.MonkeyPatch):
    """Even an error that nobody thought of leaves no caller waiting for ever, and no later append a chance."""
    ledger = Open(make_sqlite()).ledger
    monkeypatch.setattr(ledger, "_insert_together", None)
    for name in ("e1", "e2"):
        with pytest.raises(LedgerUnavailable, match="see the log: restart the desk"):
            await ledger.append(executed(name))
    assert list(ledger.read()) == []


@pytest.mark.parametrize("name", ["desk.db", "desk.db.lock"])
@pytest.mark.parametrize("by", ["nothing", "a copy"])
async def test_a_file_exchanged_under_a_running_desk_ends_it(make_sqlite: Make, name: str, by: str):
    """Whoever removes the ledger or its lock, or puts another in its place, has the desk send nothing more."""
    ledger = Open(make_sqlite())
    await ledger.ledger.append(executed("e1"))
    path = ledger.ledger.path.with_name(name)
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    assert ledger.ledger.fenced() == ""
    if by == "a copy":
        copy.replace(path)
    else:
        path.unlink()
    await asyncio.sleep(0.02)
    assert "was removed or exchanged while this desk used it" in ledger.ledger.fenced()
    with pytest.raises(LedgerUnavailable, match="end this desk"):
        await ledger.ledger.append(executed("e2"))
    await asyncio.sleep(0)
    assert len(ledger.lost) == 1


async def test_a_damaged_index_is_found(make_sqlite: Make):
    """The check also asks SQLite whether its file is sound: the key of an execution may be missing from the index."""
    ledger = Open(make_sqlite()).ledger
    await ledger.append(*(executed(number) for number in range(5)))
    await ledger.close()
    assert upkeep.check(ledger.path).problem == ""
    with contextlib.closing(sqlite3.connect(ledger.path, isolation_level=None)) as other:
        other.execute("PRAGMA writable_schema = 1")
        other.execute("DELETE FROM sqlite_master WHERE name = 'events_dedupe'")
    with contextlib.closing(sqlite3.connect(ledger.path, isolation_level=None)) as other:
        other.execute("CREATE TABLE other (a)")
    assert "the file is damaged" in upkeep.check(ledger.path).problem


async def test_a_busy_file_refuses_and_resumes(make_sqlite: Make):
    """Somebody else's write lock fails the appends of that time; nothing is half stored; later ones work."""
    ledger = Open(make_sqlite())
    await ledger.ledger.append(executed("e1"))
    with contextlib.closing(sqlite3.connect(ledger.ledger.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerUnavailable, match=r"cannot be written: database is locked"):
            await ledger.ledger.append(executed("e2"))
    assert await ledger.ledger.append(executed("e2")) == 2
    assert ledger.seqs() == [1, 2] and ledger.ledger.verify() is None


@contextlib.contextmanager
def full_disk(ledger: SqliteLedger) -> Iterator[None]:
    """The kernel refuses to let files grow further, as a full disk or a quota does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = ledger.path.with_name("desk.db-wal").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def full_database(ledger: SqliteLedger) -> Iterator[None]:
    """SQLite itself finds no room."""
    pages = ledger._connection.execute("PRAGMA page_count").fetchone()[0]
    limit = ledger._connection.execute(f"PRAGMA max_page_count = {pages}").fetchone()[0]
    assert limit == pages
    try:
        yield
    finally:
        ledger._connection.execute("PRAGMA max_page_count = 1000000")


@contextlib.contextmanager
def read_only(ledger: SqliteLedger) -> Iterator[None]:
    """As a disk that the kernel has remounted read-only after an error."""
    ledger._connection.execute("PRAGMA query_only = 1")
    try:
        yield
    finally:
        ledger._connection.execute("PRAGMA query_only = 0")


@pytest.mark.parametrize("trouble", [full_disk, full_database, read_only])
async def test_a_full_disk_refuses_and_resumes(make_sqlite: Make, trouble: Callable):
    """Appends are refused while it lasts, all of a call or nothing is stored, and the numbers have no gap after it."""
    ledger = Open(make_sqlite())
    acknowledged = [await ledger.ledger.append(executed(f"before {number}")) for number in range(3)]
    refused = 0
    with trouble(ledger.ledger):
        for number in range(60):
            big = [executed(f"during {number} {part} " + "x" * 300) for part in range(10)]
            try:
                acknowledged.append(await ledger.ledger.append(*big))
            except LedgerUnavailable as error:
                assert "Nothing was stored" in str(error)
                refused += 1
    assert refused >= 50
    acknowledged.append(await ledger.ledger.append(executed("after")))
    seqs = [stored.seq for stored in ledger.ledger.read()]
    assert seqs == ledger.seqs() == list(range(1, acknowledged[-1] + 1))
    assert ledger.ledger.verify() is None


class _FailsToSync:
    """A connection whose next commit reports that the disk did not sync."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.in_transaction = True

    def execute(self, statement: str, *values: list) -> sqlite3.Cursor:
        if statement == "COMMIT":
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorname = "SQLITE_IOERR_FSYNC"
            raise error
        return self._connection.execute(statement, *values)

    def executemany(self, statement: str, rows: list) -> sqlite3.Cursor:
        return self._connection.executemany(statement, rows)


async def test_a_failed_sync_is_never_trusted_again(make_sqlite: Make):
    """After it nobody knows what is on the disk: the ledger takes nothing more until a restart."""
    ledger = Open(make_sqlite()).ledger
    await ledger.append(executed("e1"))
    whole = ledger._connection
    ledger._connection = _FailsToSync(whole)
    with pytest.raises(LedgerUnavailable, match="check the disk, then restart the desk"):
        await ledger.append(executed("e2"))
    ledger._connection = whole
    with pytest.raises(LedgerUnavailable, match="check the disk, then restart the desk"):
        await ledger.append(executed("e3"))
    assert "check the disk" in ledger.problem()
    assert len(list(ledger.read())) == 1


async def test_too_much_waiting_is_refused_at_once(make_sqlite: Make):
    """The queue is bounded; what is in it is stored, what was refused is not, and later there is room again."""
    ledger = Open(make_sqlite(waiting_max=10))
    with contextlib.closing(sqlite3.connect(ledger.ledger.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = [ledger.ledger.append(executed(number)) for number in range(10)]
        refused = ledger.ledger.append(executed("one more"))
        assert refused.done()
        with pytest.raises(LedgerUnavailable, match="10 events wait for the disk, which cannot keep up"):
            await refused
        assert "10 events wait" not in ledger.ledger.problem()
    assert await asyncio.gather(*waiting) == list(range(1, 11))
    assert await ledger.ledger.append(executed("one more")) == 11


async def test_closing_leaves_one_file_with_everything(make_sqlite: Make):
    """The write-ahead log is copied into the file, so that a copy of it is a backup."""
    ledger = Open(make_sqlite()).ledger
    await ledger.append(executed("e1"))
    await ledger.close()
    assert sorted(file.name for file in ledger.path.parent.iterdir()) == ["desk.db", "desk.db.lock"]
    copy = ledger.path.parent.parent / "copy.db"
    copy.write_bytes(ledger.path.read_bytes())
    assert verify(copy) is None


def sql(path: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(statement)


def query(path: Path, statement: str) -> list[tuple]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


async def test_acceptances_that_gathered_during_a_commit_are_stored_though_nothing_follows(make_sqlite: Make):
    """What need not be synced waits for company, but not for ever."""
    opened_ledger = Open(make_sqlite()).ledger
    first = opened_ledger.append(executed(1))
    await asyncio.sleep(0)  # the writer has its first batch now
    accepted = [OrderAccepted(at=AT, order_id=f"o{number}", broker_order_id="b") for number in range(3)]
    late = [opened_ledger.append(event) for event in accepted]
    assert await asyncio.wait_for(asyncio.gather(first, *late), 5) == [1, 2, 3, 4]
