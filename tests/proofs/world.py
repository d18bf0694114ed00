"""Desk, books, reconciler and exchange in one process on a virtual clock: what can happen, and what must be true.

The numbers are those of the invariants that the crash loop checks, too (tests/crash/invariants.py).
"""

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal as D
from typing import Any

from desk_server.book import Book
from desk_server.bookkeeper import Bookkeeper
from desk_server.brokers import What
from desk_server.desk import Desk
from desk_server.domain import (
    Identity,
    Order,
    OrderChange,
    OrderId,
    OrderRequest,
    Quote,
    Role,
    Side,
    State,
    Symbol,
    UserId,
)
from desk_server.errors import TRANSIENT, Code, DeskError
from desk_server.events import HouseAdjusted, OrderIntended, ReplaceIntended, SendIntended
from desk_server.reconcile import Reconciler
from desk_server.risk import Limits
from desk_server.throttle import Throttle
from tests.proofs.exchange import ALLOTMENT, LAG_S, PRICE, RESEND_S, Exchange, Link
from tests.proofs.journal import Journal, JournalLedger
from tests.proofs.virtual import VirtualClock, VirtualLoop

ADMIN = Identity(UserId("admin"), Role.ADMIN)
USERS = [Identity(UserId(name), Role.TRADE) for name in ("alice", "bob")]
# After all faults have healed: the lag that proves an order not to be there, and 30 s.
HEALED_S = LAG_S + 30.0
AFTER_A_STEP_S = 1500.0
_ENDED = {
    State.CANCELED: What.CANCELED,
    State.EXPIRED: What.EXPIRED,
    State.REPLACED: What.REPLACED,
    State.FILLED: What.FILL,
}
_REVOCABLE = (State.REJECTED, State.NOT_SENT)
_LIMITS = Limits(
    qty_max=D(1000),
    notional_usd_max=D(100_000),
    collar_percent=D(50),
    market_buffer_percent=D(0),
    quote_age_s_max=1e9,
    open_orders_max=30,
    allow_short=False,
)


class Market:
    """One quote that never changes: what the desk asks of the hub."""

    last_at: datetime | None = datetime(2026, 1, 5, 15, tzinfo=UTC)

    def latest(self, symbol: str) -> Quote:
        return Quote(Symbol(symbol), PRICE, PRICE, PRICE, datetime(2026, 1, 5, 15, tzinfo=UTC), 1, 0.0)

    def problem(self) -> str:
        return ""


class Running:
    """One run of the desk on the journal."""

    def __init__(self, world: "World") -> None:
        self.ledger = JournalLedger(world.journal)
        self.link = Link(world.exchange)
        self.keeper = Bookkeeper(self.ledger, world.clock)
        self.reconciler = Reconciler(
            self.keeper, self.link, self.link, world.clock, allotment=ALLOTMENT, poll_s=5.0, poll_in_doubt_s=1.0
        )
        self.desk = Desk(
            keeper=self.keeper,
            broker=self.link,
            hub=Market(),  # type: ignore[arg-type]
            clock=world.clock,
            limits=_LIMITS,
            throttle=Throttle(100_000, world.clock),
            allotment=ALLOTMENT,
            records=self.link,
            begin_comparing=self.reconciler.start,
            uncompared=self.reconciler.problem,
            freezes=self.reconciler.frozen,
            soon=self.reconciler.soon,
            holds_wash_trades=world.holds,
        )

    @property
    def book(self) -> Book:
        return self.desk.book


class World:
    def __init__(self, *, holds: bool) -> None:
        self.holds = holds
        self.loop = VirtualLoop()
        self.clock = VirtualClock(self.loop)
        self.journal = Journal(self.loop.time)
        self.exchange = Exchange(self.loop, self.clock)
        self.exchange.forbids = self._why_not_sent
        # Whether a halt of the desk was acknowledged and none that lifts it is under way.
        self.halted = False
        self._lifting = 0
        self._healed_s = HEALED_S
        # What users asked, and what they were told: (what, order id); and what was seen of each order.
        self.asked: dict[tuple[Identity, str], OrderRequest] = {}
        self.told: dict[tuple[Identity, str], tuple[str, str]] = {}
        self.owner: dict[OrderId, tuple[str, str]] = {}
        self.ends: dict[OrderId, State] = {}
        self.filled: dict[OrderId, D] = {}
        self.errors: list[BaseException] = []
        self.outcomes: Counter[str] = Counter()
        self._ours: set[asyncio.Task[Any]] = set()
        self._seen_intents = 0
        # Orders with a durable intent to send them, and since when.
        self._may_be_sent: dict[str, float] = {}
        self._offsets = {timedelta()}
        self._by_order: dict[OrderId, str] = {}
        self._start()

    # ---- what can happen ----

    def pass_time(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))

    def turn(self, times: int) -> None:
        """So many turns of the loop: a few of them end in the middle of something."""
        for _ in range(times):
            self.loop.run_until_complete(asyncio.sleep(0))

    def place(self, who: Identity, request: OrderRequest) -> None:
        self.asked.setdefault((who, request.request_id), request)
        self._begin(self._ask(self.now.desk, who, request))

    def replace(self, who: Identity, order_id: str, change: OrderChange) -> None:
        self._begin(self._allowing(self.now.desk.replace(who, order_id, change)))

    def cancel(self, who: Identity, order_id: str) -> None:
        self._begin(self._allowing(self.now.desk.cancel(who, order_id)))

    def cancel_all(self, who: Identity) -> None:
        self._begin(self._allowing(self.now.desk.cancel_all(who, who.user, frozenset())))

    def halt(self, *, halted: bool) -> None:
        desk = self.now.desk

        async def set_halt() -> None:
            self._lifting += not halted
            try:
                await desk.set_halt(ADMIN, "desk", "", halted, "a test")
                self.halted = halted
            finally:
                self._lifting -= not halted

        self._begin(self._allowing(set_halt()))

    def crash(self) -> None:
        """The process dies; the exchange and what is on its way to it do not."""
        self._kill(self.now)
        self._start()

    def take_over(self) -> None:
        """The desk is paused, and another one takes the ledger: the first wakes up, and must not send anything."""
        old = self.now
        old.ledger.is_fenced = True
        old.link.must_be_silent = True
        theirs, self._ours = self._ours, set()
        self._start()
        self.pass_time(10.0)
        self.loop.run_until_complete(self._end(theirs, old))

    def give_shares(self, qty: int) -> None:
        """Everybody owns some."""
        for who in USERS:
            request = OrderRequest(symbol=Symbol("AAPL"), side=Side.BUY, qty=D(qty), request_id="first")
            self.place(who, request)
        self.pass_time(1.0)
        for there in self.exchange.open_orders():
            self.exchange.fill(there, there.left)
        self.pass_time(1.0)

    def set_clock(self, minutes: int) -> None:
        self.clock.offset += timedelta(minutes=minutes)
        self._offsets.add(self.clock.offset)
        # What the broker lists is asked for from a time on: where that was wrong, all is read again, some time later.
        if abs(minutes) > 1:
            self._healed_s = AFTER_A_STEP_S

    def _start(self) -> None:
        running = Running(self)

        async def start() -> None:
            running.keeper.load()
            await running.desk.start()

        self.loop.run_until_complete(start())
        self.now = running
        self.halted = bool(self.now.book.halted(UserId(""), "", ""))

    def _kill(self, running: Running) -> None:
        running.ledger.die()
        running.link.is_dead = True
        self.exchange.on_event = None
        # In an order that does not depend on where they lie in memory.
        tasks = sorted(asyncio.all_tasks(self.loop), key=lambda task: (len(task.get_name()), task.get_name()))
        for task in tasks:
            task.cancel()
        self.loop.run_until_complete(_all(tasks))
        self._ours.clear()

    async def _end(self, tasks: set[asyncio.Task[Any]], running: Running) -> None:
        for task in tasks:
            task.cancel()
        await _all(tasks)
        await running.reconciler.close()
        await running.desk.close()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        self._ours.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[Any]) -> None:
        self._ours.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.errors.append(error)

    async def _allowing(self, work: Coroutine[Any, Any, Any]) -> None:
        try:
            await work
            self.outcomes["done"] += 1
        except DeskError as error:
            assert error.code is not Code.INTERNAL, error
            self.outcomes[error.code.value] += 1

    async def _ask(self, desk: Desk, who: Identity, request: OrderRequest) -> None:
        """Place it, and hold against the desk what it told before."""
        key = (who, request.request_id)
        try:
            order = await desk.place(who, request)
            what, order_id = "taken", order.order_id
        except DeskError as error:
            assert error.code not in (Code.INTERNAL, Code.INVALID, Code.KEY_REUSED), error
            what, order_id = error.code.value, error.order_id
            assert order_id or error.code in TRANSIENT, error
            if error.code in TRANSIENT:
                what = "later"
        self.outcomes[what] += 1
        before = self.told.get(key)
        if before is not None:
            self._check_replay(before, (what, order_id))
        if order_id and before is None:
            self.told[key] = (what, order_id)

    def _check_replay(self, before: tuple[str, str], now: tuple[str, str]) -> None:
        """12: the same order; a refusal stays one, and what was taken can only have ended by the broker's word."""
        if now[0] == "later":
            return
        assert now[1] == before[1], f"told {before}, then {now}"
        ends = {"taken", Code.REJECTED.value, Code.NOT_SENT.value, Code.HALTED.value}
        assert now[0] == before[0] or {now[0], before[0]} <= ends, f"told {before}, then {now}"

    # ---- what must be true ----

    def _why_not_sent(self, order: Order) -> str:
        """Asked by the exchange when a request starts."""
        self._read_intents()
        if order.client_order_id not in self._may_be_sent:
            return "4: sent without a durable intent"
        # A crash makes the desk forget all but the time of day, which may have been set.
        may_err_s = (max(self._offsets) - min(self._offsets)).total_seconds()
        if self.loop.time() - self._may_be_sent[order.client_order_id] > RESEND_S + 2.0 + may_err_s:
            return "sent too long after it was asked for"
        is_halted = self.halted and not self._lifting
        return "13: sent after a halt was acknowledged" if is_halted else ""

    def _read_intents(self) -> None:
        events = list(self.journal.read())
        for event, stored_s in list(zip(events, self.journal.stored_s, strict=True))[self._seen_intents :]:
            if isinstance(event, OrderIntended | ReplaceIntended):
                self._by_order[event.order.order_id] = event.order.client_order_id
                if event.order.state is not State.WAITING:
                    self._may_be_sent[event.order.client_order_id] = stored_s
            elif isinstance(event, SendIntended):
                self._may_be_sent[self._by_order[event.order_id]] = stored_s
        self._seen_intents = len(events)

    def check(self) -> None:
        """At every moment."""
        if self.errors:
            raise self.errors[0]
        assert not self.exchange.violations, self.exchange.violations[0]
        assert not self.now.keeper.failure
        book, there = self.now.book, self.exchange.orders
        for _, order_id in self.told.values():
            assert OrderId(order_id) in book.orders, f"1: {order_id} was answered, and is not in the ledger"
        names = Counter(order.client_order_id for order in book.orders.values())
        assert all(count == 1 for count in names.values()), "9: a client_order_id twice"
        fills = Counter(fill.execution_id for fill in book.fills)
        assert all(count == 1 for count in fills.values()), "5: an execution twice"
        executed: Counter[str] = Counter()
        for fill in book.fills:
            executed[fill.order_id] += fill.qty  # type: ignore[assignment]
        for order in book.orders.values():
            self._check_order(order, D(executed[order.order_id]))
            if order.state is State.REFUSED:
                assert order.client_order_id not in there, f"16: refused, and at the broker: {order}"

    def _check_order(self, order: Order, executed: D) -> None:
        order_id, there = order.order_id, self.exchange.orders.get(order.client_order_id)
        was = self.owner.setdefault(order_id, (order.user, order.client_order_id))
        assert was == (order.user, order.client_order_id), f"9: {order} was {was}"
        assert order.filled_qty == executed, f"6: {order} has executions of {executed}"
        is_covered = order.qty is None or order.filled_qty <= order.qty
        assert is_covered or order.state is State.REFUSED, f"6: {order}"
        assert order.filled_qty >= self.filled.get(order_id, D(0)), f"6: less than before: {order}"
        self.filled[order_id] = order.filled_qty
        before = self.ends.get(order_id)
        if before is not None and order.state is not before:
            revived = before in _REVOCABLE and there is not None
            is_late_fill = order.state is State.FILLED and there is not None and there.filled == there.qty
            assert revived or is_late_fill, f"11: {order} was {before}"
        if not order.state.is_open:
            self.ends[order_id] = order.state
        if order.state is State.REJECTED and not order.replaces:
            is_known = there is not None and there.end is What.REJECTED
            assert is_known or order.client_order_id in self.exchange.rejected, f"14: nobody rejected {order}"

    def heal(self) -> None:
        """15: the faults stop, and soon everything is resolved, and the books and the broker agree."""
        self.exchange.network.heal()
        self.exchange.is_stuck = False
        self.now.ledger.fail_next = 0
        # Whether the ledger can be written again is known when something was.
        self._begin(self._allowing(self.now.desk.set_halt(ADMIN, "symbol", "NONE", False, "a probe")))
        waited_s = 0.0
        while (why := self._unresolved()) and waited_s < self._healed_s:
            self.pass_time(1.0)
            waited_s += 1.0
            self.check()
        assert not why, f"15: not resolved in {self._healed_s} s: {why}"
        self.pass_time(10.0)
        self.check()
        self._check_rest()

    def _unresolved(self) -> list[object]:
        book = self.now.book
        doubtful = [
            order
            for order in book.open_orders()
            if order.state not in (State.LIVE, State.WAITING) or order.cancel_requested
        ]
        return [*self.now.desk.problems(), *doubtful, *self._differences(), *self._ours]

    def _differences(self) -> list[object]:
        """Between the desk's orders and the exchange's, and 7: the sums of positions."""
        book, found = self.now.book, []
        for order in book.orders.values():
            there = self.exchange.orders.get(order.client_order_id)
            if order.state in (State.REFUSED, State.REJECTED, State.NOT_SENT, State.WAITING):
                if there is not None and there.end is not What.REJECTED:
                    found.append((order, there))
            elif there is None or there.end is not _ENDED.get(order.state) or there.filled != order.filled_qty:
                found.append((order, there))
        held = {symbol: self.exchange.position(symbol) for symbol in ("AAPL", "SPY")}
        if book.totals() != {Symbol(symbol): qty for symbol, qty in held.items() if qty}:
            found.append(("7: positions", book.totals(), held))
        return found

    def _check_rest(self) -> None:
        for there in self.exchange.orders.values():
            if there.user:
                order = self.now.book.by_client_order_id(there.client_order_id)
                assert order is not None and order.user == there.user, f"4: {there} has no intent"
                assert order.qty == there.qty or not there.is_open, f"{order} {there}"
        kept = [event for event in self.journal.read() if isinstance(event, HouseAdjusted) and not event.opening]
        assert not kept, f"what could be explained was given to the house: {kept}"
        again = Book()
        for seq, event in enumerate(self.journal.read(), start=1):
            again.fold(seq, event)
        assert (again.orders, again.accounts, again.positions) == (
            self.now.book.orders,
            self.now.book.accounts,
            self.now.book.positions,
        ), "8: the book made anew is another"
        for user, account in again.accounts.items():
            fills = [fill for fill in again.fills if fill.user == user]
            cash = sum((fill.side.sign * fill.qty * fill.price + fill.fee for fill in fills), D(0))
            assert account.cash == account.allotment - cash or user.startswith("$"), f"5: {account}"

    def end(self) -> None:
        """All is well, all orders are cancelled: nothing is held back, and every request has the answer it had."""
        try:
            self.heal()
            if self.halted:
                self.halt(halted=False)
            for (who, _), request in list(self.asked.items()):
                self.place(who, request)
            for who in USERS:
                self.cancel_all(who)
            self.pass_time(5.0)
            for who in USERS:
                self.cancel_all(who)
            self.heal()
            book = self.now.book
            assert not [order for order in book.open_orders() if order.state is not State.LIVE], book.open_orders()
            if not book.open_orders():
                assert not any(book.reserved_cash(who.user) for who in USERS)
        finally:
            self.close()

    def close(self) -> None:
        self._kill(self.now)
        self.loop.close()


async def _all(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """They have been cancelled: they end."""
    if tasks := set(tasks):
        _, stuck = await asyncio.wait(tasks, timeout=60.0)
        assert not stuck, f"cancelled, and still running: {stuck}"
