"""The PostgreSQL ledger's own promises: lost connections are settled, never guessed; what is not durable is refused."""

import asyncio
import contextlib
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from beds import LEASE_S, PostgresBed
from cutting_proxy import CuttingProxy
from ledger_story import AT, Open, executed, opened

from desk_server.events import HaltSet
from desk_server.ledger import DuplicateEvent, LedgerUnavailable, OutcomeUnknown, postgres_link
from desk_server.ledger.chain import Chain, columns_of, verify
from desk_server.ledger.postgres import PostgresLedger
from desk_server.ledger.postgres_file import insert, last_of
from desk_server.ledger.postgres_link import name_of

Make = Callable[..., PostgresLedger]


async def eventually(check: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def halted(number: int) -> HaltSet:
    """An event that may be stored any number of times: no key of its own tells that it is there."""
    return HaltSet(
        at=AT + timedelta(seconds=number), scope="symbol", name="AAPL", halted=True, reason=str(number), by="admin"
    )


# Lost connections


@pytest.fixture
def proxy(postgres_bed: PostgresBed) -> Iterator[CuttingProxy]:
    """Stands between every ledger of the test and the server."""
    with tempfile.TemporaryDirectory(prefix="desk-px-", dir="/tmp") as directory:
        between = CuttingProxy(postgres_bed.server.directory, Path(directory))
        straight = postgres_bed.place
        postgres_bed.place = straight.replace(str(postgres_bed.server.directory), directory)
        yield between
        postgres_bed.place = straight
        between.close()


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_commit_in_doubt_is_settled_by_reading_back(proxy: CuttingProxy, make_postgres: Make, moment: str):
    """Cut off before or after it was committed: stored once, answered truthfully, told once."""
    ledger = Open(make_postgres())
    await ledger.ledger.append(opened("alice"))
    for number in range(5):
        proxy.cut = moment
        calls = [ledger.ledger.append(halted(number)), ledger.ledger.append(executed(number), halted(number))]
        assert await asyncio.wait_for(asyncio.gather(*calls), 30) == [3 * number + 2, 3 * number + 4]
    assert proxy.cuts == 5
    assert ledger.seqs() == [one.seq for one in ledger.ledger.read()] == list(range(1, 17))
    assert ledger.ledger.problem() == ledger.ledger.fenced() == "" and ledger.ledger.verify() is None


async def test_a_statement_that_arrives_late_is_not_stored(proxy: CuttingProxy, make_postgres: Make):
    """The network had kept it while the desk came back by another connection: its epoch is over."""
    ledger = Open(make_postgres())
    await ledger.ledger.append(halted(0))
    proxy.cut = "late"
    assert await asyncio.wait_for(ledger.ledger.append(halted(1)), 30) == 2
    answer = await asyncio.to_thread(proxy.release)
    assert b"INSERT 0 0" in answer
    assert await ledger.ledger.append(halted(2)) == 3
    assert [one.event.reason for one in ledger.ledger.read()] == ["0", "1", "2"] and ledger.ledger.verify() is None


async def test_a_database_that_comes_and_goes_makes_nobody_a_liar(make_postgres: Make, postgres_bed: PostgresBed):
    """Crashes and cut connections under load: what was acknowledged is there once, what was refused is not there."""
    ledger = Open(make_postgres())
    server = postgres_bed.server
    acknowledged: set[str] = set()
    refused: set[str] = set()
    stop = False

    async def append(name: str) -> None:
        names = [f"{name}-{part}" for part in range(3)]
        try:
            await ledger.ledger.append(*(executed(name) for name in names))
            acknowledged.update(names)
        except LedgerUnavailable:
            refused.update(names)

    async def caller(number: int) -> None:
        count = 0
        while not stop:
            count += 1
            await append(f"{number}-{count}")

    async def impatient() -> None:
        """New ones come all the time, whatever became of those before."""
        calls: list[asyncio.Task[None]] = []
        while not stop:
            calls.append(asyncio.create_task(append(f"new-{len(calls)}")))
            await asyncio.sleep(0.002)
        await asyncio.gather(*calls)

    def trouble(moments: random.Random) -> None:
        for round_ in range(6):
            time.sleep(moments.uniform(0.05, 0.3))
            if round_ % 3 == 2:
                server.stop(signal.SIGQUIT)
                server.start()
            else:
                with contextlib.suppress(psycopg.Error):
                    server.sql(
                        postgres_bed.place,
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'desk%'",
                    )

    callers = [asyncio.create_task(caller(number)) for number in range(24)]
    callers.append(asyncio.create_task(impatient()))
    await asyncio.to_thread(trouble, random.Random(3))
    await eventually(lambda: not ledger.ledger.problem())
    before = len(acknowledged)
    await eventually(lambda: len(acknowledged) > before)
    stop = True
    await asyncio.gather(*callers)
    stored = [one.event.execution_id for one in ledger.ledger.read()]
    assert len(stored) == len(set(stored)) and len(stored) % 3 == 0
    assert acknowledged == set(stored) and refused.isdisjoint(stored) and refused
    assert ledger.seqs() == list(range(1, len(stored) + 1))
    assert ledger.ledger.verify() is None and ledger.lost == []


async def test_while_the_database_is_away_orders_are_refused_at_once(make_postgres: Make, postgres_bed: PostgresBed):
    """Only what was under way waits for the truth; when the database is back, so is the desk, by itself."""
    ledger = Open(make_postgres())
    await ledger.ledger.append(executed("e1"))
    postgres_bed.server.stop()
    in_doubt = ledger.ledger.append(executed("e2"))
    behind = ledger.ledger.append(executed("behind"))
    try:
        await eventually(ledger.ledger.problem)
        begun = time.monotonic()
        with pytest.raises(LedgerUnavailable, match=r"connection to the ledger .* is lost"):
            await ledger.ledger.append(executed("e3"))
        assert time.monotonic() - begun < 0.5 and not in_doubt.done()
    finally:
        postgres_bed.server.start()
    seqs = await asyncio.wait_for(asyncio.gather(in_doubt, behind), 30)
    assert seqs == [2, 3]
    assert await ledger.ledger.append(executed("e3")) == 4
    assert ledger.ledger.verify() is None and ledger.ledger.fenced() == ""


async def test_a_desk_that_stops_in_doubt_says_that_it_does_not_know(make_postgres: Make, postgres_bed: PostgresBed):
    """It neither waits for ever nor claims that nothing was stored; the next desk has the truth."""
    ledger = Open(make_postgres())
    await ledger.ledger.append(executed("e1"))
    postgres_bed.server.stop()
    try:
        in_doubt = ledger.ledger.append(executed("e2"))
        await eventually(ledger.ledger.problem)
        await asyncio.wait_for(ledger.ledger.close(), 30)
        with pytest.raises(OutcomeUnknown, match="does not tell whether this was stored"):
            await in_doubt
    finally:
        postgres_bed.server.start()
    again = Open(make_postgres())
    assert await again.ledger.append(executed("e2")) == 2


async def test_a_silent_database_ends_the_leave_to_send_until_it_speaks(
    make_postgres: Make, postgres_bed: PostgresBed, monkeypatch: pytest.MonkeyPatch
):
    """A server that neither answers nor hangs up: before its lease ends, the desk stops sending; later it goes on."""
    monkeypatch.setattr(postgres_link.Link, "answer_s", 1.0)
    ledger = Open(make_postgres())
    await ledger.ledger.append(executed("e1"))
    postgres_bed.server.pause()
    paused = time.monotonic()
    try:
        in_doubt = ledger.ledger.append(executed("e2"))
        await eventually(ledger.ledger.fenced)
        assert time.monotonic() - paused < LEASE_S
        assert "could not be renewed in time" in ledger.ledger.fenced()
        await asyncio.sleep(LEASE_S)
        assert ledger.ledger.fenced() and ledger.lost == []
    finally:
        postgres_bed.server.go_on()
    assert await asyncio.wait_for(in_doubt, 30) == 2
    await eventually(lambda: not ledger.ledger.fenced())
    assert await ledger.ledger.append(executed("e3")) == 3 and ledger.ledger.verify() is None


# Trouble in the database


@contextlib.contextmanager
def locked(bed: PostgresBed) -> Iterator[None]:
    """Somebody works on the table and does not come to an end."""
    with psycopg.connect(bed.place) as connection:
        connection.execute("LOCK TABLE desk.events IN ACCESS EXCLUSIVE MODE")
        yield


@contextlib.contextmanager
def read_only(bed: PostgresBed) -> Iterator[None]:
    """As a server whose operator, or whose cloud, has stopped all writes."""
    _set(bed, "default_transaction_read_only", "on")
    try:
        yield
    finally:
        with psycopg.connect(bed.place, autocommit=True, options="-c default_transaction_read_only=off") as operator:
            operator.execute("ALTER SYSTEM RESET default_transaction_read_only")
            operator.execute("SELECT pg_reload_conf()")
        _wait_for(bed, "default_transaction_read_only", "off")


@contextlib.contextmanager
def full_disk(bed: PostgresBed) -> Iterator[None]:
    """The kernel lets no file of the writer's server process grow beyond what the table has, as a full disk does."""
    pid = bed.sql("SELECT pid FROM pg_stat_activity WHERE application_name = 'desk writer'")[0][0]
    size = bed.sql("SELECT pg_relation_size('desk.events')")[0][0]
    assert size > 2**20, "files of the write-ahead log are 1 MiB and must still be made"
    bed.server.limit_files(pid, size + 3 * 8192)
    try:
        yield
    finally:
        bed.server.limit_files(pid, None)


def _set(bed: PostgresBed, name: str, value: str) -> None:
    bed.sql(f"ALTER SYSTEM SET {name} = '{value}'")
    bed.sql("SELECT pg_reload_conf()")
    _wait_for(bed, name, value)


def _wait_for(bed: PostgresBed, name: str, value: str) -> None:
    deadline = time.monotonic() + 30
    while bed.sql(f"SHOW {name}") != [(value,)]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("trouble", [locked, read_only, full_disk])
async def test_a_database_in_trouble_refuses_and_resumes(
    make_postgres: Make, postgres_bed: PostgresBed, trouble: Callable[[PostgresBed], contextlib.AbstractContextManager]
):
    """Appends are refused while it lasts, all of a call or nothing is stored, and the numbers have no gap after it."""
    ledger = Open(make_postgres())
    for part in range(4):
        await ledger.ledger.append(*(executed(f"{part} {number} " + "x" * 300) for number in range(400)))
    acknowledged, refused = ledger.seqs()[-1], 0
    with trouble(postgres_bed):
        for number in range(60 if trouble is full_disk else 2):
            big = [executed(f"during {number} {part} " + "x" * 300) for part in range(10)]
            try:
                acknowledged = await ledger.ledger.append(*big)
            except LedgerUnavailable as error:
                assert "Nothing was stored" in str(error)
                refused += 1
    assert refused >= (50 if trouble is full_disk else 2)
    acknowledged = await ledger.ledger.append(executed("after"))
    seqs = [stored.seq for stored in ledger.ledger.read()]
    assert seqs == ledger.seqs() == list(range(1, acknowledged + 1))
    assert ledger.ledger.verify() is None and ledger.lost == []
    await eventually(lambda: not ledger.ledger.fenced())


async def test_what_cannot_be_stored_fails_its_own_call_only(make_postgres: Make, postgres_bed: PostgresBed):
    """PostgreSQL's texts know no NUL; whatever a broker says, it does not stop the others."""
    ledger = Open(make_postgres())
    calls = [["e1"], ["e2", "e\0"], ["e3"], ["e1"], ["e4"]]
    futures = [ledger.ledger.append(*map(executed, names)) for names in calls]
    outcomes = await asyncio.gather(*futures, return_exceptions=True)
    assert [one if isinstance(one, int) else type(one) for one in outcomes] == [
        1,
        LedgerUnavailable,
        2,
        DuplicateEvent,
        3,
    ]
    assert ledger.seqs() == [1, 2, 3] and ledger.ledger.verify() is None


async def test_entries_that_do_not_sum_to_zero_are_refused_by_the_database(
    make_postgres: Make, postgres_bed: PostgresBed
):
    """Per event and asset, when the transaction ends: half an entry cannot be stored by anybody."""
    ledger = Open(make_postgres()).ledger
    await ledger.append(opened("alice"))
    for half in ("(2, 0, 'bob', 'USD', 5), (2, 1, 'market', 'AAPL', -5)", "(1, 7, 'bob', 'USD', 0.01)"):
        with pytest.raises(psycopg.errors.CheckViolation, match="do not sum to zero in"):
            postgres_bed.sql(f"INSERT INTO desk.postings VALUES {half}")
    assert ledger.verify() is None


# What it is made on


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes", "synchronous_commit"])
async def test_a_server_that_may_lose_commits_is_refused(make_postgres: Make, postgres_bed: PostgresBed, setting: str):
    """With the setting and what to do; once it is on, the desk starts."""
    _set(postgres_bed, setting, "off")
    try:
        with pytest.raises(LedgerUnavailable, match=rf"would lose what was acknowledged.*Set {setting} = on"):
            make_postgres()
    finally:
        _set(postgres_bed, setting, "on")
    make_postgres()


async def test_another_schema_of_that_name_is_left_alone(make_postgres: Make, postgres_bed: PostgresBed):
    """A database may hold anything; what is called `desk` and is no ledger is not touched."""
    postgres_bed.sql("CREATE SCHEMA desk")
    postgres_bed.sql("CREATE TABLE desk.furniture (a int)")
    with pytest.raises(LedgerUnavailable, match="has a schema `desk` that is no ledger"):
        make_postgres()
    assert postgres_bed.sql("SELECT count(*) FROM pg_tables WHERE schemaname = 'desk'") == [(1,)]


async def test_a_database_that_cannot_be_reached_is_told_without_its_password():
    """Neither the message of a refusal nor any other shows it."""
    for url, said in (
        ("postgresql://desk:s3cret@127.0.0.1:1/books", "cannot connect to the ledger books at 127.0.0.1:1"),
        ("postgresql://desk:s3cret@[::1:5432/books", "DESK_DATABASE_URL is no address"),
    ):
        with pytest.raises(LedgerUnavailable, match=said) as refused:
            PostgresLedger(url)
        assert "s3cret" not in str(refused.value)
    assert name_of("postgresql://desk:s3cret@db.example:5433/books?sslmode=require") == "books at db.example:5433"


async def test_of_two_desks_that_start_at_once_one_gets_the_ledger(make_postgres: Make, postgres_bed: PostgresBed):
    """On an empty database, where both would make the tables."""
    made: list[PostgresLedger] = []
    refusals: list[str] = []

    def start() -> None:
        try:
            made.append(make_postgres())
        except LedgerUnavailable as error:
            refusals.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join, 60)
    assert len(made) == 1 and len(refusals) == 3, refusals
    assert all("in use by another desk" in refusal for refusal in refusals), refusals
    assert await Open(made[0]).ledger.append(executed("e1")) == 1


async def test_a_lease_without_a_sign_of_life_is_taken_after_its_time(make_postgres: Make, postgres_bed: PostgresBed):
    """Of a desk on another machine, of which nobody here can tell that it died: its whole lease is waited for."""
    ledger = Open(make_postgres()).ledger
    await ledger.append(executed("e1"))
    await ledger.close()
    postgres_bed.sql("UPDATE desk.lease SET holder = 'gone', host = 'elsewhere', pid = 1, machine = 'x', lease_s = 3")
    postgres_bed.sql("UPDATE desk.fence SET holder = 'gone'")
    begun = time.monotonic()
    again = Open(make_postgres()).ledger
    assert time.monotonic() - begun >= 3
    assert again.fenced() == "" and await again.append(executed("e2")) == 2


async def test_however_often_desks_take_it_from_each_other_the_chain_stays_whole(
    make_postgres: Make, postgres_bed: PostgresBed
):
    """Takeovers in the middle of each other's commits: each commit is whole and follows the one before, or is not."""
    await make_postgres().close()
    end = time.monotonic() + 3
    stored = refused = 0
    counting = threading.Lock()

    def desk(number: int) -> None:
        nonlocal stored, refused
        with contextlib.closing(postgres_link.connect(postgres_bed.place, "writer")) as link:
            while time.monotonic() < end:
                epoch = link.execute("UPDATE desk.fence SET epoch = epoch + 1 RETURNING epoch").fetchone()[0]
                chain = Chain(*last_of(link))
                took = True
                while took and time.monotonic() < end:
                    before = chain.seq
                    rows = [chain.link(event, columns_of(event)) for event in (halted(number), halted(number))]
                    took = insert(link, epoch, before, rows, [])
                    with counting:
                        stored, refused = stored + 2 * took, refused + (not took)

    threads = [threading.Thread(target=desk, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join, 60)
    with postgres_bed.reading() as reader:
        assert verify(reader) is None and reader.last()[0] == stored
    assert stored > 20 and refused > 20
