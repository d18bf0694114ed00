"""Orders per second and round trips through `POST /order` of the whole desk, beside two references in the same run.

    python benchmarks/orders.py [--seconds 2] [--rounds 3] [--only desk --only go …] [--quick]

The desk has its durable ledger (SQLite, and PostgreSQL where this machine has a server), attribution and every check
on; with the embedded paper exchange, and with a broker that acknowledges at once (`ack`), which is what the references
have. The references: `naive`, a FastAPI + pydantic server with one SQLite commit an order; and `go`, a Go net/http +
protobuf gateway with a journal that is synced once for all that wait (`go_gateway`: its work is listed there).

Every order waits for its sync to the disk before it is answered. Orders are limit orders that rest, each with a request
id of its own. Every server is a process of its own, with an empty ledger; so is the client (`_load.py`), the same for
all. Nothing is pinned to a core: on a machine with two, client and server share them, which takes most from whoever
uses both (Go does; the desk uses little more than one). Figures vary with the machine and with what else runs on
it: compare the rows of one run. Servers alternate within a round; medians of the rounds are shown.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import _load
import _servers

CONNECTIONS = (1, 8, 64)
DOORS = ("tcp", "socket")
NAMES = {
    "desk": "desk: SQLite, paper exchange",
    "desk-ack": "desk: SQLite, ack",
    "desk-pg": "desk: PostgreSQL, paper exchange",
    "desk-pg-ack": "desk: PostgreSQL, ack",
    "naive": "naive: FastAPI, a commit an order",
    "go": "Go: net/http, group commit",
}
# By row (kind, door, connections): what each round found.
Figures = dict[tuple[str, str, int], list[dict[str, float]]]


def one_round(client: list[str], kind: str, directory: Path, seconds: float, figures: Figures) -> None:
    """Every measurement of one server once."""
    with _servers.server(kind, directory) as running:
        for door in DOORS:
            for connections in CONNECTIONS:
                before = running.cpu_s()
                found = _load.measure(client, running.where, kind, door, connections, seconds)
                # The warm-up's orders are in the processor time, and so in what it is divided by.
                warm = min(0.5, seconds / 3) + seconds
                found["cpu"] = (running.cpu_s() - before) / (found["rate"] * warm) * 1e6
                figures.setdefault((kind, door, connections), []).append(found)


def show(figures: Figures, kinds: list[str]) -> None:
    print(
        f"\n{'':34} {'':7} {'at once':>7} {'orders/s':>9} {'p50 µs':>8} {'p99 µs':>8} {'CPU µs':>7} {'client':>7}",
        end="",
    )
    print(f" {'÷ naive':>8} {'÷ Go':>6}")
    for connections in CONNECTIONS:
        for door in DOORS:
            for kind in kinds:
                row = median(figures, kind, door, connections)
                if row:
                    print(f"{NAMES[kind]:34} {door:7} {connections:7} {row['rate']:9,.0f} {row['p50']:8,.0f}", end="")
                    print(f" {row['p99']:8,.0f} {row['cpu']:7.0f} {row['client']:7.2f}", end="")
                    print(f" {ratio(row, figures, 'naive', door, connections):>8}", end="")
                    print(f" {ratio(row, figures, 'go', door, connections):>6}")
            print()
    print(
        "at once: keep-alive connections, each with one order under way. CPU: of the server (its database with it), an"
    )
    print("order. client: the part of a core that the client took.")


def median(figures: Figures, kind: str, door: str, connections: int) -> dict[str, float]:
    found = figures.get((kind, door, connections), [])
    return {name: statistics.median(one[name] for one in found) for name in found[0]} if found else {}


def ratio(row: dict[str, float], figures: Figures, reference: str, door: str, connections: int) -> str:
    other = median(figures, reference, door, connections)
    return f"{row['rate'] / other['rate']:.2f}" if other else "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=tuple(NAMES), action="append", help="may be given several times")
    parser.add_argument("--quick", action="store_true", help="one short round")
    options = parser.parse_args()
    rounds, seconds = (1, 1.0) if options.quick else (options.rounds, options.seconds)
    kinds = []
    for kind in options.only or NAMES:
        if problem := _servers.why_missing(kind):
            print(f"left out: {NAMES[kind]}: {problem}")
        else:
            kinds.append(kind)
    client = _load.client_command()
    if client[0] == sys.executable:
        print("the client is Python's: it may be slower than the fastest servers (Debian: golang-go)")
    figures: Figures = {}
    with tempfile.TemporaryDirectory(prefix="desk-bench-") as directory:
        for number in range(rounds):
            for kind in kinds:
                print(f"round {number + 1} of {rounds}: {NAMES[kind]}", file=sys.stderr)
                one_round(client, kind, Path(directory) / f"{number}-{kind}", seconds, figures)
    show(figures, kinds)


if __name__ == "__main__":
    main()
