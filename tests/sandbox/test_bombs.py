"""Strategies that try to use up the machine: each fails by itself, and neither host nor neighbour feels it."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.manager.ground import READS_LINES, wait_until

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.usefixtures("image")]

PROBE = Path(__file__).parent / "probe"


@pytest.fixture
def bomb(ground):
    """Drops a bomb; gives its name. A neighbour reads lines all the while, and must still do so at the end."""
    neighbour = ground.write("neighbour", READS_LINES)
    assert ground.manager("start", neighbour).returncode == 0

    def drop(kind: str, **config: object) -> str:
        name = ground.name(kind)
        shutil.copytree(PROBE, ground.strategies / name, ignore=shutil.ignore_patterns("__pycache__"))
        content = {"env": {"PROBE_BOMB": kind}, **config}
        (ground.strategies / name / "config.json").write_text(json.dumps(content))
        ground.manager("start", name)
        return name

    yield drop
    before = ground.log(neighbour).count("read")
    wait_until(lambda: ground.log(neighbour).count("read") > before + 2, 15)
    assert ground.status(neighbour)["restarts"] == 0


def said(ground, name: str, kind: str, timeout_s: float = 40) -> dict:
    """What the bomb said at its end."""

    def last() -> dict | None:
        lines = [line for line in ground.log(name).splitlines() if f'"bomb": "{kind}"' in line]
        return json.loads(lines[-1][lines[-1].index("{") :]) if lines else None

    return wait_until(last, timeout_s)


def test_a_fork_bomb_ends_at_its_limit(ground, bomb):
    """No more processes than allowed come to be, and the host can still make its own."""
    name = bomb("fork")
    told = said(ground, name, "fork")
    assert told["born"] < 64 and told["alive"] <= 64
    began = time.monotonic()
    assert subprocess.run(["true"], check=False).returncode == 0
    assert time.monotonic() - began < 10
    assert ground.manager("stop", name).returncode == 0


def test_a_memory_bomb_is_killed_alone_and_then_quarantined(ground, bomb):
    """It dies at its limit with exit code 137, is tried again as often as allowed, and status says why."""
    name = bomb("memory", restart={"max_crashes": 1}, resources={"memory": "128m"})
    wait_until(lambda: ground.status(name)["state"] == "quarantined", 60, every_s=1)
    row = ground.status(name)
    assert row["exit_code"] == 137
    assert "out of memory" in row["last_error"] and "128 MiB" in row["last_error"]
    assert said(ground, name, "memory")["mib"] <= 128


def test_a_disk_bomb_fills_only_its_own_16_mib(ground, bomb):
    """/tmp is bounded in bytes and in files, and its log in bytes."""
    told = said(ground, bomb("disk"), "disk")
    assert 8 * 2**20 <= told["tmp_bytes"] <= 16 * 2**20
    assert 500 < told["tmp_files"] <= 1024
    assert told["log_bytes"] <= 8 * 2**20


def test_descriptors_end_at_256(ground, bomb):
    """A process can hold 256 files."""
    assert said(ground, bomb("descriptors"), "descriptors")["opened"] < 256


def test_inotify_cannot_be_used_up(ground, bomb):
    """Not one inotify instance is made, so none is missing elsewhere."""
    assert said(ground, bomb("inotify"), "inotify")["made"] == 0


def test_a_cpu_bomb_gets_its_half_cpu(ground, bomb):
    """Four busy processes for five seconds get no more than half a CPU."""
    assert said(ground, bomb("cpu"), "cpu")["seconds"] < 0.5 * 5 * 1.4 + 0.3


def test_a_log_flood_costs_the_engine_nothing(ground, bomb):
    """What it writes goes to one bounded file; the engine neither reads nor stores it."""
    engine = engine_pid()
    before = cpu_seconds(engine)
    name = bomb("log")
    largest = 0

    def ended() -> bool:
        nonlocal largest
        path = ground.run_dir / "logs" / f"{name}.log"
        largest = max(largest, path.stat().st_size if path.exists() else 0)
        return '"bomb": "log"' in ground.log(name)

    wait_until(ended, 40)
    spent = cpu_seconds(engine) - before
    assert largest <= 8 * 2**20
    docker_log = subprocess.run(["docker", "logs", f"strategy-{name}"], capture_output=True, check=False)
    assert docker_log.stdout + docker_log.stderr == b""
    print(f"\nlog flood of 8 s: {spent:.2f} CPU seconds of the engine, the start included")
    # Starting the container itself takes some; the flood took 8 CPU seconds where it reached the engine.
    assert spent < 2, spent


def engine_pid() -> int:
    """The Docker engine's process; skips where it is not on this machine."""
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            if path.read_text().strip() == "dockerd":
                return int(path.parent.name)
        except OSError:
            continue
    pytest.skip("the engine is not a process of this machine")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
