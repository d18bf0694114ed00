"""Orders per second through every door of one desk: the fast door, FastAPI, gRPC calls and the gRPC stream.

    python benchmarks/doors.py [--seconds 2] [--rounds 3] [--quick]

The desk is the whole one with its paper exchange, in a process of its own (see `orders.py`, which sets it beside other
servers). gRPC's client is grpc.aio, which costs more than any other client here: its rows say what a Python caller
gets, not what the desk could give.
"""

# The client is a process of its own that imports only what its part needs.
# ruff: noqa: PLC0415

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import count
from pathlib import Path

import _load
import _servers

CONNECTIONS = (1, 8, 64)
NAMES = {
    "desk": "POST /order, fast door",
    "desk-fastapi": "POST /order, FastAPI",
    "grpc": "gRPC unary",
    "stream": "gRPC stream",
}


async def grpc_unary(stub, metadata: tuple, requests, callers: int, seconds: float) -> dict[str, float]:
    times: list[float] = []
    end = time.perf_counter() + seconds

    async def call() -> None:
        while (began := time.perf_counter()) < end:
            await stub.PlaceOrder(next(requests), metadata=metadata)
            times.append((time.perf_counter() - began) * 1e6)

    await asyncio.gather(*(call() for _ in range(callers)))
    times = sorted(times[len(times) // 10 :])
    return {"rate": len(times) / 0.9 / seconds, "p50": times[len(times) // 2], "p99": times[len(times) * 99 // 100]}


async def grpc_stream(stub, metadata: tuple, requests, window: int, seconds: float) -> dict[str, float]:
    """One bidirectional stream with `window` orders under way; answers come in any order, so no times of one."""
    room = asyncio.Semaphore(window)
    call = stub.PlaceOrders(metadata=metadata)
    end = time.perf_counter() + seconds
    answered = 0

    async def write() -> None:
        while time.perf_counter() < end:
            await room.acquire()
            await call.write(next(requests))
        await call.done_writing()

    writing = asyncio.create_task(write())
    async for answer in call:
        if answer.status != "success":
            raise SystemExit(f"refused: {answer.message}")
        answered += 1
        room.release()
    await writing
    return {"rate": answered / seconds}


async def grpc_client(what: dict) -> dict[str, float]:
    import grpc
    from desk.v1 import orders_pb2, service_pb2_grpc

    prefix = os.urandom(4).hex()
    requests = (orders_pb2.OrderRequest(**_load.ORDER, request_id=f"{prefix}{number:012d}") for number in count())
    metadata = (("authorization", f"Bearer {what['token']}"),)
    async with grpc.aio.insecure_channel(what["address"]) as channel:
        measure = grpc_unary if what["door"] == "grpc" else grpc_stream
        stub = service_pb2_grpc.OrderServiceStub(channel)
        return await measure(stub, metadata, requests, what["connections"], what["seconds"])


def measure_grpc(where: dict, kind: str, door: str, connections: int, seconds: float) -> dict[str, float]:
    what = {
        "door": kind,
        "token": where["token"],
        "address": where["grpc_socket" if door == "socket" else "grpc"],
        "connections": connections,
        "seconds": seconds,
    }
    command = [sys.executable, __file__, "--client", json.dumps(what)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=seconds + 60).stdout)


def one_round(client: list[str], directory: Path, seconds: float, figures: dict) -> None:
    for server, kinds in (("desk", ("desk", "grpc", "stream")), ("desk-fastapi", ("desk-fastapi",))):
        with _servers.server(server, directory / server) as running:
            for kind in kinds:
                for door in ("tcp", "socket"):
                    for connections in CONNECTIONS:
                        if kind in ("grpc", "stream"):
                            found = measure_grpc(running.where, kind, door, connections, seconds)
                        else:
                            found = _load.measure(client, running.where, kind, door, connections, seconds)
                        figures.setdefault((kind, door, connections), []).append(found)


def show(figures: dict) -> None:
    print(f"\n{'':24} {'':7} {'at once':>7} {'orders/s':>9} {'p50 µs':>8} {'p99 µs':>8}")
    for (kind, door, connections), found in sorted(figures.items(), key=lambda item: (item[0][2], item[0][1])):
        row = {name: statistics.median(one[name] for one in found) for name in found[0]}
        times = " ".join(f"{row[name]:8,.0f}" if name in row else f"{'–':>8}" for name in ("p50", "p99"))
        print(f"{NAMES[kind]:24} {door:7} {connections:7} {row['rate']:9,.0f} {times}")
    print("at once: connections with one order under way each; of gRPC, calls or orders under way on one connection.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--client", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        print(json.dumps(asyncio.run(grpc_client(json.loads(options.client)))))
        return
    figures: dict = {}
    client = _load.client_command()
    with tempfile.TemporaryDirectory(prefix="desk-bench-") as directory:
        for number in range(1 if options.quick else options.rounds):
            print(f"round {number + 1}", file=sys.stderr)
            one_round(client, Path(directory) / str(number), 1.0 if options.quick else options.seconds, figures)
    show(figures)


if __name__ == "__main__":
    main()
