"""Where the desk listens: ports, and sockets in the file system that appear complete and never displace a live one."""

import os
import resource
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from desk_server.settings import Settings

ROOT_SOCKET_GID = 20000
_FILES_WANTED = 65536
_SOCKET_PATH_BYTES_MAX = 100


class CannotServe(Exception):
    """A door cannot be opened; the message says why and what to do."""


class SocketFile:
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


def socket_directory(settings: Settings) -> Path:
    directory = settings.socket_dir
    gid = socket_gid(settings)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o750)
        if gid is not None:
            os.chown(directory, -1, gid)
    except OSError as error:
        raise CannotServe(f"cannot make the socket directory {directory}: {error}") from error
    return directory.absolute()


def raise_file_limit() -> None:
    """Each connection is an open file; the usual soft limit of 1,024 is soon reached."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, _FILES_WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def socket_gid(settings: Settings) -> int | None:
    if settings.socket_gid is not None:
        return settings.socket_gid
    return ROOT_SOCKET_GID if os.geteuid() == 0 else None


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise CannotServe(f"cannot listen on {host}:{port}: {error.strerror}; choose another PORT") from error
    return listening
