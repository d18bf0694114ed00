"""What a ledger is: an append-only list of events that survives every crash, and that one desk at a time may write.

Implementations: `sqlite.py` (embedded) and `postgres.py`. Both pass tests/ledger/conformance.
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
    """The events were not stored (disk full, read-only, locked, no connection …); nothing of the call was."""


class OutcomeUnknown(LedgerUnavailable):
    """The desk stops before it could find out whether the call was stored: only a later desk can tell."""


class DuplicateEvent(Exception):
    """An event with the same `events.dedupe_key` is already stored; nothing of the call was."""


def _nobody(why: str) -> None:
    pass


class Ledger(Protocol):
    def open(self, on_committed: Callable[[Sequence[Stored]], None], on_lost: Callable[[str], None] = _nobody) -> None:
        """Make ready to append on the running event loop.

        `on_committed` is called on the loop, once per commit, with all its events in order, before any
        of their futures resolves: the one place where the book is folded.
        `on_lost` is called on the loop, once, when this process has lost the ledger to another one for good, with
        the reason: the desk must end.
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

    def fenced(self) -> str:
        """Why this process may send nothing to the broker now; "" while it surely is the one that holds the ledger.

        Cheap: to be asked right before each call of the broker. Once the ledger is lost, for ever the same.
        """
        ...

    def problem(self) -> str:
        """Why nothing can be appended now; "" when all is well, as far as is known."""
        ...

    async def close(self) -> None:
        """Commit what waits, then let go of the ledger, for the next desk."""
        ...
