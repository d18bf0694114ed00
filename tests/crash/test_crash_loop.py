"""The desk is killed some hundred times while it trades, and all seventeen promises hold.

DESK_CRASH_KILLS and DESK_CRASH_SEED make it longer, or another one: see docs/proof.md.
"""

import os

import pytest

from tests.crash.loop import Plan, Run, report, run
from tests.postgres_server import wanted_binaries

KILLS = int(os.environ.get("DESK_CRASH_KILLS", "300"))
SEED = os.environ.get("DESK_CRASH_SEED", "2026")


def shown(plan: Plan) -> Run:
    result = run(plan)
    print(report(result))
    return result


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.xdist_group("crash")
def test_the_desk_keeps_its_promises_while_it_is_killed():
    """No order is lost, doubled or misattributed, whatever dies when; and everything was tried."""
    result = shown(Plan(kills=KILLS, seed=SEED, jobs=2, pause_s=0.05))
    assert not result.failed
    assert result.violations == []
    assert result.kills >= KILLS
    assert result.never() == []


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.xdist_group("crash")
def test_the_desk_keeps_its_promises_on_postgresql():
    """The same with a database server that is killed and stopped as well."""
    wanted_binaries()
    result = shown(Plan(kills=40, seed=SEED, ledger="postgres", epoch_kills=20, jobs=2, pause_s=0.05))
    assert not result.failed
    assert result.violations == []
    assert result.kills >= 40
