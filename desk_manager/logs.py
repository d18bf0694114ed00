"""Strategies' log files: reading them safely, following them, keeping them small, finding the last error.

A log is written by the strategy, so it may hold anything: it is read from its end, never whole, and control
characters never reach the terminal.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

TAIL_BYTES_MAX = 4 * 2**20
ERROR_BYTES = 64 * 1024
ERROR_LENGTH_MAX = 160
# desk_client cuts its log at 4 MiB by itself; this is for what is written past it. 8 MiB is the kernel's limit.
ROTATE_BYTES = 6 * 2**20
POLL_S = 0.2
SHOWN_AGAIN_BYTES = 4096

_CONTROL = {code: "�" for code in [*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]}
_CONTROL.pop(ord("\n"))
_CONTROL.pop(ord("\t"))

# What desk_client puts before each line.
_STAMP = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z (?:out|err) ")

# The last line of a traceback: a dotted class name, then its message.
_RAISED = re.compile(r"[A-Za-z_][\w.]*(: .*)?")


def printable(raw: bytes) -> str:
    """The text in it, with every control character made visible."""
    return raw.decode("utf-8", "replace").replace("\r\n", "\n").translate(_CONTROL)


def tail(path: Path, bytes_max: int = TAIL_BYTES_MAX) -> bytes:
    """The end of the file, from a line's beginning where it is cut; nothing where there is no file."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = max(0, size - bytes_max)
            file.seek(start)
            raw = file.read(bytes_max)
    except FileNotFoundError:
        return b""
    return raw.partition(b"\n")[2] if start and b"\n" in raw else raw


def last_lines(raw: bytes, count: int | None) -> bytes:
    """The last `count` lines; all when it is None."""
    if count is None:
        return raw
    return b"".join(raw.splitlines(keepends=True)[-count:]) if count else b""


def follow(path: Path, offset: int, stop: Callable[[], bool]) -> Iterator[bytes]:
    """What is appended after `offset`, until `stop()`; survives truncation and replacement of the file."""
    inode = _inode(path)
    while True:
        ending = stop()
        now = _inode(path)
        try:
            with open(path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                if now != inode or size < offset:
                    # A file that was cut holds mostly what has been shown already.
                    offset, inode = (0 if now != inode else max(0, size - SHOWN_AGAIN_BYTES)), now
                file.seek(offset)
                while chunk := file.read(64 * 1024):
                    offset += len(chunk)
                    yield chunk
        except FileNotFoundError:
            pass
        if ending:
            return
        time.sleep(POLL_S)


def last_error(raw: bytes, or_last_line: bool = False) -> str:
    """The last traceback's last line, cut to fit a table; empty, or the very last line, when there is none."""
    lines = [_STAMP.sub("", line, count=1) for line in printable(raw).splitlines()]
    for start in range(len(lines) - 1, -1, -1):
        if lines[start].lstrip().startswith("Traceback (most recent call last)"):
            raised = [line for line in lines[start + 1 :] if line and not line[0].isspace()]
            return next((line for line in raised if _RAISED.fullmatch(line)), "")[:ERROR_LENGTH_MAX]
    said = [line for line in lines if line.strip()] if or_last_line else []
    return said[-1][:ERROR_LENGTH_MAX] if said else ""


def begin(path: Path, gid: int | None) -> None:
    """A fresh, empty log for a new start; the previous one is kept beside it as `.1`.

    It is one regular file which is mounted by itself, so a strategy can write this file and no other.
    """
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    if path.exists():
        path.replace(path.with_name(path.name + ".1"))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if gid is not None:
            os.fchown(descriptor, -1, gid)
        os.fchmod(descriptor, 0o660)
    finally:
        os.close(descriptor)


def rotate(path: Path) -> None:
    """Move what is there to `.1` once it is large. The strategy keeps appending to the same file."""
    try:
        if path.stat().st_size < ROTATE_BYTES:
            return
        path.with_name(path.name + ".1").write_bytes(tail(path, ROTATE_BYTES * 2))
        os.truncate(path, 0)
    except FileNotFoundError:
        return


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0
