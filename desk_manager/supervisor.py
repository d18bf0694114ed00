"""Keeps one strategy of the process runtime running: restarts it with backoff, gives up after too many crashes.

`python -m desk_manager.supervisor` reads its order, one JSON object, from standard input. It has no parent to talk
to: all it knows goes to the state file, whole, by rename.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from desk_manager import policy
from desk_manager.runtimes import State
from desk_manager.runtimes.process import identify

BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.1, 60.0
# A run this long starts the backoff anew.
STEADY_S = 10.0
STOP_GRACE_S = 8.0
_PR_SET_PDEATHSIG = 1


class Supervisor:
    """Runs one order to its end."""

    def __init__(self, order: dict[str, Any]) -> None:
        self._order = order
        self._max_crashes = int(order["labels"]["desk.restart.max_crashes"])
        self._window_s = int(order["labels"]["desk.restart.window_s"])
        self._ending = threading.Event()
        self._grace_s = STOP_GRACE_S
        self._child: subprocess.Popen[bytes] | None = None
        self._facts: dict[str, Any] = {
            "labels": order["labels"],
            "supervisor": identify(os.getpid()),
            "child": None,
            "state": State.RUNNING,
            "started_at": None,
            "finished_at": None,
            "restarts": 0,
            "exit_code": None,
            "memory_bytes": order["memory_bytes"],
        }

    def run(self) -> None:
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGINT, self._end)
        crashes: list[float] = []
        backoff_s = BACKOFF_FIRST_S
        while not self._ending.is_set():
            began = time.monotonic()
            code = self._once()
            if self._ending.is_set() or code == 0:
                self._note(state=State.STOPPED if self._ending.is_set() else State.EXITED)
                return
            now = time.monotonic()
            crashes = [at for at in crashes if now - at < self._window_s] + [now]
            if len(crashes) > self._max_crashes:
                self._note(state=State.QUARANTINED)
                return
            backoff_s = BACKOFF_FIRST_S if now - began > STEADY_S else min(backoff_s * 2, BACKOFF_MAX_S)
            self._note(state=State.RESTARTING)
            self._ending.wait(backoff_s)
            self._facts["restarts"] += 1

    def _once(self) -> int:
        with open(self._order["log_file"], "ab", buffering=0) as log:
            child = subprocess.Popen(
                self._order["command"],
                cwd=self._order["directory"],
                env=self._order["env"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=self._limit,  # noqa: PLW1509 - there is one thread
            )
        self._child = child
        self._note(state=State.RUNNING, child=identify(child.pid), started_at=_now(), finished_at=None)
        if self._ending.is_set():
            self._signal(signal.SIGTERM)
        code = self._wait(child)
        self._signal(signal.SIGKILL)
        code = 128 - code if code < 0 else code
        self._note(child=None, finished_at=_now(), exit_code=code)
        return code

    def _wait(self, child: subprocess.Popen[bytes]) -> int:
        while True:
            try:
                return child.wait(0.2)
            except subprocess.TimeoutExpired:
                if self._ending.is_set():
                    break
        try:
            return child.wait(self._grace_s)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            return child.wait()

    def _limit(self) -> None:
        """Runs in the child before the strategy: it dies with us and is kept from the worst accidents."""
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        for name, value in (
            (resource.RLIMIT_NOFILE, 256),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_FSIZE, policy.FILE_BYTES_MAX),
            (resource.RLIMIT_DATA, self._order["memory_bytes"]),
        ):
            resource.setrlimit(name, (value, value))

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._grace_s = 0.0 if number == signal.SIGINT else STOP_GRACE_S
        self._ending.set()
        self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        """To the strategy and all it started: it leads a process group of its own."""
        if self._child is not None:
            try:
                os.killpg(self._child.pid, number)
            except ProcessLookupError:
                pass

    def _note(self, **changed: object) -> None:
        self._facts.update(changed)
        path = Path(self._order["state_file"])
        new = path.with_suffix(".new")
        new.write_text(json.dumps(self._facts), encoding="utf-8")
        new.replace(path)


def _now() -> str:
    return datetime.now(UTC).isoformat()


if __name__ == "__main__":
    Supervisor(json.load(sys.stdin)).run()
