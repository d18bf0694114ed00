"""The one place where state changes: events made durable, folded into the book, published. Nothing else folds."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime

import structlog

from desk_server.book import Book
from desk_server.brokers import BrokerEvent, What
from desk_server.clock import Clock
from desk_server.domain import Order, OrderId, State
from desk_server.errors import Code, DeskError
from desk_server.events import (
    AnyEvent,
    Executed,
    HouseExecuted,
    OrderAccepted,
    OrderIntended,
    OrderReleased,
    ReplaceIntended,
)
from desk_server.holds import Holds
from desk_server.ledger import DuplicateEvent, Ledger, LedgerUnavailable, OutcomeUnknown, Stored
from desk_server.registry import Registry
from desk_server.settle import Booked, Unsettled, event_of
from desk_server.updates import Update, UpdateLog

log = structlog.get_logger(__name__)

# Updates of one ledger event are numbered apart: an update's seq is the event's, times this, plus its place.
_UPDATES_PER_EVENT = 16
_BROKER_EVENTS_WAITING = 10_000
_BROKER_EVENTS_AT_ONCE = 500
_GIVEN_UP = frozenset({State.REJECTED, State.NOT_SENT})
# How long the last of them may take to be written when the desk closes.
_LAST_WRITES_S = 5.0


class Bookkeeper:
    """Keeps the book, the registry, the holds and the update log in step with the ledger."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self.book = Book()
        self.updates = UpdateLog()
        # How often each thing happened to an order, since the ledger began.
        self.changes: Counter[str] = Counter()
        self.holds = Holds()
        self.registry = Registry(self.record, clock)
        # Why the ledger could not be written the last time; "" when it could.
        self.problem = ""
        # Why what the broker says is no longer written down, for which only a restart helps; "" when it is.
        self.failure = ""
        # Told what cannot be settled without the broker's records (reconcile.py). Without it, as for a broker that
        # has none, executions of orders that nobody here placed are the house's at once.
        self.on_doubt: Callable[[Unsettled], None] | None = None
        # When the first event was, and the newest.
        self.first_at: datetime | None = None
        self.last_at: datetime | None = None
        self._ledger = ledger
        self._settling = asyncio.Lock()
        self._said: asyncio.Queue[BrokerEvent] = asyncio.Queue(_BROKER_EVENTS_WAITING)
        self._task: asyncio.Task[None] | None = None

    def load(self, on_lost: Callable[[str], None] = log.critical) -> None:
        """Fold the whole ledger: everything the desk ever knew. Call once, before `start`.

        `on_lost` is called when the ledger has become another desk's: this one must end.
        """
        self._ledger.open(self._committed, on_lost)
        for stored in self._ledger.read():
            self._fold(stored)
        log.info("ledger read", orders=len(self.book.orders))

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep_book(), name="bookkeeper")

    async def close(self) -> None:
        """Write down what the broker has said (what cannot be in time, it will be asked for again), end the
        update streams, let go of the ledger."""
        if self._task:
            try:
                is_hopeless = self.failure or self.fenced()
                await asyncio.wait_for(self._said.join(), 0 if is_hopeless else _LAST_WRITES_S)
            except TimeoutError:
                log.error("closed before all that the broker said was written down", events=self._said.qsize())
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.updates.close()
        await self._ledger.close()

    async def on_broker_event(self, said: BrokerEvent) -> None:
        """Take note; returns at once unless too much is waiting to be written down."""
        await self._said.put(said)

    async def _keep_book(self) -> None:
        """Write down what the broker says, until it cannot be: then the desk must not trade any more."""
        try:
            while True:
                await self._write_what_was_said()
        except Exception:
            log.critical("what the broker says can no longer be written down", exc_info=True)
            self.failure = "what the broker says is no longer written down: see the log, then restart the desk"

    async def _write_what_was_said(self) -> None:
        """In the broker's order, many events to a commit, each exactly once."""
        said = [await self._said.get()]
        while len(said) < _BROKER_EVENTS_AT_ONCE and not self._said.empty():
            said.append(self._said.get_nowait())
        await self.settle(said)
        for _ in said:
            self._said.task_done()

    async def settle(self, said: Sequence[BrokerEvent]) -> None:
        """Write down what is new in this, exactly once, whoever says it and how often; done when it returns."""
        async with self._settling:
            batch: list[BrokerEvent] = []
            for one in said:
                # What is taken back must have been folded.
                if one.what is What.BUSTED:
                    await self._settle(batch)
                    await self._settle([one])
                    batch = []
                else:
                    batch.append(one)
                if len(batch) == _BROKER_EVENTS_AT_ONCE:
                    await self._settle(batch)
                    batch = []
            await self._settle(batch)

    async def record_checked(self, make: Callable[[], Sequence[AnyEvent]]) -> None:
        """Record what `make` finds in the book, while nothing the broker says is being settled. Very many events
        (a recovery) are several commits."""
        async with self._settling:
            events = make()
            for start in range(0, len(events), _BROKER_EVENTS_AT_ONCE):
                await self.record_stubbornly(*events[start : start + _BROKER_EVENTS_AT_ONCE])

    async def _settle(self, said: Sequence[BrokerEvent]) -> None:
        doubts: list[Unsettled] = []
        try:
            await self.record_stubbornly(*self._events_of(said, doubts))
        except DuplicateEvent:
            doubts = []
            for one in said:
                await self._record_once(one, doubts)
        for doubt in doubts:
            if self.on_doubt is not None:
                self.on_doubt(doubt)
            else:
                log.error("what the broker said cannot be booked", reason=doubt.reason, said=str(doubt.said))

    def _events_of(self, said: Sequence[BrokerEvent], doubts: list[Unsettled]) -> list[AnyEvent]:
        """What is new. What cannot be booked goes to `doubts`."""
        events: list[AnyEvent] = []
        # Executions of this batch: the book does not have them yet.
        pending: dict[str, list[Booked]] = {}
        for one in said:
            order = self._order_of(one)
            if order is None and self.on_doubt is not None and not self.book.is_foreign(one.broker_order_id):
                doubts.append(Unsettled(one, "no order of this desk is known under these names"))
                continue
            key = one.broker_order_id if order is None else order.order_id
            booked = self._booked(one, order, pending.get(key, []))
            event = event_of(one, order, self._replacement(one, order), booked)
            if isinstance(event, Unsettled):
                doubts.append(event)
            elif event is not None:
                events.append(event)
                if isinstance(event, Executed | HouseExecuted):
                    pending.setdefault(key, []).append(event)
                _tell_alarms(event, order)
        return events

    def _order_of(self, said: BrokerEvent) -> Order | None:
        """By the desk's own name, else (a leg, which the broker names as it likes) by the broker's."""
        return self.book.by_client_order_id(said.client_order_id) or self.book.by_broker_order_id(said.broker_order_id)

    def _replacement(self, said: BrokerEvent, order: Order | None) -> Order | None:
        if said.what is not What.REPLACED and said.what is not What.REPLACE_REJECTED:
            return None
        named = self.book.by_client_order_id(said.replaced_by) or self.book.by_broker_order_id(said.new_broker_order_id)
        if named is not None or said.replaced_by or order is None:
            return named
        return self.book.order(self.book.replacing.get(order.order_id, OrderId("")))

    def _booked(self, said: BrokerEvent, order: Order | None, pending: list[Booked]) -> list[Booked]:
        """The order's executions, where they are needed to tell whether this is news."""
        if said.filled_qty is None and not said.broker_execution_id:
            return pending
        book = self.book
        folded = (
            book.executions_of_foreign(said.broker_order_id) if order is None else book.executions_of(order.order_id)
        )
        return [*folded, *pending]

    async def _record_once(self, said: BrokerEvent, doubts: list[Unsettled]) -> None:
        try:
            await self.record_stubbornly(*self._events_of([said], doubts))
        except DuplicateEvent:
            log.info("the broker repeated an execution", execution_id=said.execution_id)

    def fenced(self) -> str:
        """Why this process may not send anything now (another may have the ledger); "" when it may."""
        return self._ledger.fenced()

    def append(self, *events: AnyEvent) -> asyncio.Future[int]:
        """`record` without waiting: for who tries again, with `record_stubbornly`, where the future says no."""
        return self._ledger.append(*events)

    async def record(self, *events: AnyEvent) -> None:
        """Durable and folded when it returns. Raises DeskError LEDGER (nothing was stored, or, where the desk is
        stopping, nobody knows yet) or DuplicateEvent."""
        try:
            await self._ledger.append(*events)
        except LedgerUnavailable as error:
            self.problem = f"the ledger cannot be written: {error}"
            is_lost = isinstance(error, OutcomeUnknown)
            stored = "whether this was stored is not known yet" if is_lost else "nothing was stored"
            raise DeskError(
                Code.LEDGER,
                f"the desk cannot write its ledger, {stored}, nothing was sent: try again with the same request id",
                retry_after_s=1,
            ) from error
        self.problem = ""

    async def record_stubbornly(self, *events: AnyEvent) -> None:
        """For what has already happened at the broker: try until the ledger takes it. Raises DuplicateEvent."""
        if not events:
            return
        wait_s = 0.05
        while True:
            try:
                return await self.record(*events)
            except DeskError as error:
                log.error("what the broker said is not written down yet", error=str(error), events=len(events))
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, 2.0)

    def _committed(self, stored: Sequence[Stored]) -> None:
        """The one place where state changes: fold what is durable, then publish it."""
        for one in stored:
            self._fold(one)

    def _fold(self, stored: Stored) -> None:
        event = stored.event
        if self.last_at is None or event.at > self.last_at:
            self.first_at = self.first_at or event.at
            self.last_at = event.at
        if type(event) is OrderIntended or type(event) is ReplaceIntended:
            self.holds.drop(event.order.order_id)
            if event.order.deployment_id:
                self.registry.count(event.order.deployment_id, orders=1)
        self.registry.fold(event)
        seq = stored.seq * _UPDATES_PER_EVENT
        for change in self.book.fold(stored.seq, event):
            if change.fill is not None:
                self.registry.count(change.order.deployment_id, fills=1)
            self.changes[change.word] += 1
            self.updates.publish(Update(seq, change.word, event.at, change.order, change.fill))
            seq += 1


def _tell_alarms(event: AnyEvent, order: Order | None) -> None:
    if isinstance(event, HouseExecuted):
        log.error("execution of an order that is nobody's: booked to the house", **_words(event))
    elif order is not None and order.state in _GIVEN_UP and isinstance(event, OrderAccepted | OrderReleased | Executed):
        log.error(
            "the broker has an order that was given up: it lives",
            order_id=order.order_id,
            user=order.user,
            state=order.state,
            message=order.message,
        )


def _words(event: HouseExecuted) -> dict[str, str]:
    return {name: str(getattr(event, name)) for name in ("symbol", "side", "qty", "price", "execution_id")}
