"""A disk that keeps only what was synced: files as a power cut would leave them, out of a recording's calls.

What a file has at a moment is its content at its last sync and the writes since. Of those, a power cut keeps none,
all, or any, each whole or in part: a disk writes sectors of 512 bytes, and in no order. A file's name is safe once
the file or its directory was synced; a removal only when the directory was. Nothing is assumed of `desk.db-shm`,
which SQLite makes anew.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from pathlib import Path

from tests.proofs.recording import Call

SECTOR = 512
_TRUNCATE = -1


class Fate(Enum):
    """What becomes of writes that were not synced."""

    NONE = "none is kept"
    ALL = "all are kept"
    ANY = "some are kept, some in part"


@dataclass
class _File:
    safe: bytearray = field(default_factory=bytearray)
    # Since the last sync: (offset, data), or (_TRUNCATE, new length).
    since: list[tuple[int, bytes | int]] = field(default_factory=list)
    is_named_safely: bool = False
    is_removed: bool = False

    def sync(self) -> None:
        self.safe = self.after(self.since)
        self.since = []
        self.is_named_safely = True

    def after(self, writes: Iterable[tuple[int, bytes | int]]) -> bytearray:
        content = bytearray(self.safe)
        for offset, data in writes:
            if isinstance(data, int):
                content[data:] = bytes(max(0, data - len(content)))
                continue
            content.extend(bytes(max(0, offset - len(content))))
            content[offset : offset + len(data)] = data
        return content


class Disk:
    """Feed it a recording's calls in the order they ended; `cut` whenever the power shall fail."""

    def __init__(self, directory: Path) -> None:
        self._prefix = f"{directory}/"
        self._files: dict[str, _File] = {}
        # Names that were taken away, and not yet safely.
        self._ghosts: dict[str, _File] = {}

    def take(self, call: Call) -> bool:
        """Whether it changed anything here."""
        if call.file == self._prefix[:-1] and call.is_sync:
            self._ghosts.clear()
            for file in self._files.values():
                file.is_named_safely = True
            return True
        if not call.file.startswith(self._prefix) or call.file.endswith(("-shm", ".lock")) or call.result < 0:
            return False
        name = call.file.removeprefix(self._prefix)
        file = self._files.setdefault(name, _File())
        match call.name:
            case "pwrite64":
                assert call.result == len(call.data), f"a write of {name} was recorded in part"
                file.since.append((call.numbers[-1], call.data))
            case "ftruncate":
                file.since.append((_TRUNCATE, call.numbers[-1]))
            case "fdatasync" | "fsync":
                file.sync()
            case "unlink":
                self._ghosts[name] = self._files.pop(name)
            case other:
                raise AssertionError(f"the ledger did what this disk does not know: {other} of {name}")
        return True

    def cut(self, into: Path, fate: Fate, chance: random.Random) -> None:
        """The power fails: write what is left of the files into an empty directory."""
        for name, file in {**self._ghosts, **self._files}.items():
            keeps = fate is Fate.ALL or (fate is Fate.ANY and chance.random() < 0.5)
            is_ghost = self._files.get(name) is not file
            # A removal that is not kept leaves the file; a new name that is not kept leaves none.
            if (is_ghost and keeps) or not (is_ghost or file.is_named_safely or keeps):
                continue
            (into / name).write_bytes(file.after(_kept(file.since, fate, chance)))


def _kept(
    writes: list[tuple[int, bytes | int]], fate: Fate, chance: random.Random
) -> Iterable[tuple[int, bytes | int]]:
    if fate is Fate.NONE:
        return
    for offset, data in writes:
        if fate is Fate.ALL:
            yield offset, data
        elif chance.random() < 0.6:
            if isinstance(data, int) or chance.random() < 0.5:
                yield offset, data
                continue
            # Sectors of the disk, wherever the write began.
            edges = [0, *range(SECTOR - offset % SECTOR, len(data), SECTOR), len(data)]
            for start, end in pairwise(edges):
                if chance.random() < 0.5:
                    yield offset + start, data[start:end]
