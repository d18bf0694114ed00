"""What every ledger promises. To add one: a bed for it (beds.py), and its name in the fixture `bed`."""

import asyncio
from collections.abc import Callable

import pytest
from ledger_story import Open, executed, intended, opened

from desk_server import events
from desk_server.ledger import DuplicateEvent, Ledger, LedgerUnavailable


async def test_events_come_back_as_they_were(make: Callable[[], Ledger]):
    """In order, numbered from 1, with every decimal's digits and every letter, in this life and the next."""
    ledger = make()
    assert list(ledger.read()) == []
    opened_ledger = Open(ledger)
    written = [opened("alice"), intended(1, "r1"), executed("e1"), executed("e2")]
    assert await ledger.append(written[0]) == 1
    assert await ledger.append(*written[1:3]) == 3
    assert await ledger.append(written[3]) == 4
    assert opened_ledger.seqs() == [1, 2, 3, 4]
    check(ledger, written)
    await ledger.close()
    check(make(), written)


def check(ledger: Ledger, written: list[events.AnyEvent]) -> None:
    read = list(ledger.read())
    assert [stored.seq for stored in read] == [1, 2, 3, 4]
    assert [repr(stored.event) for stored in read] == [repr(event) for event in written]
    assert [stored.seq for stored in ledger.read(after=2)] == [3, 4]
    assert list(ledger.read(after=4)) == list(ledger.read(after=99)) == []


async def test_numbers_go_on_after_a_restart(make: Callable[[], Ledger]):
    """The next life starts where the last one ended, and knows its duplicates."""
    first = make()
    Open(first)
    await first.append(executed("e1"))
    await first.close()
    second = make()
    Open(second)
    with pytest.raises(DuplicateEvent):
        await second.append(executed("e1"))
    assert await second.append(executed("e2")) == 2


async def test_commits_are_told_before_their_futures_resolve(make: Callable[[], Ledger]):
    """So that whoever awaited an append finds the book folded."""
    ledger = Open(make())

    async def append(name: str) -> None:
        seq = await ledger.ledger.append(executed(name), executed(name + "'"))
        assert seq in ledger.seqs()
        ledger.log.append(name)

    await asyncio.gather(*(append(f"e{number}") for number in range(20)))
    assert ledger.seqs() == list(range(1, 41))
    assert len([entry for entry in ledger.log if isinstance(entry, str)]) == 20


async def test_futures_resolve_in_the_order_of_their_appends(make: Callable[[], Ledger]):
    """First come, first stored."""
    ledger = Open(make())
    order: list[int] = []
    futures = [ledger.ledger.append(executed(f"e{number}")) for number in range(50)]
    for number, future in enumerate(futures):
        future.add_done_callback(lambda _, number=number: order.append(number))
    assert await asyncio.gather(*futures) == list(range(1, 51))
    assert order == list(range(50))


async def test_a_duplicate_fails_its_own_call_only(make: Callable[[], Ledger]):
    """All of that call and nothing of the others, which keep gapless numbers; of twins the first wins."""
    ledger = Open(make())
    await ledger.ledger.append(executed("e1"), intended(1, "r1"))
    calls = [
        [executed("e2")],
        [executed("e3"), executed("e1")],
        [executed("e4"), executed("e5")],
        [intended(2, "r1")],
        [executed("e3")],
        [executed("e3")],
        [executed("e6"), executed("e6")],
        [executed("e7")],
    ]
    futures = [ledger.ledger.append(*call) for call in calls]
    outcomes = await asyncio.gather(*futures, return_exceptions=True)
    assert [one if isinstance(one, int) else type(one) for one in outcomes] == [
        3,
        DuplicateEvent,
        5,
        DuplicateEvent,
        6,
        DuplicateEvent,
        DuplicateEvent,
        7,
    ]
    assert ledger.seqs() == list(range(1, 8))
    stored = [one.event for one in ledger.ledger.read(after=2)]
    assert [event.execution_id for event in stored] == ["e2", "e4", "e5", "e3", "e7"]


async def test_a_user_may_use_another_users_request_id(make: Callable[[], Ledger]):
    """Request ids are each user's own."""
    ledger = Open(make())
    mine = intended(1, "r1")
    order = events.Order(**{**{f: getattr(mine.order, f) for f in mine.order.__struct_fields__}, "user": "bob"})
    assert await ledger.ledger.append(mine) == 1
    assert await ledger.ledger.append(events.OrderIntended(at=mine.at, order=order)) == 2


async def test_a_caller_that_hangs_up_undoes_nothing(make: Callable[[], Ledger]):
    """What was appended is stored and told, even when nobody waits for it any more."""
    ledger = Open(make())
    ledger.ledger.append(executed("e1")).cancel()
    assert await ledger.ledger.append(executed("e2")) == 2
    assert ledger.seqs() == [1, 2]


async def test_closing_commits_what_waits(make: Callable[[], Ledger]):
    """Every append before the close is answered; none after it is taken. Closing again is harmless."""
    ledger = Open(make())
    futures = [ledger.ledger.append(executed(f"e{number}")) for number in range(500)]
    await ledger.ledger.close()
    assert [future.result() for future in futures] == list(range(1, 501))
    assert ledger.seqs() == list(range(1, 501))
    with pytest.raises(LedgerUnavailable, match="closed"):
        await ledger.ledger.append(executed("late"))
    await ledger.ledger.close()
    assert len(list(make().read())) == 500


async def test_a_book_that_cannot_be_folded_stops_the_ledger(make: Callable[[], Ledger]):
    """Once an event could not be taken in, nothing more is: its caller and all later ones are told."""
    ledger = make()

    def broken(stored: object) -> None:
        raise ValueError("no such order")

    ledger.open(broken)
    for name in ("e1", "e2"):
        with pytest.raises(LedgerUnavailable, match="restart the desk"):
            await ledger.append(executed(name))
    assert [stored.event.execution_id for stored in ledger.read()] == ["e1"]
