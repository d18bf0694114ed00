"""Between a desk and its PostgreSQL: cuts the connection at a chosen moment of the next commit."""

import asyncio
import threading
from pathlib import Path

SOCKET = ".s.PGSQL.5432"


class CuttingProxy:
    """Passes all on until `cut` is set:

    - "before": the next statement of the writer does not reach the server;
    - "after": it does and is committed, but the answer does not come back;
    - "late": it reaches the server only when `release` is called, long after the desk has lost the connection.
    """

    def __init__(self, server_dir: Path, own_dir: Path) -> None:
        self.cut = ""
        self.cuts = 0
        self._server = str(server_dir / SOCKET)
        self._own = str(own_dir / SOCKET)
        self._held: tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._call(self._listen())

    def _call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def _listen(self) -> None:
        self._listener = await asyncio.start_unix_server(self._client, self._own)

    def release(self) -> bytes:
        """What the server answers to the statement that was held back."""
        return self._call(self._release())

    async def _release(self) -> bytes:
        reader, writer, statement = self._held
        writer.write(statement)
        answer = await reader.read(65536)
        writer.close()
        return answer

    def close(self) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._listener.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_unix_connection(self._server)
        except OSError:
            writer.close()
            return
        hello = await reader.read(65536)
        server_writer.write(hello)
        link = _Link(reader, writer, server_reader, server_writer)
        back = asyncio.create_task(link.pass_back())
        while data := await reader.read(65536):
            if self.cut and b"desk writer" in hello and data[:1] in b"BP":
                how, self.cut, self.cuts = self.cut, "", self.cuts + 1
                if how == "after":
                    link.is_swallowing = True
                    server_writer.write(data)
                    await back
                elif how == "late":
                    back.cancel()
                    self._held = server_reader, server_writer, data
                    writer.close()
                    return
                break
            server_writer.write(data)
        link.close()


class _Link:
    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        server_reader: asyncio.StreamReader,
        server_writer: asyncio.StreamWriter,
    ) -> None:
        self.is_swallowing = False
        self._writer, self._server_reader, self._server_writer = writer, server_reader, server_writer

    async def pass_back(self) -> None:
        """The server's words to the client; the first one after `is_swallowing` is the last, and is not passed on."""
        while data := await self._server_reader.read(65536):
            if self.is_swallowing:
                return
            self._writer.write(data)
        self.close()

    def close(self) -> None:
        self._writer.close()
        self._server_writer.close()
