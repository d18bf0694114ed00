"""`python holding.py PLACE`: a desk's process that holds the ledger at PLACE and says, every 20 ms and as a line of
JSON, whether it may send, and whether it can store. It ends when its input does, letting go of the ledger."""

import asyncio
import json
import sys
from pathlib import Path

from ledger_story import Open, executed

from desk_server.ledger import Ledger, LedgerUnavailable
from desk_server.ledger.postgres import PostgresLedger
from desk_server.ledger.sqlite import SqliteLedger

LEASE_S = 2.0


def ledger_at(place: str) -> Ledger:
    return PostgresLedger(place, lease_s=LEASE_S) if "://" in place else SqliteLedger(Path(place))


async def main(place: str, name: str) -> None:
    ledger = Open(ledger_at(place))
    loop = asyncio.get_running_loop()
    ended = loop.run_in_executor(None, sys.stdin.read)
    number = 0
    while not ended.done():
        # As the order path does: asked right before the broker is called, and before anything is stored.
        fenced = ledger.ledger.fenced()
        stored = False
        try:
            await ledger.ledger.append(executed(f"{name}-{number}"))
            stored = True
        except LedgerUnavailable:
            pass
        print(json.dumps({"fenced": fenced, "stored": stored, "lost": ledger.lost}), flush=True)
        number += 1
        await asyncio.sleep(0.02)
    await ledger.ledger.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
