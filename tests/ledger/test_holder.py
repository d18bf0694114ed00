"""Whether the process that has a ledger still lives is only claimed where it is sure."""

import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from desk_server.ledger.holder import now_s, this_process


def test_a_living_process_has_not_died():
    """This one, for example; its name says which it is and where."""
    me = this_process()
    assert not me.has_died() and me.machine and me.started
    assert str(me) == f"process {os.getpid()} on {os.uname().nodename}"


def test_a_process_of_another_machine_or_boot_may_live():
    """Nobody here can tell: it is not declared dead, whatever runs under that number here."""
    me = this_process()
    for machine in ("another boot/pid:[4026531836]", ""):
        assert not msgspec.structs.replace(me, machine=machine, started="1").has_died()


def test_a_number_that_is_used_again_is_another_process():
    """What had it before is dead: it had begun at another time."""
    assert msgspec.structs.replace(this_process(), started="1").has_died()


def test_a_killed_process_is_dead_before_its_parent_has_looked():
    """A zombie runs no more; and when it is gone, neither does it."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    here = this_process()
    started = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
    holder = msgspec.structs.replace(here, pid=child.pid, started=started)
    assert not holder.has_died()
    child.kill()
    deadline = time.monotonic() + 10
    while not holder.has_died():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.wait()
    assert holder.has_died()


def test_the_clock_goes_on():
    """It is the one that also runs while the machine sleeps."""
    first = now_s()
    assert 0 <= now_s() - first < 60 and abs(first - time.clock_gettime(time.CLOCK_BOOTTIME)) < 60
