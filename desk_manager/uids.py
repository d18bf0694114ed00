"""A uid of its own for every strategy: the kernel counts many limits per uid, and files tell uids apart."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path

from desk_manager.errors import ManagerError

FIRST, LAST = 20_001, 29_999


def allocate(path: Path, strategy: str, in_use: Mapping[str, int]) -> int:
    """The strategy's uid (and gid), the same at every start; kept in `path` under a lock.

    `in_use` is what existing containers have (strategy → uid): another one's is never given out, even
    where the file was lost. Raises ManagerError when all are taken or the file is not sound.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "a", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = _read(path)
        others = {uid for name, uid in [*known.items(), *in_use.items()] if name != strategy}
        uid = known.get(strategy) or in_use.get(strategy)
        if uid is None or uid in others:
            uid = _lowest_free(others, strategy)
        if known.get(strategy) != uid:
            _write(path, {**known, strategy: uid})
        return uid


def _lowest_free(taken: set[int], strategy: str) -> int:
    for uid in range(FIRST, LAST + 1):
        if uid not in taken:
            return uid
    raise ManagerError(
        f"all {LAST - FIRST + 1:,} uids for strategies are taken",
        "remove strategies that are gone from run/uids.json",
        strategy,
    )


def _read(path: Path) -> dict[str, int]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        content = None
    if not isinstance(content, dict) or not all(isinstance(uid, int) for uid in content.values()):
        raise ManagerError(f"{path} is not sound", "remove it: uids are then given out anew, none twice")
    return content


def _write(path: Path, known: Mapping[str, int]) -> None:
    new = path.with_suffix(".new")
    with open(new, "w", encoding="utf-8") as file:
        json.dump(known, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
