"""History cannot be edited: the database refuses it, and where that was taken away, the chain shows it."""

from collections.abc import Callable

import pytest
from beds import DUPLICATE, REFUSAL, Bed, disarm
from ledger_story import Open, executed, intended, opened

from desk_server.ledger import Ledger, LedgerUnavailable
from desk_server.ledger.chain import columns_of, verify

Make = Callable[..., Ledger]


@pytest.mark.parametrize("table", ["events", "postings"])
async def test_rows_are_never_changed_or_deleted(make: Make, bed: Bed, table: str):
    """By nobody, the desk's own database user included."""
    ledger = Open(make()).ledger
    await ledger.append(executed("e1"))
    for statement in bed.edits:
        with pytest.raises(REFUSAL, match="append-only"):
            bed.sql(statement.format(f"desk.{table}"))
    assert len(list(ledger.read())) == 1 and ledger.verify() is None


async def test_the_database_itself_refuses_an_execution_twice(make: Make, bed: Bed):
    """Whoever inserts it, with whatever id of its own: the key is unique in the table."""
    ledger = Open(make()).ledger
    await ledger.append(executed("e1"), intended(1, "r1"))
    for event in (executed("e1"), intended(2, "r1")):
        at, kind, user, order_id, dedupe, _ = columns_of(event)
        insert = f"""INSERT INTO desk.events (seq, at, kind, "user", order_id, dedupe, body, hash)
            VALUES (3, '{at}', '{kind}', '{user}', '{order_id}', '{dedupe}', '', '')"""
        with pytest.raises(DUPLICATE, match=r"dedupe"):
            bed.sql(insert)
    assert bed.sql("SELECT count(*) FROM desk.events") == [(2,)]


TAMPERING = [
    ("UPDATE desk.events SET body = (SELECT body FROM desk.events WHERE seq = 4) WHERE seq = 3", 3, "not what was"),
    ("UPDATE desk.events SET body = '' WHERE seq = 1", 1, "not what was written"),
    ("UPDATE desk.events SET hash = (SELECT hash FROM desk.events WHERE seq = 4) WHERE seq = 5", 5, "not what was"),
    ("""UPDATE desk.events SET "user" = 'bob' WHERE seq = 2""", 2, "in its columns"),
    ("UPDATE desk.events SET at = '2026-01-02T14:30:00.123457+00:00' WHERE seq = 2", 2, "in its columns"),
    ("UPDATE desk.events SET dedupe = NULL WHERE seq = 4", 4, "in its columns"),
    ("DELETE FROM desk.events WHERE seq = 2", 2, "is missing"),
    ("DELETE FROM desk.events WHERE seq = 1", 1, "is missing"),
    ("DELETE FROM desk.events WHERE seq = 5", 5, "is missing, but has postings"),
    ("UPDATE desk.events SET seq = 9 WHERE seq = 5", 5, "is missing"),
    ("DELETE FROM desk.postings WHERE seq = 4 AND n = 2", 4, "postings"),
    ("DELETE FROM desk.postings WHERE seq = 1", 1, "postings"),
    ("UPDATE desk.postings SET account = 'bob' WHERE seq = 3 AND n = 0", 3, "postings"),
    ("UPDATE desk.postings SET amount = '100001' WHERE seq = 1 AND n = 0", 1, "postings"),
    ("INSERT INTO desk.postings VALUES (2, 0, 'bob', 'USD', '1')", 2, "postings"),
    ("INSERT INTO desk.postings VALUES (7, 0, 'bob', 'USD', '1')", 6, "is missing, but has postings"),
]


@pytest.mark.parametrize("tamper, seq, what", TAMPERING)
async def test_tampering_is_found_at_its_first_event(make: Make, bed: Bed, tamper: str, seq: int, what: str):
    """Changed, missing and moved rows are found by the chain, or by what they say beside the event."""
    ledger = Open(make()).ledger
    await ledger.append(opened("alice"), intended(1), *(executed(number) for number in range(3)))
    assert ledger.verify() is None
    await ledger.close()
    disarm(bed)
    bed.sql(tamper)
    with bed.reading() as reader:
        found = verify(reader)
    assert found is not None and found.seq == seq and what in str(found)
    if "not what was" in what or ("missing" in what and seq < 5):
        with pytest.raises(LedgerUnavailable, match=rf"is damaged: event {seq} .* Restore it from a backup"):
            list(ledger.read())


async def test_a_ledger_whose_end_was_cut_off_takes_nothing_more(make: Make, bed: Bed):
    """The desk that runs on it knows what it stored last, and stops for good."""
    ledger = Open(make())
    await ledger.ledger.append(executed("e1"), executed("e2"))
    disarm(bed)
    bed.sql("DELETE FROM desk.postings WHERE seq = 2")
    bed.sql("DELETE FROM desk.events WHERE seq = 2")
    with pytest.raises(LedgerUnavailable, match=r"[Ee]nd this desk"):
        await ledger.ledger.append(executed("e3"))
    assert bed.sql("SELECT seq FROM desk.events") == [(1,)]
    assert ledger.ledger.fenced() and ledger.lost


async def test_reading_goes_on_beside_appends(make: Make, bed: Bed):
    """A reader sees whole commits, in order, however many pages it takes, and a check finds nothing wrong with them."""
    ledger = Open(make()).ledger
    await ledger.append(*(executed(number) for number in range(2500)))
    reader = ledger.read(after=10)
    assert next(reader).seq == 11
    more = ledger.append(*(executed(f"new {number}") for number in range(700)))
    assert ledger.verify() is None
    await more
    assert [stored.seq for stored in reader][-1] >= 2500
    assert ledger.verify() is None
