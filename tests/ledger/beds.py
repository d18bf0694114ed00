"""What the ledgers stand on in tests: each kind made again and again on the same place, and got at from the side."""

import contextlib
import shutil
import sqlite3
from pathlib import Path

import psycopg

from desk_server.ledger import postgres_schema, sqlite_file
from desk_server.ledger.chain import Reader
from desk_server.ledger.postgres import PostgresLedger
from desk_server.ledger.postgres_file import reading
from desk_server.ledger.sqlite import SqliteLedger
from tests.postgres_server import Server

# Short, so that a test need not wait long for one to end; long enough for a busy machine to renew it.
LEASE_S = 2.0
VERSION_1 = Path(__file__).parent / "fixtures" / "version1.db"
REFUSAL = (sqlite3.IntegrityError, psycopg.errors.InsufficientPrivilege)
DUPLICATE = (sqlite3.IntegrityError, psycopg.errors.UniqueViolation)


class SqliteBed:
    edits = ("UPDATE {} SET seq = 7", "DELETE FROM {}")
    # Statements that take the protection away, as whoever wants to edit history would.
    disarming = tuple(
        f"DROP TRIGGER {table}_are_never_{what}" for table in ("events", "postings") for what in ("changed", "deleted")
    )

    def __init__(self, path: Path) -> None:
        self.place = path

    def make(self, **options: object) -> SqliteLedger:
        return SqliteLedger(self.place, **options)

    def make_version_1(self) -> None:
        """The ledger that a desk of before 2026-11-20 wrote: see fixtures/README.md."""
        self.place.parent.mkdir(parents=True)
        shutil.copyfile(VERSION_1, self.place)

    def version(self) -> int:
        return self.sql("PRAGMA user_version")[0][0]

    def set_version(self, number: int) -> None:
        self.sql(f"PRAGMA user_version = {number}")

    def has_table(self, name: str) -> bool:
        return bool(self.sql(f"SELECT 1 FROM sqlite_master WHERE name = '{name}'"))

    def sql(self, statement: str) -> list[tuple]:
        """`desk.` before a table is left out."""
        with contextlib.closing(sqlite3.connect(self.place, isolation_level=None)) as connection:
            return connection.execute(statement.replace("desk.", "")).fetchall()

    def reading(self) -> contextlib.AbstractContextManager[Reader]:
        return sqlite_file.reading(self.place)


class PostgresBed:
    edits = (*SqliteBed.edits, "TRUNCATE {}")
    disarming = tuple(
        f"ALTER TABLE desk.{table} DISABLE TRIGGER {trigger}"
        for table, trigger in (
            ("events", "events_are_append_only"),
            ("postings", "postings_are_append_only"),
            ("postings", "postings_balance"),
        )
    )

    def __init__(self, server: Server, url: str) -> None:
        self.server = server
        self.place = url

    def make(self, **options: object) -> PostgresLedger:
        return PostgresLedger(self.place, **{"lease_s": LEASE_S, **options})

    def make_version_1(self) -> None:
        """The tables of version 1 with the same events. No desk of that version wrote to PostgreSQL."""
        with sqlite_file.reading(VERSION_1) as reader, psycopg.connect(self.place) as connection:
            connection.execute(postgres_schema.MIGRATIONS[0])
            connection.execute("INSERT INTO desk.migrations (version) VALUES (1)")
            for row in reader.events(0, 1000):
                connection.execute("INSERT INTO desk.events VALUES (%s, %s, %s, %s, %s, %s, %s, %s)", row)

    def version(self) -> int:
        return self.sql("SELECT max(version) FROM desk.migrations")[0][0]

    def set_version(self, number: int) -> None:
        self.sql(f"INSERT INTO desk.migrations (version) VALUES ({number})")

    def has_table(self, name: str) -> bool:
        return self.sql(f"SELECT to_regclass('desk.{name}') IS NOT NULL") == [(True,)]

    def sql(self, statement: str) -> list[tuple]:
        return self.server.sql(self.place, statement)

    def reading(self) -> contextlib.AbstractContextManager[Reader]:
        return reading(self.place)


Bed = SqliteBed | PostgresBed


def disarm(bed: Bed) -> None:
    for statement in bed.disarming:
        bed.sql(statement)
