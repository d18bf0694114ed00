"""A ledger in a PostgreSQL database: bringing its tables up to date, reading it, inserting rows."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg

from desk_server.ledger import LedgerUnavailable
from desk_server.ledger.chain import START_HASH, Entries, PostingRow, Row, checked_rows, posting_rows
from desk_server.ledger.postgres_link import Link, byteas, connect, int4s, int8s, name_of, texts
from desk_server.ledger.postgres_schema import MIGRATIONS, POSTINGS

# "DESK": of two new desks on an empty database, one makes the tables.
_MAKING = 0x4445534B
_POST_AT_ONCE = 1000
_EVENTS = """desk.events (seq, at, kind, "user", order_id, dedupe, body, hash)
    SELECT e.seq, e.at::timestamptz, e.kind, e.owner, e.order_id, e.dedupe, e.body, e.hash
    FROM unnest(%s::bigint[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::bytea[], %s::bytea[])
        AS e (seq, at, kind, owner, order_id, dedupe, body, hash)"""
_POSTINGS = """desk.postings (seq, n, account, asset, amount)
    SELECT p.seq, p.n, p.account, p.asset, p.amount::numeric
    FROM unnest(%s::bigint[], %s::integer[], %s::text[], %s::text[], %s::text[])
        AS p (seq, n, account, asset, amount)"""
# Nothing is inserted unless this connection is the one that may write and knows the last event. The lock makes a
# takeover wait for the commit, and a commit that waited for a takeover looks again.
_FENCE = """WITH fence AS MATERIALIZED (
    SELECT 1 FROM desk.fence
    WHERE epoch = %s AND %s = (SELECT coalesce(max(seq), 0) FROM desk.events) FOR SHARE)"""
_INSERT_EVENTS = f"{_FENCE} INSERT INTO {_EVENTS}, fence"
_INSERT_BOTH = f"{_FENCE}, stored AS (INSERT INTO {_EVENTS}, fence) INSERT INTO {_POSTINGS}, fence"
_SELECT_EVENTS = """SELECT seq, at, kind, "user", order_id, dedupe, body, hash FROM desk.events
    WHERE seq > %s ORDER BY seq LIMIT %s"""
_SELECT_POSTINGS = """SELECT seq, n, account, asset, amount::text FROM desk.postings
    WHERE seq > %s AND seq <= %s ORDER BY seq, n"""


def insert(link: Link, epoch: int, before: int, rows: Sequence[Row], moved: Sequence[PostingRow]) -> bool:
    """Store them in one statement, which is one transaction unless one is open. False where another connection has
    raised the epoch, or `before` is not the last event: then nothing was stored. Raises psycopg.Error."""
    statement, values = _INSERT_EVENTS, [epoch, before, *_event_arrays(rows)]
    if moved:
        statement, values = _INSERT_BOTH, [*values, *_posting_arrays(moved)]
    cursor = link.execute(statement, values, prepare=True, binary=True)
    return cursor.rowcount == len(moved or rows)


def _event_arrays(rows: Sequence[Row]) -> list[bytes]:
    seqs, ats, kinds, users, orders, dedupes, bodies, hashes = zip(*rows, strict=True)
    return [int8s(seqs), *map(texts, (ats, kinds, users, orders, dedupes)), byteas(bodies), byteas(hashes)]


def _posting_arrays(moved: Sequence[PostingRow]) -> list[bytes]:
    seqs, places, accounts, assets, amounts = zip(*moved, strict=True)
    return [int8s(seqs), int4s(places), texts(accounts), texts(assets), texts(amounts)]


def stored_keys(link: Link, keys: Sequence[str]) -> set[str]:
    """Those of the dedupe keys that are stored already."""
    rows = link.execute("SELECT dedupe FROM desk.events WHERE dedupe = ANY(%s::text[])", (texts(keys),))
    return {row[0] for row in rows}


def hash_at(link: Link, seq: int) -> bytes | None:
    row = link.execute("SELECT hash FROM desk.events WHERE seq = %s", (seq,)).fetchone()
    return None if row is None else bytes(row[0])


def last_of(link: Link) -> tuple[int, bytes]:
    row = link.execute("SELECT seq, hash FROM desk.events ORDER BY seq DESC LIMIT 1").fetchone()
    return (int(row[0]), bytes(row[1])) if row else (0, START_HASH)


def make(link: Link, name: str) -> None:
    """The first tables, where there are none. Raises LedgerUnavailable, psycopg.Error."""
    with link.transaction():
        link.execute("SELECT pg_advisory_xact_lock(%s)", (_MAKING,))
        if version_of(link, name) == 0:
            link.execute(MIGRATIONS[0])
            link.execute("INSERT INTO desk.migrations (version) VALUES (1)")


def migrate(link: Link, name: str, epoch: int) -> None:
    """Every later step, each in one transaction of the ledger's holder. Raises LedgerUnavailable, psycopg.Error."""
    for number in range(version_of(link, name) + 1, len(MIGRATIONS) + 1):
        answer_s, link.answer_s = link.answer_s, None
        try:
            with link.transaction():
                link.execute("SET LOCAL statement_timeout = 0")
                if link.execute("SELECT 1 FROM desk.fence WHERE epoch = %s FOR SHARE", (epoch,)).fetchone() is None:
                    raise LedgerUnavailable(f"another desk has taken the ledger {name} over")
                link.execute(MIGRATIONS[number - 1])
                if number == POSTINGS:
                    _post_old_events(link, name)
                link.execute("INSERT INTO desk.migrations (version) VALUES (%s)", (number,))
        finally:
            link.answer_s = answer_s


def _post_old_events(link: Link, name: str) -> None:
    entries = Entries()
    moved: list[PostingRow] = []
    for row, event in checked_rows(PostgresReader(link, name)):
        moved += posting_rows(row[0], entries.of(name, row[0], event))
        if len(moved) >= _POST_AT_ONCE:
            insert_postings(link, moved)
            moved = []
    insert_postings(link, moved)


def insert_postings(link: Link, moved: Sequence[PostingRow]) -> None:
    if moved:
        link.execute(f"INSERT INTO {_POSTINGS}", _posting_arrays(moved))


def version_of(link: Link, name: str) -> int:
    """0 where there is no ledger. Raises LedgerUnavailable for what this desk must leave alone."""
    row = link.execute(
        "SELECT to_regnamespace('desk') IS NOT NULL, to_regclass('desk.migrations') IS NOT NULL"
    ).fetchone()
    assert row is not None
    is_taken, is_ledger = row
    if not is_ledger:
        if is_taken:
            raise LedgerUnavailable(f"{name} has a schema `desk` that is no ledger: give the desk another database")
        return 0
    row = link.execute("SELECT coalesce(max(version), 0) FROM desk.migrations").fetchone()
    version = int(row[0]) if row else 0
    if version > len(MIGRATIONS):
        raise LedgerUnavailable(
            f"the ledger {name} was written by a newer desk (schema {version}, this one knows {len(MIGRATIONS)}): "
            "install that version"
        )
    return version


class PostgresReader:
    """See chain.Reader."""

    def __init__(self, link: Link, name: str) -> None:
        self.name = name
        self._link = link
        self.version = version_of(link, name)

    def events(self, after: int, limit: int) -> list[Row]:
        rows = self._all(_SELECT_EVENTS, after, limit)
        return [(row[0], row[1].isoformat(), *row[2:]) for row in rows]

    def postings(self, after: int, upto: int) -> list[PostingRow]:
        return self._all(_SELECT_POSTINGS, after, upto)

    def integrity(self) -> str:
        """Nothing: what the server reads, it has checked as it was told to (initdb --data-checksums)."""
        return ""

    def last(self) -> tuple[int, bytes]:
        try:
            return last_of(self._link)
        except psycopg.Error as error:
            raise self._unreadable(error) from error

    def close(self) -> None:
        self._link.close()

    def _all(self, statement: str, after: int, upto: int) -> list[Any]:
        try:
            return self._link.execute(statement, (after, upto), binary=True).fetchall()
        except psycopg.Error as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: psycopg.Error) -> LedgerUnavailable:
        return LedgerUnavailable(f"the ledger {self.name} cannot be read: {' '.join(str(error).split())}")


@contextlib.contextmanager
def reading(url: str) -> Iterator[PostgresReader]:
    """By a connection of its own. Raises LedgerUnavailable where there is no ledger."""
    name = name_of(url)
    with contextlib.closing(connect(url, "reader")) as link:
        try:
            link.execute("SET default_transaction_read_only = on")
            reader = PostgresReader(link, name)
        except psycopg.Error as error:
            raise LedgerUnavailable(f"the ledger {name} cannot be read: {error}") from error
        if reader.version == 0:
            raise LedgerUnavailable(f"there is no ledger in {name}")
        yield reader
