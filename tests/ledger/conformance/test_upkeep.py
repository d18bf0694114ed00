"""Ledgers are checked, backed up while they are written, restored, and moved from one kind to the other."""

import asyncio
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from beds import Bed, PostgresBed, SqliteBed, disarm
from ledger_story import Open, executed, intended, opened

from desk_server.__main__ import main
from desk_server.ledger import Ledger, LedgerUnavailable, commands, upkeep
from desk_server.ledger.upkeep import mark_of

Make = Callable[..., Ledger]


@pytest.fixture(params=["sqlite", "postgres"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bed]:
    """Where to restore to: of either kind, whatever the ledger was."""
    if request.param == "sqlite":
        yield SqliteBed(tmp_path / "target" / "desk.db")
    else:
        server = request.getfixturevalue("postgres_server")
        with server.database() as url:
            yield PostgresBed(server, url)


def rows(bed: Bed) -> list[tuple]:
    """Everything of both tables, as each database has it."""
    with bed.reading() as reader:
        return [*reader.events(0, 10_000), *((*row[:4], float(row[4])) for row in reader.postings(0, 10_000))]


async def test_a_backup_made_under_load_restores_to_either_kind(make: Make, bed: Bed, target: Bed, tmp_path: Path):
    """Every event that was acknowledged before it began, no half of a call, byte for byte; a desk goes on from it."""
    ledger = Open(make()).ledger
    await ledger.append(opened("alice"), intended(1, "r1"), *(executed(number) for number in range(1500)))
    stop = asyncio.Event()

    async def trade(caller: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            await ledger.append(executed(f"{caller}-{number}-a"), executed(f"{caller}-{number}-b"))

    trading = [asyncio.create_task(trade(caller)) for caller in range(8)]
    await asyncio.sleep(0.05)
    before = ledger._seq
    copy = tmp_path / "copy.db"
    last = await asyncio.to_thread(upkeep.backup, bed.place, copy)
    stop.set()
    await asyncio.gather(*trading)
    assert before <= last.seq <= ledger._seq and last.seq % 2 == 0
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600 and not copy.with_name("copy.db.partial").exists()
    assert upkeep.restore(copy, target.place, expected=last) == last
    assert rows(target) == [row for row in rows(bed) if row[0] <= last.seq]
    again = Open(target.make())
    assert await again.ledger.append(executed("after")) == last.seq + 1
    assert again.ledger.verify() is None and upkeep.check(target.place, last).problem == ""
    await again.ledger.close()


async def test_a_backup_of_a_backup_is_the_same(make: Make, bed: Bed, tmp_path: Path):
    """A copy is a ledger like any other."""
    ledger = Open(make()).ledger
    await ledger.append(opened("alice"), executed(1))
    first = upkeep.backup(bed.place, tmp_path / "first.db")
    second = upkeep.backup(tmp_path / "first.db", tmp_path / "second.db")
    assert first == second == upkeep.check(tmp_path / "second.db").last


async def test_a_damaged_ledger_is_not_backed_up(make: Make, bed: Bed, tmp_path: Path):
    """A copy that passes its own check would hide the damage; no file is left."""
    ledger = Open(make()).ledger
    await ledger.append(opened("alice"), executed(1), executed(2))
    disarm(bed)
    bed.sql("""UPDATE desk.events SET "user" = 'bob' WHERE seq = 2""")
    with pytest.raises(LedgerUnavailable, match="event 2 says something else in its columns"):
        upkeep.backup(bed.place, tmp_path / "copy.db")
    assert not any((tmp_path / name).exists() for name in ("copy.db", "copy.db.partial"))


async def test_a_backup_overwrites_nothing(make: Make, bed: Bed, tmp_path: Path):
    """Neither a file that is there nor one that another backup is writing; nor where there is no room."""
    Open(make())
    file = tmp_path / "copy.db"
    file.write_text("precious")
    with pytest.raises(LedgerUnavailable, match="is there already: choose another name"):
        upkeep.backup(bed.place, file)
    assert file.read_text() == "precious"
    (tmp_path / "other.db.partial").touch()
    with pytest.raises(LedgerUnavailable, match="another backup writes"):
        upkeep.backup(bed.place, tmp_path / "other.db")
    with pytest.raises(LedgerUnavailable, match="cannot be written"):
        upkeep.backup(bed.place, tmp_path / "nowhere" / "copy.db")


async def test_a_restore_overwrites_nothing(make: Make, bed: Bed, tmp_path: Path):
    """Not a ledger with events, and not one that a desk has open, even without any."""
    ledger = Open(make()).ledger
    copy = tmp_path / "copy.db"
    other = SqliteBed(tmp_path / "other" / "desk.db").make()
    Open(other)
    await other.append(executed("e1"))
    upkeep.backup(other.path, copy)
    await other.close()
    with pytest.raises(LedgerUnavailable, match="in use by another desk"):
        upkeep.restore(copy, bed.place)
    await ledger.append(opened("bob"))
    await ledger.close()
    with pytest.raises(LedgerUnavailable, match=r"has events \(the last one is 1\), and none is ever overwritten"):
        upkeep.restore(copy, bed.place)
    assert bed.sql("SELECT kind FROM desk.events") == [("UserOpened",)]


async def test_a_damaged_backup_restores_nothing(make: Make, bed: Bed, target: Bed, tmp_path: Path):
    """All or nothing: what stands before the damage is not restored either, and the place is free afterwards."""
    ledger = Open(make()).ledger
    await ledger.append(opened("alice"), *(executed(number) for number in range(2500)))
    copy = SqliteBed(tmp_path / "copy.db")
    last = upkeep.backup(bed.place, copy.place)
    disarm(copy)
    copy.sql("UPDATE events SET body = CAST(replace(body, '145.50', '145.51') AS BLOB) WHERE seq = 2300")
    with pytest.raises(LedgerUnavailable, match="event 2300 is not what was written"):
        upkeep.restore(copy.place, target.place)
    assert target.sql("SELECT count(*) FROM desk.events") == [(0,)]
    upkeep.backup(bed.place, tmp_path / "good.db")
    assert upkeep.restore(tmp_path / "good.db", target.place) == last


async def test_an_expected_event_tells_a_cut_off_end(make: Make, bed: Bed, tmp_path: Path):
    """The chain alone cannot; who has noted the last event down, can."""
    ledger = Open(make()).ledger
    await ledger.append(opened("alice"), executed(1), executed(2))
    await ledger.close()
    last = upkeep.check(bed.place).last
    assert last.seq == 3 and mark_of(str(last)) == last
    assert upkeep.check(bed.place, last).problem == ""
    disarm(bed)
    bed.sql("DELETE FROM desk.postings WHERE seq = 3")
    bed.sql("DELETE FROM desk.events WHERE seq = 3")
    assert upkeep.check(bed.place).problem == ""
    assert "event 3 is missing: what came last was cut off" in upkeep.check(bed.place, last).problem
    other = mark_of(f"2:{'0' * 64}")
    assert "another history" in upkeep.check(bed.place, other).problem
    upkeep.backup(bed.place, tmp_path / "copy.db")
    with pytest.raises(LedgerUnavailable, match="event 3 is missing"):
        upkeep.restore(tmp_path / "copy.db", tmp_path / "new.db", last)
    assert not (tmp_path / "new.db").exists()


async def test_the_commands_say_what_they_found(make: Make, bed: Bed, tmp_path: Path, capsys: pytest.CaptureFixture):
    """Exit code 0, 1 or 2, and words that a person can act on; also while a desk runs."""
    ledger = Open(make()).ledger
    await ledger.append(opened("alice"), executed(1), executed(2))
    mark = f"3:{ledger._hash.hex()}"
    assert commands.verify(bed.place) == commands.verify(bed.place, mark) == 0
    assert f"3 events, the last one is {mark}, all as they were written" in capsys.readouterr().out
    assert commands.verify(bed.place, "3") == 2
    assert "'3' is not SEQ:HASH" in capsys.readouterr().err
    copy = tmp_path / "copy.db"
    assert commands.backup(bed.place, copy) == 0 and commands.backup(bed.place, copy) == 1
    said = capsys.readouterr()
    assert f"{copy}: 3 events, the last one is {mark}." in said.out and "choose another name" in said.err
    assert commands.restore(copy, tmp_path / "new.db", mark) == 0
    assert f"Restored 3 events, the last one is {mark}" in capsys.readouterr().out
    disarm(bed)
    bed.sql("DELETE FROM desk.events WHERE seq = 2")
    assert commands.verify(bed.place) == 1
    assert "event 2 is missing.\nRestore the ledger from a backup." in capsys.readouterr().err


async def test_the_server_looks_after_its_own_ledger(
    make: Make, bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """`python -m desk_server` checks, backs up and restores whichever ledger the settings name."""
    monkeypatch.setenv("DESK_RUN_DIR", str(tmp_path))
    monkeypatch.delenv("DESK_DATABASE_URL", raising=False)
    if isinstance(bed, PostgresBed):
        monkeypatch.setenv("DESK_DATABASE_URL", bed.place)
    ledger = Open(make()).ledger
    await ledger.append(opened("alice"), executed(1))
    mark = f"2:{ledger._hash.hex()}"
    copy = tmp_path / "copy.db"
    assert server("backup", str(copy)) == server("verify-ledger", "--expect", mark) == 0
    assert server("verify-ledger", str(copy), "--expect", mark) == 0
    assert server("verify-ledger", "--expect", f"3:{mark[2:]}") == server("restore", str(copy)) == 1
    monkeypatch.delenv("DESK_DATABASE_URL", raising=False)
    monkeypatch.setenv("DESK_RUN_DIR", str(tmp_path / "new"))
    assert server("verify-ledger") == 1
    assert server("restore", str(copy), "--expect", mark) == server("verify-ledger", "--expect", mark) == 0
    capsys.readouterr()
    for wrong in (["backup"], ["restore"], ["settings", str(copy)], ["backup", str(copy), "--expect", mark]):
        with pytest.raises(SystemExit) as ended:
            server(*wrong)
        assert ended.value.code == 2


def server(*arguments: str) -> int:
    return main(arguments)


def test_where_there_is_no_ledger_none_is_made(tmp_path: Path, capsys: pytest.CaptureFixture):
    """A wrong path is told, and nothing appears there."""
    missing = tmp_path / "nothing.db"
    assert commands.verify(missing) == commands.backup(missing, tmp_path / "copy.db") == 1
    assert commands.restore(missing, tmp_path / "new.db") == 1
    assert list(tmp_path.iterdir()) == []
    assert "there is no ledger at" in capsys.readouterr().err
