"""Ledgers that close themselves."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from desk_server.ledger.sqlite import SqliteLedger


@pytest.fixture
async def make_sqlite(tmp_path: Path) -> AsyncIterator[Callable[..., SqliteLedger]]:
    """Makes ledgers on the same file, one after the other."""
    made: list[SqliteLedger] = []

    def make(**options: object) -> SqliteLedger:
        made.append(SqliteLedger(tmp_path / "ledger" / "desk.db", **options))
        return made[-1]

    yield make
    for ledger in made:
        await ledger.close()
