"""The desks of an epoch, from outside: born by the zygote, watched and ended by process descriptors."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.crash.board import Board

PROJECT = Path(__file__).resolve().parents[2]


class Zygote:
    """The process that forks desks. Close it: what still lives of them dies with it."""

    def __init__(self, log: Path, nice: int = 0) -> None:
        self._process = subprocess.Popen(
            ["nice", "-n", str(nice), sys.executable, "-m", "tests.crash.zygote"],
            cwd=PROJECT,
            # Numerical libraries would start threads, which a fork does not take along.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("ab"),
        )
        self._told = threading.Condition()
        self._pids: dict[int, int] = {}
        self._codes: dict[int, int] = {}
        self._is_up = False
        self._tickets = 0
        threading.Thread(target=self._listen, name="zygote", daemon=True).start()
        self._wait(lambda: self._is_up, 60.0)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            with self._told:
                self._is_up = self._is_up or "zygote" in told
                if "ticket" in told:
                    self._pids[told["ticket"]] = told["pid"]
                    # Numbers of processes come again: what ended under this one was another.
                    self._codes.pop(told["pid"], None)
                if "exit" in told:
                    self._codes[told["exit"]] = told["code"]
                self._told.notify_all()

    def _wait(self, is_so: Callable[[], bool], timeout_s: float) -> None:
        with self._told:
            if not self._told.wait_for(is_so, timeout_s):
                raise RuntimeError(f"the zygote did not answer within {timeout_s} s: see its log")

    def fork(self, number: int, **order: Any) -> "Desk":
        assert self._process.stdin is not None
        self._tickets += 1
        ticket = self._tickets
        self._process.stdin.write(json.dumps({"ticket": ticket, "number": number, **order}).encode() + b"\n")
        self._process.stdin.flush()
        self._wait(lambda: ticket in self._pids, 20.0)
        return Desk(number, self._pids[ticket], self)

    def code(self, pid: int) -> int:
        """The exit code of a desk that has ended."""
        self._wait(lambda: pid in self._codes, 20.0)
        return self._codes[pid]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


class Desk:
    def __init__(self, number: int, pid: int, zygote: Zygote) -> None:
        self.number, self.pid = number, pid
        self._zygote = zygote
        self.born = time.monotonic()
        self._fd = -1
        # A process that has ended and been waited for already has no descriptor any more.
        with contextlib.suppress(ProcessLookupError):
            self._fd = os.pidfd_open(pid)

    def signal(self, number: signal.Signals) -> None:
        if self._fd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, number)

    def ended(self, within_s: float = 0.0) -> bool:
        """Whether it ends within the time."""
        if self._fd < 0:
            return True
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(within_s * 1000))

    def code(self) -> int:
        return self._zygote.code(self.pid)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        if not self.ended(20.0):
            raise RuntimeError(f"desk {self.number} (process {self.pid}) survives SIGKILL")
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def ready(self, board: Board, within_s: float) -> bool:
        """Whether it takes orders within the time; False where it ends first."""
        deadline = time.monotonic() + within_s
        while board.ready != self.number:
            if time.monotonic() > deadline or self.ended(0.005):
                return board.ready == self.number
        return True
