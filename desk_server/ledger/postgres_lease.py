"""The lease on a PostgreSQL ledger: one desk at a time, and one that was paused, or cut off, finds out by itself.

The holder gives a sign of life every quarter of `lease_s`: it counts up in the lease's row, by a connection of its
own. It is sure of the lease until 0.9 x `lease_s` after it last *sent* a sign that was taken, on a clock that goes on
while the process is stopped and that nobody sets. Another desk takes the lease when it has watched the row for
`lease_s` of its own time without a sign, so no clocks are compared; or at once, where the holder let go, or was a
process of this very machine that is gone. Whoever takes it raises the epoch in the fence's row, which every commit
of the one before checks and locks: what comes late from it is not stored.
"""

import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime
from uuid import uuid4

import psycopg
from msgspec import Struct

from desk_server.ledger import LedgerUnavailable
from desk_server.ledger.holder import Holder, now_s, this_process
from desk_server.ledger.postgres_link import Link, connect, name_of

log = logging.getLogger(__name__)

# Clocks may run this much apart, and a process may be slow between a look at the clock and the broker's socket.
_SURE = 0.9
_BEATS_PER_LEASE = 4
_LOOK_AGAIN_S = 0.1
# A desk that stops does not wait longer than this for the database.
_LET_GO_S = 2.0
_TAKE_FENCE = "UPDATE desk.fence SET epoch = epoch + 1, holder = %s WHERE one RETURNING epoch"
_TAKE_LEASE = """UPDATE desk.lease SET holder = %s, host = %s, pid = %s, machine = %s, started = %s, lease_s = %s,
    beats = beats + 1, since = clock_timestamp(), renewed_at = clock_timestamp()"""
_BEAT = "UPDATE desk.lease SET beats = beats + 1, renewed_at = clock_timestamp() WHERE holder = %s"
_NEXT_EPOCH = "UPDATE desk.fence SET epoch = epoch + 1 WHERE holder = %s RETURNING epoch"
_LET_GO = "UPDATE desk.{} SET holder = '' WHERE holder = %s"


class _Seen(Struct, frozen=True):
    """What stands in the lease's row."""

    mark: str
    holder: Holder
    since: datetime
    lease_s: float
    beats: int

    def __str__(self) -> str:
        return f"{self.holder}, since {self.since:%Y-%m-%d %H:%M:%S} UTC"


class Lease:
    """This process's, from `take` until `let_go`, or until `on_lost` is called (by the lease's thread)."""

    def __init__(self, url: str, lease_s: float, on_lost: Callable[[str], None]) -> None:
        self.lease_s = lease_s
        self._url = url
        self._name = name_of(url)
        self._on_lost = on_lost
        self._mark = uuid4().hex
        self._sure_until = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def is_sure(self) -> bool:
        """Cheap; asked before each call of the broker."""
        return now_s() < self._sure_until

    def take(self, link: Link) -> int:
        """The epoch with which `link` may write. Waits up to a lease for signs of life of whoever has it. Raises
        LedgerUnavailable, saying who has it, and psycopg.Error."""
        watched: _Seen | None = None
        since = 0.0
        while True:
            looked = now_s()
            with link.transaction():
                link.execute("SELECT 1 FROM desk.fence FOR UPDATE")
                seen = _look(link, for_update=True)
                is_silent = watched is not None and looked - since > max(watched.lease_s, self.lease_s)
                if not seen.mark or seen.holder.has_died() or (is_silent and seen == watched):
                    return self._taken(link, looked)
            if watched is None:
                watched, since = seen, now_s()
                log.warning("the ledger %s was held by %s: waiting for a sign of life", self._name, seen)
            elif seen != watched:
                raise LedgerUnavailable(
                    f"the ledger {self._name} is in use by another desk ({seen}): stop that one first, "
                    "or give this one another DESK_DATABASE_URL"
                )
            time.sleep(_LOOK_AGAIN_S)

    def _taken(self, link: Link, looked: float) -> int:
        me = this_process()
        row = link.execute(_TAKE_FENCE, (self._mark,)).fetchone()
        link.execute(_TAKE_LEASE, (self._mark, me.host, me.pid, me.machine, me.started, self.lease_s))
        assert row is not None
        self._sure_until = looked + _SURE * self.lease_s
        return int(row[0])

    def start(self) -> None:
        """Begin to give signs of life."""
        self._thread.start()

    def next_epoch(self, link: Link) -> int | None:
        """The epoch with which a new connection may write; None when the lease is another's. What an older one
        still had under way is committed when this returns, or never will be."""
        row = link.execute(_NEXT_EPOCH, (self._mark,)).fetchone()
        return None if row is None else int(row[0])

    def thief(self, link: Link) -> str:
        """Who has it now, for a message."""
        seen = _look(link)
        return f"another desk has taken the ledger {self._name} over ({seen if seen.mark else 'it is gone again'})"

    def let_go(self, link: Link | None) -> None:
        """End the signs of life; where there still is a connection, the next desk need not wait."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._sure_until = 0.0
        if link is not None and link.is_idle:
            link.answer_s = _LET_GO_S
            try:
                with link.transaction():
                    for table in ("fence", "lease"):
                        link.execute(_LET_GO.format(table), (self._mark,))
            except psycopg.Error as error:
                log.warning("the lease was not given back, the next desk has to wait for it: %s", error)

    def _beat(self) -> None:
        link: Link | None = None
        while not self._stop.wait(self.lease_s / _BEATS_PER_LEASE):
            try:
                if link is None:
                    link = connect(self._url, "lease")
                    link.answer_s = max(1.0, self.lease_s / 2)
                if not self._renew(link):
                    break
            except (psycopg.Error, LedgerUnavailable) as error:
                log.warning("the lease on the ledger was not renewed: %s", error)
                if link is not None:
                    link.close()
                    link = None
        if link is not None:
            link.close()

    def _renew(self, link: Link) -> bool:
        sent = now_s()
        if link.execute(_BEAT, (self._mark,)).rowcount == 1:
            self._sure_until = sent + _SURE * self.lease_s
            return True
        self._sure_until = 0.0
        self._on_lost(self.thief(link))
        return False


def _look(link: Link, *, for_update: bool = False) -> _Seen:
    row = link.execute(
        "SELECT holder, host, pid, machine, started, since, lease_s, beats FROM desk.lease"
        + (" FOR UPDATE" if for_update else "")
    ).fetchone()
    if row is None:
        raise LedgerUnavailable("the ledger's table desk.lease is empty: restore the ledger from a backup")
    return _Seen(row[0], Holder(*row[1:5]), *row[5:])
