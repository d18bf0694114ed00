"""What happened to whose order, as a stream that can be resumed.

Updates are made by folding events, so they are the same after a restart. The newest `kept` of each user
stay in memory; whoever asks for older ones is told to list the orders instead (GONE).
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from datetime import datetime

from msgspec import Struct

from desk_server.domain import Order, UserId
from desk_server.errors import Code, DeskError
from desk_server.positions import Fill


class Update(Struct, frozen=True, gc=False):
    """`event` is a word of proto OrderUpdate.event; `order` is the order right after it."""

    seq: int
    event: str
    at: datetime
    order: Order
    fill: Fill | None = None


class _Ring:
    def __init__(self, kept: int) -> None:
        self.kept = kept
        self.updates: deque[Update] = deque(maxlen=kept)
        self.added = 0
        self.forgotten_seq = 0
        self.waiting: set[asyncio.Future[None]] = set()

    def add(self, update: Update) -> None:
        updates = self.updates
        if self.added >= self.kept:
            self.forgotten_seq = updates[0].seq
        updates.append(update)
        self.added += 1
        if self.waiting:
            for waiter in self.waiting:
                if not waiter.done():
                    waiter.set_result(None)
            self.waiting.clear()

    def start_of(self, after: int | None) -> int:
        """The running number of the first update behind `after`."""
        if after is None:
            return self.added
        if after < self.forgotten_seq:
            raise _gone(after)
        older = sum(1 for update in self.updates if update.seq <= after)
        return self.added - len(self.updates) + older


class UpdateLog:
    def __init__(self, kept: int = 100_000) -> None:
        self._kept = kept
        self._everybody = _Ring(kept)
        self._users: dict[UserId, _Ring] = defaultdict(lambda: _Ring(kept))
        self._closed = False

    def publish(self, update: Update) -> None:
        for ring in (self._everybody, self._users[update.order.user]):
            if ring.waiting or ring.added >= ring.kept:
                ring.add(update)
            else:
                ring.updates.append(update)
                ring.added += 1

    def subscribe(self, user: UserId | None, after: int | None) -> AsyncIterator[Update]:
        """Updates of `user` (None: of everybody) with seq > after; after=None: only what comes from now on.

        Raises DeskError GONE at once when `after` is older than what is kept, or beyond the newest (it is from
        another ledger), and later when the reader has fallen that far behind. Ends when the desk closes.
        """
        if after is not None and after > self.last_seq(None):
            raise _not_yet(after)
        ring = self._everybody if user is None else self._users[user]
        return self._follow(ring, ring.start_of(after))

    def last_seq(self, user: UserId | None) -> int:
        """The newest update of `user` (None: of everybody), 0 for none: where a stream made now begins."""
        ring = self._everybody if user is None else self._users[user]
        return ring.updates[-1].seq if ring.updates else 0

    async def _follow(self, ring: _Ring, number: int) -> AsyncIterator[Update]:
        while not self._closed:
            first = ring.added - len(ring.updates)
            if number < first:
                raise _gone(ring.forgotten_seq)
            if number < ring.added:
                yield ring.updates[number - first]
                number += 1
                continue
            waiter = asyncio.get_running_loop().create_future()
            ring.waiting.add(waiter)
            try:
                await waiter
            finally:
                ring.waiting.discard(waiter)

    def close(self) -> None:
        """End all subscriptions."""
        self._closed = True
        for ring in (self._everybody, *self._users.values()):
            for waiter in ring.waiting:
                if not waiter.done():
                    waiter.set_result(None)
            ring.waiting.clear()


def _gone(after: int) -> DeskError:
    return DeskError(
        Code.GONE,
        f"updates after {after} are no longer kept: list the orders, then subscribe without `after`",
        observed=str(after),
    )


def _not_yet(after: int) -> DeskError:
    return DeskError(
        Code.GONE,
        f"this desk has had no update {after} yet, so it is another ledger's: list the orders, then subscribe "
        "without `after`",
        observed=str(after),
    )
