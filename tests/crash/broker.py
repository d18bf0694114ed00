"""The misbehaving Alpaca as a process of its own, which survives every desk."""

import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.alpaca.control_client import Control
from tests.crash.desks import PROJECT


class Broker:
    def __init__(self, seed: int, log: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.alpaca", "--port", "0", "--seed", str(seed)],
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=log.open("ab"),
            preexec_fn=_die_with_parent,  # noqa: PLW1509  (it calls prctl and nothing else)
        )
        assert self._process.stdout is not None
        told = json.loads(self._process.stdout.readline())
        self.url: str = told["url"]
        self.stream_url: str = told["stream_url"]
        self.key: str = told["key"]
        self.secret: str = told["secret"]
        self.control = Control(told["url"])

    def pause(self) -> None:
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)

    def dump(self, *, whole: bool) -> dict[str, Any]:
        return dict(self.control.dump(posts=whole, history=whole))

    def close(self) -> None:
        self.go_on()
        self._process.terminate()
        self._process.wait(20)


def _die_with_parent() -> None:
    """Nobody else would end it where the harness is killed (prctl(2), PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
