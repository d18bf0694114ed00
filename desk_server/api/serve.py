"""All doors of the desk, opened and closed together: HTTP and gRPC, on TCP and on unix sockets, in one event loop."""

import asyncio
import os
import resource
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
from desk_server.api.streams import Streams
from desk_server.api.verbs import Verbs
from desk_server.desk import Desk
from desk_server.settings import Settings

log = structlog.get_logger("desk.serve")

HTTP_SOCKET, GRPC_SOCKET = "desk.sock", "desk-grpc.sock"
ROOT_SOCKET_GID = 20000
# A strategy may be silent for long between two orders, and finds its connection still open.
KEEP_ALIVE_S = 120
_LOOK_AROUND_S = 1.0
_FILES_WANTED = 65536
_SOCKET_PATH_BYTES_MAX = 100
# What uvicorn takes to notice that it shall stop, and to close connections that wait for nothing.
_STOPPING_S = 1.0


class CannotServe(Exception):
    """A door cannot be opened; the message says why and what to do."""


class Addresses(Struct, frozen=True):
    """Where the desk listens: ports as they are (never 0), paths of the sockets."""

    host: str
    http_port: int
    grpc_port: int
    http_socket: Path
    grpc_socket: Path


class Doors:
    """`open`, then `close`. `fast=False` sends every request through FastAPI (for comparison)."""

    def __init__(self, desk: Desk, settings: Settings, *, fast_door: bool = True) -> None:
        self._desk = desk
        self._settings = settings
        door = Door(desk.registry, settings, live=desk.broker.capabilities.live)
        verbs = Verbs(desk, settings.allotment)
        self.streams = Streams(desk, door)
        orders = OrderRoute(verbs, door)
        self.app: FastAPI = build_http(Api(desk, verbs, door, orders, self.streams))
        self._running: set[asyncio.Task[None]] = set()
        self._protocol = fast.bind(orders, self.streams, self._running, fast=fast_door)
        self._grpc = GrpcDoor(desk, verbs, door, self.streams)
        self._http: _Uvicorn | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._sockets: list[_SocketFile] = []

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
        _raise_file_limit()
        directory = _socket_directory(settings)
        http_file = _SocketFile(directory / HTTP_SOCKET, _gid(settings))
        grpc_file = _SocketFile(directory / GRPC_SOCKET, _gid(settings))
        self._sockets += [http_file, grpc_file]
        grpc_port = _listen_grpc(self._grpc, settings.host, settings.grpc_port)
        tcp = _listen(settings.host, settings.port)
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
        await self._grpc.stop(self._settings.drain_s)
        tasks, self._tasks = self._tasks, []
        for task in tasks[1:]:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=self._settings.drain_s + _STOPPING_S)
        if self._running:
            _, late = await asyncio.wait(set(self._running), timeout=self._settings.drain_s)
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
) -> None:
    """Open all doors, tell `ready` where, and return when `stop` was set and everything has drained."""
    doors = Doors(desk, settings)
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


class _SocketFile:
    """A socket's place in the file system. It appears complete, with its mode and group, in one rename."""

    def __init__(self, path: Path, gid: int | None) -> None:
        self.path = path
        self._gid = gid
        self._inode: int | None = None

    @contextmanager
    def placed(self) -> Iterator[Path]:
        """Bind to the path given here; on leaving it stands under its own name. Raises CannotServe."""
        _refuse_live(self.path)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        try:
            yield temporary
            temporary.chmod(0o660)
            if self._gid is not None:
                os.chown(temporary, -1, self._gid)
            self._inode = temporary.stat().st_ino
            temporary.replace(self.path)
        except OSError as error:
            raise CannotServe(f"cannot make the socket {self.path}: {error}") from error
        finally:
            temporary.unlink(missing_ok=True)

    def remove(self) -> None:
        """Unless another desk has put its own there since."""
        with suppress(OSError):
            if self._inode is not None and self.path.stat().st_ino == self._inode:
                self.path.unlink()
        self._inode = None


def _refuse_live(path: Path) -> None:
    """A socket that nobody answers on is a leftover and may go; anything else stays."""
    if len(os.fsencode(path)) > _SOCKET_PATH_BYTES_MAX:
        raise CannotServe(f"the path of the socket {path} is too long: choose a shorter DESK_RUN_DIR")
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise CannotServe(f"{path} is in the way and is no socket: remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except OSError as error:
            raise CannotServe(f"cannot tell whether a desk answers on {path}: {error}") from error
    raise CannotServe(f"another desk answers on {path}: stop it, or choose another DESK_RUN_DIR")


def _socket_directory(settings: Settings) -> Path:
    directory = settings.socket_dir
    gid = _gid(settings)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o750)
        if gid is not None:
            os.chown(directory, -1, gid)
    except OSError as error:
        raise CannotServe(f"cannot make the socket directory {directory}: {error}") from error
    return directory.absolute()


def _raise_file_limit() -> None:
    """Each connection is an open file; the usual soft limit of 1,024 is soon reached."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, _FILES_WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _gid(settings: Settings) -> int | None:
    if settings.socket_gid is not None:
        return settings.socket_gid
    return ROOT_SOCKET_GID if os.geteuid() == 0 else None


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise CannotServe(f"cannot listen on {host}:{port}: {error.strerror}; choose another PORT") from error
    return listening


def _listen_grpc(door: GrpcDoor, host: str, port: int) -> int:
    try:
        return door.listen(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except OSError as error:
        raise CannotServe(f"{error}; choose another GRPC_PORT") from error
