"""Orders per second and round trips, through every door of the whole desk, beside a naive server in the same run.

    python benchmarks/orders.py [--seconds 2] [--rounds 3]

Each server is a process of its own (real ledger, risk checks, paper exchange; a durable commit before each answer),
and so is the client, which is written by hand on sockets so that it costs little. The orders are limit orders that
rest, each with a request id of its own. The naive server is FastAPI with a pydantic body and one SQLite commit per
order, as one would write it in an afternoon: no risk checks, no book, no broker. Figures vary with the machine and
with what else runs on it: compare the rows of one run. Rounds alternate between the servers; medians are shown.
"""

# Server and client are processes of their own, and each imports only what its part needs; waiting for them is polling.
# ruff: noqa: PLC0415, ASYNC110

import argparse
import asyncio
import json
import os
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONNECTIONS = (1, 8, 64)
ORDER = {
    "symbol": "AAPL",
    "qty": "1",
    "side": "buy",
    "order_type": "limit",
    "limit_price": "1.00",
    "time_in_force": "gtc",
}
ID_LENGTH = 20
SETTINGS = {
    "DESK_ALLOTMENT": "1000000000000",
    "DESK_OPEN_ORDERS_MAX": "100000000",
    "DESK_ORDERS_PER_MINUTE_MAX": "100000000",
    "DESK_WALK_SYMBOLS": "AAPL",
    "DESK_LOG_LEVEL": "warning",
    "DESK_DRAIN_S": "1",
    "PORT": "0",
    "GRPC_PORT": "0",
}


# The servers, each in a process of its own


def serve_desk(fast: bool) -> None:
    """The desk with the fast door open or shut; tells where it listens on standard output."""
    import uvloop

    from desk_server import app, interpreter, logs
    from desk_server.api.serve import Doors
    from desk_server.settings import Settings

    async def run() -> None:
        settings = Settings()
        logs.configure(settings)
        desk = app.build(settings)
        await desk.start()
        interpreter.settle()
        doors = Doors(desk.desk, settings, fast_door=fast)
        addresses = await doors.open()
        while desk.hub.latest("AAPL") is None:
            await asyncio.sleep(0.01)
        _, token = await desk.desk.registry.create_user_token("alice", "trade", "benchmark")
        where = {
            "port": addresses.http_port,
            "socket": str(addresses.http_socket),
            "grpc": f"127.0.0.1:{addresses.grpc_port}",
            "grpc_socket": f"unix:{addresses.grpc_socket}",
            "token": token,
        }
        print(json.dumps(where), flush=True)
        await until_terminated()
        await doors.close()
        await desk.stop()

    uvloop.run(run())


def serve_naive() -> None:
    import uvicorn
    import uvloop
    from fastapi import FastAPI, Header, HTTPException
    from pydantic import BaseModel

    class Body(BaseModel):
        symbol: str
        qty: float
        side: str
        order_type: str
        limit_price: float
        time_in_force: str
        request_id: str

    directory = Path(os.environ["DESK_RUN_DIR"])
    directory.mkdir(parents=True)
    database = sqlite3.connect(directory / "naive.db", isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, user TEXT, request_id TEXT UNIQUE, body TEXT)")
    api = FastAPI()
    tokens = {"naive": "alice"}

    @api.post("/v1/orders", status_code=201)
    async def place(body: Body, authorization: str = Header()) -> dict[str, object]:
        user = tokens.get(authorization.removeprefix("Bearer "))
        if user is None:
            raise HTTPException(401)
        insert = "INSERT INTO orders (user, request_id, body) VALUES (?, ?, ?)"
        row = database.execute(insert, (user, body.request_id, body.model_dump_json()))
        return {"status": "success", "order_id": str(row.lastrowid), "order": body.model_dump()}

    async def run() -> None:
        tcp = socket.create_server(("127.0.0.1", 0))
        path = directory / "naive.sock"
        unix = socket.socket(socket.AF_UNIX)
        unix.bind(str(path))
        server = uvicorn.Server(uvicorn.Config(api, log_level="error", access_log=False, lifespan="off"))
        serving = asyncio.create_task(server.serve(sockets=[tcp, unix]))
        while not server.started:
            await asyncio.sleep(0.01)
        print(json.dumps({"port": tcp.getsockname()[1], "socket": str(path), "token": "naive"}), flush=True)
        await serving

    uvloop.run(run())


async def until_terminated() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()


@contextmanager
def server(kind: str, directory: Path) -> Iterator[dict[str, str]]:
    environment = {**os.environ, **SETTINGS, "DESK_RUN_DIR": str(directory / kind)}
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve", kind], stdout=subprocess.PIPE, env=environment, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"the {kind} server did not start")
        yield json.loads(line)
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# The client, in a process of its own


class Requests:
    """The bytes of one order after the other, each with its own request id."""

    def __init__(self, kind: str, token: str) -> None:
        from desk.v1 import orders_pb2

        blank = "#" * ID_LENGTH
        if kind == "naive":
            body, content_type, path = (
                json.dumps({**ORDER, "request_id": blank}).encode(),
                "application/json",
                "/v1/orders",
            )
        else:
            body = orders_pb2.OrderRequest(**ORDER, request_id=blank).SerializeToString()
            content_type, path = "application/x-protobuf", "/order"
        head = (
            f"POST {path} HTTP/1.1\r\nHost: desk\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._before, self._after = (head.encode() + body).split(blank.encode())
        self._prefix = os.urandom(4).hex()
        self._number = 0

    def next_id(self) -> str:
        self._number += 1
        return f"{self._prefix}{self._number:012d}"

    def next(self) -> bytes:
        return b"%b%b%b" % (self._before, self.next_id().encode(), self._after)


class Caller(asyncio.Protocol):
    """One connection: an order as soon as the last is answered."""

    def __init__(self, requests: Requests) -> None:
        self.requests = requests
        self.answered = 0
        self.got = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        transport.write(self.requests.next())

    def data_received(self, data: bytes) -> None:
        self.got = self.got + data if self.got else data
        end = self.got.find(b"\r\n\r\n")
        if end < 0:
            return
        start = self.got.find(b"content-length: ") + 16
        length = int(self.got[start : self.got.index(b"\r\n", start)])
        if len(self.got) < end + 4 + length:
            return
        if self.got[9:12] != b"201":
            raise SystemExit(f"refused: {self.got!r}")
        self.got = b""
        self.answered += 1
        self.transport.write(self.requests.next())


async def throughput(where: dict[str, str], kind: str, door: str, connections: int, seconds: float) -> float:
    """Orders answered per second."""
    loop = asyncio.get_running_loop()
    requests = Requests(kind, where["token"])
    callers = []
    for _ in range(connections):
        if door == "socket":
            _, caller = await loop.create_unix_connection(lambda: Caller(requests), where["socket"])
        else:
            _, caller = await loop.create_connection(lambda: Caller(requests), "127.0.0.1", int(where["port"]))
        callers.append(caller)
    await asyncio.sleep(min(0.3, seconds / 4))
    before, began = sum(caller.answered for caller in callers), time.perf_counter()
    await asyncio.sleep(seconds)
    rate = (sum(caller.answered for caller in callers) - before) / (time.perf_counter() - began)
    for caller in callers:
        caller.transport.abort()
    return rate


def round_trips(where: dict[str, str], kind: str, door: str, seconds: float) -> list[float]:
    """Microseconds of each round trip on one connection, after a warm-up."""
    requests = Requests(kind, where["token"])
    if door == "socket":
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(where["socket"])
    else:
        connection = socket.create_connection(("127.0.0.1", int(where["port"])))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    times, end = [], time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        connection.sendall(requests.next())
        got = connection.recv(65536)
        while (head := got.find(b"\r\n\r\n")) < 0:
            got += connection.recv(65536)
        start = got.find(b"content-length: ") + 16
        length = int(got[start : got.index(b"\r\n", start)])
        while len(got) < head + 4 + length:
            got += connection.recv(65536)
        times.append((time.perf_counter() - began) * 1e6)
    connection.close()
    return times[len(times) // 10 :]


async def grpc_unary(where: dict[str, str], door: str, callers: int, seconds: float) -> tuple[float, list[float]]:
    """(orders per second, microseconds of each call)."""
    import grpc
    from desk.v1 import orders_pb2, service_pb2_grpc

    requests = Requests("fast", where["token"])
    metadata = (("authorization", f"Bearer {where['token']}"),)
    times: list[float] = []
    async with grpc.aio.insecure_channel(where["grpc_socket" if door == "socket" else "grpc"]) as channel:
        stub = service_pb2_grpc.OrderServiceStub(channel)
        end = time.perf_counter() + seconds

        async def call() -> None:
            while (began := time.perf_counter()) < end:
                await stub.PlaceOrder(
                    orders_pb2.OrderRequest(**ORDER, request_id=requests.next_id()), metadata=metadata
                )
                times.append((time.perf_counter() - began) * 1e6)

        await asyncio.gather(*(call() for _ in range(callers)))
    return len(times) / seconds, times[len(times) // 10 :]


async def grpc_stream(where: dict[str, str], door: str, window: int, seconds: float) -> float:
    """Orders per second on one bidirectional stream with `window` orders under way."""
    import grpc
    from desk.v1 import orders_pb2, service_pb2_grpc

    requests = Requests("fast", where["token"])
    metadata = (("authorization", f"Bearer {where['token']}"),)
    room = asyncio.Semaphore(window)
    async with grpc.aio.insecure_channel(where["grpc_socket" if door == "socket" else "grpc"]) as channel:
        call = service_pb2_grpc.OrderServiceStub(channel).PlaceOrders(metadata=metadata)
        end = time.perf_counter() + seconds
        answered = 0

        async def write() -> None:
            while time.perf_counter() < end:
                await room.acquire()
                await call.write(orders_pb2.OrderRequest(**ORDER, request_id=requests.next_id()))
            await call.done_writing()

        writing = asyncio.create_task(write())
        async for answer in call:
            if answer.status != "success":
                raise SystemExit(f"refused: {answer.message}")
            answered += 1
            room.release()
        await writing
    return answered / seconds


def measure(what: dict) -> object:
    """One measurement, as the client process is told it."""
    import uvloop

    where, kind, door, seconds = what["where"], what["kind"], what["door"], what["seconds"]
    match what["measure"]:
        case "throughput":
            return uvloop.run(throughput(where, kind, door, what["connections"], seconds))
        case "round trips":
            return round_trips(where, kind, door, seconds)
        case "grpc":
            return asyncio.run(grpc_unary(where, door, what["connections"], seconds))
        case "grpc stream":
            return asyncio.run(grpc_stream(where, door, what["connections"], seconds))
    raise SystemExit(f"cannot measure {what['measure']}")


def in_own_process(**what: object) -> object:
    done = subprocess.run(
        [sys.executable, __file__, "--measure", json.dumps(what)], stdout=subprocess.PIPE, check=True, timeout=120
    )
    return json.loads(done.stdout)


# The table


def percentile(times: list[float], percent: float) -> float:
    return sorted(times)[min(len(times) - 1, int(len(times) * percent / 100))]


def one_round(kind: str, where: dict[str, str], seconds: float, figures: dict) -> None:
    """Every measurement of one server once; figures are kept by row and column."""
    for door in ("tcp", "socket"):
        row = figures.setdefault((kind, door), {})
        times = in_own_process(measure="round trips", where=where, kind=kind, door=door, seconds=seconds)
        row.setdefault("p50", []).append(percentile(times, 50))
        row.setdefault("p99", []).append(percentile(times, 99))
        for connections in CONNECTIONS:
            rate = in_own_process(
                measure="throughput", where=where, kind=kind, door=door, connections=connections, seconds=seconds
            )
            row.setdefault(connections, []).append(rate)
        if kind != "fast":
            continue
        row = figures.setdefault(("grpc unary", door), {})
        for callers in CONNECTIONS:
            rate, times = in_own_process(
                measure="grpc", where=where, kind=kind, door=door, connections=callers, seconds=seconds
            )
            row.setdefault(callers, []).append(rate)
            if callers == 1:
                row.setdefault("p50", []).append(percentile(times, 50))
                row.setdefault("p99", []).append(percentile(times, 99))
        row = figures.setdefault(("grpc stream", door), {})
        for window in CONNECTIONS:
            rate = in_own_process(
                measure="grpc stream", where=where, kind=kind, door=door, connections=window, seconds=seconds
            )
            row.setdefault(window, []).append(rate)


NAMES = {
    "fast": "desk, POST /order, fast door",
    "slow": "desk, POST /order, FastAPI",
    "grpc unary": "desk, gRPC unary",
    "grpc stream": "desk, gRPC stream",
    "naive": "naive FastAPI + SQLite",
}


def show(figures: dict) -> None:
    print(f"\n{'':30} {'':7} {'orders/s at':>9} {CONNECTIONS[0]:>4}", *(f"{n:>9}" for n in CONNECTIONS[1:]), end="")
    print(f" {'p50 µs':>9} {'p99 µs':>9} {'÷ naive':>8}")
    for kind, name in NAMES.items():
        for door in ("tcp", "socket"):
            row = {column: statistics.median(values) for column, values in figures.get((kind, door), {}).items()}
            if not row:
                continue
            naive = statistics.median(figures[("naive", door)][CONNECTIONS[-1]])
            print(f"{name:30} {door:7}", f"{row[1]:14,.0f}", *(f"{row[n]:9,.0f}" for n in CONNECTIONS[1:]), end="")
            for column in ("p50", "p99"):
                print(f" {row[column]:9,.0f}" if column in row else f" {'–':>9}", end="")
            print(f" {row[CONNECTIONS[-1]] / naive:8.1f}")
    print("\nAt 1, 8 and 64 connections (gRPC stream: orders under way). p50 and p99 of a round trip at 1 connection.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("fast", "slow", "naive"), action="append")
    parser.add_argument("--serve", choices=("fast", "slow", "naive"), help=argparse.SUPPRESS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve == "naive":
        serve_naive()
    elif options.serve:
        serve_desk(fast=options.serve == "fast")
    elif options.measure:
        print(json.dumps(measure(json.loads(options.measure))))
    else:
        kinds = options.only or ["fast", "slow"]
        figures: dict = {}
        with tempfile.TemporaryDirectory() as directory:
            for number in range(options.rounds):
                for kind in [*(kind for kind in kinds if kind != "naive"), "naive"]:
                    print(f"round {number + 1} of {options.rounds}: {NAMES[kind]}", file=sys.stderr)
                    # A new ledger each time: what an order costs must not hang on how many there were.
                    with server(kind, Path(directory) / str(number)) as where:
                        one_round(kind, where, options.seconds, figures)
        show(figures)


if __name__ == "__main__":
    main()
