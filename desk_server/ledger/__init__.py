"""What a ledger is: an append-only list of events that survives every crash.

Implementations: `sqlite.py` (embedded). All pass tests/ledger/conformance.
"""

from asyncio import Future
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from msgspec import Struct

from desk_server.events import AnyEvent


class Stored(Struct, frozen=True, gc=False):
    """An event and its place: `seq` rises by one, from 1, with no gap."""

    seq: int
    event: AnyEvent


class LedgerUnavailable(Exception):
    """The events were not stored (disk full, read-only, locked …); nothing of the call was."""


class DuplicateEvent(Exception):
    """An event with the same `events.dedupe_key` is already stored; nothing of the call was."""


class Ledger(Protocol):
    def open(self, on_committed: Callable[[Sequence[Stored]], None]) -> None:
        """Make ready to append on the running event loop.

        `on_committed` is called on the loop, once per commit, with all its events in order, before any
        of their futures resolves: the one place where the book is folded.
        """
        ...

    def append(self, *events: AnyEvent) -> Future[int]:
        """Store the events together, or none. The future gives the last one's seq once they are synced to disk.

        Events of many callers share one commit. What `events.can_be_asked_again` need not be synced yet, only
        stored where the death of this process does not touch it. The future raises LedgerUnavailable or
        DuplicateEvent.
        """
        ...

    def read(self, after: int = 0) -> Iterator[Stored]:
        """Every stored event with seq > after, in order. Raises LedgerUnavailable where the file is damaged."""
        ...

    async def close(self) -> None:
        """Commit what waits, then let go of the file."""
        ...
