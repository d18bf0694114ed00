"""Reconciliation: the books compared with the broker's own records, on start, after a gap and on a timer.

A pass reads the broker's orders, executions and activities since the last one (with an overlap) and turns what the
books do not have into events: polling alone suffices, the stream is only faster. Then positions and cash are
compared. What differs for longer than the broker's own lag explains is told (`report`, an alarm in the log) and
closes its symbol for new risk (`frozen`). Fills are never made up. docs/reconciliation.md tells the whole of it.
"""

import asyncio
import contextlib
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal

import structlog
from msgspec import Struct

from desk_server.bookkeeper import Bookkeeper
from desk_server.brokers import Broker, BrokerRecords, BrokerThrottled, BrokerUnknown
from desk_server.clock import Clock
from desk_server.compare import Difference, Kind, Watch, books_of, compare
from desk_server.domain import Symbol

log = structlog.get_logger(__name__)

_LONGEST_WAIT_S = 30.0


class Report(Struct, frozen=True):
    """What reconciliation knows now. `problem` as `Reconciler.problem`; `frozen` tells why, per symbol."""

    problem: str
    passes: int
    failures: int
    last_pass_at: datetime | None
    differences: tuple[Difference, ...]
    frozen: dict[Symbol, str]


class Reconciler:
    """One task. `records` is None for a broker without a memory of its own (the embedded exchange): then only
    positions are compared, and nothing is taken over."""

    def __init__(
        self,
        keeper: Bookkeeper,
        broker: Broker,
        records: BrokerRecords | None,
        clock: Clock,
        *,
        allotment: Decimal,
        poll_s: float = 15.0,
        poll_in_doubt_s: float = 2.0,
        reconcile_s: float = 60.0,
        grace_s: float = 10.0,
        adopt_s: float = 300.0,
        history_days: int = 90,
        stream_problem: Callable[[], str] = lambda: "",
    ) -> None:
        """`allotment` is what users found at the broker get; `stream_problem` tells why updates do not come by
        stream. A difference that stays for `adopt_s` seconds becomes the house's."""
        self._keeper = keeper
        self._broker = broker
        self._records = records
        self._clock = clock
        self._allotment = allotment
        self._poll_s = poll_s
        self._poll_in_doubt_s = poll_in_doubt_s
        self._reconcile_s = reconcile_s
        self._adopt_s = adopt_s
        self._history_days = history_days
        self._stream_problem = stream_problem
        self._watch = Watch(grace_s)
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._passed_s: float | None = None
        self._passed_at: datetime | None = None
        self._failure = ""
        self.passes = 0
        self.failures = 0

    async def start(self) -> None:
        """Begin with a pass at once; returns without waiting for it (`problem` tells). The broker is connected."""
        self._task = asyncio.create_task(self._run(), name="reconcile")

    async def close(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def soon(self) -> None:
        """Something may have been missed: do the next pass now."""
        self._wanted.set()

    def problem(self) -> str:
        """Why orders that add risk must wait; "" after a complete pass, while the newest is not too old."""
        if self._records is None:
            return ""
        if self._passed_s is None:
            return f"the books have not been compared with the broker yet{self._why()}"
        age_s = self._clock.monotonic_s() - self._passed_s
        if age_s > max(60.0, 4 * self._poll_s):
            return f"the books were last compared with the broker {age_s:.0f} s ago{self._why()}"
        return ""

    def frozen(self, symbol: str) -> str:
        """Why this symbol takes no order that adds risk, in a sentence; "" when it does."""
        for one in self._watch.counting():
            if one.found.symbol == symbol:
                found = one.found
                return (
                    f"{symbol} takes no new risk: its {found.kind} differs between the desk ({found.ours}) "
                    f"and the broker ({found.theirs}) since {one.since:%H:%M:%S} UTC"
                )
        return ""

    def report(self) -> Report:
        differences = tuple(self._watch.all())
        symbols = sorted({one.found.symbol for one in differences if one.found.symbol})
        frozen = {symbol: why for symbol in symbols if (why := self.frozen(symbol))}
        return Report(self.problem(), self.passes, self.failures, self._passed_at, differences, frozen)

    async def look(self) -> None:
        """One pass. Raises BrokerUnknown, BrokerThrottled: then it did not happen."""
        await self._compare_holdings()
        self._passed_s, self._passed_at = self._clock.monotonic_s(), self._clock.now()
        self.passes += 1
        self._failure = ""

    async def _compare_holdings(self) -> None:
        book = self._keeper.book
        found = []
        for holdings in await self._broker.holdings():
            books = books_of(holdings.account, holdings.users, book.accounts, book.positions)
            found += compare(holdings, books)
        kinds = frozenset({Kind.POSITION, Kind.CASH})
        for new in self._watch.look(kinds, found, self._clock.now(), self._clock.monotonic_s()):
            log.error("the books and the broker differ", kind=new.found.kind, symbol=new.found.symbol)

    async def _run(self) -> None:
        wait_s = self._poll_in_doubt_s
        while True:
            self._wanted.clear()
            try:
                await self.look()
                wait_s = self._poll_s
            except (BrokerUnknown, BrokerThrottled) as silence:
                self.failures += 1
                self._failure = str(silence)
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
                log.warning("the books could not be compared", reason=str(silence), next_try_s=wait_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), wait_s)

    def _why(self) -> str:
        return f": {self._failure}" if self._failure else ""
