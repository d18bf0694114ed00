"""A PostgreSQL server for each epoch, which is killed, filled, locked and made read-only like everything else."""

import contextlib
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg

from tests.crash.ground import Database, mounted, unmount
from tests.crash.history import History
from tests.crash.ledger_rows import take_events, take_postings
from tests.postgres_server import Server, binaries

_MIB = 512
_LEFT_BYTES = 65_536
_EVENTS = "SELECT seq, kind, body, hash FROM desk.events ORDER BY seq"
_READABLE = "SELECT seq, kind, convert_from(body, 'UTF8') FROM desk.events ORDER BY seq"
_POSTINGS = "SELECT seq, account, asset, amount::text FROM desk.postings ORDER BY seq, n"


class Postgres(Database):
    name = "postgres"

    def __init__(self, chance: random.Random) -> None:
        found = binaries()
        if found is None:
            raise RuntimeError("no PostgreSQL server is installed; to get one: apt-get install postgresql")
        # A short name: a socket's path has 107 characters.
        self._directory = Path(tempfile.mkdtemp(prefix="desk-pg-", dir="/tmp"))
        self._is_mounted = mounted(self._directory, _MIB)
        self.can_be_full = self._is_mounted
        self._server = Server(self._directory, found)
        self._server.start(max_wal_size="64MB")
        self._url = self._server.new_database()
        self._chance = chance

    def env(self) -> dict[str, str]:
        return {"DESK_DATABASE_URL": self._url}

    def acts(self) -> dict[str, Callable[[], None]]:
        return {"database_killed": self._kill, "database_stopped": self._stop}

    def read(self, into: History) -> None:
        with psycopg.connect(self._url) as connection:
            # One moment for both tables.
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            take_events(connection.execute(_EVENTS).fetchall(), into)
            take_postings(connection.execute(_POSTINGS).fetchall(), into)

    def _kill(self) -> None:
        """kill -9: a backend, whereupon the server recovers by itself; or the whole server."""
        backends = self._server.sql("postgres", "SELECT pid FROM pg_stat_activity WHERE usename = 'desk'")
        if self._chance.random() < 0.5:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._chance.choice(backends)[0], signal.SIGKILL)
        else:
            self._server.stop(signal.SIGKILL)
            time.sleep(self._chance.uniform(0, 1))
        self._ensure_running()

    def _stop(self) -> None:
        """Every process of the server stands still for longer than a lease."""
        self._server.pause()
        try:
            time.sleep(self._chance.uniform(0.3, 3.0))
        finally:
            self._server.go_on()

    def _ensure_running(self) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self._server.url("postgres"), connect_timeout=2).close()
                return
            except psycopg.Error:
                if time.monotonic() > deadline:
                    raise
            if not _is_running(self._server):
                self._server.stop(signal.SIGKILL)
                # The old one's processes may need a moment to notice that it is gone.
                with contextlib.suppress(AssertionError):
                    self._server.start(max_wal_size="64MB")
            time.sleep(0.1)

    @contextlib.contextmanager
    def full(self, pid: int) -> Iterator[None]:
        ballast = self._directory / "ballast"
        disk = os.statvfs(self._directory)
        with ballast.open("wb") as file:
            with contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, max(disk.f_bavail * disk.f_bsize - _LEFT_BYTES, 0))
            try:
                yield
            finally:
                ballast.unlink()
                self._ensure_running()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        with psycopg.connect(self._url) as connection:
            with contextlib.suppress(psycopg.errors.LockNotAvailable):
                connection.execute("SET lock_timeout = '2s'")
                connection.execute("LOCK TABLE desk.events IN ACCESS EXCLUSIVE MODE")
            yield
            connection.rollback()

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        name = self._url.partition("@/")[2].partition("?")[0]
        self._server.sql("postgres", f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        try:
            yield
        finally:
            self._server.sql("postgres", f"ALTER DATABASE {name} RESET default_transaction_read_only")

    def close(self, kept: Path) -> None:
        """The ledger stays as lines of `kept`, for who looks into a failure."""
        with contextlib.suppress(psycopg.Error, OSError):
            rows = self._server.sql(self._url, _READABLE)
            kept.write_text("".join(f"{seq} {kind} {body}\n" for seq, kind, body in rows))
        self._server.stop(signal.SIGQUIT)
        if self._is_mounted:
            unmount(self._directory)
        shutil.rmtree(self._directory, ignore_errors=True)


def _is_running(server: Server) -> bool:
    return server._process is not None and server._process.poll() is None
