"""`verify-ledger`, `backup` and `restore` of `python -m desk_server`: each prints what it found, and gives a code.

0: done, and all is well. 1: it is not, or could not be done; the message says what to do. 2: wrong usage.
"""

import sys
from pathlib import Path

from desk_server.ledger import LedgerUnavailable, upkeep
from desk_server.ledger.upkeep import Mark, Place, mark_of


def verify(place: Place, expect: str = "") -> int:
    """Check every event, its postings and, where `expect` is SEQ:HASH, that this event is there."""
    try:
        report = upkeep.check(place, _expected(expect))
    except (LedgerUnavailable, ValueError) as error:
        return _failed(error)
    if report.problem:
        print(f"{report.name}: {report.problem}.\nRestore the ledger from a backup.", file=sys.stderr)
        return 1
    print(f"{report.name}: {_events(report.last)}, all as they were written.")
    return 0


def backup(place: Place, file: Path) -> int:
    """Copy the ledger into a new file, checked."""
    try:
        last = upkeep.backup(place, file)
    except LedgerUnavailable as error:
        return _failed(error)
    print(f"{file}: {_events(last)}.")
    return 0


def restore(file: Path, place: Place, expect: str = "") -> int:
    """Make the desk's ledger, which has no events yet, from a backup."""
    try:
        last = upkeep.restore(file, place, _expected(expect))
    except (LedgerUnavailable, ValueError) as error:
        return _failed(error)
    print(f"Restored {_events(last)}. What happened since is asked of the broker when the desk starts.")
    return 0


def _expected(expect: str) -> Mark | None:
    return mark_of(expect) if expect else None


def _events(last: Mark) -> str:
    if not last.seq:
        return "no events"
    return f"{last.seq} event{'s' if last.seq > 1 else ''}, the last one is {last}"


def _failed(error: Exception) -> int:
    print(error, file=sys.stderr)
    return 2 if isinstance(error, ValueError) else 1
