"""What a ledger's rows are, whatever database holds them: an event's columns, its postings, the chain of hashes."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import sha256
from typing import Protocol

import msgspec

from desk_server.domain import Order, OrderId
from desk_server.events import AnyEvent, OrderAccepted, OrderIntended, decode, dedupe_key, encode, owner, subject
from desk_server.ledger import LedgerUnavailable, Stored
from desk_server.postings import Posting, intended, named, postings

# What the first event's hash covers in the place of a hash before it.
START_HASH = bytes(32)
READ_PAGE = 1000

# What stands in a row between seq and hash: at, kind, user, order_id, dedupe, body.
Columns = tuple[str, str, str, str, str | None, bytes]
Row = tuple[int, str, str, str, str, str | None, bytes, bytes]
# seq, n (from 0, of one event), account, asset, amount
PostingRow = tuple[int, int, str, str, str]


class Damaged(LedgerUnavailable):
    """The first event that is missing, changed or unreadable."""

    def __init__(self, name: str, seq: int, what: str) -> None:
        super().__init__(f"the ledger {name} is damaged: event {seq} {what}. Restore it from a backup")
        self.seq = seq
        self.what = what


class Reader(Protocol):
    """A ledger that is only read; another process may be writing it. All raise LedgerUnavailable."""

    # What messages call it: the file, or the database without its password.
    name: str
    # The version of its tables.
    version: int

    def events(self, after: int, limit: int) -> list[Row]:
        """The first `limit` rows with seq > after, in order."""
        ...

    def postings(self, after: int, upto: int) -> list[PostingRow]:
        """Of events with after < seq <= upto, in order."""
        ...

    def integrity(self) -> str:
        """What the database itself finds wrong with its file; "" when nothing."""
        ...

    def last(self) -> tuple[int, bytes]:
        """Seq and hash of the last event; 0 and START_HASH when there is none."""
        ...

    def close(self) -> None: ...


class Chain:
    """Gives events their seq and hash: each hash covers the one before and the event's body."""

    def __init__(self, seq: int, last_hash: bytes) -> None:
        self.seq = seq
        self.hash = last_hash
        self.stored: list[Stored] = []

    def link(self, event: AnyEvent, columns: Columns) -> Row:
        row = self.row(columns)
        self.stored.append(Stored(self.seq, event))
        return row

    def row(self, columns: Columns) -> Row:
        """The next one."""
        self.seq += 1
        self.hash = sha256(self.hash + columns[5]).digest()
        return (self.seq, *columns, self.hash)

    def follow(self, events: Sequence[AnyEvent], rows: list[Row]) -> list[Row]:
        """`rows`, which another chain has made of the events behind the same hash."""
        for row, event in zip(rows, events, strict=True):
            self.stored.append(Stored(row[0], event))
        self.seq, self.hash = rows[-1][0], rows[-1][7]
        return rows

    def mark(self) -> tuple[int, bytes, int]:
        return self.seq, self.hash, len(self.stored)

    def back_to(self, mark: tuple[int, bytes, int]) -> None:
        self.seq, self.hash, count = mark
        del self.stored[count:]


def columns_of(event: AnyEvent, body: bytes | None = None) -> Columns:
    if body is None:
        body = encode(event)
    # Every order has these two.
    if type(event) is OrderIntended:
        order = event.order
        return _time_text(event.at), "OrderIntended", order.user, order.order_id, dedupe_key(event), body
    if type(event) is OrderAccepted:
        return _time_text(event.at), "OrderAccepted", "", event.order_id, None, body
    return _time_text(event.at), type(event).__name__, owner(event), subject(event), dedupe_key(event), body


def _time_text(at: datetime) -> str:
    """As `isoformat` writes it, in UTC, but at a third of the cost: it is done for every event."""
    return f"{msgspec.to_builtins(at)[:-1]}+00:00" if at.tzinfo is UTC else at.astimezone(UTC).isoformat()


def says_its_columns(row: Row, event: AnyEvent) -> bool:
    """Whether what stands beside the body is what the body says. The first desks wrote times with their offset."""
    at, *columns = columns_of(event, body=row[6])
    return [*row[2:7]] == columns and row[1] in (at, event.at.isoformat())


def posting_rows(seq: int, entry: tuple[Posting, ...]) -> list[PostingRow]:
    return [(seq, n, one.account, one.asset, format(one.amount, "f")) for n, one in enumerate(entry)]


def checked_rows(reader: Reader, after: int = 0) -> Iterator[tuple[Row, AnyEvent]]:
    """Rows with seq > after and their events. Raises LedgerUnavailable (Damaged where a row is at fault)."""
    last = START_HASH
    if after:
        before = reader.events(after - 1, 1)
        if not before or before[0][0] != after:
            return
        last = before[0][7]
    for page in _pages(reader, after):
        for row in page:
            after += 1
            event, last = _check(reader.name, after, row, last)
            yield row, event


def _pages(reader: Reader, after: int) -> Iterator[list[Row]]:
    """Page by page, so that no long read keeps anybody from cleaning up."""
    while page := reader.events(after, READ_PAGE):
        yield page
        after = page[-1][0]


def _check(name: str, expected: int, row: Row, last: bytes) -> tuple[AnyEvent, bytes]:
    if row[0] != expected:
        raise Damaged(name, expected, "is missing")
    body = row[6]
    if not isinstance(body, bytes) or sha256(last + body).digest() != row[7]:
        raise Damaged(name, expected, "is not what was written")
    try:
        return decode(body), row[7]
    except msgspec.MsgspecError as error:
        raise Damaged(name, expected, f"cannot be read by this version of the desk ({error})") from error


class Entries:
    """The journal entry of each event of a ledger, taken in order; those of its first desks name no user."""

    def __init__(self) -> None:
        self._orders: dict[OrderId, Order] = {}

    def of(self, name: str, seq: int, event: AnyEvent) -> tuple[Posting, ...]:
        """Raises Damaged for an execution of an order that the ledger does not have."""
        for order in intended(event):
            self._orders[order.order_id] = order
        try:
            return postings(named(event, self._orders))
        except ValueError as error:
            raise Damaged(name, seq, f"cannot be posted ({error})") from error


def verify(reader: Reader) -> Damaged | None:
    """The first event that is missing, changed or unreadable, or whose postings are not what it moved; None when
    all is as it was written.

    What was cut off at the end leaves no trace in the chain: compare `reader.last()` with what is known from
    elsewhere (backups, logs).
    """
    entries = Entries()
    seq, last = 0, START_HASH
    try:
        for page in _pages(reader, 0):
            stored = _by_seq(reader.postings(seq, page[-1][0])) if reader.version >= 2 else None
            for row in page:
                event, last = _check(reader.name, seq + 1, row, last)
                seq += 1
                if not says_its_columns(row, event):
                    return Damaged(reader.name, seq, "says something else in its columns than in its body")
                entry = posting_rows(seq, entries.of(reader.name, seq, event))
                if stored is not None and not _are_same(stored.get(seq, []), entry):
                    return Damaged(reader.name, seq, "has postings that are not what it moved")
        if reader.version >= 2 and reader.postings(seq, 2**62) and not reader.events(seq, 1):
            return Damaged(reader.name, seq + 1, "is missing, but has postings")
    except Damaged as damaged:
        return damaged
    except LedgerUnavailable as error:
        return Damaged(reader.name, seq + 1, f"cannot be read ({error})")
    return None


def _by_seq(rows: list[PostingRow]) -> dict[int, list[PostingRow]]:
    found: dict[int, list[PostingRow]] = {}
    for row in rows:
        found.setdefault(row[0], []).append(row)
    return found


def _are_same(stored: list[PostingRow], computed: list[PostingRow]) -> bool:
    """Amounts are compared as numbers: databases write them differently."""
    return len(stored) == len(computed) and all(
        one[:4] == other[:4] and Decimal(one[4]) == Decimal(other[4])
        for one, other in zip(stored, computed, strict=True)
    )
