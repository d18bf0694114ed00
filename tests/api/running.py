"""A whole desk (ledger, hub, paper exchange, doors) on an event loop in a thread of its own."""

import asyncio
import json
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import grpc
import httpx
import uvloop
from desk.v1 import service_pb2_grpc

from desk_server import app
from desk_server.api.serve import Doors
from desk_server.settings import Settings

WAIT_S = 10.0


class RunningDesk:
    """`sent` counts the orders that reached the broker."""

    def __init__(self, run_dir: Path, *, fast_door: bool = True, **settings):
        defaults = dict(
            run_dir=run_dir,
            port=0,
            grpc_port=0,
            walk_symbols="AAPL,MSFT,BTC/USD",
            walk_lines_per_s=100,
            paper_partial_percent=0,
            drain_s=2,
        )
        self.settings = Settings(**{**defaults, **settings})
        self.sent = 0
        self._fast_door = fast_door
        self._up = threading.Event()
        self._failure = None
        self._thread = threading.Thread(target=self._run, name="desk")
        self._thread.start()
        assert self._up.wait(WAIT_S), "the desk did not come up"
        if self._failure:
            raise self._failure
        self.admin_token = (run_dir / "admin.token").read_text().strip()
        self.url = f"http://127.0.0.1:{self.addresses.http_port}"

    def _run(self):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            try:
                runner.run(self._live())
            except Exception as error:
                # Without its traceback, whose frames would keep a gRPC server beyond its loop's end.
                self._failure = type(error)(*error.args)
                self._up.set()

    async def _live(self):
        self.loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self.app = app.build(self.settings)
        self.desk = self.app.desk
        self._count_orders_sent()
        await self.app.start()
        try:
            await self._serve()
        finally:
            await self.app.stop()

    async def _serve(self):
        self.doors = Doors(self.desk, self.settings, report=self.app.reconciler.report, fast_door=self._fast_door)
        self.addresses = await self.doors.open()
        deadline = time.monotonic() + WAIT_S
        symbols = self.settings.walk_symbols.split(",")
        while self.settings.feed == "walk" and not all(self.desk.hub.latest(symbol) for symbol in symbols):
            assert time.monotonic() < deadline, "no prices came"
            await asyncio.sleep(0.01)
        self._up.set()
        await self._over.wait()
        await self.doors.close()

    def _count_orders_sent(self):
        broker, submit = self.app.broker, self.app.broker.submit

        async def counting(order, legs=()):
            self.sent += 1
            return await submit(order, legs)

        broker.submit = counting

    def call(self, coroutine):
        """Run it on the desk's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(WAIT_S)

    def on_loop(self, function):
        async def called():
            return function()

        return self.call(called())

    def stop(self):
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._over.set)
            self._thread.join(WAIT_S)
            assert not self._thread.is_alive(), "the desk did not stop"

    def token(self, user="alice", role="trade"):
        return self.call(self.desk.registry.create_user_token(user, role, "test"))[1]

    def http(self, token=None, **headers):
        if token:
            headers["Authorization"] = f"Bearer {token}"
        return httpx.Client(base_url=self.url, headers=headers, timeout=WAIT_S)

    def over_socket(self, token):
        transport = httpx.HTTPTransport(uds=str(self.addresses.http_socket))
        return httpx.Client(base_url="http://desk", transport=transport, headers={"Authorization": f"Bearer {token}"})

    @contextmanager
    def grpc(self, token=None, address=None):
        with grpc.insecure_channel(address or f"127.0.0.1:{self.addresses.grpc_port}") as channel:
            yield Stubs(channel, token)

    def raw(self, *pieces: bytes, close=False) -> "RawConnection":
        connection = RawConnection(("127.0.0.1", self.addresses.http_port))
        for piece in pieces:
            connection.send(piece)
        return connection


class Stubs:
    def __init__(self, channel, token):
        self.channel = channel
        self.metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self.orders = service_pb2_grpc.OrderServiceStub(channel)
        self.books = service_pb2_grpc.BookServiceStub(channel)
        self.market = service_pb2_grpc.MarketServiceStub(channel)
        self.admin = service_pb2_grpc.AdminServiceStub(channel)


class Got:
    """An HTTP answer as it came."""

    def __init__(self, status, headers, body):
        self.status = status
        self.headers = headers
        self.body = body

    def json(self):
        return json.loads(self.body)


class RawConnection:
    """A client that says exactly what it is told to."""

    def __init__(self, address):
        if isinstance(address, str):
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(WAIT_S)
            self._socket.connect(address)
        else:
            self._socket = socket.create_connection(address, timeout=WAIT_S)
        self.file = self._socket.makefile("rb")

    def send(self, data: bytes):
        self._socket.sendall(data)

    def answer(self, *, head_only=False) -> Got:
        line = self.file.readline()
        assert line.startswith(b"HTTP/1.1 "), line
        status = int(line[9:12])
        headers = []
        while (line := self.file.readline()) not in (b"\r\n", b""):
            name, _, value = line.rstrip(b"\r\n").partition(b": ")
            headers.append((name.lower(), value))
        known = dict(headers)
        if head_only or status < 200:
            return Got(status, headers, b"")
        if b"content-length" in known:
            return Got(status, headers, self.file.read(int(known[b"content-length"])))
        return Got(status, headers, b"")

    def chunk(self) -> bytes:
        size = int(self.file.readline(), 16)
        data = self.file.read(size)
        self.file.readline()
        return data

    def is_closed(self) -> bool:
        return self.file.read(1) == b""

    def close(self):
        self.file.close()
        self._socket.close()


def post(path: str, body: bytes, *headers: str, token: str = "") -> bytes:
    """The bytes of a POST."""
    head = [f"POST {path} HTTP/1.1", "Host: desk", f"Content-Length: {len(body)}", *headers]
    if token:
        head.append(f"Authorization: Bearer {token}")
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


def wait_until(condition, what: str, within_s: float = WAIT_S):
    deadline = time.monotonic() + within_s
    while not (result := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen within {within_s} s"
        time.sleep(0.01)
    return result
