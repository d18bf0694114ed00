"""A desk that is killed, at any moment, loses nothing that it had acknowledged."""

import asyncio
import random
import subprocess
import sys
import time
from pathlib import Path

from desk_server.ledger.sqlite import SqliteLedger

# Appends from 32 callers for ever; prints each execution id only when its append is acknowledged.
WRITER = """
import asyncio, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from ledger_story import executed
from desk_server.ledger.sqlite import SqliteLedger

async def caller(ledger, life, number):
    count = 0
    while True:
        count += 1
        names = [f"{life}-{number}-{count}-{part}" for part in range(3)]
        await ledger.append(*(executed(name) for name in names))
        os.write(1, ("\\n".join(names) + "\\n").encode())

async def main():
    ledger = SqliteLedger(Path(sys.argv[1]))
    ledger.open(lambda stored: None)
    await asyncio.gather(*(caller(ledger, os.getpid(), number) for number in range(32)))

asyncio.run(main())
"""


def test_a_killed_desk_loses_nothing_acknowledged(tmp_path: Path):
    """Ten lives on one file, each ended by SIGKILL in the middle of its commits: whole calls, no gap, no loss."""
    path = tmp_path / "desk.db"
    acknowledged: set[str] = set()
    moments = random.Random(1)
    for life in range(1, 11):
        said = tmp_path / f"said-{life}"
        with said.open("wb") as out:
            child = subprocess.Popen(
                [sys.executable, "-c", WRITER, str(path), str(Path(__file__).parent)],
                stdout=out,
                cwd=Path(__file__).parents[2],
            )
            try:
                deadline = time.monotonic() + 20
                while said.stat().st_size == 0 and child.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.01)
                time.sleep(moments.uniform(0, 0.1))
            finally:
                child.kill()
                child.wait()
        new = said.read_bytes().rpartition(b"\n")[0].decode().splitlines()
        assert new, "the writer acknowledged nothing"
        acknowledged.update(new)
        ledger = SqliteLedger(path)
        stored = [one.event.execution_id for one in ledger.read()]
        assert ledger.verify() is None
        asyncio.run(ledger.close())
        assert acknowledged <= set(stored)
        assert len(stored) == len(set(stored)) and len(stored) % 3 == 0
