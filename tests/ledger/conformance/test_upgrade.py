"""Ledgers of every earlier version are brought up to date, whole or not at all, wherever it breaks off."""

import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
from beds import VERSION_1, Bed, disarm
from ledger_story import Open, executed, opened

from desk_server.book import Book
from desk_server.ledger import Ledger, LedgerUnavailable, postgres_schema, schema, sqlite_file, upkeep
from desk_server.ledger.chain import verify

Make = Callable[..., Ledger]
HERE = Path(__file__).resolve().parents[1]
NEWEST = len(schema.MIGRATIONS)


def events_of(bed: Bed) -> list[tuple]:
    with bed.reading() as reader:
        return reader.events(0, 1000)


def balances(bed: Bed) -> dict[tuple[str, str], Decimal]:
    found: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
    for account, asset, amount in bed.sql("SELECT account, asset, amount FROM desk.postings"):
        found[account, asset] += Decimal(amount)
    return found


def test_both_kinds_number_their_versions_alike():
    """So that a message, a backup and a document mean one thing by a number."""
    assert len(postgres_schema.MIGRATIONS) == NEWEST and postgres_schema.POSTINGS == schema.POSTINGS


async def test_a_ledger_of_version_1_is_posted(make: Make, bed: Bed):
    """Its events stay as they were, byte for byte; its executions are posted to the users of their orders."""
    bed.make_version_1()
    with sqlite_file.reading(VERSION_1) as reader:
        written = reader.events(0, 1000)
    assert bed.version() == 1 and not bed.has_table("postings") and len(written) == 24
    ledger = Open(make())
    assert bed.version() == NEWEST and events_of(bed) == written
    found = balances(bed)
    # What the desk that wrote it had in its book.
    assert {key: found[key] for key in found if not key[0].startswith(("desk:", "market"))} == {
        ("alice", "USD"): Decimal("99102.729259266"),
        ("alice", "AAPL"): Decimal(7),
        ("bob", "USD"): Decimal("-5032.24836356789"),
        ("bob", "BTC/USD"): Decimal("0.123456789"),
        ("$house", "USD"): Decimal("-2801.20"),
        ("$house", "MSFT"): Decimal(7),
    }
    assert found["desk:fees", "USD"] == Decimal("2.763")
    book = Book()
    for stored in ledger.ledger.read():
        book.fold(stored.seq, stored.event)
    assert {user: account.cash for user, account in book.accounts.items()} == {
        user: found[user, "USD"] for user in ("alice", "bob", "$house")
    }
    assert ledger.ledger.verify() is None
    assert await ledger.ledger.append(executed("after")) == 25
    await ledger.ledger.close()
    count = bed.sql("SELECT count(*) FROM desk.postings")
    make()
    assert bed.sql("SELECT count(*) FROM desk.postings") == count


async def test_an_old_ledger_is_checked_and_backed_up_as_it_is(bed: Bed, tmp_path: Path):
    """Before anything is upgraded: neither touches it, and the copy is of the newest version."""
    bed.make_version_1()
    last = upkeep.backup(bed.place, tmp_path / "copy.db")
    assert upkeep.check(bed.place, last).problem == upkeep.check(tmp_path / "copy.db", last).problem == ""
    assert bed.version() == 1
    with sqlite_file.reading(tmp_path / "copy.db") as reader:
        assert reader.version == NEWEST and reader.postings(0, 1000)


async def test_a_damaged_old_ledger_is_left_as_it_is(make: Make, bed: Bed):
    """What was changed by hand is not posted; the refusal says where."""
    bed.make_version_1()
    for statement in bed.disarming:
        if "postings" not in statement:
            bed.sql(statement)
    bed.sql("UPDATE desk.events SET hash = (SELECT hash FROM desk.events WHERE seq = 3) WHERE seq = 9")
    for _ in range(2):
        with pytest.raises(LedgerUnavailable, match="event 9 is not what was written"):
            make()
    assert bed.version() == 1 and not bed.has_table("postings")


async def test_a_newer_desks_ledger_is_refused(make: Make, bed: Bed):
    """An old desk does not touch what it does not understand, and leaves it to the new one."""
    ledger = Open(make()).ledger
    await ledger.append(opened("alice"))
    await ledger.close()
    bed.set_version(99)
    for _ in range(2):
        with pytest.raises(LedgerUnavailable, match=rf"newer desk \(schema 99, this one knows {NEWEST}\)"):
            make()


UPGRADE = """
import os, signal, sys
from desk_server.ledger import chain, postgres_file, sqlite_file
from holding import ledger_at

left = int(sys.argv[2])
def of(self, name, seq, event, before=chain.Entries.of):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return before(self, name, seq, event)
chain.Entries.of = of
ledger_at(sys.argv[1])
"""


def upgrade_killed(bed: Bed, posted: int) -> int:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])}
    arguments = [sys.executable, "-c", UPGRADE, str(bed.place), str(posted)]
    return subprocess.run(arguments, env=environment, check=False, timeout=60).returncode


@pytest.mark.parametrize("posted", [0, 1, 12, 23])
async def test_a_kill_in_mid_migration_leaves_the_old_ledger(make: Make, bed: Bed, posted: int):
    """After none, some, or all but the last of its events were posted: nothing is between old and new."""
    bed.make_version_1()
    assert upgrade_killed(bed, posted) == -signal.SIGKILL
    assert bed.version() == 1 and not bed.has_table("postings")
    with bed.reading() as reader:
        assert verify(reader) is None
    ledger = Open(make()).ledger
    assert bed.version() == NEWEST and ledger.verify() is None and len(balances(bed)) > 6


async def test_a_tampered_copy_of_postings_does_not_survive_an_upgrade_check(make: Make, bed: Bed):
    """What the upgrade posted is protected like all else, and checked against the events."""
    bed.make_version_1()
    ledger = Open(make()).ledger
    disarm(bed)
    bed.sql("UPDATE desk.postings SET account = 'bob' WHERE account = 'alice' AND seq = 5")
    assert ledger.verify() == 5
