"""Reconciliation: the books compared with the broker's own records, on start, after a gap and on a timer.

A pass reads the broker's orders, executions and activities since the last one (with an overlap) and turns what the
books do not have into events: polling alone suffices, the stream is only faster. Then positions and cash are
compared. What differs for longer than the broker's own lag explains is told (`report`, an alarm in the log) and
closes its symbol for new risk (`frozen`); what stays unexplained is the house's. Fills are never made up.
docs/reconciliation.md tells the whole of it.
"""

import asyncio
import contextlib
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal

import structlog
from msgspec import Struct

from desk_server import account_records, order_records
from desk_server.account_records import AccountRecords
from desk_server.bookkeeper import Bookkeeper
from desk_server.brokers import Broker, BrokerRecords, BrokerThrottled, BrokerUnknown
from desk_server.clock import Clock
from desk_server.compare import Difference, Found, Kind, Watch
from desk_server.domain import State, Symbol, UserId
from desk_server.ledger import DuplicateEvent
from desk_server.order_records import OrderRecords
from desk_server.settle import Unsettled

log = structlog.get_logger(__name__)

# Two passes are never nearer than this, whoever asks for one.
_GAP_S = 0.1
_LONGEST_WAIT_S = 30.0
# A pass that reads everything again, to explain a difference, comes no more often than this.
_DEEP_EVERY_S = 600.0
_STALE_S = 60.0
_ANOTHER_BROKERS = (
    "the ledger has orders of another broker (the embedded exchange?), and this broker's account was never compared "
    "with it: give the desk another DESK_RUN_DIR or DESK_DATABASE_URL for this broker"
)
_IN_DOUBT = frozenset({State.SENDING, State.UNKNOWN, State.QUARANTINE})


class Report(Struct, frozen=True):
    """What reconciliation knows now. `problem` as `Reconciler.problem`; `frozen` tells why, per symbol; `houses`
    is what each house book holds; the numbers count since the start."""

    problem: str = ""
    last_pass_at: datetime | None = None
    differences: tuple[Difference, ...] = ()
    frozen: dict[Symbol, str] = {}
    houses: dict[str, dict[str, str]] = {}
    foreign_orders: int = 0
    passes: int = 0
    failures: int = 0
    recovered: int = 0
    posted: int = 0
    adopted: int = 0


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
        self._book = keeper.book
        self._broker = broker
        self._has_records = records is not None
        self._clock = clock
        self._poll_s = poll_s
        self._poll_in_doubt_s = poll_in_doubt_s
        self._reconcile_s = reconcile_s
        self._grace_s = grace_s
        self._adopt_s = adopt_s
        self._history = timedelta(days=history_days)
        self._stream_problem = stream_problem
        self._accounts = AccountRecords(keeper, broker, records, clock)
        self._orders: OrderRecords | None = None
        if records is not None:
            self._orders = OrderRecords(
                keeper,
                broker,
                records,
                clock,
                allotment=allotment,
                account_of=self._accounts.account_of,
                grace_s=grace_s,
            )
            keeper.on_doubt = self._doubt
        self._watch = Watch(grace_s)
        self._wanted = asyncio.Event()
        self._looking: asyncio.Task[object] | None = None
        self._task: asyncio.Task[None] | None = None
        # When the books began to be compared; when orders, and when positions and cash, were compared last.
        self._began_s: float | None = None
        self._passed_s: float | None = None
        self._passed_at: datetime | None = None
        self._compared_s: float | None = None
        self._deep_s: float | None = None
        self._deep_wanted = False
        self._was_broken = ""
        self._failure = ""
        # Why nothing is compared at all, for which only another ledger helps.
        self._refusal = ""
        self.passes = 0
        self.failures = 0

    # ---- what others need ----

    async def start(self) -> None:
        """Begin with a pass at once; returns without waiting for it (`problem` tells). The ledger is loaded, and
        the broker connected."""
        # No order is sent before the opening balance is known: these were sent to another broker.
        if self._has_records and not self._book.opened and self._book.has_sent_orders():
            log.critical(_ANOTHER_BROKERS)
            self._refusal = _ANOTHER_BROKERS
            return
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
        if not self._has_records or self._refusal:
            return self._refusal
        if self._passed_s is None or self._compared_s is None:
            return f"the books have not been compared with the broker yet{self._why()}"
        if unopened := self._accounts.unopened():
            return f"the opening balance of {', '.join(unopened) or 'the account'} is being found out"
        now_s = self._clock.monotonic_s()
        for what, then_s, every_s in (
            ("orders", self._passed_s, self._poll_s),
            ("positions", self._compared_s, self._reconcile_s),
        ):
            if now_s - then_s > max(_STALE_S, 4 * every_s):
                return f"the desk's {what} were last compared with the broker's {now_s - then_s:.0f} s ago{self._why()}"
        return ""

    def frozen(self, symbol: str) -> str:
        """Why this symbol takes no order that adds risk, in a sentence; "" when it does."""
        for one in self._watch.counting():
            if one.found.symbol == symbol:
                return f"{symbol} takes no new risk: {_sentence(one)}"
        return ""

    def buying_power(self, user: UserId) -> Decimal | None:
        """What the broker last said that the user's account may spend, in dollars; None where it did not say."""
        for holdings in self._accounts.holdings:
            if holdings.users is None or user in holdings.users:
                return holdings.buying_power
        return None

    def report(self) -> Report:
        differences = tuple(self._watch.all())
        symbols = sorted({one.found.symbol for one in differences if one.found.symbol})
        return Report(
            problem=self.problem(),
            last_pass_at=self._passed_at,
            differences=differences,
            frozen={symbol: why for symbol in symbols if (why := self.frozen(symbol))},
            houses=self._accounts.houses(),
            foreign_orders=len(self._book.foreign_orders()),
            passes=self.passes,
            failures=self.failures,
            recovered=self._orders.recovered if self._orders else 0,
            posted=self._accounts.posted,
            adopted=self._accounts.adopted,
        )

    # ---- one pass ----

    async def look(self, *, money: bool = True) -> None:
        """One pass, with positions and cash where `money`. Raises BrokerUnknown, BrokerThrottled: then what was
        settled stays, and the rest is as if it had not been."""
        self._looking = asyncio.current_task()
        try:
            await self._look(money)
        finally:
            self._looking = None

    async def _look(self, money: bool) -> None:
        if self._began_s is None:
            self._began_s = self._clock.monotonic_s()
        if self._orders is not None:
            await self._accounts.learn_accounts()
            self._reach_back()
            self._watch_for(order_records.KINDS, await self._orders.look())
            await self._orders.outlived.cancel([one.found for one in self._watch.counting()])
        self._passed_s, self._passed_at = self._clock.monotonic_s(), self._clock.now()
        if money:
            await self._look_at_money()
        self.passes += 1
        self._failure = ""

    def _reach_back(self) -> None:
        """The first pass begins where the ledger ends; or, with an empty ledger or an account that is new to it, as
        far back as there is any history. So does one that a difference asks for."""
        assert self._orders is not None
        is_first = self._passed_s is None
        if is_first:
            is_new = bool(self._accounts.unopened())
            since = self._floor() if is_new else max(self._floor(), self._keeper.last_at or self._floor())
        elif self._deep_wanted:
            log.warning("the broker's records are read from the beginning, to explain a difference")
            since, self._deep_s = self._floor(), self._clock.monotonic_s()
        else:
            return
        self._deep_wanted = False
        self._orders.reach_back(since)
        self._accounts.reach_back(since)

    def _floor(self) -> datetime:
        """Nothing from before is ever read: it is in the opening balance."""
        return (self._keeper.first_at or self._clock.now()) - self._history

    async def _look_at_money(self) -> None:
        await self._accounts.post_activities(self._floor())
        found = await self._accounts.compare()
        if self._has_records and self._accounts.unopened() and self._is_quiet():
            found = await self._accounts.open_accounts(found)
        self._watch_for(account_records.KINDS, found)
        if self._has_records:
            for difference in self._watch.counting():
                if self._is_the_houses(difference):
                    await self._accounts.adopt(difference)
        self._compared_s = self._clock.monotonic_s()

    def _is_quiet(self) -> bool:
        """Whether the broker's positions can be in step with its executions: an opening balance needs that."""
        orders, now_s = self._orders, self._clock.monotonic_s()
        if orders is None or orders.in_doubt:
            return False
        newest = orders.newest_at
        is_old = newest is None or self._clock.now() - newest > timedelta(seconds=self._grace_s)
        return is_old or now_s - (self._began_s or now_s) > 3 * self._grace_s

    def _is_the_houses(self, difference: Difference) -> bool:
        """A difference of position or cash that stayed the same, and that no order still explains."""
        found = difference.found
        if found.kind not in account_records.KINDS:
            return False
        others = [one.found for one in self._watch.all() if one.found.kind in order_records.KINDS]
        is_pending = any(found.kind is Kind.CASH or other.symbol == found.symbol for other in others)
        return not is_pending and self._clock.monotonic_s() - difference.same_since_s >= self._adopt_s

    def _watch_for(self, kinds: frozenset[Kind], found: list[Found]) -> None:
        """Tell those that count from now on."""
        for new in self._watch.look(kinds, found, self._clock.now(), self._clock.monotonic_s()):
            one = new.found
            ids = {"kind": one.kind, "account": one.account, "symbol": one.symbol, "subject": one.subject}
            told = {**ids, "ours": one.ours, "theirs": one.theirs, "explanation": one.explanation}
            if self._accounts.is_rounding(one):
                log.info("the broker's cash differs by rounding", **told)
                continue
            log.error("the books and the broker differ", **told)
            now_s = self._clock.monotonic_s()
            if one.kind in account_records.KINDS and (self._deep_s is None or now_s - self._deep_s > _DEEP_EVERY_S):
                self._deep_wanted = True

    def _doubt(self, doubt: Unsettled) -> None:
        """What the stream (or a pass) said cannot be settled yet."""
        assert self._orders is not None
        # What a pass finds by itself it will find again.
        if asyncio.current_task() is not self._looking:
            self._orders.remember(doubt)
            log.info("asking the broker's records", reason=doubt.reason, said=doubt.said.what)
            self._wanted.set()

    # ---- the loop ----

    async def _run(self) -> None:
        failed_s = 0.0
        while True:
            self._wanted.clear()
            wait_s = self._poll_in_doubt_s
            try:
                failure = self._failure
                await self.look(money=self._money_is_due())
                if failure:
                    log.info("the books are compared again")
                failed_s = 0.0
                wait_s = self._poll_in_doubt_s if self._is_in_doubt() else self._poll_s
            except (BrokerUnknown, BrokerThrottled, DuplicateEvent) as silence:
                self.failures += 1
                tell = log.debug if str(silence) == self._failure else log.warning
                self._failure = str(silence)
                failed_s = min(2 * failed_s or self._poll_in_doubt_s, _LONGEST_WAIT_S)
                wait_s = max(failed_s, silence.retry_after_s if isinstance(silence, BrokerThrottled) else 0.0)
                tell("the books could not be compared", reason=str(silence), next_try_s=wait_s)
            except Exception as error:
                self.failures += 1
                self._failure = f"comparing failed, see the log: {error}"
                log.exception("comparing the books failed: it is tried again")
                wait_s = failed_s = min(2 * failed_s or self._poll_in_doubt_s, _LONGEST_WAIT_S)
            await asyncio.sleep(min(_GAP_S, wait_s))
            await self._sleep(wait_s)

    async def _sleep(self, wait_s: float) -> None:
        """Until then; or until asked, or until the broker can be reached again, or something is in doubt."""
        until_s = self._clock.monotonic_s() + wait_s
        while (left_s := until_s - self._clock.monotonic_s()) > 0 and not self._wanted.is_set():
            # Not wait_for: up to Python 3.11 it forgets a cancel that comes together with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, self._poll_in_doubt_s)):
                    await self._wanted.wait()
            broken = self._broker.problem() or self._stream_problem()
            came_back = self._was_broken and not broken
            self._was_broken = broken
            if came_back or (self._is_in_doubt() and not self._failure):
                return

    def _money_is_due(self) -> bool:
        if self._compared_s is None or self._accounts.unopened() or self._deep_wanted:
            return True
        due_s = self._reconcile_s
        if any(one.found.kind in account_records.KINDS for one in self._watch.all()):
            due_s = min(due_s, self._poll_s)
        return self._clock.monotonic_s() - self._compared_s >= due_s

    def _is_in_doubt(self) -> bool:
        """Whether a look should come soon: an order's fate is open, a difference is new, or no updates stream."""
        if self._orders is None:
            return False
        return (
            self._orders.in_doubt
            or self._deep_wanted
            or bool(self._accounts.unopened())
            or bool(self._broker.problem() or self._stream_problem())
            or any(not one.counts for one in self._watch.all())
            or any(order.state in _IN_DOUBT or order.cancel_requested for order in self._book.open_orders())
        )

    def _why(self) -> str:
        return f": {self._failure}" if self._failure else ""


def _sentence(difference: Difference) -> str:
    found = difference.found
    what = {
        Kind.POSITION: "the desk has {} and the broker {} shares",
        Kind.ORDER: f"order {found.subject} is {{}} at the desk and {{}} at the broker",
        Kind.FILLED: f"order {found.subject} has executed {{}} by the desk's books and {{}} by the broker's",
        Kind.EXECUTION: f"an execution of the broker's order {found.subject} is {{}} to the desk ({{}})",
    }
    text = what.get(found.kind, "the desk has {} and the broker {} dollars").format(found.ours, found.theirs)
    return f"{text}, since {difference.since:%H:%M:%S} UTC"
