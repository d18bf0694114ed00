"""A desk and a broker with records, both new; `restarted` is a second desk at the same broker."""

from pathlib import Path

import pytest

from tests.reconcile.ground import Ground, HandClock, Records


@pytest.fixture
def broker() -> Records:
    return Records(HandClock())


@pytest.fixture
async def ground(tmp_path: Path, broker: Records):
    """The first look is done: the opening balance is the house's."""
    run = await Ground(tmp_path / "first", broker).start()
    await run.look()
    yield run
    await run.stop()
