"""The ledger in a PostgreSQL database: the same group commit, chain and promises as the embedded one's.

One thread writes, each batch in one statement that is one transaction: one round trip, one commit. When the
connection is cut in the middle, nobody here knows whether that was committed. Then nothing is answered and nothing
else stored until a new connection has raised the epoch, which what is still under way on the old one does not
survive, and has read back whether the batch's last event is there, by its place and its hash.
"""

import logging
import time
from collections.abc import Iterator

import psycopg
from psycopg.errors import UniqueViolation

from desk_server.ledger import LedgerUnavailable, OutcomeUnknown, Stored
from desk_server.ledger.chain import Chain, Damaged, PostingRow, Row, checked_rows, verify
from desk_server.ledger.group_commit import BATCH_MAX, WAITING_MAX, Call, Done, GroupCommit, Outcome, refused
from desk_server.ledger.postgres_file import hash_at, insert, last_of, make, migrate, reading, stored_keys
from desk_server.ledger.postgres_lease import Lease
from desk_server.ledger.postgres_link import connect, name_of

log = logging.getLogger(__name__)

LEASE_S = 10.0
# How often one batch is tried on a new connection, when it surely was not stored by the old one.
_TRIES = 2
_WAIT_S, _WAIT_S_MAX = 0.05, 1.0


class PostgresLedger(GroupCommit):
    """The ledger in schema `desk` of the database at `url` (postgresql://…), made where missing.

    Making one takes the lease and brings the tables up to date; it may wait `lease_s` for the end of a desk that
    did not let go. Raises LedgerUnavailable, saying what to do, where another desk has it, the server is not
    durable or cannot be reached, or the tables are a newer desk's or nobody's.
    """

    def __init__(
        self, url: str, *, lease_s: float = LEASE_S, waiting_max: int = WAITING_MAX, batch_max: int = BATCH_MAX
    ) -> None:
        super().__init__(waiting_max=waiting_max, batch_max=batch_max)
        self.name = name_of(url)
        self._url = url
        # The batch that is being committed: as it would be stored, and what its calls are told then.
        self._attempt: tuple[Chain, list[Outcome]] | None = None
        self._lease = Lease(url, lease_s, self._lose)
        self._link = connect(url, "writer")
        try:
            make(self._link, self.name)
            self._epoch = self._lease.take(self._link)
            self._lease.start()
            migrate(self._link, self.name, self._epoch)
            # Where the chain goes on: the last event's.
            self._seq, self._hash = last_of(self._link)
        except psycopg.Error as error:
            self._let_go()
            raise LedgerUnavailable(f"the ledger {self.name} cannot be opened: {_one_line(error)}") from error
        except BaseException:
            self._let_go()
            raise

    def read(self, after: int = 0) -> Iterator[Stored]:
        """See the protocol; every event's hash is checked on the way. Works before `open` and beside appends."""
        with reading(self._url) as reader:
            yield from (Stored(row[0], event) for row, event in checked_rows(reader, after))

    def verify(self) -> int | None:
        """The first seq that is missing, changed or wrongly posted; None when all is as it was written."""
        with reading(self._url) as reader:
            damaged: Damaged | None = verify(reader)
        return damaged.seq if damaged else None

    def fenced(self) -> str:
        """See the protocol."""
        if self._lost or self._closed:
            return self._lost or "the ledger is closed: the desk is stopping"
        if self._lease.is_sure():
            return ""
        return f"the lease on the ledger {self.name} could not be renewed in time: is the database there?"

    # The writer thread

    def _store(self, batch: list[Call]) -> Done:
        if self._closed and self._link.closed:
            # The last one before it was settled as far as it can be; this one was never sent.
            return refused(batch, LedgerUnavailable(f"the desk stops, and the ledger {self.name} is away"))
        for _ in range(_TRIES):
            self._attempt = None
            try:
                return self._commit_batch(batch)
            except psycopg.Error as error:
                if self._link.is_idle:
                    if len(batch) > 1 and isinstance(error, psycopg.DataError | psycopg.IntegrityError):
                        return self._store_each(batch)
                    return refused(batch, self._unavailable(error))
                log.warning("the connection to the ledger %s is lost: %s", self.name, _one_line(error))
            if (done := self._settle(batch)) is not None:
                return done
        return refused(batch, LedgerUnavailable(f"the ledger {self.name} does not answer. Nothing was stored"))

    def _store_each(self, batch: list[Call]) -> Done:
        """There is something in it that PostgreSQL cannot store (a NUL in a text): only its own call may fail."""
        stored: list[Stored] = []
        outcomes: list[Outcome] = []
        for call in batch:
            more_stored, more_outcomes = self._store([call])
            stored += more_stored
            outcomes += more_outcomes
        return stored, outcomes

    def _commit_batch(self, batch: list[Call]) -> Done:
        try:
            return self._commit(batch, [])
        except UniqueViolation as error:
            if error.diag.constraint_name != "events_dedupe":
                raise
        # Some event is a duplicate: only its own call may fail.
        keys = stored_keys(self._link, [key for call in batch for key in call.dedupe_keys()])
        fresh: list[Call] = []
        doubles: list[Outcome] = []
        for call in batch:
            own = call.dedupe_keys()
            if len(set(own)) < len(own) or not keys.isdisjoint(own):
                doubles.append((call, call.duplicate()))
            else:
                keys.update(own)
                fresh.append(call)
        return self._commit(fresh, doubles)

    def _commit(self, batch: list[Call], outcomes: list[Outcome]) -> Done:
        """Raises psycopg.Error."""
        chain = Chain(self._seq, self._hash)
        rows: list[Row] = []
        moved: list[PostingRow] = []
        for call in batch:
            more_rows, more_moved = call.rows(chain)
            rows += more_rows
            moved += more_moved
            outcomes.append((call, chain.seq))
        if not rows:
            return [], outcomes
        self._attempt = chain, outcomes
        if insert(self._link, self._epoch, self._seq, rows, moved):
            return self._stored(chain), outcomes
        self._attempt = None
        self._lose(self._why_fenced())
        return refused([call for call, _ in outcomes], LedgerUnavailable(self._lost))

    def _stored(self, chain: Chain) -> list[Stored]:
        self._seq, self._hash = chain.seq, chain.hash
        self.commits += 1
        return chain.stored

    def _why_fenced(self) -> str:
        if self._lease.next_epoch(self._link) is None:
            return self._lease.thief(self._link)
        return (
            f"the ledger {self.name} does not end with the event that this desk stored last: it was restored or "
            "written by hand. End this desk, look what happened, then start one"
        )

    def _unavailable(self, error: psycopg.Error) -> LedgerUnavailable:
        log.error("the ledger could not be written: %s (%s)", _one_line(error), error.sqlstate or "no code")
        return LedgerUnavailable(
            f"the ledger {self.name} cannot be written: {_one_line(error)}. Nothing was stored; mend the database"
        )

    def _abandon(self) -> None:
        """Whatever was under way dies with its connection's epoch at the next start."""
        self._link.close()

    def _let_go(self) -> None:
        self._lease.let_go(self._link)
        self._link.close()

    # A connection was cut

    def _settle(self, batch: list[Call]) -> Done | None:
        """What became of the batch under way; None when it surely was not stored, and may be tried again."""
        self._interrupted = f"the connection to the ledger {self.name} is lost: nothing is stored until it is back"
        self._on_loop(self._refuse_gathered, self._interrupted)
        wait_s = _WAIT_S
        while True:
            try:
                done = self._read_back(batch)
                self._interrupted = ""
                return done
            except (psycopg.Error, LedgerUnavailable) as error:
                self._link.close()
                log.warning("the ledger is not back yet: %s", _one_line(error))
            if self._closed:
                why = f"the desk stops, and the ledger {self.name} does not tell whether this was stored"
                return refused(batch, OutcomeUnknown(why))
            time.sleep(wait_s)
            wait_s = min(wait_s * 2, _WAIT_S_MAX)

    def _read_back(self, batch: list[Call]) -> Done | None:
        """By a new connection. Raises LedgerUnavailable, psycopg.Error while there is none."""
        self._link.close()
        self._link = connect(self._url, "writer")
        epoch = self._lease.next_epoch(self._link)
        stored: list[Stored] = []
        outcomes: list[Outcome] = []
        if self._attempt is not None:
            chain, told = self._attempt
            if hash_at(self._link, chain.seq) == chain.hash:
                stored, outcomes = self._stored(chain), told
        last = last_of(self._link)
        if epoch is None or last != (self._seq, self._hash):
            self._lose(self._why_fenced())
            return (stored, outcomes) if stored else refused(batch, LedgerUnavailable(self._lost))
        self._epoch = epoch
        return (stored, outcomes) if stored else None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
