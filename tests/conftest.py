"""Docker tests skip where no engine answers; with DESK_REQUIRE_DOCKER=1 (as in .ci/run) they fail instead."""

import functools
import os
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
DOCKER_IS_REQUIRED = os.environ.get("DESK_REQUIRE_DOCKER") == "1"


@functools.cache
def engine_answers() -> bool:
    check = [PROJECT / "deploy" / "engine.sh", "--check"]
    return subprocess.run(check, check=False, capture_output=True, timeout=30).returncode == 0


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("docker") and not engine_answers():
        pytest.skip("no Docker engine answers; to get one: make engine")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call):
    report = yield
    if (
        DOCKER_IS_REQUIRED
        and item.get_closest_marker("docker")
        and report.skipped
        and not hasattr(report, "wasxfail")
    ):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"DESK_REQUIRE_DOCKER=1 allows no Docker test to skip, and this one did: {reason}"
    return report
