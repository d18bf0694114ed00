"""The whole thing as a person runs it: `python -m desk_server`, `strategy_manager.py`, real containers, real prices."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

PROJECT = Path(__file__).resolve().parent.parent.parent
TAPE = PROJECT / "desk_server" / "feeds" / "tapes" / "us-equities-2013-10-07.jsonl.gz"


class DeskProcess:
    """A desk server process on a directory of its own; it can be killed and started again."""

    def __init__(self, run_dir: Path, **settings: str) -> None:
        self.run_dir = run_dir
        self.env = os.environ | {
            "DESK_RUN_DIR": str(run_dir),
            "PORT": "0",
            "GRPC_PORT": "0",
            "DESK_FEED": "replay",
            "DESK_REPLAY_FILE": str(TAPE),
            "DESK_REPLAY_SPEED": "20",
            **settings,
        }
        self.process: subprocess.Popen[bytes] | None = None
        self._http: httpx.Client | None = None

    def start(self) -> None:
        with (self.run_dir / "desk.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "desk_server"], cwd=PROJECT, env=self.env, stdout=log, stderr=log
            )
        transport = httpx.HTTPTransport(uds=str(self.run_dir / "desk" / "desk.sock"))
        self._http = httpx.Client(base_url="http://desk", transport=transport, timeout=10)
        until(self._is_ready, "the desk is ready")

    def kill(self) -> None:
        """As the machine would: no goodbye."""
        assert self.process
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> int:
        assert self.process
        self.process.terminate()
        return self.process.wait(20)

    def get(self, path: str) -> dict:
        token = (self.run_dir / "admin.token").read_text().strip()
        answer = self._http.get(path, headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def log(self) -> str:
        return (self.run_dir / "desk.log").read_text()

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.log()
        with contextlib.suppress(httpx.TransportError):
            return self._http.get("/readyz").status_code == 200
        return False


class Ground:
    """A desk and a strategies folder; what was started in it is stopped at the end."""

    def __init__(self, directory: Path, runtime: str, **settings: str) -> None:
        self.tag = secrets.token_hex(3)
        self.runtime = runtime
        self.strategies = directory / "strategies"
        self.strategies.mkdir()
        self.desk = DeskProcess(directory / "run", **settings)
        self.desk.run_dir.mkdir()

    def strategy(self, name: str, code: str, **config: object) -> str:
        """Drop a folder; its name, which no other test uses at the same time."""
        folder = self.strategies / f"{name}-{self.tag}"
        folder.mkdir()
        (folder / "strategy.py").write_text(code)
        if config:
            (folder / "config.json").write_text(json.dumps(config))
        return folder.name

    def example(self, name: str) -> str:
        folder = self.strategies / f"{name}-{self.tag}"
        shutil.copytree(PROJECT / "strategies" / name, folder)
        return folder.name

    def manager(self, *arguments: str, expect: int = 0) -> str:
        env = self.desk.env | {"STRATEGIES_DIR": str(self.strategies)}
        done = subprocess.run(
            [str(PROJECT / "strategy_manager.py"), "--runtime", self.runtime, *arguments],
            env=env,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == expect, f"{arguments} → {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def status(self) -> dict[str, dict]:
        rows = json.loads(self.manager("status", "--json"))
        return {row["strategy"]: row for row in rows["strategies"]}

    def printed(self, name: str) -> str:
        return self.manager("logs", name)


def until(true: Callable[[], object], what: str, timeout_s: float = 60.0) -> None:
    """Wait for something that has no bell to ring."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"waited {timeout_s} s in vain until {what}"
        time.sleep(0.1)


@contextlib.contextmanager
def ground(runtime: str, **settings: str) -> Iterator[Ground]:
    # Not pytest's own directory: the path of a unix socket has room for about a hundred characters.
    directory = Path(tempfile.mkdtemp(prefix="desk-e2e-"))
    directory.chmod(0o755)
    made = Ground(directory, runtime, **settings)
    made.desk.start()
    try:
        yield made
    finally:
        made.manager("stop")
        if made.desk.process.poll() is None:
            made.desk.stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(params=[pytest.param("docker", marks=pytest.mark.docker), "process"])
def either(request) -> Iterator[Ground]:
    """The same test in containers and as plain processes."""
    with ground(request.param) as made:
        yield made


@pytest.fixture
def containers() -> Iterator[Ground]:
    with ground("docker") as made:
        yield made
