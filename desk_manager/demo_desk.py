"""The demo's desk server: a process of its own that ends with the demo, whatever ends the demo."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

from desk_manager import logs
from desk_manager.admin import DeskAdmin
from desk_manager.errors import DeskUnreachable, ManagerError
from desk_manager.settings import PROJECT_DIR, Settings

TAPE = PROJECT_DIR / "desk_server" / "feeds" / "tapes" / "us-equities-2013-10-07.jsonl.gz"
READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0
_PR_SET_PDEATHSIG = 1


class DeskProcess:
    """Its ports, its log, its life."""

    def __init__(self, settings: Settings) -> None:
        self.log_file = settings.run_dir / "desk.log"
        self.ports = {"PORT": _free_port("PORT", 8080), "GRPC_PORT": _free_port("GRPC_PORT", 50051)}
        self._run_dir = settings.run_dir
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, speed: float) -> None:
        self._run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        env = os.environ | {
            "DESK_RUN_DIR": str(self._run_dir),
            "DESK_BROKER": "paper",
            "DESK_FEED": "replay",
            "DESK_REPLAY_FILE": str(TAPE),
            "DESK_REPLAY_SPEED": str(speed),
            "DESK_LOG_FORMAT": "json",
            **self.ports,
        }
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "desk_server"],
                cwd=PROJECT_DIR,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A session of its own: Ctrl-C is for the demo, which stops the desk when the strategies are gone.
                start_new_session=True,
                preexec_fn=_end_with_parent,  # noqa: PLW1509 - there is one thread
            )

    def wait_until_ready(self, desk: DeskAdmin) -> None:
        """Raises ManagerError where it ends, or is not ready in time."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        reasons = "it does not answer"
        while time.monotonic() < deadline:
            self.check("the desk ended while it started")
            try:
                facts = desk.readiness()
                if facts.get("ready"):
                    return
                reasons = "; ".join(facts.get("reasons", []))
            except DeskUnreachable:
                pass
            time.sleep(0.1)
        raise ManagerError(f"the desk is not ready: {reasons}", f"see its log: {self.log_file}")

    def check(self, otherwise: str = "the desk has stopped by itself") -> None:
        """Raises ManagerError with its last words where it runs no more."""
        if not self.is_running():
            words = logs.printable(logs.last_lines(logs.tail(self.log_file), 3)).rstrip()
            raise ManagerError(f"{otherwise}. Its last words:\n{words}", f"see its log: {self.log_file}")

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        if self._process is None:
            return
        if self.is_running():
            self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def refuse_second(settings: Settings) -> None:
    """Raises ManagerError where a desk runs on this run directory already."""
    pid = _pid_behind(settings.socket_dir / "desk.sock")
    if pid is not None:
        raise ManagerError(
            f"a desk is running in {settings.run_dir} already (process {pid})",
            f"stop that one: kill {pid}; or `make down`, if `make up` started it",
        )


def _end_with_parent() -> None:
    """In the desk's process: the kernel sends it SIGTERM when the demo dies, even by SIGKILL."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _free_port(name: str, usual: int) -> str:
    """The port asked for in the environment; without one the usual, or any where that is taken or 0 is asked for."""
    given = os.environ.get(name)
    if given and given != "0":
        return given
    for port in (0,) if given else (usual, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return str(probe.getsockname()[1])
    raise ManagerError("no TCP port is free on 127.0.0.1", f"set {name} to one that is")


def _pid_behind(path: Path) -> int | None:
    """The process that answers on this socket; None where none does."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return None
        pid: int = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))[
            0
        ]
        return pid
