"""Standard input whose lines are the market's, read from the desk's socket as the strategy asks for them.

No second process and no thread stands in between, so that the line in hand is exactly known.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

from desk_client.errors import DeskClientError
from desk_client.hand import Hand

NO_END = "the market stream has no end: read it line by line (for line in sys.stdin), or give a size"
NO_DESCRIPTOR = 'the market stream has no file descriptor: set "stdin": "pipe" in config.json for one that has'


class LineSource(Protocol):
    """Whole lines of bytes, each with its newline; b"" at the end. Raises DeskClientError."""

    def readline(self) -> bytes: ...


class MarketStdin(io.TextIOBase):
    """`sys.stdin` of a strategy: text in UTF-8."""

    encoding = "utf-8"
    errors = "replace"
    newlines = None
    name = "<market>"
    mode = "r"

    def __init__(self, source: LineSource, hand: Hand, failed: Callable[[DeskClientError], NoReturn]) -> None:
        """`failed` is called, and must raise, where the source has no further lines to give."""
        self._buffer = MarketBuffer(source, hand, failed)
        self._rest = ""

    @property
    def buffer(self) -> MarketBuffer:
        """The same lines as bytes (`sys.stdin.buffer`)."""
        return self._buffer

    def readline(self, size: int | None = -1, /) -> str:  # type: ignore[override]
        if size is None or size < 0:
            if self._rest:
                return self._take_rest(len(self._rest))
            return self._buffer.readline().decode("utf-8", "replace")
        self._rest = self._rest or self._buffer.readline().decode("utf-8", "replace")
        return self._take_rest(size)

    def __next__(self) -> str:  # type: ignore[override]
        line = self.readline()
        if not line:
            raise StopIteration
        return line

    def read(self, size: int | None = -1, /) -> str:
        """Exactly `size` characters, however long they take to come."""
        if size is None or size < 0:
            raise io.UnsupportedOperation(NO_END)
        parts: list[str] = []
        while size > 0 and (part := self.readline(size)):
            parts.append(part)
            size -= len(part)
        return "".join(parts)

    def readlines(self, hint: int | None = -1, /) -> list[str]:  # type: ignore[override]
        if hint is None or hint <= 0:
            raise io.UnsupportedOperation(NO_END)
        return super().readlines(hint)

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        raise io.UnsupportedOperation(NO_DESCRIPTOR)

    def reconfigure(self, **_: Any) -> None:
        """Accepted for the sake of `sys.stdin.reconfigure(encoding="utf-8")`; the lines are UTF-8."""

    def _take_rest(self, size: int) -> str:
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken


class MarketBuffer(io.BufferedIOBase):
    """`sys.stdin.buffer` of a strategy: the lines' bytes."""

    name = "<market>"
    mode = "rb"

    def __init__(self, source: LineSource, hand: Hand, failed: Callable[[DeskClientError], NoReturn]) -> None:
        self._next_line = source.readline
        self._hand = hand
        self._failed = failed
        self._rest = b""

    def readline(self, size: int | None = -1, /) -> bytes:
        line = self._rest
        if line:
            self._rest = b""
        else:
            try:
                line = self._next_line()
            except DeskClientError as error:
                self._failed(error)
            if line:
                self._hand.take(line)
        if size is not None and 0 <= size < len(line):
            line, self._rest = line[:size], line[size:]
        return line

    def __next__(self) -> bytes:
        line = self.readline()
        if not line:
            raise StopIteration
        return line

    def read(self, size: int | None = -1, /) -> bytes:
        """Exactly `size` bytes, however long they take to come."""
        if size is None or size < 0:
            raise io.UnsupportedOperation(NO_END)
        parts: list[bytes] = []
        while size > 0 and (part := self.readline(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def read1(self, size: int = -1, /) -> bytes:
        """The rest of a line, at most `size` bytes of it."""
        return self.readline(size)

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self.readline(len(view))
        view[: len(data)] = data
        return len(data)

    def readlines(self, hint: int | None = -1, /) -> list[bytes]:
        if hint is None or hint <= 0:
            raise io.UnsupportedOperation(NO_END)
        return super().readlines(hint)

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        raise io.UnsupportedOperation(NO_DESCRIPTOR)
