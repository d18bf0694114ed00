"""The servers that are measured, each a process of its own with a directory of its own. See `orders.py`."""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import _postgres

HERE = Path(__file__).resolve().parent
# The desk's limits out of the way of one user who sends hundreds of thousands of orders; everything else as always.
SETTINGS = {
    "DESK_ALLOTMENT": "1000000000000",
    "DESK_OPEN_ORDERS_MAX": "100000000",
    "DESK_ORDERS_PER_MINUTE_MAX": "100000000",
    "DESK_WALK_SYMBOLS": "AAPL",
    "DESK_DRAIN_S": "1",
    "PORT": "0",
    "GRPC_PORT": "0",
}
# name of the row: arguments of _desk.py, and whether its ledger is PostgreSQL
DESKS = {
    "desk": ([], False),
    "desk-ack": (["--broker", "ack"], False),
    "desk-pg": ([], True),
    "desk-pg-ack": (["--broker", "ack"], True),
    "desk-fastapi": (["--slow"], False),
}


class Missing(Exception):
    """What a server needs is not on this machine; says what."""


class Running:
    """A server that answers: where, and how much processor time it has taken."""

    def __init__(self, pid: int, where: dict[str, str], helpers: tuple[int, ...] = ()) -> None:
        self.where = where
        self._pids = (pid, *helpers)

    def cpu_s(self) -> float:
        """Of all its threads, and of its database's processes."""
        ticks = 0
        for pid in self._pids:
            for one in (pid, *_children(pid)):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
                    ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def server(kind: str, directory: Path) -> Iterator[Running]:
    """Raises Missing."""
    directory.mkdir(parents=True)
    if kind == "naive":
        with _process([sys.executable, str(HERE / "_naive.py")], directory) as running:
            yield running
    elif kind == "go":
        token = f"desk_trade_{secrets.token_hex(8)}_{secrets.token_hex(32)}"
        where = ["-journal", str(directory / "journal"), "-socket", str(directory / "go.sock"), "-token", token]
        with _process([go_build("go_gateway"), *where], directory) as running:
            yield running
    else:
        arguments, in_postgres = DESKS[kind]
        with contextlib.ExitStack() as stack:
            database = stack.enter_context(_postgres.server(directory / "pg")) if in_postgres else None
            environment = {"DESK_DATABASE_URL": database.url} if database else {}
            command = [sys.executable, str(HERE / "_desk.py"), *arguments]
            running = stack.enter_context(_process(command, directory, environment))
            if database:
                running = Running(running._pids[0], running.where, (database.pid,))
            yield running


def why_missing(kind: str) -> str:
    """What this machine lacks for that server; "" when it can run."""
    if kind == "go" and not shutil.which("go"):
        return "there is no Go on this machine (Debian: golang-go)"
    return _postgres.why_missing() if kind in DESKS and DESKS[kind][1] else ""


def go_build(name: str) -> str:
    """The path of the built program; nothing is downloaded, they use Go's standard library alone."""
    target = Path(os.environ.get("TMPDIR", "/tmp")) / f"desk-benchmark-{os.getuid()}" / name
    target.parent.mkdir(mode=0o700, exist_ok=True)
    environment = {**os.environ, "GOFLAGS": "-mod=mod", "GOPROXY": "off", "CGO_ENABLED": "0"}
    subprocess.run(["go", "build", "-o", str(target), "."], cwd=HERE / name, env=environment, check=True, timeout=300)
    return str(target)


@contextlib.contextmanager
def _process(command: list[str], directory: Path, settings: dict[str, str] | None = None) -> Iterator[Running]:
    environment = {**os.environ, **SETTINGS, "DESK_RUN_DIR": str(directory / "run"), **(settings or {})}
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(
                f"the server did not start: {' '.join(command)}\n{(directory / 'log').read_text()[-2000:]}"
            )
        yield Running(process.pid, json.loads(line))
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _children(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []
