"""A hub behind a real unix socket, and readers of its stream, for the tests of this folder."""

import asyncio
import json
from contextlib import asynccontextmanager
from pathlib import Path

from desk_server.clock import SystemClock
from desk_server.market import Hub
from desk_server.sinks import ChunkedSink, StreamProtocol
from desk_server.tape import Tape


def hub_in(directory: Path, lines_kept: int = 10_000, bytes_max: int = 2**26, keep_alive_s: float = 15.0) -> Hub:
    return Hub(Tape(directory, bytes_max), SystemClock(), lines_kept, keep_alive_s)


def line(number: int, symbol: str = "SPY", kind: str = "quote", **more) -> bytes:
    """The number is in the price, so that a test sees which line it got."""
    second = f"2013-10-07T{13 + number // 3600 % 10}:{number // 60 % 60:02d}:{number % 60:02d}Z"
    fields = {"type": kind, "symbol": symbol, "timestamp": second, "price": number + 0.5, **more}
    return json.dumps(fields, separators=(",", ":")).encode()


class _Door(asyncio.Protocol):
    """What an HTTP server does before it hands a connection over: here, the headers have been sent."""

    def __init__(self, hub: Hub, symbols: frozenset[str] | None, after: int | None, subscriptions: list) -> None:
        self._hub, self._symbols, self._after, self._subscriptions = hub, symbols, after, subscriptions
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.Transport) -> None:
        sink = ChunkedSink(transport)
        transport.set_protocol(StreamProtocol(sink, self))
        self._subscriptions.append(self._hub.subscribe(self._symbols, self._after, sink))

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set()


class Room:
    def __init__(self, hub: Hub, directory: Path) -> None:
        self.hub = hub
        self.subscriptions: list = []
        self.doors: list[_Door] = []
        self._directory = directory
        self._servers: list[asyncio.Server] = []
        self._readers: list[Reader] = []

    async def reader(self, *symbols: str, after: int | None = None) -> "Reader":
        path = self._directory / f"{len(self._servers)}.sock"
        wanted = frozenset(symbols) or None

        def door() -> _Door:
            self.doors.append(_Door(self.hub, wanted, after, self.subscriptions))
            return self.doors[-1]

        server = await asyncio.get_running_loop().create_unix_server(door, path)
        self._servers.append(server)
        reader = Reader(*await asyncio.open_unix_connection(path, limit=2**16))
        self._readers.append(reader)
        await until(lambda: len(self.subscriptions) == len(self._servers))
        return reader

    async def close(self) -> None:
        for reader in self._readers:
            reader.close()
        self.hub.close()
        for server in self._servers:
            server.close()


class Reader:
    """Takes the chunked coding apart, strictly."""

    def __init__(self, stream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._stream, self._writer = stream, writer
        self._lines: list[bytes] = []
        self.keep_alives = 0
        self.ended_well = False

    async def lines(self, count: int, timeout_s: float = 20) -> list[dict]:
        """The next lines; fewer only where the stream has ended."""
        async with asyncio.timeout(timeout_s):
            while len(self._lines) < count and await self.chunk():
                pass
        taken, self._lines = self._lines[:count], self._lines[count:]
        return [json.loads(each) for each in taken]

    async def until_seq(self, seq: int) -> list[dict]:
        got: list[dict] = []
        while not got or got[-1]["seq"] < seq:
            more = await self.lines(1)
            assert more, "the stream ended early"
            got += more
        return got

    async def raw(self, count: int) -> list[bytes]:
        while len(self._lines) < count and await self.chunk():
            pass
        return self._lines[:count]

    async def chunk(self) -> bool:
        head = await self._stream.readuntil(b"\r\n")
        data = await self._stream.readexactly(int(head, 16))
        assert await self._stream.readexactly(2) == b"\r\n"
        if not data:
            self.ended_well = True
            return False
        assert data.endswith(b"\n"), "a chunk holds whole lines"
        for each in data.splitlines():
            if each:
                self._lines.append(each)
            else:
                self.keep_alives += 1
        return True

    def close(self) -> None:
        self._writer.close()


@asynccontextmanager
async def room_with(hub: Hub, directory: Path):
    room = Room(hub, directory)
    try:
        yield room
    finally:
        await room.close()


async def until(true, timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not true():  # noqa: ASYNC110  (what is waited for is no event)
            await asyncio.sleep(0.005)
