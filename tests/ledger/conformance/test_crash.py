"""A desk that is killed, at any moment, loses nothing that it had acknowledged."""

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from beds import Bed
from ledger_story import Open, opened

from desk_server.ledger import Ledger

HERE = Path(__file__).resolve().parents[1]
LIVES = 10
# Appends from 32 callers for ever; prints each execution id only when its append is acknowledged.
WRITER = """
import asyncio, os, sys
from holding import ledger_at
from ledger_story import executed

async def caller(ledger, life, number):
    count = 0
    while True:
        count += 1
        names = [f"{life}-{number}-{count}-{part}" for part in range(3)]
        await ledger.append(*(executed(name) for name in names))
        os.write(1, ("\\n".join(names) + "\\n").encode())

async def main():
    ledger = ledger_at(sys.argv[1])
    ledger.open(lambda stored: None)
    await asyncio.gather(*(caller(ledger, os.getpid(), number) for number in range(32)))

asyncio.run(main())
"""


def live_and_die(place: object, said: Path, moments: random.Random) -> list[str]:
    """What one life acknowledged before SIGKILL ended it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])}
    with said.open("wb") as out:
        child = subprocess.Popen([sys.executable, "-c", WRITER, str(place)], stdout=out, env=environment)
        try:
            deadline = time.monotonic() + 20
            while said.stat().st_size == 0 and child.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 0.1))
        finally:
            child.kill()
            child.wait()
    return said.read_bytes().rpartition(b"\n")[0].decode().splitlines()


async def test_a_killed_desk_loses_nothing_acknowledged(make: Callable[..., Ledger], bed: Bed, tmp_path: Path):
    """Ten lives on one ledger, each ended by SIGKILL in the middle of its commits: whole calls, no gap, no loss."""
    acknowledged: set[str] = set()
    moments = random.Random(1)
    for life in range(LIVES):
        new = await asyncio.to_thread(live_and_die, bed.place, tmp_path / f"said-{life}", moments)
        assert new, "the writer acknowledged nothing"
        acknowledged.update(new)
    ledger = Open(make()).ledger
    stored = [one.event.execution_id for one in ledger.read()]
    assert ledger.verify() is None
    assert acknowledged <= set(stored)
    assert len(stored) == len(set(stored)) and len(stored) % 3 == 0
    assert await ledger.append(opened("alice")) == len(stored) + 1
