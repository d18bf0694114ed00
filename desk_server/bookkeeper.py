"""The one place where state changes: events made durable, folded into the book, published. Nothing else folds."""

import asyncio
from collections import Counter
from collections.abc import Sequence

import structlog

from desk_server.book import Book
from desk_server.brokers import BrokerEvent
from desk_server.clock import Clock
from desk_server.errors import Code, DeskError
from desk_server.events import AnyEvent, HouseExecuted, OrderIntended, ReplaceIntended
from desk_server.holds import Holds
from desk_server.ledger import DuplicateEvent, Ledger, LedgerUnavailable, Stored
from desk_server.registry import Registry
from desk_server.settle import event_of
from desk_server.updates import Update, UpdateLog

log = structlog.get_logger(__name__)

# Updates of one ledger event are numbered apart: an update's seq is the event's, times this, plus its place.
_UPDATES_PER_EVENT = 16
_BROKER_EVENTS_WAITING = 10_000
_BROKER_EVENTS_AT_ONCE = 500
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
        self._ledger = ledger
        self._said: asyncio.Queue[BrokerEvent] = asyncio.Queue(_BROKER_EVENTS_WAITING)
        self._task: asyncio.Task[None] | None = None

    def load(self) -> None:
        """Fold the whole ledger: everything the desk ever knew. Call once, before `start`."""
        self._ledger.open(self._committed)
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
                await asyncio.wait_for(self._said.join(), 0 if self.failure else _LAST_WRITES_S)
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
        try:
            await self.record_stubbornly(*self._events_of(said))
        except DuplicateEvent:
            for one in said:
                await self._record_once(one)
        for _ in said:
            self._said.task_done()

    def _events_of(self, said: Sequence[BrokerEvent]) -> list[AnyEvent]:
        events = [
            event_of(
                one, self.book.by_client_order_id(one.client_order_id), self.book.by_client_order_id(one.replaced_by)
            )
            for one in said
        ]
        for event in events:
            if isinstance(event, HouseExecuted):
                log.error("execution of an order that is nobody's: booked to the house", **_words(event))
        return [event for event in events if event is not None]

    async def _record_once(self, said: BrokerEvent) -> None:
        try:
            await self.record_stubbornly(*self._events_of([said]))
        except DuplicateEvent:
            log.info("the broker repeated an execution", execution_id=said.execution_id)

    def fenced(self) -> str:
        """Why this process may not send anything now (another may have the ledger); "" when it may."""
        return self._ledger.fenced()

    def append(self, event: AnyEvent) -> asyncio.Future[int]:
        """`record` without waiting: for who tries again, with `record_stubbornly`, where the future says no."""
        return self._ledger.append(event)

    async def record(self, *events: AnyEvent) -> None:
        """Durable and folded when it returns. Raises DeskError LEDGER (nothing was stored) or DuplicateEvent."""
        try:
            await self._ledger.append(*events)
        except LedgerUnavailable as error:
            self.problem = f"the ledger cannot be written: {error}"
            raise DeskError(
                Code.LEDGER,
                "the desk cannot write its ledger, nothing was stored or sent: try again with the same request id",
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
        if type(event) is OrderIntended or type(event) is ReplaceIntended:
            self.holds.drop(event.order.order_id)
            self.registry.count(event.order.deployment_id, orders=1)
        self.registry.fold(event)
        seq = stored.seq * _UPDATES_PER_EVENT
        for change in self.book.fold(stored.seq, event):
            if change.fill is not None:
                self.registry.count(change.order.deployment_id, fills=1)
            self.changes[change.word] += 1
            self.updates.publish(Update(seq, change.word, event.at, change.order, change.fill))
            seq += 1


def _words(event: HouseExecuted) -> dict[str, str]:
    return {name: str(getattr(event, name)) for name in ("symbol", "side", "qty", "price", "execution_id")}
