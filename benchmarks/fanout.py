"""One market, many readers: the hub against a StreamingResponse per reader, over unix sockets, in one run.

    python benchmarks/fanout.py [--readers 100,500] [--rate 1000] [--seconds 5]

The server runs in a process of its own, so its CPU time is its alone; one more process holds all the readers. Each
line carries the time it was published at; latency is from there to the moment a reader has the bytes. Deliveries
are lines times readers; `delivered` below 100 % means that server or readers could not keep up
(the hub then leaves lines out). 500 readers at --rate 10000 need a machine with nothing else to do.
"""

import argparse
import asyncio
import json
import logging
import multiprocessing
import re
import resource
import statistics
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path

import structlog
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

from desk_server.clock import SystemClock
from desk_server.market import Hub
from desk_server.sinks import ChunkedSink, StreamProtocol
from desk_server.tape import Tape

TICK_S = 0.005
# What is under way at the end of a run has this long to arrive.
DRAIN_S = 1.0
SOCKET = "bench.sock"
HEADERS = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
SENT_AT = re.compile(rb'"t":(\d+)')


def market_line(number: int) -> bytes:
    """About 150 bytes, stamped with the machine's monotonic clock in nanoseconds."""
    return (
        b'{"type":"quote","symbol":"SYM%d","timestamp":"2026-01-05T14:30:00.000000Z","bid":167.43,"bid_size":1500,'
        b'"ask":167.45,"ask_size":3300,"price":167.44,"t":%d}' % (number % 50, time.monotonic_ns())
    )


async def publish(rate: int, seconds: float, send) -> int:
    """`rate` lines a second in ticks of 5 ms; how many."""
    began = time.monotonic()
    number = 0
    while (elapsed := time.monotonic() - began) < seconds:
        for _ in range(int(elapsed * rate) - number):
            send(market_line(number))
            number += 1
        await asyncio.sleep(TICK_S)
    return number


class HubDoor(asyncio.Protocol):
    """Answers any request with the headers, then hands the connection to the hub."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub

    def connection_made(self, transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(HEADERS)
        sink = ChunkedSink(self.transport)
        self.transport.set_protocol(StreamProtocol(sink))
        self.hub.subscribe(None, None, sink)


async def open_hub(directory: Path):
    hub = Hub(Tape(directory / "tape", 2**28), SystemClock(), 10_000)
    await asyncio.get_running_loop().create_unix_server(lambda: HubDoor(hub), directory / SOCKET, backlog=1024)
    return hub.publish


async def open_starlette(directory: Path):
    """The usual way: a bounded queue and a generator for each reader."""
    queues: set[asyncio.Queue[bytes]] = set()

    async def stream(request):
        async def lines():
            queue: asyncio.Queue[bytes] = asyncio.Queue(10_000)
            queues.add(queue)
            try:
                while True:
                    yield await queue.get()
            finally:
                queues.discard(queue)

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    def send(line: bytes) -> None:
        data = line + b"\n"
        for queue in queues:
            if not queue.full():
                queue.put_nowait(data)

    app = Starlette(routes=[Route("/", stream)])
    config = uvicorn.Config(app, uds=str(directory / SOCKET), log_level="error", loop="uvloop", http="httptools")
    server = uvicorn.Server(config)
    send.serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  (uvicorn has no event for it)
        await asyncio.sleep(0.01)
    return send


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def server_process(way: str, run: "Run", result) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))

    async def main() -> None:
        send = await WAYS[way](run.directory)
        run.ready.set()
        await asyncio.to_thread(run.begin.wait)
        before_s = cpu_s()
        published = await publish(run.rate, run.seconds, send)
        result.put((published, cpu_s() - before_s))
        await asyncio.sleep(DRAIN_S)

    uvloop.run(main())


class Reader(asyncio.Protocol):
    """Counts all lines, takes the time of one in each piece received."""

    lines = 0
    latencies_ns: list[int] = []  # noqa: RUF012  (shared by all readers on purpose)

    def connection_made(self, transport) -> None:
        transport.write(b"GET / HTTP/1.1\r\nHost: desk\r\n\r\n")

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        found = SENT_AT.search(data)
        if found:
            Reader.latencies_ns.append(now - int(found[1]))
        Reader.lines += data.count(b'"t":')


def readers_process(run: "Run", readers: int, result) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(readers):
            await loop.create_unix_connection(Reader, str(run.directory / SOCKET))
        await asyncio.sleep(0.5)
        run.begin.set()
        await asyncio.sleep(run.seconds + DRAIN_S)
        result.put((Reader.lines, sorted(Reader.latencies_ns)))

    uvloop.run(main())


WAYS = {"hub": open_hub, "starlette": open_starlette}


@dataclass
class Run:
    directory: Path
    ready: Event
    begin: Event
    rate: int
    seconds: float


def measure(way: str, readers: int, rate: int, seconds: float) -> dict[str, float]:
    context = multiprocessing.get_context("fork")
    served, read = context.Queue(), context.Queue()
    with tempfile.TemporaryDirectory() as directory:
        run = Run(Path(directory), context.Event(), context.Event(), rate, seconds)
        server = context.Process(target=server_process, args=(way, run, served))
        server.start()
        if not run.ready.wait(20):
            raise SystemExit(f"the {way} server did not start")
        clients = context.Process(target=readers_process, args=(run, readers, read))
        clients.start()
        published, used_s = served.get(timeout=seconds + 60)
        lines, latencies = read.get(timeout=seconds + 60)
        clients.join()
        server.kill()
        server.join()
    wanted = published * readers
    return {
        "deliveries_per_s": lines / seconds,
        "delivered_percent": 100 * lines / wanted,
        "cpu_cores": used_s / seconds,
        "cpu_us_per_delivery": 1e6 * used_s / max(lines, 1),
        "p50_us": statistics.median(latencies) / 1e3,
        "p99_us": latencies[int(len(latencies) * 0.99)] / 1e3,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--readers", default="100,500", help="how many readers, comma separated (default: 100,500)")
    parser.add_argument("--rate", type=int, default=1000, help="lines a second (default: 1000)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each run (default: 4)")
    parser.add_argument("--only", choices=WAYS)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    results = []
    if not options.json:
        print(f"{options.rate} lines/s of 150 bytes, {options.seconds:g} s, unix socket, uvloop")
        print(
            f"{'':>9} {'readers':>7} {'deliveries/s':>12} {'delivered':>9} {'cores':>5}"
            f" {'us each':>7} {'p50 us':>8} {'p99 us':>9}"
        )
    for readers in map(int, options.readers.split(",")):
        for name in WAYS:
            if options.only not in (None, name):
                continue
            got = measure(name, readers, options.rate, options.seconds)
            results.append({"way": name, "readers": readers, **got})
            if not options.json:
                print(
                    f"{name:>9} {readers:>7} {got['deliveries_per_s']:>12,.0f} {got['delivered_percent']:>8.1f}%"
                    f" {got['cpu_cores']:>5.2f} {got['cpu_us_per_delivery']:>7.2f} {got['p50_us']:>8,.0f}"
                    f" {got['p99_us']:>9,.0f}",
                    flush=True,
                )
    if options.json:
        print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
