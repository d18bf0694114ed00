"""Who holds a ledger: this process, named so that another one can tell whether it still lives."""

import os
import socket
import time
from functools import cache
from pathlib import Path

from msgspec import Struct

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_HIDDEN = "?"


class Holder(Struct, frozen=True):
    """`machine` names one boot of one machine and its processes' numbering; `started` a process among those that
    had the same number, in ticks since the boot. `machine` is "" where the system does not tell."""

    host: str
    pid: int
    machine: str = ""
    started: str = ""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    def has_died(self) -> bool:
        """True only where it surely has: on this very machine, since its boot, that process runs no more."""
        if not self.machine or self.machine != _machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        # One of the same number, or what is left of it until its parent has looked.
        return _started(self.pid) not in (self.started, _HIDDEN)


def this_process() -> Holder:
    pid = os.getpid()
    return Holder(socket.gethostname(), pid, _machine(), _started(pid))


def now_s() -> float:
    """Seconds that go on while the process is stopped and while the machine sleeps, and that nobody can set."""
    return time.clock_gettime(_CLOCK)


@cache
def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Field 22 of /proc/PID/stat (proc(5)); "" for a zombie, which runs no more; _HIDDEN where it cannot be read."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return _HIDDEN
    return "" if fields[0] in "ZX" else fields[19]
