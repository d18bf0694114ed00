"""A ledger on a virtual clock: what is durable outlives every desk; commits take time, are shared, and can fail."""

import asyncio
from asyncio import Future
from collections.abc import Callable, Iterator, Sequence

from desk_server.events import AnyEvent, decode, dedupe_key, encode
from desk_server.ledger import DuplicateEvent, LedgerUnavailable, Stored

COMMIT_S = 0.002


class Journal:
    """The disk: events as bytes, and the keys that the database holds at most once."""

    def __init__(self, time_s: Callable[[], float]) -> None:
        self._time_s = time_s
        self.bodies: list[bytes] = []
        # When each was stored, by the clock that nobody sets.
        self.stored_s: list[float] = []
        self.keys: set[str] = set()

    def store(self, events: Sequence[AnyEvent]) -> list[Stored]:
        """All of them or none. Raises DuplicateEvent."""
        keys = [key for event in events if (key := dedupe_key(event)) is not None]
        if len(set(keys)) < len(keys) or self.keys.intersection(keys):
            raise DuplicateEvent(f"already stored: one of {keys}")
        self.keys.update(keys)
        first = len(self.bodies) + 1
        self.bodies += [encode(event) for event in events]
        self.stored_s += [self._time_s()] * len(events)
        return [Stored(first + place, event) for place, event in enumerate(events)]

    def read(self) -> Iterator[AnyEvent]:
        yield from map(decode, self.bodies)


class JournalLedger:
    """One desk's hold of the journal. `fail_next` appends fail; after `die` nothing is stored any more."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._waiting: list[tuple[tuple[AnyEvent, ...], Future[int]]] = []
        self._is_committing = False
        self._is_dead = False
        self._on_committed: Callable[[Sequence[Stored]], None] | None = None
        self.fail_next = 0
        self.is_fenced = False

    def open(
        self, on_committed: Callable[[Sequence[Stored]], None], on_lost: Callable[[str], None] = lambda _: None
    ) -> None:
        self._on_committed = on_committed

    def append(self, *events: AnyEvent) -> "Future[int]":
        loop = asyncio.get_running_loop()
        future: Future[int] = loop.create_future()
        if self._is_dead:
            return future  # who waits for it is dead, too
        if self.is_fenced:
            future.set_exception(LedgerUnavailable(self.fenced()))
            return future
        if self.fail_next:
            self.fail_next -= 1
            future.set_exception(LedgerUnavailable("disk full"))
            return future
        self._waiting.append((events, future))
        self._commit_soon(loop)
        return future

    def read(self, after: int = 0) -> Iterator[Stored]:
        for seq, event in enumerate(self._journal.read(), start=1):
            if seq > after:
                yield Stored(seq, event)

    def fenced(self) -> str:
        return "this server was paused, and another has the ledger" if self.is_fenced else ""

    def problem(self) -> str:
        return ""

    async def close(self) -> None:
        self.die()

    def die(self) -> None:
        self._is_dead = True

    def _commit_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._is_committing and self._waiting:
            self._is_committing = True
            loop.call_later(COMMIT_S, self._commit, loop)

    def _commit(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._is_dead:
            return
        batch, self._waiting = self._waiting, []
        stored: list[Stored] = []
        outcomes: list[tuple[Future[int], int | Exception]] = []
        for events, future in batch:
            if self.is_fenced:
                outcomes.append((future, LedgerUnavailable(self.fenced())))
                continue
            try:
                stored += self._journal.store(events)
                outcomes.append((future, stored[-1].seq))
            except DuplicateEvent as duplicate:
                outcomes.append((future, duplicate))
        # The disk has it; the process may die before it hears of that.
        loop.call_soon(self._answer, loop, stored, outcomes)

    def _answer(
        self,
        loop: asyncio.AbstractEventLoop,
        stored: list[Stored],
        outcomes: list[tuple["Future[int]", int | Exception]],
    ) -> None:
        if self._is_dead:
            return
        self._is_committing = False
        assert self._on_committed is not None
        if stored:
            self._on_committed(stored)
        for future, outcome in outcomes:
            if future.done():
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
        self._commit_soon(loop)
