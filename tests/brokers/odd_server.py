"""An HTTP server that answers whatever a test wants, byte for byte."""

import asyncio
from contextlib import asynccontextmanager


class OddServer:
    """`answer(method, path, headers, body)` returns raw bytes, or a coroutine function of (reader, writer).

    `seen` has every request's (method, path, headers, body).
    """

    def __init__(self, answer) -> None:
        self.answer = answer
        self.seen = []
        self.keeps_open = True

    async def serve(self, reader, writer) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *lines = head.decode().split("\r\n")
                method, path, _ = first.split(" ")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.seen.append((method, path, headers, body))
                said = self.answer(method, path, headers, body)
                if isinstance(said, bytes):
                    writer.write(said)
                    await writer.drain()
                else:
                    await said(reader, writer)
                if not self.keeps_open:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def odd_server(answer):
    server = OddServer(answer)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listening.close()


def http(status: int, body: str | bytes = "", **headers) -> bytes:
    body = body.encode() if isinstance(body, str) else body
    lines = {"Content-Type": "application/json", "Content-Length": len(body)} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status} Whatever\r\n{head}\r\n".encode() + body


async def silence(reader, writer) -> None:
    """Read on, and say nothing."""
    await reader.read()


async def trickle(reader, writer) -> None:
    """Headers without an end: never silent for long."""
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while not writer.is_closing():
        writer.write(b"X-More: 1\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)
