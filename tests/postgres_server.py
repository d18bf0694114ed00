"""A real PostgreSQL for tests: a server of its own in a temporary directory, on a socket there, not run by root."""

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

IS_REQUIRED = os.environ.get("DESK_REQUIRE_POSTGRES") == "1"
_numbers = itertools.count(1)


def binaries() -> Path | None:
    """The directory of initdb and postgres, of the newest version; None where there is none."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    found = [path.parent for path in versions]
    if on_path := shutil.which("initdb"):
        found.insert(0, Path(on_path).resolve().parent)
    found = [path for path in found if (path / "postgres").exists()]
    return found[-1] if found else None


class Server:
    """`start` and `stop` it, as often as a test likes; `new_database` gives the URL of an empty one."""

    def __init__(self, directory: Path, bin_dir: Path) -> None:
        self.directory = directory
        self._bin = bin_dir
        self._process: subprocess.Popen[bytes] | None = None
        self._user: dict[str, object] = {}
        self._free: list[str] = []
        if os.geteuid() == 0:
            name = "postgres" if _exists("postgres") else "nobody"
            entry = pwd.getpwnam(name)
            os.chown(directory, entry.pw_uid, entry.pw_gid)
            self._user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        options = ["-U", "desk", "-A", "trust", "-E", "UTF8", "--locale=C", "--wal-segsize=1", "--no-sync"]
        self._run("initdb", "-D", str(directory / "data"), *options)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._bin / program, *arguments],
            cwd=self.directory,
            check=False,
            capture_output=True,
            text=True,
            **self._user,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def url(self, database: str) -> str:
        return f"postgresql://desk@/{database}?host={self.directory}"

    def start(self, **settings: object) -> None:
        options = {"listen_addresses": "", "unix_socket_directories": self.directory, "max_connections": 50, **settings}
        with (self.directory / "log").open("ab") as out:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self.directory / "data"]
                + [word for name, value in options.items() for word in ("-c", f"{name}={value}")],
                cwd=self.directory,
                stdout=out,
                stderr=out,
                **self._user,
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self.url("postgres")).close()
                return
            except psycopg.Error:
                assert self._process.poll() is None, (self.directory / "log").read_text()
                assert time.monotonic() < deadline, "PostgreSQL did not start within a minute"
                time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: cut every connection, end cleanly; SIGQUIT: as a crash, with recovery at the next start."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=60)
            self._process = None

    def pause(self) -> None:
        """Every process of it stops where it is."""
        self._signal_all(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: signal.Signals) -> None:
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for pid in (self._process.pid, *map(int, children)):
            os.kill(pid, number)

    def limit_files(self, pid: int, size: int | None) -> None:
        """No file of the server's process `pid` may grow beyond `size` bytes, as on a full disk; None: as before."""
        # By the server's user: root in a container may not do it to another's process.
        soft = "unlimited" if size is None else str(size)
        subprocess.run(["prlimit", f"--pid={pid}", f"--fsize={soft}:unlimited"], check=True, **self._user)

    def new_database(self) -> str:
        name = f"desk{next(_numbers)}"
        self.sql("postgres", f"CREATE DATABASE {name}")
        return self.url(name)

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """The URL of one without a ledger, until the end of the block. To make one takes longer than to empty one."""
        url = self._free.pop() if self._free else self.new_database()
        yield url
        name = url.partition("@/")[2].partition("?")[0]
        self.sql("postgres", f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        self.sql(url, "DROP SCHEMA IF EXISTS desk CASCADE")
        self._free.append(url)

    def sql(self, database: str, statement: str) -> list[tuple]:
        """Of a database by its name, or by its URL."""
        url = database if "://" in database else self.url(database)
        with psycopg.connect(url, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


@contextlib.contextmanager
def running(bin_dir: Path, **settings: object) -> Iterator[Server]:
    """A new server, until the end of the block. Its directory's name is short: a socket's path has 107 characters."""
    directory = Path(tempfile.mkdtemp(prefix="desk-pg-", dir="/tmp"))
    server = Server(directory, bin_dir)
    try:
        server.start(**settings)
        yield server
    finally:
        # What it holds goes with it: nothing need be written out first.
        server.stop(signal.SIGQUIT)
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """One for all tests of a worker. Whoever stops it starts it again."""
    with running(wanted_binaries()) as server:
        yield server


def wanted_binaries() -> Path:
    """Skips the test where there is no PostgreSQL; with DESK_REQUIRE_POSTGRES=1 (as in .ci/run) it fails instead."""
    found = binaries()
    if found is None:
        what = "no PostgreSQL server is installed; to get one: apt-get install postgresql"
        if IS_REQUIRED:
            pytest.fail(f"DESK_REQUIRE_POSTGRES=1, but {what}")
        pytest.skip(what)
    return found
