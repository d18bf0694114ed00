"""What an epoch stands on: a directory, a database that can be full, locked or read-only, and the desk's settings."""

import contextlib
import os
import resource
import shutil
import socket
import sqlite3
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.crash.broker import Broker
from tests.crash.history import History, Limits
from tests.crash.ledger_rows import read_sqlite
from tests.crash.trading import SYMBOLS

_LEDGER_MIB = 512
# What a full disk still has: less than a batch of events needs.
_LEFT_BYTES = 8192


class Database(ABC):
    """The ledger's home. The context managers leave it as it was."""

    name: str
    # Whether its disk can be filled: without the right to mount one of its own, not every database's can.
    can_be_full = True

    @abstractmethod
    def env(self) -> dict[str, str]: ...

    def second_run_dir(self, directory: Path) -> Path:
        """A directory for a second desk, so that nothing but the ledger can tell it of the first."""
        run_dir = directory / "second"
        run_dir.mkdir(exist_ok=True)
        return run_dir

    def acts(self) -> dict[str, Callable[[], None]]:
        """What else may befall it while a desk uses it."""
        return {}

    @abstractmethod
    def read(self, into: History) -> None: ...

    @abstractmethod
    def full(self, pid: int) -> contextlib.AbstractContextManager[None]: ...

    @abstractmethod
    def locked(self) -> contextlib.AbstractContextManager[None]: ...

    @abstractmethod
    def read_only(self) -> contextlib.AbstractContextManager[None]: ...

    @abstractmethod
    def close(self, kept: Path) -> None:
        """What the ledger was stays in `kept`, for who looks into a failure."""


class Sqlite(Database):
    """A file on a small file system of its own in memory, where one can be mounted; else a plain directory."""

    name = "sqlite"

    def __init__(self, run_dir: Path) -> None:
        self._home = run_dir / "ledger"
        self._home.mkdir(parents=True, mode=0o700)
        self._is_mounted = mounted(self._home, _LEDGER_MIB)
        self.path = self._home / "desk.db"

    def env(self) -> dict[str, str]:
        return {}

    def second_run_dir(self, directory: Path) -> Path:
        run_dir = super().second_run_dir(directory)
        if not (run_dir / "ledger").exists():
            (run_dir / "ledger").symlink_to(self._home)
        return run_dir

    def read(self, into: History) -> None:
        read_sqlite(self.path, into)

    @contextlib.contextmanager
    def full(self, pid: int) -> Iterator[None]:
        """ENOSPC where there is a file system to fill; else EFBIG, by the limit on how large a file may grow."""
        if not self._is_mounted:
            sizes = [path.stat().st_size for path in self._home.iterdir()]
            was = resource.prlimit(pid, resource.RLIMIT_FSIZE, (max([4096, *sizes]) // 2, resource.RLIM_INFINITY))
            try:
                yield
            finally:
                with contextlib.suppress(ProcessLookupError):
                    resource.prlimit(pid, resource.RLIMIT_FSIZE, was)
            return
        ballast = self._home / "ballast"
        disk = os.statvfs(self._home)
        with ballast.open("wb") as file:
            with contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, max(disk.f_bavail * disk.f_bsize - _LEFT_BYTES, 0))
            try:
                yield
            finally:
                ballast.unlink()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Somebody else has the file's write lock."""
        with contextlib.closing(sqlite3.connect(self.path, timeout=5, isolation_level=None)) as other:
            with contextlib.suppress(sqlite3.OperationalError):
                other.execute("BEGIN IMMEDIATE")
            try:
                yield
            finally:
                if other.in_transaction:
                    other.execute("ROLLBACK")
                # This connection must not checkpoint when it closes: one process alone does that.
                other.execute("PRAGMA wal_autocheckpoint = 0")

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        """For a desk that is about to start: nothing can be written."""
        if not self._is_mounted:
            mode = self.path.stat().st_mode
            self.path.chmod(0o400)
            try:
                yield
            finally:
                self.path.chmod(mode)
            return
        subprocess.run(["mount", "-o", "remount,ro", str(self._home)], check=True, capture_output=True)
        try:
            yield
        finally:
            subprocess.run(["mount", "-o", "remount,rw", str(self._home)], check=True, capture_output=True)

    def close(self, kept: Path) -> None:
        shutil.copytree(self._home, kept, dirs_exist_ok=True)
        if self._is_mounted:
            unmount(self._home)


def mounted(directory: Path, mib: int) -> bool:
    """Whether a file system of that size, in memory, could be put there: it takes the rights of root."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=0700", "crash", str(directory)]
    return subprocess.run(mount, check=False, capture_output=True).returncode == 0


def unmount(directory: Path) -> None:
    for _ in range(50):
        if subprocess.run(["umount", str(directory)], check=False, capture_output=True).returncode == 0:
            return
        time.sleep(0.1)
    subprocess.run(["umount", "--lazy", str(directory)], check=False, capture_output=True)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def desk_env(run_dir: Path, broker: Broker, limits: Limits, ports: tuple[int, int], self_trade: str) -> dict[str, str]:
    """The desk as its users know it, but that every patience is short."""
    return {
        "DESK_RUN_DIR": str(run_dir),
        "PORT": str(ports[0]),
        "GRPC_PORT": str(ports[1]),
        "DESK_BROKER": "alpaca",
        "APCA_API_KEY_ID": broker.key,
        "APCA_API_SECRET_KEY": broker.secret,
        "APCA_API_BASE_URL": broker.url,
        "DESK_ALPACA_STREAM_URL": broker.stream_url,
        "DESK_ALPACA_TIMEOUT_S": "1",
        "DESK_LOOKUP_LAG_S": "2",
        "DESK_RESEND_S": "4",
        "DESK_POLL_S": "1",
        "DESK_POLL_IN_DOUBT_S": "0.3",
        "DESK_RECONCILE_S": "2",
        "DESK_GRACE_S": "4",
        "DESK_LEASE_S": "2",
        "DESK_SELF_TRADE": self_trade,
        "DESK_DRAIN_S": "2",
        "DESK_FEED": "walk",
        "DESK_WALK_SYMBOLS": ",".join(SYMBOLS),
        "DESK_WALK_LINES_PER_S": "100",
        "DESK_ALLOTMENT": str(limits.allotment),
        "DESK_QTY_MAX": str(limits.qty_max),
        "DESK_NOTIONAL_USD_MAX": str(limits.notional_max),
        "DESK_OPEN_ORDERS_MAX": str(limits.open_orders_max),
        "DESK_ORDERS_PER_MINUTE_MAX": "60000",
    }
