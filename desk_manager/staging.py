"""Copies a strategy's folder to where its author cannot change it, named by what is in it.

The folder is hostile until copied: every step opens the next name relative to the directory already open and
never follows a link, so nothing that is swapped in meanwhile can lead outside. What is hashed is what is copied.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from desk_manager.errors import InvalidStrategy

FILES_MAX = 1_000
BYTES_MAX = 64 * 2**20
DEPTH_MAX = 8
NAME_BYTES_MAX = 128
SKIPPED = frozenset({"__pycache__", ".git"})
KEPT_MAX = 100
CHUNK = 1 << 20

# Two strategies with the same content have one copy. Other processes are kept away by the manager's lock.
_publishing = threading.Lock()

_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a symbolic link",
}


@dataclass(frozen=True, slots=True)
class Staged:
    """A read-only copy. `code_hash` is the SHA-256 (hex) over names and bytes."""

    code_hash: str
    directory: Path
    files: int
    size_bytes: int


def check(folder: Path) -> str:
    """The content hash of a folder that could be staged. Raises InvalidStrategy."""
    return _Walk(folder).run(None)


def stage(folder: Path, staged_dir: Path) -> Staged:
    """Copy the folder to `staged_dir/<hash>`: directories 0555, files 0444, ours.

    The copy appears whole or not at all; one that is there already is checked and used again.
    Raises InvalidStrategy for a folder that is refused, OSError where the copy cannot be written.
    """
    staged_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    building = staged_dir / f".new-{os.getpid()}-{secrets.token_hex(8)}"
    building.mkdir(mode=0o700)
    try:
        walk = _Walk(folder)
        code_hash = walk.run(building)
        target = staged_dir / code_hash
        with _publishing:
            if target.is_dir() and _still(target, code_hash):
                os.utime(target)
            else:
                remove(target)
                building.chmod(0o755)  # a directory without the write bit cannot be renamed by its owner
                building.rename(target)
                target.chmod(0o555)
    finally:
        remove(building)
    return Staged(code_hash, target, walk.files, walk.size_bytes)


def remove(directory: Path) -> None:
    """Delete a staged copy, read-only as it is; one that is not there is fine."""
    if not directory.exists():
        return
    for parent, _, _ in os.walk(directory):
        os.chmod(parent, 0o700)
    shutil.rmtree(directory)


def prune(staged_dir: Path, in_use: frozenset[str], kept_max: int = KEPT_MAX) -> None:
    """Delete the oldest copies beyond `kept_max`, but never one in use. Call it with the manager's lock held."""
    if not staged_dir.is_dir():
        return
    copies = sorted(staged_dir.iterdir(), key=lambda copy: copy.stat().st_mtime, reverse=True)
    for copy in [copy for copy in copies if copy.name not in in_use][kept_max:]:
        remove(copy)


class _Walk:
    """One pass over a folder: checks, hashes and, given a target, copies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.digest = hashlib.sha256()
        self.files = 0
        self.entries = 0
        self.size_bytes = 0
        self._has_strategy = False

    def run(self, target: Path | None) -> str:
        root = self._open(str(self.folder), None, _OPEN_DIR, "")
        try:
            self._directory(root, "", 0, target)
        finally:
            os.close(root)
        if not self._has_strategy:
            raise InvalidStrategy(
                f"{self.folder} has no strategy.py",
                "put the strategy's code into a file of that name, or make one with: strategy_manager.py new NAME",
            )
        return self.digest.hexdigest()

    def _directory(self, descriptor: int, path: str, depth: int, target: Path | None) -> None:
        if depth > DEPTH_MAX:
            raise self._refuse(path, f"lies more than {DEPTH_MAX} folders deep", "flatten the folder")
        for name in self._names(descriptor, path):
            inner = f"{path}/{name}" if path else name
            mode = self._mode(name, descriptor, inner)
            if stat.S_ISDIR(mode):
                child = self._open(name, descriptor, _OPEN_DIR, inner)
                try:
                    self._hash("dir", inner, 0)
                    if target is not None:
                        (target / inner).mkdir(mode=0o755)
                    self._directory(child, inner, depth + 1, target)
                    if target is not None:
                        (target / inner).chmod(0o555)
                finally:
                    os.close(child)
            elif stat.S_ISREG(mode):
                self._file(descriptor, name, inner, target)
                self._has_strategy |= inner == "strategy.py"
            else:
                kind = _KINDS.get(stat.S_IFMT(mode), "a special file")
                raise self._refuse(inner, f"is {kind}", "replace it by a plain file; only those are copied")

    def _mode(self, name: str, descriptor: int, path: str) -> int:
        try:
            return os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode
        except FileNotFoundError:
            raise self._refuse(path, "vanished meanwhile", "try again when the folder is written") from None

    def _names(self, descriptor: int, path: str) -> list[str]:
        names: list[str] = []
        with os.scandir(descriptor) as entries:
            for entry in entries:
                if entry.name in SKIPPED:
                    continue
                self.entries += 1
                if self.entries > FILES_MAX:
                    raise self._refuse(
                        path, f"and what is beside it make more than {FILES_MAX:,} files", "keep only what it needs"
                    )
                self._check_name(entry.name, path)
                names.append(entry.name)
        return sorted(names)

    def _check_name(self, name: str, path: str) -> None:
        try:
            sound = len(name.encode("utf-8")) <= NAME_BYTES_MAX and name.isprintable() and "\\" not in name
        except UnicodeEncodeError:
            sound = False
        if not sound:
            raise self._refuse(
                path,
                f"holds a file with an odd name: {name!r}",
                f"rename it: printable UTF-8, no backslash, at most {NAME_BYTES_MAX} bytes",
            )

    def _file(self, directory: int, name: str, path: str, target: Path | None) -> None:
        descriptor = self._open(name, directory, _OPEN_FILE, path)
        try:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise self._refuse(path, "is no longer a plain file", "do not change the folder while it starts")
            if facts.st_nlink > 1:
                raise self._refuse(
                    path, f"is a hard link to a file with {facts.st_nlink} names", "copy it: cp FILE NEW; mv NEW FILE"
                )
            if self.size_bytes + facts.st_size > BYTES_MAX:
                raise self._too_large(path)
            if target is None:
                self._copy(descriptor, path, facts.st_size, None)
                return
            out = os.open(target / path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
            try:
                self._copy(descriptor, path, facts.st_size, lambda chunk: _write_all(out, chunk))
                os.fchmod(out, 0o444)
            finally:
                os.close(out)
        finally:
            os.close(descriptor)

    def _copy(self, descriptor: int, path: str, size: int, write: Callable[[bytes], None] | None) -> None:
        inner = hashlib.sha256()
        count = 0
        for chunk in _chunks(descriptor):
            count += len(chunk)
            if self.size_bytes + count > BYTES_MAX:
                raise self._too_large(path)
            inner.update(chunk)
            if write is not None:
                write(chunk)
        if count != size:
            raise self._refuse(path, "changed while it was copied", "try again when it is written")
        self.files += 1
        self.size_bytes += count
        self._hash("file", path, count)
        self.digest.update(inner.digest())

    def _hash(self, kind: str, path: str, size: int) -> None:
        # Each part carries its length, so that no two folders can share one stream of bytes.
        encoded = path.encode()
        self.digest.update(f"{kind} {len(encoded)} {size}\n".encode() + encoded)

    def _open(self, name: str, directory: int | None, flags: int, path: str) -> int:
        try:
            return os.open(name, flags, dir_fd=directory)
        except FileNotFoundError:
            raise self._refuse(path, "is not there", "check the path; `list` shows what there is") from None
        except OSError as error:
            link = error.errno == errno.ELOOP or (error.errno == errno.ENOTDIR and os.path.islink(self.folder))
            if link:
                raise self._refuse(path, "is a symbolic link", "put the real files there") from None
            raise self._refuse(path, f"cannot be opened: {error.strerror}", "check what it is and its rights") from None

    def _too_large(self, path: str) -> InvalidStrategy:
        return self._refuse(path, f"makes the folder larger than {BYTES_MAX >> 20} MiB", "keep large data elsewhere")

    def _refuse(self, path: str, cause: str, next_step: str) -> InvalidStrategy:
        where = f"{self.folder}/{path}" if path else f"{self.folder}"
        return InvalidStrategy(f"{where} {cause}", next_step)


def _still(directory: Path, code_hash: str) -> bool:
    try:
        return check(directory) == code_hash
    except InvalidStrategy:
        return False


def _chunks(descriptor: int) -> Iterator[bytes]:
    while chunk := os.read(descriptor, CHUNK):
        yield chunk


def _write_all(descriptor: int, chunk: bytes) -> None:
    while chunk:
        chunk = chunk[os.write(descriptor, chunk) :]
