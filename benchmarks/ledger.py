"""How many order intents a second the ledger makes durable, and how long one waits for it.

    python benchmarks/ledger.py [--seconds 1] [--rounds 3] [--dir DIRECTORY]

`--dir` says which disk is measured (the current directory's by default). Each row runs beside its references
in the same round: the same ledger with one commit for every append, and the loop itself committing every
event (no thread, nothing shared). Medians of the rounds.
"""

import argparse
import asyncio
import contextlib
import itertools
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from desk_server.domain import LineInHand, Order, OrderId, OrderRequest, OrderType, Side, Symbol, UserId
from desk_server.events import OrderIntended, encode
from desk_server.ledger.sqlite import SqliteLedger

CALLERS = (1, 64, 512)
Append = Callable[[OrderIntended], Awaitable[object]]


def intents() -> Iterator[OrderIntended]:
    """Orders as strategies send them, about 600 bytes each in the ledger."""
    at = datetime.now(UTC)
    for number in itertools.count():
        order_id = OrderId(f"01JD{number:022d}")
        request = OrderRequest(
            symbol=Symbol("AAPL"),
            side=Side.BUY,
            type=OrderType.LIMIT,
            qty=Decimal(10),
            limit_price=Decimal("145.50"),
            request_id=f"request-{number}",
            line=LineInHand(seq=number, sha256="0123456789abcdef", fields_read=("symbol", "price")),
        )
        order = Order(
            order_id=order_id,
            client_order_id=f"d1.alice.sma-cross.{order_id}",
            user=UserId("alice"),
            strategy="sma-cross",
            deployment_id="01JDDEPLOYMENT",
            request=request,
            created_at=at,
            updated_at=at,
            reserved_cash=Decimal("1455.00"),
        )
        yield OrderIntended(at=at, order=order)


@contextlib.asynccontextmanager
async def shared_commits(directory: Path, **options: int):
    ledger = SqliteLedger(directory / "desk.db", **options)
    ledger.open(lambda stored: None)
    try:
        yield ledger.append
    finally:
        await ledger.close()


def own_commits(directory: Path):
    return shared_commits(directory, batch_max=1)


@contextlib.asynccontextmanager
async def commits_on_the_loop(directory: Path):
    connection = sqlite3.connect(directory / "naive.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE events (seq INTEGER PRIMARY KEY, request_id TEXT UNIQUE, body BLOB)")

    async def append(event: OrderIntended) -> None:
        connection.execute(
            "INSERT INTO events (request_id, body) VALUES (?, ?)", (event.order.request.request_id, encode(event))
        )
        await asyncio.sleep(0)

    yield append
    connection.close()


WAYS = {
    "shared commits": shared_commits,
    "one commit an append": own_commits,
    "committed on the loop": commits_on_the_loop,
}


async def measure(append: Append, events: Iterator[OrderIntended], callers: int, seconds: float) -> tuple[float, float]:
    """(events per second, median wait in µs)"""
    waits: list[float] = []
    end = time.perf_counter() + seconds

    async def caller() -> None:
        while (start := time.perf_counter()) < end:
            await append(next(events))
            waits.append(time.perf_counter() - start)

    start = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return len(waits) / (time.perf_counter() - start), statistics.median(waits) * 1e6


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each measurement takes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path, default=Path(), help="a directory on the disk to measure")
    args = parser.parse_args()
    found: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for _ in range(args.rounds):
        for callers, (name, way) in itertools.product(CALLERS, WAYS.items()):
            with tempfile.TemporaryDirectory(dir=args.dir, prefix="bench-ledger-") as directory:
                async with way(Path(directory)) as append:
                    result = await measure(append, intents(), callers, args.seconds)
            found.setdefault((callers, name), []).append(result)
    print(f"{'callers':>7}  {'way':<22} {'events/s':>9}  {'p50 wait µs':>11}")
    for (callers, name), results in found.items():
        rate, wait = (statistics.median(values) for values in zip(*results, strict=True))
        print(f"{callers:>7}  {name:<22} {rate:>9,.0f}  {wait:>11,.0f}")


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
