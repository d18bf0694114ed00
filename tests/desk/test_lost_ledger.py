"""A desk whose ledger is another's now has nothing left to write, and does not wait for it."""

import asyncio

from tests.desk.conftest import ALICE, DeskUnderTest
from tests.desk.test_order_path import BID


async def test_a_desk_that_lost_its_ledger_ends_without_waiting(tmp_path):
    """What the broker still says cannot be written down by this desk: whoever has the ledger will ask for it."""
    run = await DeskUnderTest(tmp_path).start()
    run.line()
    order = await run.desk.place(ALICE, BID)
    (tmp_path / "ledger" / "desk.db.lock").unlink()
    await run.until(run.keeper.fenced)
    run.line(bid="94", ask="94.5")
    async with asyncio.timeout(4):
        await run.stop()
    assert not run.now(order).filled_qty
