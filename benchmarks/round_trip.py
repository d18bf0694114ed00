"""One order's round trip, durable, as a strategy sees it: from inside its container, from a plain process, and
beside them httpx posting JSON to the same desk's FastAPI route, all in one run.

    .venv/bin/python benchmarks/round_trip.py [--orders N] [--process]

Prints p50 and p99 in microseconds. Without a Docker engine (or with --process) the container's row is left out.
"""

import argparse
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

PROJECT = Path(__file__).resolve().parent.parent
# Limit orders far from the market: they rest, so that what is timed is the way in and nothing else.
STRATEGY = """
import sys, time
from desk_client import place_order
sys.stdin.readline()
taken = []
for number in range({orders} + 200):
    began = time.perf_counter()
    answer = place_order("AAPL", 1, "buy", "limit", limit_price="1.00")
    taken.append(time.perf_counter() - began)
    assert answer.status == "success", answer.message
taken = sorted(taken[200:])
print(f"RESULT {{taken[len(taken) // 2] * 1e6:.0f}} {{taken[len(taken) * 99 // 100] * 1e6:.0f}}", flush=True)
for line in sys.stdin:
    pass
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orders", type=int, default=2000)
    parser.add_argument("--process", action="store_true", help="leave the container out")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="desk-bench-"))
    directory.chmod(0o755)
    env = os.environ | {
        "DESK_RUN_DIR": str(directory / "run"),
        "STRATEGIES_DIR": str(directory / "strategies"),
        "PORT": "0",
        "GRPC_PORT": "0",
        "DESK_FEED": "walk",
        "DESK_OPEN_ORDERS_MAX": "1000000",
        "DESK_ALLOTMENT": "100000000",
        "DESK_TRUST_USER_HEADER": "1",
        "DESK_LOG_LEVEL": "warning",
    }
    server = subprocess.Popen([sys.executable, "-m", "desk_server"], cwd=PROJECT, env=env)
    try:
        http = httpx.Client(
            base_url="http://desk",
            transport=httpx.HTTPTransport(uds=str(directory / "run" / "desk" / "desk.sock")),
            headers={"X-User-ID": "bench"},
        )
        wait_until_ready(http, server)
        rows = [("httpx, JSON, FastAPI route, plain process", *over_httpx(http, options.orders))]
        for runtime in ("process",) if options.process or not engine_answers() else ("process", "docker"):
            where = "container" if runtime == "docker" else "plain process"
            rows.append((f"desk_client, {where}", *as_strategy(runtime, options.orders, env, directory)))
        reference = rows[0][1]
        print(f"\n{'round trip of one order over the unix socket':46} {'p50 us':>8} {'p99 us':>8} {'of httpx':>9}")
        for name, p50, p99 in rows:
            print(f"{name:46} {p50:8.0f} {p99:8.0f} {p50 / reference:8.2f}x")
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(20)
        shutil.rmtree(directory, ignore_errors=True)


def wait_until_ready(http: httpx.Client, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if http.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    sys.exit("the desk did not get ready")


def over_httpx(http: httpx.Client, orders: int) -> tuple[float, float]:
    order = {"symbol": "AAPL", "qty": "1", "side": "buy", "order_type": "limit", "limit_price": "1.00"}
    taken = []
    for _ in range(orders + 200):
        began = time.perf_counter()
        answer = http.post("/v1/orders", json=order)
        taken.append(time.perf_counter() - began)
        assert answer.status_code == 201, answer.text
    taken = sorted(taken[200:])
    return taken[len(taken) // 2] * 1e6, taken[len(taken) * 99 // 100] * 1e6


def as_strategy(runtime: str, orders: int, env: dict[str, str], directory: Path) -> tuple[float, float]:
    name = f"bench-{secrets.token_hex(3)}"
    folder = directory / "strategies" / name
    folder.mkdir(parents=True)
    (folder / "strategy.py").write_text(STRATEGY.format(orders=orders))
    manager = [str(PROJECT / "strategy_manager.py"), "--runtime", runtime]
    subprocess.run([*manager, "start", name], env=env, check=True, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            shown = subprocess.run([*manager, "logs", name], env=env, check=True, capture_output=True, text=True).stdout
            if "RESULT" in shown:
                p50, p99 = shown.split("RESULT ")[1].split()[:2]
                return float(p50), float(p99)
            time.sleep(0.5)
        sys.exit(f"{name} gave no result:\n{shown}")
    finally:
        subprocess.run([*manager, "stop", name], env=env, check=True, stdout=subprocess.DEVNULL)


def engine_answers() -> bool:
    return (
        subprocess.run([PROJECT / "deploy" / "engine.sh", "--check"], check=False, capture_output=True).returncode == 0
    )


if __name__ == "__main__":
    main()
