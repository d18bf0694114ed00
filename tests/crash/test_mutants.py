"""The harness catches every bug that is put in; a harness that misses one proves nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash.mutants import CAUGHT_WITHIN_S, MUTANTS, judge

PROJECT = Path(__file__).resolve().parents[2]
# Bugs that order systems really had: what `make mutants` must show, no less.
NAMED = {
    "new_id_on_retry",
    "timeout_is_a_rejection",
    "not_found_is_a_rejection",
    "no_fill_dedupe",
    "fill_in_two_transactions",
    "answer_before_commit",
    "risk_forgets_open_orders",
    "no_restart_recovery",
}


def test_the_table_of_mutants_is_complete():
    """Each of the eight bugs has its mutant."""
    assert set(MUTANTS) == NAMED


@pytest.mark.parametrize("mutant", MUTANTS)
def test_each_mutant_still_fits_the_desk(mutant):
    """The source that the mutant changes is where it was: if this fails, put the bug in at its new place."""
    apply = f"from tests.crash import mutants; mutants.apply({mutant!r})"
    done = subprocess.run(
        [sys.executable, "-c", apply], cwd=PROJECT, check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.xdist_group("crash")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_each_mutant_is_caught(mutant):
    """The loop finds an invariant broken within a minute, and was itself in working order."""
    verdict = judge(mutant, "7")
    assert not verdict.failed
    assert verdict.broken, str(verdict)
    assert verdict.seconds <= 2 * CAUGHT_WITHIN_S, str(verdict)
