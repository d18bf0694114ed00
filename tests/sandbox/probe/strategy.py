"""Tries to get out of, or to harm from inside of, wherever it runs. One JSON line for each attempt.

`got_through` is strict: a system call counts as soon as the kernel's own code answered it, even with an error.
Each attempt runs in a child of its own, so that one that is killed for it counts as stopped.
"""

import json
import os
import select
import signal
import sys
import time

import attempts

TIMEOUT_S = 6.0


def attempt(name, function):
    """The detail of a success, or why it failed; with what came through the child's pipe."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            detail = function()
            said = {"got_through": detail is not None, "detail": str(detail or "stopped")[:200]}
        except BaseException as error:
            said = {"got_through": False, "detail": f"{type(error).__name__}: {error}"[:200]}
        os.write(writer, json.dumps(said).encode())
        os._exit(0)
    os.close(writer)
    ready, _, _ = select.select([reader], [], [], TIMEOUT_S)
    raw = os.read(reader, 4096) if ready else b""
    os.close(reader)
    if not ready:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if raw:
        return json.loads(raw)
    why = f"killed by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "no answer"
    return {"got_through": False, "detail": why if ready else "timed out"}


def main():
    for name, function in attempts.ALL.items():
        result = {"probe": name, **attempt(name, function)}
        print(json.dumps(result), flush=True)
    print(json.dumps({"done": len(attempts.ALL)}), flush=True)


if os.environ.get("PROBE_BOMB"):
    import bombs

    bombs.ALL[os.environ["PROBE_BOMB"]]()
else:
    main()
if "--once" not in sys.argv:
    while True:
        time.sleep(1)
