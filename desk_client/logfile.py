"""Standard output and error of a sandboxed strategy: into one small file instead of Docker's log.

Whatever a container writes to its standard output, the Docker daemon reads and stores, on its own CPU time
and not the container's. So file descriptors 1 and 2 become the log file before the strategy is loaded, and
no descriptor leads to Docker's pipe any more.

Each line of `sys.stdout` and `sys.stderr` becomes `2026-01-02T03:04:05.123Z out|err text`. What goes to the
descriptors past them (a subprocess, a C library) lands in the file as it is; the container's limit on file
sizes bounds that.
"""

from __future__ import annotations

import io
import os
import stat
import sys
import threading
import time
from typing import Any

from desk_client.errors import ConfigurationError

FILE_BYTES_MAX = 4 * 1024 * 1024
FILE_BYTES_MAX_LEAST = 4096
LINE_CHARS_MAX = 8192
LINES_PER_S = 200
LINES_AT_ONCE = 2000


class LogFile:
    """Lines with their time, appended to a file that is cut to its newest half when it grows too large."""

    def __init__(self, path: str, bytes_max: int = FILE_BYTES_MAX) -> None:
        """Raises ConfigurationError where the file cannot be written, or is not a regular one."""
        if bytes_max < FILE_BYTES_MAX_LEAST:
            raise ConfigurationError(f"DESK_LOG_FILE_MAX is {bytes_max}: give at least {FILE_BYTES_MAX_LEAST} bytes")
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            try:
                self._fd = os.open(path, flags)
            except FileNotFoundError:
                self._fd = os.open(path, flags | os.O_CREAT, 0o640)
        except OSError as error:
            raise ConfigurationError(f"DESK_LOG_FILE cannot be opened: {error}") from error
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            os.close(self._fd)
            raise ConfigurationError(f"DESK_LOG_FILE: {path} is not a regular file")
        self._bytes_max = bytes_max
        # Reentrant: a signal handler may print while a line is being written.
        self.lock = threading.RLock()
        self._allowed = float(LINES_AT_ONCE)
        self._allowed_at = time.monotonic()
        self._dropped = 0
        os.register_at_fork(after_in_child=self._after_fork)

    def take_over(self) -> None:
        """Makes the file standard output and error: of Python, and of file descriptors 1 and 2."""
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(self._fd, 1)
        os.dup2(self._fd, 2)
        sys.stdout = LogStream(self, "out", 1)
        sys.stderr = LogStream(self, "err", 2)

    def write(self, kind: str, lines: list[str]) -> None:
        """Appends the lines, as far as the limit on lines per second lets them. Never raises."""
        with self.lock:
            wanted = len(lines)
            lines = lines[: self._let_pass(wanted)]
            left_out = wanted - len(lines)
            stamp = _stamp(time.time())
            text = "".join(f"{stamp} {kind} {line}\n" for line in lines)
            if self._dropped and lines:
                text = f"{stamp} err {self._dropped} lines dropped: more than {LINES_PER_S} per second\n{text}"
                self._dropped = 0
            self._dropped += left_out
            if text:
                self._append(text.encode("utf-8", "backslashreplace"))

    def last_words(self) -> None:
        """Lets the next lines pass whatever came before: those that say how it ended."""
        with self.lock:
            self._allowed = float(LINES_AT_ONCE)

    def _let_pass(self, wanted: int) -> int:
        now = time.monotonic()
        self._allowed = min(LINES_AT_ONCE, self._allowed + (now - self._allowed_at) * LINES_PER_S)
        self._allowed_at = now
        passed = min(wanted, int(self._allowed))
        self._allowed -= passed
        return passed

    def _append(self, data: bytes) -> None:
        try:
            if os.fstat(self._fd).st_size + len(data) > self._bytes_max:
                self._cut(self._bytes_max // 2)
            # The last lines of a burst that is larger than the file.
            data = data[-(self._bytes_max // 2) :]
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:
            # A full disk or the limit on file sizes: a strategy does not end for want of a log.
            return

    def _cut(self, keep: int) -> None:
        size = os.fstat(self._fd).st_size
        newest = os.pread(self._fd, keep, max(0, size - keep))
        newest = newest[newest.find(b"\n") + 1 :] if size > keep else newest
        os.ftruncate(self._fd, 0)
        while newest:
            newest = newest[os.write(self._fd, newest) :]

    def _after_fork(self) -> None:
        # Another thread of the parent may have held it.
        self.lock = threading.RLock()


class LogStream(io.TextIOBase):
    """`sys.stdout` or `sys.stderr`: whole lines go to the log, the beginning of one waits for its end."""

    encoding = "utf-8"
    errors = "backslashreplace"
    newlines = None
    mode = "w"
    line_buffering = True

    def __init__(self, log: LogFile, kind: str, fd: int) -> None:
        self._log = log
        self._kind = kind
        self._fd = fd
        self._partial = ""
        self._bytes = LogBytes(self)
        self.name = f"<std{kind}>"

    @property
    def buffer(self) -> LogBytes:
        return self._bytes

    def write(self, text: str, /) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        with self._log.lock:
            *lines, rest = (self._partial + text if self._partial else text).split("\n")
            if len(rest) > LINE_CHARS_MAX:
                lines.append(rest)
                rest = ""
            self._partial = rest
            if lines:
                self._log.write(self._kind, _pieces(lines))
        return len(text)

    def finish(self) -> None:
        """Logs the beginning of a line whose end will not come."""
        if self._partial:
            self.write("\n")

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        """Leaves the log open: what a strategy closes, its last traceback still needs."""

    def reconfigure(self, **_: Any) -> None:
        """Accepted for the sake of `sys.stdout.reconfigure(line_buffering=True)`, which it is anyway."""


class LogBytes(io.BufferedIOBase):
    """`sys.stdout.buffer`: bytes that become lines of text."""

    def __init__(self, stream: LogStream) -> None:
        self._stream = stream

    def write(self, data: Any, /) -> int:
        raw = bytes(data)
        self._stream.write(raw.decode("utf-8", "backslashreplace"))
        return len(raw)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

    def close(self) -> None:
        """As the stream's."""


def from_environment() -> LogFile | None:
    """The log that DESK_LOG_FILE names, DESK_LOG_FILE_MAX bytes at most; None where it names none."""
    path = os.environ.get("DESK_LOG_FILE", "")
    if not path:
        return None
    text = os.environ.get("DESK_LOG_FILE_MAX") or str(FILE_BYTES_MAX)
    if not (text.isascii() and text.isdigit()):
        raise ConfigurationError(f"DESK_LOG_FILE_MAX is {text!r}: give a number of bytes")
    return LogFile(path, int(text))


def _pieces(lines: list[str]) -> list[str]:
    """The lines, with those cut up that are too long for one."""
    if all(len(line) <= LINE_CHARS_MAX for line in lines):
        return lines
    return [line[at : at + LINE_CHARS_MAX] for line in lines for at in range(0, len(line) or 1, LINE_CHARS_MAX)]


def _stamp(seconds: float) -> str:
    """RFC 3339 in UTC, to the millisecond."""
    whole = int(seconds)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{int((seconds - whole) * 1000):03d}Z"
