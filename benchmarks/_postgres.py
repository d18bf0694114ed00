"""A PostgreSQL server of one's own: in a directory, on a unix socket, as a user who is not root, synced as shipped."""

import contextlib
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from desk_server.settings import Settings


@dataclass(frozen=True)
class Database:
    url: str
    pid: int


def why_missing() -> str:
    """What this machine lacks for a server; "" when it can run one."""
    if "database_url" not in Settings.model_fields:
        return "this desk keeps no ledger in PostgreSQL"
    if _programs() is None:
        return "there is no PostgreSQL server on this machine (Debian: postgresql)"
    if os.getuid() == 0 and _somebody() is None:
        return "PostgreSQL does not run as root, and there is no user postgres or nobody"
    return ""


@contextlib.contextmanager
def server(directory: Path) -> Iterator[Database]:
    programs, somebody = _programs(), _somebody()
    assert programs is not None
    directory.mkdir(parents=True)
    owner: dict[str, int] = {}
    if somebody is not None:
        owner = {"user": somebody.pw_uid, "group": somebody.pw_gid}
        shutil.chown(directory, somebody.pw_uid, somebody.pw_gid)
        for parent in directory.parents:
            # PostgreSQL's user must get there; only what this run has made is changed.
            if parent.stat().st_uid == 0 and not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)
    data = directory / "data"
    common = {"cwd": directory, "stdout": subprocess.DEVNULL, "timeout": 120, **owner}
    subprocess.run(
        [programs / "initdb", "-D", data, "-U", "desk", "-A", "trust", "-E", "UTF8", "--locale=C"], check=True, **common
    )
    control = [programs / "pg_ctl", "-D", data, "-w", "-l", directory / "log"]
    subprocess.run([*control, "-o", f"-k {directory} -c listen_addresses=''", "start"], check=True, **common)
    try:
        pid = int((data / "postmaster.pid").read_text().splitlines()[0])
        yield Database(f"postgresql://desk@/postgres?host={quote(str(directory), safe='/')}", pid)
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, **common)


def _programs() -> Path | None:
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    known = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return known[-1].parent if known else None


def _somebody() -> pwd.struct_passwd | None:
    """Who runs it where we are root; None where we are not."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    return None
