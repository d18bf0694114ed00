"""Ledgers that close themselves."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from beds import Bed, PostgresBed, SqliteBed

from desk_server.ledger import Ledger
from desk_server.ledger.postgres import PostgresLedger
from desk_server.ledger.sqlite import SqliteLedger
from tests.postgres_server import postgres_server

__all__ = ["postgres_server"]


@pytest.fixture
def sqlite_bed(tmp_path: Path) -> SqliteBed:
    return SqliteBed(tmp_path / "ledger" / "desk.db")


@pytest.fixture
def postgres_bed(request: pytest.FixtureRequest) -> Iterator[PostgresBed]:
    server = request.getfixturevalue("postgres_server")
    with server.database() as url:
        yield PostgresBed(server, url)


@pytest.fixture(params=["sqlite_bed", "postgres_bed"])
def bed(request: pytest.FixtureRequest) -> Bed:
    """Each kind of ledger in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture
async def make(bed: Bed) -> AsyncIterator[Callable[..., Ledger]]:
    """Makes ledgers on the same bed, one after the other."""
    async for made in _closing(bed):
        yield made


@pytest.fixture
async def make_sqlite(sqlite_bed: SqliteBed) -> AsyncIterator[Callable[..., SqliteLedger]]:
    """Makes ledgers on the same file, one after the other."""
    async for made in _closing(sqlite_bed):
        yield made


@pytest.fixture
async def make_postgres(postgres_bed: PostgresBed) -> AsyncIterator[Callable[..., PostgresLedger]]:
    """Makes ledgers in the same database, one after the other."""
    async for made in _closing(postgres_bed):
        yield made


async def _closing(bed: Bed) -> AsyncIterator[Callable]:
    ledgers: list[Ledger] = []

    def make(**options: object) -> Ledger:
        ledgers.append(bed.make(**options))
        return ledgers[-1]

    yield make
    for ledger in ledgers:
        await ledger.close()
