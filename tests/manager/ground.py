"""A ground of its own for each test: run directory, strategies, a desk, and the command to try on them."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.manager.fake_desk import FakeDesk

PROJECT = Path(__file__).resolve().parent.parent.parent
IMAGE = os.environ.get("DOCKER_IMAGE") or "desk-strategy:latest"

READS_LINES = """\
import json, sys
for count, line in enumerate(sys.stdin):
    if count % 10 == 0:
        print("read", count, json.loads(line)["symbol"])
"""
SLEEPS = "import time\nprint('awake')\nwhile True:\n    time.sleep(0.2)\n"
CRASHES = "print('about to fail')\nraise ValueError('the answer is wrong')\n"


class Ground:
    """Container names are one space per engine, so every name a test uses ends in `self.tag`."""

    def __init__(self, live: bool | None = False, gid: int = 20000) -> None:
        # Not pytest's tmp_path: a unix socket's path may have 108 characters at most.
        self.dir = Path(tempfile.mkdtemp(prefix="desk-test-"))
        self.run_dir, self.strategies = self.dir / "run", self.dir / "strategies"
        self.strategies.mkdir()
        self.tag = secrets.token_hex(3)
        self.desk = FakeDesk(self.run_dir, live, gid).start()
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("DESK_", "DOCKER_IMAGE"))},
            "STRATEGIES_DIR": str(self.strategies),
            "DESK_RUN_DIR": str(self.run_dir),
            "DOCKER_IMAGE": IMAGE,
        }

    def name(self, word: str) -> str:
        return f"{word}-{self.tag}"

    def write(self, word: str, code: str = READS_LINES, config: dict[str, Any] | None = None) -> str:
        """A strategy's folder; its full name."""
        folder = self.strategies / self.name(word)
        folder.mkdir(exist_ok=True)
        (folder / "strategy.py").write_text(code)
        if config is not None:
            (folder / "config.json").write_text(json.dumps(config))
        return folder.name

    def manager(self, *arguments: str, timeout_s: float = 90, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, PROJECT / "strategy_manager.py", *arguments],
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def spawn(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-u", PROJECT / "strategy_manager.py", *arguments],
            env={**self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def status(self, name: str) -> dict[str, Any]:
        done = self.manager("status", "--json", name)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["strategies"][0]

    def log(self, name: str) -> str:
        path = self.run_dir / "logs" / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def close(self) -> None:
        for runtime in ("process", "docker"):
            self.manager("stop", "--runtime", runtime)
        self.desk.stop()
        shutil.rmtree(self.dir, ignore_errors=True)


def wait_until(condition: Callable[[], Any], timeout_s: float = 20, every_s: float = 0.1) -> Any:
    """The first truthy answer; fails at the deadline."""
    deadline = time.monotonic() + timeout_s
    while True:
        if answer := condition():
            return answer
        assert time.monotonic() < deadline, f"{condition} did not come true in {timeout_s} s"
        time.sleep(every_s)


def make_image() -> None:
    """The image that strategies run in, built where it is missing."""
    have = subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True, check=False)
    if have.returncode:
        built = subprocess.run(
            ["make", "images"], cwd=PROJECT, capture_output=True, text=True, check=False, timeout=900
        )
        assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
