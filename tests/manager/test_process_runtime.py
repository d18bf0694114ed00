"""Strategies as plain processes: loud about it, restarted, quarantined, and never mistaken for another process."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.manager.ground import CRASHES, READS_LINES, SLEEPS, Ground, wait_until

PROCESS = ("--runtime", "process")


def runs(pid: int) -> bool:
    """A zombie that nobody has collected yet does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def row(ground: Ground, name: str) -> dict:
    return json.loads(ground.manager("status", "--json", name, *PROCESS).stdout)["strategies"][0]


def test_a_strategy_starts_reads_lines_and_stops(ground):
    """The whole way, with the notice at the start and in the status."""
    name = ground.write("alpha")
    started = ground.manager("start", *PROCESS)
    assert started.returncode == 0, started.stderr
    assert "NOT SANDBOXED" in started.stderr
    wait_until(lambda: "read 10 AAPL" in ground.log(name))
    assert "NOT SANDBOXED" in ground.manager("status", *PROCESS).stdout
    shown = row(ground, name)
    assert (shown["state"], shown["sandboxed"]) == ("running", False)
    assert shown["lines_read"] > 0 and shown["memory_bytes"] > 0
    facts = json.loads((ground.run_dir / "processes" / f"{name}.json").read_text())
    stopped = ground.manager("stop", *PROCESS)
    assert stopped.returncode == 0 and "stopped" in stopped.stdout
    for which in ("supervisor", "child"):
        assert not runs(facts[which]["pid"])
    assert ground.desk.active(name) == []


@pytest.mark.parametrize("live", [True, None])
def test_it_refuses_a_live_account_and_one_that_does_not_say(live):
    """Fails closed: only a desk that says it is not live will do."""
    ground = Ground(live=live)
    try:
        name = ground.write("alpha")
        done = ground.manager("start", *PROCESS)
        assert done.returncode == 1 and "live account" in done.stderr
        assert ground.desk.active(name) == [] and ground.log(name) == ""
    finally:
        ground.close()


def test_a_crash_is_restarted_and_then_quarantined(ground):
    """With backoff, as often as allowed; the last error and exit code are shown."""
    name = ground.write("crashing", CRASHES, {"restart": {"max_crashes": 2, "window_s": 60}})
    done = ground.manager("start", *PROCESS)
    assert done.returncode == 1
    assert f"{name}: crashed with exit code 1: ValueError: the answer is wrong" in done.stderr
    wait_until(lambda: row(ground, name)["state"] == "quarantined")
    shown = row(ground, name)
    assert (shown["restarts"], shown["exit_code"], shown["last_error"]) == (2, 1, "ValueError: the answer is wrong")
    assert ground.log(name).count("about to fail") == 3


def test_a_pid_that_belongs_to_somebody_else_now_is_not_ours(ground):
    """State files are believed only as far as /proc confirms them."""
    name = ground.write("alpha", SLEEPS)
    ground.manager("start", *PROCESS)
    path = ground.run_dir / "processes" / f"{name}.json"
    facts = json.loads(path.read_text())
    ground.manager("stop", *PROCESS)
    stranger = os.getpid()
    facts["child"]["pid"] = facts["supervisor"]["pid"] = stranger
    path.write_text(json.dumps(facts))
    assert row(ground, name)["state"] == "stopped"
    assert ground.manager("stop", name, *PROCESS).returncode == 0
    os.kill(stranger, 0)


def test_a_strategy_dies_with_its_supervisor(ground):
    """A killed supervisor leaves nothing running unseen."""
    name = ground.write("alpha", SLEEPS)
    ground.manager("start", *PROCESS)
    facts = json.loads((ground.run_dir / "processes" / f"{name}.json").read_text())
    os.kill(facts["supervisor"]["pid"], signal.SIGKILL)
    wait_until(lambda: row(ground, name)["state"] == "stopped")


def test_a_strategy_that_ends_is_exited(ground):
    """Exit code 0 is no crash."""
    name = ground.write("once", "print('done')\n")
    done = ground.manager("start", *PROCESS)
    assert done.returncode == 0 and "ran to its end" in done.stdout
    assert row(ground, name)["state"] == "exited"


def test_its_environment_is_clean(ground):
    """Secrets of the one who starts it are not handed on."""
    name = ground.write("env", "import os, time\nprint(sorted(os.environ))\ntime.sleep(30)\n")
    ground.manager("start", *PROCESS, APCA_API_SECRET_KEY="secret", PYTHONPATH="/tmp")
    said = wait_until(lambda: "USER_ID" in ground.log(name) and ground.log(name))
    assert "APCA" not in said and "PYTHONPATH" not in said


def test_reading_lines_goes_on_after_the_desk_was_away(ground):
    """The strategy does not notice; the supervisor counts no crash."""
    name = ground.write("alpha", READS_LINES)
    ground.manager("start", *PROCESS)
    wait_until(lambda: "read 10" in ground.log(name))
    ground.desk.stop()
    ground.desk.start()
    before = ground.log(name).count("read")
    wait_until(lambda: ground.log(name).count("read") > before + 2, 30)
    assert row(ground, name)["restarts"] == 0
