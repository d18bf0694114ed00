"""What importing desk_client costs a strategy, in milliseconds and in memory.

    python benchmarks/client_import.py [--rounds 15 | --quick] [--check]

Each figure is the median over rounds; in each round every candidate is imported once, in a new interpreter, in
turn, so that a busy moment of the machine meets all of them. `ms` is the time of the import alone; `RSS` is the
whole process afterwards. With --check it exits 1 where desk_client is above its budget.
"""

import argparse
import statistics
import subprocess
import sys
from importlib.util import find_spec
from typing import NamedTuple

MS_MAX = 40.0
RSS_MIB_MAX = 22.0
CANDIDATES = {
    "bare interpreter": "",
    "desk.v1.orders_pb2": "desk.v1.orders_pb2",
    "desk_client": "desk_client",
    "desk_client.run": "desk_client.run",
    "httpx": "httpx",
    "grpc": "grpc",
}
PROBE = """
import sys, time
started = time.perf_counter()
{what}
ms = (time.perf_counter() - started) * 1000
with open("/proc/self/status") as status:
    kib = next(line.split()[1] for line in status if line.startswith("VmRSS"))
print(ms, int(kib) / 1024)
"""


class Cost(NamedTuple):
    ms: float
    rss_mib: float


def main() -> int:
    parser = argparse.ArgumentParser(description="What importing desk_client costs a strategy.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="5 rounds")
    parser.add_argument("--check", action="store_true", help="exit 1 where desk_client is above its budget")
    options = parser.parse_args()
    names = [name for name, module in CANDIDATES.items() if not module or find_spec(module.partition(".")[0])]
    for name in names:  # once for the page cache and the byte code
        measure(name)
    rounds = [{name: measure(name) for name in names} for _ in range(5 if options.quick else max(1, options.rounds))]
    costs = {name: median([costs[name] for costs in rounds]) for name in names}
    print(f"{'import':<20} {'ms':>7} {'RSS MiB':>9}   medians of {len(rounds)}, Python {sys.version.split()[0]}")
    for name, cost in costs.items():
        print(f"{name:<20} {cost.ms:>7.1f} {cost.rss_mib:>9.1f}")
    print(f"budget of desk_client: {MS_MAX:g} ms, {RSS_MIB_MAX:g} MiB")
    over = costs["desk_client"].ms > MS_MAX or costs["desk_client"].rss_mib > RSS_MIB_MAX
    return 1 if options.check and over else 0


def measure(name: str) -> Cost:
    module = CANDIDATES[name]
    code = PROBE.format(what=f"import {module}" if module else "")
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    ms, mib = done.stdout.split()
    return Cost(float(ms), float(mib))


def median(costs: list[Cost]) -> Cost:
    return Cost(statistics.median(cost.ms for cost in costs), statistics.median(cost.rss_mib for cost in costs))


if __name__ == "__main__":
    sys.exit(main())
