"""All doors of the desk, opened and closed together: HTTP and gRPC, on TCP and on unix sockets, in one event loop."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI
from msgspec import Struct

from desk_server.api import fast
from desk_server.api.auth import Door, is_loopback
from desk_server.api.grpc import GrpcDoor
from desk_server.api.http import Api, build_http
from desk_server.api.orders import OrderRoute
from desk_server.api.sockets import CannotServe, SocketFile, listen, raise_file_limit, socket_directory, socket_gid
from desk_server.api.streams import Streams
from desk_server.api.verbs import Verbs
from desk_server.desk import Desk
from desk_server.reconcile import Report
from desk_server.settings import Settings

log = structlog.get_logger("desk.serve")

HTTP_SOCKET, GRPC_SOCKET = "desk.sock", "desk-grpc.sock"
# A strategy may be silent for long between two orders, and finds its connection still open.
KEEP_ALIVE_S = 120
_LOOK_AROUND_S = 1.0
# What uvicorn takes to notice that it shall stop, and to close connections that wait for nothing.
_STOPPING_S = 1.0


class Addresses(Struct, frozen=True):
    """Where the desk listens: ports as they are (never 0), paths of the sockets."""

    host: str
    http_port: int
    grpc_port: int
    http_socket: Path
    grpc_socket: Path


class Doors:
    """`open`, then `close`. `fast=False` sends every request through FastAPI (for comparison). `report` tells how
    the books compare with the broker's records."""

    def __init__(
        self, desk: Desk, settings: Settings, *, report: Callable[[], Report] = Report, fast_door: bool = True
    ) -> None:
        self._desk = desk
        self._settings = settings
        door = Door(desk.registry, settings, live=desk.broker.capabilities.live)
        verbs = Verbs(desk, settings.allotment, report)
        self.streams = Streams(desk, door)
        orders = OrderRoute(verbs, door)
        self.app: FastAPI = build_http(Api(desk, verbs, door, orders, self.streams))
        self._running: set[asyncio.Task[None]] = set()
        self._protocol = fast.bind(orders, self.streams, self._running, fast=fast_door)
        self._grpc = GrpcDoor(desk, verbs, door, self.streams)
        self._http: _Uvicorn | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._sockets: list[SocketFile] = []

    async def open(self) -> Addresses:
        """Raises CannotServe; nothing is left open then."""
        try:
            return await self._open()
        except BaseException:
            await self.close()
            raise

    async def _open(self) -> Addresses:
        settings = self._settings
        if settings.trust_user_header:
            log.warning("X-User-ID is believed without a token: anybody who can connect can be anybody")
        if settings.host != "localhost" and not is_loopback(settings.host):
            log.warning("listening beyond this machine, without encryption: put TLS in front", host=settings.host)
        raise_file_limit()
        directory = socket_directory(settings)
        http_file = SocketFile(directory / HTTP_SOCKET, socket_gid(settings))
        grpc_file = SocketFile(directory / GRPC_SOCKET, socket_gid(settings))
        self._sockets += [http_file, grpc_file]
        grpc_port = _listen_grpc(self._grpc, settings.host, settings.grpc_port)
        tcp = listen(settings.host, settings.port)
        unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with http_file.placed() as path:
            unix.bind(str(path))
        self._http = _Uvicorn(self.app, self._protocol, [tcp, unix], settings.drain_s)
        self._tasks.append(asyncio.create_task(self._http.serve(), name="http"))
        with grpc_file.placed() as path:
            self._grpc.listen(f"unix:{path}")
            await self._grpc.start()
        await self._http.is_open(self._tasks[0])
        self._tasks.append(asyncio.create_task(self._look_around(), name="look around"))
        return Addresses(settings.host, tcp.getsockname()[1], grpc_port, http_file.path, grpc_file.path)

    def stop(self) -> None:
        """Take no new connections or streams; `close` waits for what is under way."""
        self.streams.ending.set()
        if self._http is not None:
            self._http.should_exit = True

    async def close(self) -> None:
        """Stop, let what is under way finish within the drain time, end the streams. Closing twice is no error."""
        self.stop()
        loop = asyncio.get_running_loop()
        drained_at = loop.time() + self._settings.drain_s
        try:
            async with asyncio.timeout_at(drained_at + _STOPPING_S):
                await self._grpc.stop(self._settings.drain_s)
        except TimeoutError:
            log.error("gRPC has not stopped within the drain time: its calls are left")
        tasks, self._tasks = self._tasks, []
        for task in tasks[1:]:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=max(drained_at - loop.time(), 0) + _STOPPING_S)
        if self._running:
            _, late = await asyncio.wait(set(self._running), timeout=max(drained_at - loop.time(), 0))
            if late:
                log.error("orders still under way at the end of the drain time", orders=len(late))
        for file in self._sockets:
            file.remove()
        self._sockets.clear()

    async def closed(self) -> None:
        """Waits until the HTTP server has ended, which it does after `stop` or when it fails."""
        if self._tasks:
            await asyncio.wait(self._tasks[:1])

    async def _look_around(self) -> None:
        """Now and then: hang up on requests that do not arrive, end revoked streams, tell gRPC's health service."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_LOOK_AROUND_S)
            self.streams.end_revoked()
            await self._grpc.tell_health(ready=not self._desk.problems())
            if self._http is not None:
                for connection in list(self._http.server_state.connections):
                    if isinstance(connection, fast.DeskProtocol):
                        connection.time_out(loop.time())


async def serve(
    desk: Desk,
    settings: Settings,
    *,
    ready: Callable[[Addresses], None],
    stop: asyncio.Event,
    report: Callable[[], Report] = Report,
) -> None:
    """Open all doors, tell `ready` where, and return when `stop` was set and everything has drained."""
    doors = Doors(desk, settings, report=report)
    addresses = await doors.open()
    ready(addresses)
    stopping = asyncio.create_task(stop.wait())
    ended = asyncio.create_task(doors.closed())
    try:
        await asyncio.wait({stopping, ended}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        await doors.close()
        ended.cancel()


class _Uvicorn(uvicorn.Server):
    """uvicorn on given sockets, with our protocol, leaving signals to the desk."""

    def __init__(
        self, app: FastAPI, protocol: type[fast.DeskProtocol], sockets: list[socket.socket], drain_s: float
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                # Otherwise a header could claim that a request comes from this machine.
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=max(1, round(drain_s)),
            )
        )
        self._given = sockets
        self._open = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        config, state = self.config, self.server_state
        loop = asyncio.get_running_loop()

        def connection(**_: Any) -> asyncio.Protocol:
            return config.http_protocol_class(config=config, server_state=state, app_state={}, _loop=loop)  # type: ignore[call-arg]

        self.lifespan.state = {}
        self.servers = []
        for given in self._given:
            if given.family == socket.AF_UNIX:
                server = await loop.create_unix_server(connection, sock=given, backlog=config.backlog)
            else:
                server = await loop.create_server(connection, sock=given, backlog=config.backlog)
            self.servers.append(server)
        self.started = True
        self._open.set()

    async def is_open(self, serving: "asyncio.Task[None]") -> None:
        """Raises what kept it from opening."""
        opened = asyncio.create_task(self._open.wait())
        await asyncio.wait({opened, serving}, return_when=asyncio.FIRST_COMPLETED)
        opened.cancel()
        if not self._open.is_set():
            await serving


def _listen_grpc(door: GrpcDoor, host: str, port: int) -> int:
    try:
        return door.listen(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except OSError as error:
        raise CannotServe(f"{error}; choose another GRPC_PORT") from error


__all__ = ["Addresses", "CannotServe", "Doors", "serve"]
