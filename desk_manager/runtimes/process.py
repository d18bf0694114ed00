"""Strategies as plain local processes: for a machine without an engine, and for one's own code only. NO SANDBOX.

Each strategy has a supervisor process (`supervisor`) which restarts it and writes what it knows to
`processes/<strategy>.json`. That file is believed only as far as /proc confirms it: a process is ours when
its pid and its start time are the ones written down.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from desk_manager import policy
from desk_manager.errors import ManagerError
from desk_manager.policy import Launch, Places
from desk_manager.runtimes import Instance, State, Usage
from desk_manager.settings import Settings

STARTUP_TIMEOUT_S = 20.0
POLL_S = 0.05


class ProcessRuntime:
    """A Runtime without an engine."""

    name = "process"
    sandboxed = False

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._dir = settings.manager_dir / "processes"

    def check(self) -> None:
        if not Path("/proc/self/stat").exists():
            raise ManagerError("this system has no /proc", "use --runtime docker")

    def notices(self) -> Sequence[str]:
        return (
            "NOT SANDBOXED: strategies run as plain processes with all the rights of your own account. They can "
            "read your files and reach the network. Run only code that you trust. For a sandbox: --runtime docker",
        )

    def ids(self, strategy: str) -> tuple[int, int]:
        return os.geteuid(), os.getegid()

    def instances(self) -> dict[str, Instance]:
        if not self._dir.is_dir():
            return {}
        found = (self.instance(path.stem) for path in sorted(self._dir.glob("*.json")))
        return {instance.strategy: instance for instance in found if instance}

    def instance(self, strategy: str) -> Instance | None:
        facts = self._facts(strategy)
        return _instance(facts) if facts else None

    def start(self, launch: Launch) -> None:
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._path(launch.strategy)
        order = {
            "state_file": str(path),
            "log_file": str(launch.log_file),
            "command": [
                sys.executable,
                *policy.ENTRYPOINT[1:],
                *policy.arguments(launch.config, str(launch.staged_dir / "strategy.py")),
            ],
            "directory": str(launch.staged_dir),
            "env": {**policy.environment(launch.config, self._places(launch)), "PATH": "/usr/bin:/bin"},
            "memory_bytes": launch.config.resources.memory_bytes,
            "labels": policy.labels(launch),
        }
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "desk_manager.supervisor"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self._settings.project_dir,
            start_new_session=True,
        )
        assert supervisor.stdin is not None
        supervisor.stdin.write(json.dumps(order).encode())
        supervisor.stdin.close()
        deadline = time.monotonic() + STARTUP_TIMEOUT_S
        while not path.exists():
            if supervisor.poll() is not None or time.monotonic() > deadline:
                raise ManagerError(
                    "its supervisor did not start",
                    "try `python -m desk_manager.supervisor` here; it should wait for input",
                    launch.strategy,
                )
            time.sleep(POLL_S)

    def stop(self, strategy: str, grace_s: float) -> None:
        facts = self._facts(strategy)
        if facts is None:
            return
        if _is_alive(facts["supervisor"]):
            # The supervisor ends its strategy's whole process group, by force after the grace.
            os.kill(facts["supervisor"]["pid"], signal.SIGTERM if grace_s else signal.SIGINT)
            _wait_gone(facts["supervisor"], grace_s + 2)
        for process in (facts["supervisor"], (self._facts(strategy) or facts)["child"]):
            if process and _is_alive(process):
                os.killpg(process["pid"], signal.SIGKILL)
                _wait_gone(process, 2)
        self._path(strategy).unlink(missing_ok=True)

    def usage(self, strategy: str) -> Usage | None:
        facts = self._facts(strategy)
        if facts is None or not _is_alive(facts["child"]):
            return None
        try:
            pages = int(Path(f"/proc/{facts['child']['pid']}/statm").read_text().split()[1])
            fields = _stat_fields(facts["child"]["pid"])
        except OSError:
            return None
        ticks = int(fields[11]) + int(fields[12])
        return Usage(pages * os.sysconf("SC_PAGE_SIZE"), ticks * 10**9 // os.sysconf("SC_CLK_TCK"))

    def early_log(self, strategy: str) -> bytes:
        return b""

    def allow(self, instance: Instance, restarts_max: int, again: bool = False) -> None:
        """The supervisor counts crashes per window by itself."""

    def desk_file(self, path: Path) -> str | None:
        return None

    def _places(self, launch: Launch) -> Places:
        socket = f"unix://{launch.socket_dir}/desk.sock"
        return Places(socket, str(launch.token_dir / "token"), str(launch.log_file), str(launch.staged_dir))

    def _path(self, strategy: str) -> Path:
        return self._dir / f"{strategy}.json"

    def _facts(self, strategy: str) -> dict[str, Any] | None:
        try:
            facts: dict[str, Any] = json.loads(self._path(strategy).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            raise ManagerError(
                f"{self._path(strategy)} is not sound", "end that strategy's processes and remove the file", strategy
            ) from None
        return facts


def _instance(facts: dict[str, Any]) -> Instance:
    labels = facts["labels"]
    supervised, running = _is_alive(facts["supervisor"]), _is_alive(facts["child"])
    state = State(facts["state"])
    complaint = ""
    if running:
        state = State.RUNNING
        complaint = "" if supervised else "its supervisor is gone; restart it"
    elif state in (State.RUNNING, State.RESTARTING):
        state = State.RESTARTING if supervised else State.STOPPED
    return Instance(
        strategy=labels[policy.LABEL],
        user_id=labels["desk.user"],
        deployment_id=labels["desk.deployment"],
        code_hash=labels["desk.code_hash"],
        folder=Path(labels["desk.folder"]),
        state=state,
        started_at=_time(facts["started_at"]),
        finished_at=_time(facts["finished_at"]),
        restarts=facts["restarts"],
        restarts_max=int(labels["desk.restart.max_crashes"]),
        max_crashes=int(labels["desk.restart.max_crashes"]),
        window_s=int(labels["desk.restart.window_s"]),
        exit_code=facts["exit_code"],
        out_of_memory=False,
        memory_limit_bytes=facts["memory_bytes"],
        complaint=complaint,
    )


def identify(pid: int) -> dict[str, int]:
    """What tells this process from a later one that gets the same pid."""
    return {"pid": pid, "start": int(_stat_fields(pid)[19])}


def _is_alive(process: dict[str, int] | None) -> bool:
    if process is None:
        return False
    try:
        fields = _stat_fields(process["pid"])
    except OSError:
        return False
    return int(fields[19]) == process["start"] and fields[0] != "Z"


def _stat_fields(pid: int) -> list[str]:
    """/proc/<pid>/stat from the state on: the name before it may itself hold spaces and brackets."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _wait_gone(process: dict[str, int], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while _is_alive(process) and time.monotonic() < deadline:
        time.sleep(POLL_S)


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
