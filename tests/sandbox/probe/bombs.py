"""Attempts to use up what is shared. Each says how far it came, then waits or dies of it."""

import json
import os
import resource
import time

from system import call


def say(**facts):
    print(json.dumps(facts), flush=True)


def fork():
    """Every child forks as well; the parent counts."""
    born = 0
    for _ in range(5000):
        try:
            if os.fork() == 0:
                while True:
                    try:
                        os.fork()
                    except OSError:
                        time.sleep(0.05)
            born += 1
        except OSError as error:
            say(bomb="fork", born=born, error=str(error), alive=sum(name.isdigit() for name in os.listdir("/proc")))
            return


def memory():
    held = []
    while True:
        held.append(bytearray(os.urandom(1) * (8 * 2**20)))
        say(bomb="memory", mib=8 * len(held))


def disk():
    """Files that are as large as allowed, then as many as allowed; then the log, past its writer."""
    written = files = 0
    try:
        for number in range(64):
            with open(f"/tmp/large-{number}", "wb", buffering=0) as file:
                for _ in range(7):
                    written += file.write(b"x" * 2**20)
    except OSError:
        pass
    for number in range(64):
        if os.path.exists(f"/tmp/large-{number}"):
            os.unlink(f"/tmp/large-{number}")
    try:
        while files < 100_000:
            os.close(os.open(f"/tmp/small-{files}", os.O_CREAT | os.O_WRONLY))
            files += 1
    except OSError:
        pass
    log = 0
    try:
        with open("/var/log/strategy.log", "ab", buffering=0) as file:
            while log < 64 * 2**20:
                log += file.write(b"x" * 65535 + b"\n")
    except OSError:
        pass
    os.truncate("/var/log/strategy.log", 0)
    say(bomb="disk", tmp_bytes=written, tmp_files=files, log_bytes=log)


def descriptors():
    held = []
    try:
        while len(held) < 100_000:
            held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as error:
        count = len(held)
        os.closerange(held[0], held[-1] + 1)
        say(bomb="descriptors", opened=count, error=str(error))


def inotify():
    made = 0
    try:
        while made < 10_000:
            call("inotify_init1", 0)
            made += 1
    except OSError as error:
        say(bomb="inotify", made=made, error=str(error))


def log():
    """Eight seconds of writing to standard output as fast as possible, to the descriptor itself."""
    end, written, refused = time.monotonic() + 8, 0, 0
    block = b"flood " * 1000 + b"\n"
    while time.monotonic() < end:
        try:
            written += os.write(1, block)
        except OSError:
            refused += 1
            time.sleep(0.01)
    os.truncate("/var/log/strategy.log", 0)
    say(bomb="log", written=written, refused=refused)


def cpu():
    for _ in range(4):
        if os.fork() == 0:
            end = time.monotonic() + 5
            while time.monotonic() < end:
                pass
            os._exit(0)
    for _ in range(4):
        os.wait()
    say(bomb="cpu", seconds=sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]))


ALL = {
    "fork": fork,
    "memory": memory,
    "disk": disk,
    "descriptors": descriptors,
    "inotify": inotify,
    "log": log,
    "cpu": cpu,
}
