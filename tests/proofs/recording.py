"""A desk process recorded by strace: what it wrote to which file, when that was synced, and what it sent.

The order of strace's lines is the order in which its one process saw the calls begin and end: a call that ended
before another began stands before it, whichever threads they were of.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import httpx
import pytest

PROJECT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0
_CALLS = (
    *("write", "writev", "sendto", "sendmsg", "sendmmsg", "pwrite64", "pwritev", "ftruncate", "fallocate"),
    *("fdatasync", "fsync", "rename", "renameat", "renameat2", "unlink", "unlinkat"),
)
_LINE = re.compile(r"^(\d+)\s+[\d.]+\s+(.*)$")
_CALL = re.compile(r"^(\w+)\((.*)\)\s+= (-?\d+)[^)]*$", re.DOTALL)
_BEGUN = re.compile(r"^(\w+)\((.*) <unfinished \.\.\.>$", re.DOTALL)
_ENDED = re.compile(r"^<\.\.\. (\w+) resumed>(.*)\)\s+= (-?\d+)[^)]*$", re.DOTALL)
_FD = re.compile(r"^\d+<([^>]*)>")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


@dataclass(frozen=True)
class Call:
    """`begun` and `ended` are places in one order of all calls. `file` is what its first argument names."""

    begun: int
    ended: int
    name: str
    file: str
    data: bytes
    numbers: tuple[int, ...]
    result: int

    @property
    def is_network(self) -> bool:
        return self.file.startswith(("socket:", "TCP", "UNIX"))

    @property
    def is_sync(self) -> bool:
        return self.name in ("fdatasync", "fsync") and self.result == 0


def read(trace: Path) -> list[Call]:
    """The calls in the order in which they began. A call that never ended has its end behind all others."""
    begun: dict[str, tuple[int, str, str]] = {}
    calls: list[Call] = []
    place = 0
    for line in trace.read_text(errors="replace").splitlines():
        place += 1
        match = _LINE.match(line)
        if match is None:
            continue
        thread, text = match.groups()
        if whole := _CALL.match(text):
            calls.append(_call(place, place, whole[1], whole[2], int(whole[3])))
        elif start := _BEGUN.match(text):
            begun[thread] = (place, start[1], start[2])
        elif (end := _ENDED.match(text)) and thread in begun:
            at, name, arguments = begun.pop(thread)
            calls.append(_call(at, place, name, arguments + end[2], int(end[3])))
    calls += [_call(at, place + 1, name, arguments, 0) for at, name, arguments in begun.values()]
    return sorted(calls, key=lambda call: call.begun)


def _call(begun: int, ended: int, name: str, arguments: str, result: int) -> Call:
    descriptor = _FD.match(arguments)
    strings = [bytes.fromhex(found.replace("\\x", "")) for found in _STRING.findall(arguments)]
    if descriptor is not None:
        file, data = _plain(descriptor[1]), b"".join(strings)
    else:
        file, data = (strings[0].decode(errors="replace") if strings else ""), b"".join(strings[1:2])
    rest = _STRING.sub("", arguments[descriptor.end() if descriptor else 0 :])
    return Call(begun, ended, name, file, data, tuple(map(int, re.findall(r"(?<![\w<])\d+", rest))), result)


def _plain(name: str) -> str:
    return bytes.fromhex(name.replace("\\x", "")).decode(errors="replace") if name.startswith("\\x") else name


class RecordedDesk:
    """`python -m desk_server` under strace on a run directory."""

    def __init__(self, run_dir: Path, trace: Path, **settings: str) -> None:
        self.run_dir = run_dir
        self.trace = trace
        env = os.environ | {
            "DESK_RUN_DIR": str(run_dir),
            "PORT": "0",
            "GRPC_PORT": "0",
            "DESK_FEED": "walk",
            "DESK_WALK_SYMBOLS": "AAPL",
            "DESK_WALK_LINES_PER_S": "50",
            **settings,
        }
        words = ["strace", "-f", "-y", "-ttt", "-xx", "-s", "1000000", "-e", f"trace={','.join(_CALLS)}"]
        self._log = run_dir / "desk.log"
        self._log_start = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [*words, "-o", str(trace), sys.executable, "-m", "desk_server"],
                cwd=PROJECT,
                env=env,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        self.until_ready()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()

    @property
    def url(self) -> str:
        """Raises StopIteration until it listens."""
        said = self._log.read_bytes()[self._log_start :].decode().splitlines()
        return next(str(told["http"]) for line in said if line[:1] == "{" and "http" in (told := json.loads(line)))

    def until_ready(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            assert self.process.poll() is None, self._log.read_text()
            with contextlib.suppress(StopIteration, httpx.TransportError):
                if httpx.get(self.url + "/readyz", timeout=5).status_code == 200:
                    return
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.05)

    def token(self, user: str) -> str:
        admin = {"Authorization": f"Bearer {(self.run_dir / 'admin.token').read_text().strip()}"}
        answer = httpx.post(self.url + "/v1/tokens", headers=admin, json={"user_id": user, "role": "trade"}, timeout=10)
        assert answer.is_success, answer.text
        return str(answer.json()["token"])

    def stop(self) -> None:
        """In good order: SIGTERM to the desk, not to strace."""
        os.kill(self._desk_pid(), signal.SIGTERM)
        assert self.process.wait(PATIENCE_S) == 0, self._log.read_text()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE_S)

    def _desk_pid(self) -> int:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])


@contextlib.contextmanager
def strace_or_skip() -> Iterator[None]:
    """Where processes cannot be traced (a container without the capability) there is nothing to record."""
    probe = ["strace", "-o", "/dev/null", "true"]
    if shutil.which("strace") is None or subprocess.run(probe, check=False, capture_output=True).returncode:
        pytest.skip("needs strace, and to be allowed to trace: apt-get install strace")
    yield
