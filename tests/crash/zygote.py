"""Imports the desk once, then forks it on request: `python -m tests.crash.zygote`, lines of JSON in and out.

    in   {"ticket": 9, "number": 3, "env": {…}, "log": path, "board": path, "witness": path, "mutant": ""}
    out  {"ticket": 9, "pid": 4711}    {"exit": 4711, "code": 0}   (code: minus the signal, where one killed it)

The zygote has one thread and no sockets, so that what it forks is as good as started anew. It ends, and every desk
with it, when its standard input does.
"""

import gc
import importlib
import json
import os
import select
import signal
import sys
import threading
from pathlib import Path
from typing import Any

_LATER = ("desk_server.brokers.alpaca.sdk", "desk_server.brokers.alpaca.stream", "desk_server.ledger.postgres")
_children: set[int] = set()


def main() -> None:
    # These imports are the cost that forking saves; the desk makes the later ones when it needs them.
    from tests.crash import child  # noqa: PLC0415

    for module in _LATER:
        importlib.import_module(module)
    assert len(os.listdir("/proc/self/task")) == 1, threading.enumerate()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A signal that comes just before a read would not be heard until the read ends: so both are waited for.
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    gc.collect()
    gc.freeze()
    _say({"zygote": os.getpid()})
    waiting = b""
    while True:
        readable, _, _ = select.select([0, ended], [], [])
        if ended in readable:
            os.read(ended, 4096)
            _reap()
        if 0 in readable:
            if not (piece := os.read(0, 65536)):
                break
            *lines, waiting = (waiting + piece).split(b"\n")
            for line in lines:
                _fork(json.loads(line), child)
    for pid in list(_children):
        os.kill(pid, signal.SIGKILL)


def _fork(order: dict[str, Any], child: Any) -> None:
    pid = os.fork()
    if pid:
        _children.add(pid)
        _say({"ticket": order["ticket"], "pid": pid})
        return
    code = 70
    try:
        _become_desk(order)
        code = child.run(order["number"], Path(order["board"]), Path(order["witness"]), order["mutant"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback  # noqa: PLC0415

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _become_desk(order: dict[str, Any]) -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(order["env"])


def _reap() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        _children.discard(pid)
        _say({"exit": pid, "code": os.waitstatus_to_exitcode(status)})


def _say(what: dict[str, Any]) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


if __name__ == "__main__":
    main()
