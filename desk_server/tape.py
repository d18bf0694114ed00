"""The tape: every published line on disk, by sequence number, so that readers can resume across a restart.

Segments of newline-delimited JSON, each named by the seq of its first line. Every line starts with
`{"seq":N,` and N rises by one from line to line; only between two segments may numbers be missing (lines that
a full disk could not take, or a power cut took). Lines are in the page cache before anybody sees them: they survive
the process, not a power cut. Numbers survive both: they are used from blocks that were reserved, synced, before.
"""

import fcntl
import os
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec
import structlog
from msgspec import Struct

log = structlog.get_logger()

SEGMENT_BYTES_MAX = 16 * 2**20
PIECE_BYTES = 64 * 2**10
# Numbers reserved at once. After a power cut what is left of the block is left out.
RESERVED_LINES = 100_000
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_SUFFIX = ".jsonl"
_HEAD = b'{"seq":'


class TapeError(Exception):
    """The tape cannot be used at all; the message says what to do."""


class Piece(Struct, frozen=True):
    """Whole lines read from the tape: `data` holds those from `first` to `last`, without a gap."""

    first: int
    last: int
    data: bytes


class _Segment(Struct):
    first: int
    path: Path
    size: int = 0


def seq_of(line: bytes | memoryview) -> int:
    """The number a published line carries. Raises ValueError where it carries none."""
    head = bytes(line[:32])
    if not head.startswith(_HEAD):
        raise ValueError(f"not a published line: {head!r}")
    return int(head[len(_HEAD) : head.index(b",")])


class Tape:
    """Append-only. One process may have it open; raises TapeError where another one has."""

    def __init__(self, directory: Path, bytes_max: int) -> None:
        self._directory = directory
        self._bytes_max = bytes_max
        self._segment_bytes = min(SEGMENT_BYTES_MAX, bytes_max // 4)
        self._segments: list[_Segment] = []
        self._file: IO[bytes] | None = None
        self._problem = ""
        self._boot_id = _boot_id()
        self._reserved = 0
        self.last_seq = 0
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(directory / "lock")
            self._recover()
        except OSError as error:
            raise TapeError(
                f"The tape directory {directory} cannot be used: {error}. Make it readable and writable for the desk."
            ) from error

    @property
    def first_seq(self) -> int:
        """The oldest line still here; last_seq + 1 when there is none."""
        return self._segments[0].first if self._segments else self.last_seq + 1

    def problem(self) -> str:
        return self._problem

    def append(self, first: int, last: int, data: bytes) -> None:
        """Write the lines `first` … `last` in one go. If the disk fails they are lost here; problem() says so."""
        try:
            if last > self._reserved:
                self._reserve(last + RESERVED_LINES)
            if self._file is None or self._segments[-1].size >= self._segment_bytes:
                self._rotate(first)
            self._write(data)
        except OSError as error:
            self._fail(error, first)
        else:
            if self._problem:
                log.info("tape_writes_again", seq=first)
                self._problem = ""
        self.last_seq = last

    def read(self, after: int, size: int = PIECE_BYTES) -> Piece | None:
        """About `size` bytes of the lines behind `after`, or behind the next gap; None at the end.

        Raises OSError where the disk does not give them.
        """
        index = max(bisect_right([s.first for s in self._segments], after + 1) - 1, 0)
        for segment in self._segments[index:]:
            with segment.path.open("rb") as file:
                offset = _offset_of(file, segment.size, after + 1)
                if offset >= segment.size:
                    continue
                file.seek(offset)
                data = file.read(min(size, segment.size - offset))
                if not data.endswith(b"\n"):
                    data += file.readline()
            last_line = data[data.rfind(b"\n", 0, -1) + 1 :]
            return Piece(seq_of(data), seq_of(last_line), data)
        return None

    def tail(self, lines: int) -> Iterator[bytes]:
        """The newest `lines` lines, oldest first, each with its newline."""
        after = max(self.last_seq - lines, self.first_seq - 1)
        while (piece := self.read(after, 2**20)) is not None:
            yield from piece.data.splitlines(keepends=True)
            after = piece.last

    def close(self) -> None:
        """After this, nothing is lost or left out by a power cut either."""
        if self._file is not None:
            try:
                os.fsync(self._file.fileno())
                self._reserve(self.last_seq)
            except OSError as error:
                log.error("tape_sync_failed", error=str(error))
            self._file.close()
            self._file = None
        self._lock.close()

    def _reserve(self, upto: int) -> None:
        new = self._directory / "reserved.new"
        with new.open("w") as file:
            file.write(f"{upto} {self._boot_id}\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._directory / "reserved")
        _sync(self._directory)
        self._reserved = upto

    def _rotate(self, first: int) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        path = self._directory / f"{first:020d}{_SUFFIX}"
        self._file = path.open("wb", buffering=0)
        self._segments.append(_Segment(first, path))
        total = sum(segment.size for segment in self._segments)
        # The new segment is about to grow by as much as one may hold.
        while len(self._segments) > 1 and total + self._segment_bytes > self._bytes_max:
            oldest = self._segments.pop(0)
            total -= oldest.size
            oldest.path.unlink(missing_ok=True)

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self._segments[-1].size += len(data)

    def _fail(self, error: OSError, seq: int) -> None:
        """Cut off what was half written and begin a new segment with the next batch: gaps lie between segments only."""
        if not self._problem:
            log.error("tape_write_failed", error=str(error), seq=seq)
        self._problem = f"the tape in {self._directory} cannot be written: {error}"
        if self._file is None:
            return
        segment = self._segments[-1]
        try:
            self._file.truncate(segment.size)
            self._file.close()
        except OSError as again:
            log.error("tape_cut_failed", error=str(again), segment=str(segment.path))
        self._file = None
        if segment.size == 0:
            self._segments.pop()
            segment.path.unlink(missing_ok=True)

    def _recover(self) -> None:
        for path in sorted(self._directory.glob(f"*{_SUFFIX}")):
            if not path.stem.isdigit():
                raise TapeError(f"{path} is no part of a tape: move it away.")
            self._segments.append(_Segment(int(path.stem), path, path.stat().st_size))
        if self._segments:
            self._cut(self._segments[-1])
        upto, boot_id = _reservation(self._directory / "reserved")
        if boot_id == self._boot_id or upto <= self.last_seq:
            return
        log.warning("tape_after_power_cut", last_seq=self.last_seq, next_seq=upto + 1)
        self.last_seq = upto
        if self._file is not None:
            self._file.close()
            self._file = None

    def _cut(self, newest: _Segment) -> None:
        end, self.last_seq = _whole_lines(newest)
        if end < newest.size:
            log.warning("tape_cut", segment=str(newest.path), bytes=newest.size - end, last_seq=self.last_seq)
            os.truncate(newest.path, end)
            newest.size = end
        self._file = newest.path.open("ab", buffering=0)


def _boot_id() -> str:
    """Another one after each start of the machine; always the same where the system has none."""
    return BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""


def _reservation(path: Path) -> tuple[int, str]:
    """Up to which number, in which life of the machine."""
    try:
        upto, _, boot_id = path.read_text().strip().partition(" ")
    except FileNotFoundError:
        return 0, ""
    if not upto.isdigit():
        raise TapeError(f"{path} does not say which numbers were used: move the directory away.")
    return int(upto), boot_id


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _locked(path: Path) -> IO[bytes]:
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise TapeError(
            f"Another desk writes the tape in {path.parent}: stop it, or give this one its own DESK_RUN_DIR."
        ) from None
    return file


def _whole_lines(segment: _Segment) -> tuple[int, int]:
    """Where the last whole line ends, and its number; (0, first - 1) where there is none."""
    data = segment.path.read_bytes()
    end = len(data)
    while (end := data.rfind(b"\n", 0, end) + 1) > 0:
        line = data[data.rfind(b"\n", 0, end - 1) + 1 : end]
        try:
            msgspec.json.decode(line)
            return end, seq_of(line)
        except ValueError:
            pass
        end -= 1
    return 0, segment.first - 1


def _offset_of(file: IO[bytes], size: int, seq: int) -> int:
    """Where the first line with a number >= seq begins; `size` where there is none. A binary search over bytes."""
    low, high = 0, size
    while low < high:
        middle = (low + high) // 2
        file.seek(middle)
        if middle:
            file.seek(middle - 1)
            file.readline()
        start = file.tell()
        if start >= high or seq_of(file.readline()) >= seq:
            high = middle
        else:
            low = start + 1
    file.seek(max(low - 1, 0))
    if low:
        file.readline()
    return min(file.tell(), size)
