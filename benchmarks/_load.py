"""The load on a server: so many keep-alive connections, each with an order under way all the time.

The client is a program of its own (`go_client`, one thread on epoll) where there is Go, else this module as a process
on uvloop; it is the same for every server of a run. It tells what part of a core it took: near 1 it is the client
that is measured, not the server.
"""

import argparse
import asyncio
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

ORDER = {
    "symbol": "AAPL",
    "qty": "1",
    "side": "buy",
    "order_type": "limit",
    "limit_price": "1.00",
    "time_in_force": "gtc",
}
BLANK = "#" * 20


def request_bytes(kind: str, token: str) -> bytes:
    """One order, with number signs where its own id belongs."""
    from desk.v1 import orders_pb2  # noqa: PLC0415 -- the client process must start quickly

    if kind == "naive":
        body, content_type, path = (
            json.dumps({**ORDER, "request_id": BLANK}).encode(),
            "application/json",
            "/v1/orders",
        )
    else:
        body = orders_pb2.OrderRequest(**ORDER, request_id=BLANK).SerializeToString()
        content_type, path = "application/x-protobuf", "/order"
    head = (
        f"POST {path} HTTP/1.1\r\nHost: desk\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def client_command() -> list[str]:
    from _servers import go_build  # noqa: PLC0415 -- as above

    return [go_build("go_client")] if shutil.which("go") else [sys.executable, str(Path(__file__).resolve())]


def measure(  # noqa: PLR0917
    client: list[str], where: dict, kind: str, door: str, connections: int, seconds: float
) -> dict[str, float]:
    """rate (orders/s), p50 and p99 (µs), client (share of a core)."""
    address = where["socket"] if door == "socket" else str(where["port"])
    options = {
        "network": "unix" if door == "socket" else "tcp",
        "address": address,
        "connections": connections,
        "seconds": seconds,
        "warmup": min(0.5, seconds / 3),
    }
    arguments = [part for name, value in options.items() for part in (f"-{name}", str(value))]
    done = subprocess.run(
        [*client, *arguments],
        input=request_bytes(kind, where["token"]),
        stdout=subprocess.PIPE,
        check=True,
        timeout=seconds + 60,
    )
    return json.loads(done.stdout)


class Caller(asyncio.Protocol):
    """One connection: an order as soon as the last is answered."""

    number = 0
    prefix = os.urandom(4).hex()

    def __init__(self, template: bytes, took: list[float]) -> None:
        self._before, self._after = template.split(BLANK.encode())
        self._took = took
        self._got = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self._send()

    def _send(self) -> None:
        Caller.number += 1
        self._sent_at = time.perf_counter()
        self.transport.write(b"%b%b%012d%b" % (self._before, self.prefix.encode(), Caller.number, self._after))

    def data_received(self, data: bytes) -> None:
        got = self._got = self._got + data if self._got else data
        end = got.find(b"\r\n\r\n")
        if end < 0:
            return
        start = got.find(b"content-length: ") + 16
        if len(got) < end + 4 + int(got[start : got.index(b"\r\n", start)]):
            return
        if got[9:12] != b"201":
            sys.exit(f"refused: {got!r}")
        self._got = b""
        self._took.append(time.perf_counter() - self._sent_at)
        self._send()


async def _load(options: argparse.Namespace) -> dict[str, float]:
    loop, took = asyncio.get_running_loop(), []
    template = sys.stdin.buffer.read()
    callers = []
    for _ in range(options.connections):
        if options.network == "unix":
            _, caller = await loop.create_unix_connection(lambda: Caller(template, took), options.address)
        else:
            _, caller = await loop.create_connection(lambda: Caller(template, took), "127.0.0.1", int(options.address))
        callers.append(caller)
    await asyncio.sleep(options.warmup)
    took.clear()
    began, busy = time.perf_counter(), _cpu_s()
    await asyncio.sleep(options.seconds)
    elapsed, busy, times = time.perf_counter() - began, _cpu_s() - busy, sorted(took)
    for caller in callers:
        caller.transport.abort()
    return {
        "rate": len(times) / elapsed,
        "orders": len(times),
        "p50": times[len(times) // 2] * 1e6,
        "p99": times[len(times) * 99 // 100] * 1e6,
        "client": busy / elapsed,
    }


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    import uvloop

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-network", choices=("tcp", "unix"))
    parser.add_argument("-address")
    parser.add_argument("-connections", type=int)
    parser.add_argument("-seconds", type=float)
    parser.add_argument("-warmup", type=float)
    print(json.dumps(uvloop.run(_load(parser.parse_args()))))
