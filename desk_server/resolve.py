"""What became of orders that the broker did not answer, and of cancels that it did not carry out: asked, never guessed.

    UNKNOWN     found → LIVE, or its end where the quantities agree
                missing, still wanted, soon enough after the intent → sent again under the same client_order_id
                missing otherwise → QUARANTINE
    QUARANTINE  found → LIVE, cancelled, with an alarm
                missing for the broker's whole lag, and not in its list → NOT_SENT
    cancelling  refused, or granted and not carried out → asked again until the order is over

A lookup that fails proves nothing, and neither does one 404: a request may still be travelling. Sending the same
id again is safe because the broker takes it at most once, even after a cancel. A replacement is not sent again:
what it was to replace may have changed meanwhile.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from desk_server.book import Book
from desk_server.bookkeeper import Bookkeeper
from desk_server.brokers import (
    Ack,
    Broker,
    BrokerHasIt,
    BrokerOrder,
    BrokerRecords,
    BrokerRejected,
    BrokerThrottled,
    BrokerUnknown,
    What,
)
from desk_server.clock import Clock
from desk_server.domain import OPEN_STATES, Order, OrderId, State
from desk_server.drafts import not_sent_reason
from desk_server.events import (
    AnyEvent,
    CancelRequested,
    OrderAccepted,
    OrderEnded,
    OrderNotSent,
    OrderQuarantined,
    OrderRejected,
    OrderReplaced,
    ReplaceRejected,
)

log = structlog.get_logger(__name__)

AT_ONCE_MAX = 8
_FIRST_WAIT_S = 0.05
_LONGEST_WAIT_S = 5.0
# A cancel that the broker has granted is looked after when it has not been carried out for this long; then twice …
_STUCK_S = 3.0
_LONGEST_STUCK_S = 15.0
_WATCH_EVERY_S = 1.0
# The broker's clock and the desk's may differ by this much where its list is asked from the order's time on.
_CLOCKS_DIFFER = timedelta(minutes=15)
_IN_DOUBT = frozenset({State.UNKNOWN, State.QUARANTINE})
_WORKING = frozenset({"new", "accepted", "pending_new", "held"})
_ENDS = {What.CANCELED: State.CANCELED, What.EXPIRED: State.EXPIRED}


class Sender(Protocol):
    """The part of the desk that the resolver works with: see desk.py."""

    book: Book
    broker: Broker
    clock: Clock
    keeper: Bookkeeper

    def shown(self, order: Order) -> Order: ...

    def stopped(self, order: Order) -> str: ...

    def soon(self) -> None:
        """Let the books be compared with the broker: it knows of executions that the desk does not."""

    def accept(self, order: Order, ack: Ack) -> Order: ...

    async def send_kept(self, order: Order) -> Order: ...

    async def cancel_at_broker(self, order: Order) -> None: ...


class _Case:
    """What is remembered of an order while it is cleared up; a crash may lose it."""

    def __init__(self, now_s: float) -> None:
        self.taken_s = now_s
        self.wait_s = _FIRST_WAIT_S
        # Since when every lookup has said that there is nothing (monotonic); None where the last one failed.
        self.missing_since_s: float | None = None
        # What the broker said when the order was sent again, while the first request may still be under way.
        self.rejected: BrokerRejected | None = None
        # Whether a cancel has been asked for, and when (monotonic) to look after it.
        self.was_asked = False
        self.stuck_s = _STUCK_S
        self.look_at_s = 0.0
        # Whether a cancel is due, of the order or of what takes its place.
        self.wants_cancel = False


class Resolver:
    """One task for each order in doubt, until it is not; at most AT_ONCE_MAX of them talk to the broker."""

    def __init__(self, desk: Sender, records: BrokerRecords | None = None) -> None:
        self._desk = desk
        self._records = records
        self._tasks: dict[OrderId, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(AT_ONCE_MAX)
        # The broker's request limit: nothing is asked before (monotonic).
        self._paused_until_s = 0.0
        # Orders that the broker did not look at: proven not to be there.
        self._unsent: set[OrderId] = set()
        # Cancels that were granted: looked after until the order is over.
        self._granted: dict[OrderId, _Case] = {}
        self._watcher: asyncio.Task[None] | None = None
        self._listing = asyncio.Lock()
        self._listed: tuple[float, datetime, frozenset[str]] | None = None
        self._is_closed = False

    def take(self, order_id: OrderId) -> None:
        """Clear this order up, and carry out a cancel that is due. Taking it twice is the same as once."""
        self._take(order_id, self._granted.pop(order_id, None))

    def send_later(self, order_id: OrderId, after_s: float) -> None:
        """The broker refused to look at it: send it when it may be sent. It is SENDING until then."""
        self._pause(after_s)
        self._unsent.add(order_id)
        self.take(order_id)

    def cancel_heir(self, order: Order) -> None:
        """It was replaced before it could be cancelled: nobody wants what took its place either."""
        case = _Case(self._desk.clock.monotonic_s())
        case.wants_cancel = True
        self._take(OrderId(order.replaced_by), case)

    def look_after(self, order_id: OrderId) -> None:
        """The broker has granted a cancel: see to it that it is carried out."""
        if order_id not in self._tasks:
            self._watch(order_id, _Case(self._desk.clock.monotonic_s()))

    async def close(self) -> None:
        """Leave what is in doubt to the next start."""
        self._is_closed = True
        tasks = [*self._tasks.values(), *((self._watcher,) if self._watcher else ())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- one order ----

    def _take(self, order_id: OrderId, case: _Case | None = None) -> None:
        if order_id in self._tasks or self._is_closed:
            return
        case = case or _Case(self._desk.clock.monotonic_s())
        case.wants_cancel = case.wants_cancel or self._order(order_id).cancel_requested
        self._tasks[order_id] = asyncio.create_task(self._until_known(order_id, case), name=f"resolve {order_id}")

    async def _until_known(self, order_id: OrderId, case: _Case) -> None:
        try:
            while not await self._try(order_id, case):
                await asyncio.sleep(case.wait_s)
                case.wait_s = min(case.wait_s * 2, _LONGEST_WAIT_S)
        finally:
            del self._tasks[order_id]

    async def _try(self, order_id: OrderId, case: _Case) -> bool:
        """One look, when there is a slot and the broker may be asked. False: look again later."""
        async with self._slots:
            await asyncio.sleep(self._paused_until_s - self._desk.clock.monotonic_s())
            try:
                return await self._look(self._order(order_id), case)
            except BrokerThrottled as limit:
                self._pause(limit.retry_after_s)
            except BrokerUnknown as silence:
                log.warning("still unknown", order_id=order_id, reason=str(silence), next_try_s=case.wait_s)
            except Exception:
                log.exception("looking an order up failed: it is tried again", order_id=order_id)
            return False

    async def _look(self, order: Order, case: _Case) -> bool:
        self._require_lease()
        if order.state is State.SENDING:
            if order.order_id not in self._unsent:
                return True  # who sends it will see to it
            await self._send_unsent(order)
        elif order.state in _IN_DOUBT:
            await self._look_up(order, case)
        order = self._order(order.order_id)
        if order.state in _IN_DOUBT or order.order_id in self._unsent:
            return False
        for leg in self._desk.book.legs(order):
            if leg.cancel_requested:
                self._take(leg.order_id)
        if case.wants_cancel and order.state is State.REPLACED:
            self.cancel_heir(order)
        elif case.wants_cancel and order.state.is_open and not order.cancel_requested:
            await self._record(CancelRequested(at=self._desk.clock.now(), order_id=order.order_id, by="desk"))
            order = self._order(order.order_id)
        if order.cancel_requested and order.state in (State.LIVE, State.HELD):
            return await self._cancel(order, case)
        return True

    def _order(self, order_id: OrderId) -> Order:
        return self._desk.shown(self._desk.book.orders[order_id])

    def _pause(self, after_s: float) -> None:
        self._paused_until_s = max(self._paused_until_s, self._desk.clock.monotonic_s() + after_s)

    def _require_lease(self) -> None:
        """Raises BrokerUnknown while another server may be at work with this ledger."""
        if fenced := self._desk.keeper.fenced():
            raise BrokerUnknown(fenced)

    async def _record(self, *events: AnyEvent) -> None:
        await self._desk.keeper.record_stubbornly(*events)

    async def _record_while(
        self, order: Order, states: frozenset[State], make: Callable[[Order], Sequence[AnyEvent]]
    ) -> None:
        """Nothing the broker says is booked between the look at the order's state and the record."""

        def events() -> Sequence[AnyEvent]:
            now = self._order(order.order_id)
            return make(now) if now.state in states else ()

        await self._desk.keeper.record_checked(events)

    # ---- not sent: the broker's request limit ----

    async def _send_unsent(self, order: Order) -> None:
        self._unsent.discard(order.order_id)
        if order.cancel_requested:
            why = not_sent_reason(order, "")
        elif self._age_s(order) > self._desk.broker.capabilities.resend_s:
            why = "the broker's request limit kept it back for too long"
        else:
            await self._desk.send_kept(order)
            return
        await self._record(self._never_there(order, why))

    # ---- in doubt ----

    async def _look_up(self, order: Order, case: _Case) -> None:
        desk = self._desk
        try:
            found = await desk.broker.find(order)
        except BrokerUnknown:
            case.missing_since_s = None
            raise
        order, now_s = self._order(order.order_id), desk.clock.monotonic_s()
        if order.state not in _IN_DOUBT:
            return
        if found is not None:
            await self._found(order, found, case)
            return
        if case.missing_since_s is None:
            case.missing_since_s = now_s
        if self._may_go_again(order, case):
            await self._send_again(order, case)
        elif now_s - case.missing_since_s >= desk.broker.capabilities.lookup_lag_s:
            await self._give_up(order, case)
        elif order.state is State.UNKNOWN:
            reason = self._why_not_again(order, case)
            log.warning("order in quarantine: not at the broker, not sent again", **_words(order), reason=reason)
            await self._record(OrderQuarantined(at=desk.clock.now(), order_id=order.order_id, reason=reason))

    def _may_go_again(self, order: Order, case: _Case) -> bool:
        is_wanted = not (order.replaces or order.cancel_requested or case.rejected or self._desk.stopped(order))
        return order.state is State.UNKNOWN and is_wanted and not self._is_late(order, case)

    def _is_late(self, order: Order, case: _Case) -> bool:
        """By both clocks: the time of day may have been set meanwhile."""
        age_s = max(self._age_s(order), self._desk.clock.monotonic_s() - case.taken_s)
        return age_s > self._desk.broker.capabilities.resend_s

    def _age_s(self, order: Order) -> float:
        return (self._desk.clock.now() - (order.due_at or order.created_at)).total_seconds()

    async def _send_again(self, order: Order, case: _Case) -> None:
        desk = self._desk
        self._require_lease()
        case.missing_since_s = None
        try:
            ack = await desk.broker.submit(order, desk.book.legs(order))
        except BrokerHasIt:
            return  # the next lookup finds it
        except BrokerRejected as no:
            case.rejected = no
            return
        desk.accept(order, ack)

    def _why_not_again(self, order: Order, case: _Case) -> str:
        if case.rejected is not None:
            return f"the broker rejected it when it was sent again: {case.rejected.message}"
        if order.replaces:
            return "the broker does not have the replacement"
        return not_sent_reason(order, self._desk.stopped(order))

    async def _give_up(self, order: Order, case: _Case) -> None:
        """It has been missing for so long that it can no longer be under way."""
        if await self._is_listed(order, case):
            log.error("the broker lists an order that it does not find", **_words(order))
            return
        await self._record_while(
            order, _IN_DOUBT, lambda now: [self._never_there(now, self._why_not_again(now, case), case.rejected)]
        )

    def _never_there(self, order: Order, why: str, rejected: BrokerRejected | None = None) -> AnyEvent:
        now = self._desk.clock.now()
        if order.replaces:
            message = f"{why}; the old order stands"
            old_id = OrderId(order.replaces)
            return ReplaceRejected(
                at=now, order_id=old_id, new_order_id=order.order_id, code="NOT_SENT", message=message
            )
        if rejected is not None:
            return OrderRejected(at=now, order_id=order.order_id, code=rejected.code, message=rejected.message)
        return OrderNotSent(at=now, order_id=order.order_id, reason=why)

    async def _is_listed(self, order: Order, case: _Case) -> bool:
        """One list answers for all orders in doubt: it must be younger than the end of this one's lag."""
        if self._records is None:
            return False
        desk = self._desk
        provable_s = (case.missing_since_s or 0.0) + desk.broker.capabilities.lookup_lag_s
        async with self._listing:
            if self._listed is None or self._listed[0] < provable_s or self._listed[1] > order.created_at:
                asked_s = desk.clock.monotonic_s()
                oldest = min(one.created_at for one in (order, *desk.book.open_orders()) if one.state in _IN_DOUBT)
                listed = await self._records.orders(oldest - _CLOCKS_DIFFER)
                self._listed = (asked_s, oldest, frozenset(one.client_order_id for one in listed))
            return order.client_order_id in self._listed[2]

    async def _found(self, order: Order, found: BrokerOrder, case: _Case) -> None:
        if found.symbol != order.request.symbol or found.side is not order.request.side:
            log.critical("the broker has another order under this one's name", **_words(order), found=str(found)[:300])
            raise BrokerUnknown("the broker answers with another order")
        if order.state is State.QUARANTINE:
            log.error("an order in quarantine is at the broker after all", **_words(order), status=found.status)
        await self._record_while(order, _IN_DOUBT, lambda now: self._proved(now, found, case))
        now = self._order(order.order_id)
        if now.filled_qty != found.filled_qty or (now.state.is_open and not found.is_open):
            self._desk.soon()

    def _proved(self, order: Order, found: BrokerOrder, case: _Case) -> list[AnyEvent]:
        now = self._desk.clock.now()
        end = _end(order, found, now)
        if isinstance(end, OrderRejected):
            return [end]
        events: list[AnyEvent] = [_lives(order, found, now)]
        is_unwanted = order.state is State.QUARANTINE and self._is_unwanted(order, case)
        if is_unwanted and found.is_open and not order.cancel_requested:
            events.append(CancelRequested(at=now, order_id=order.order_id, by="desk"))
        return [*events, end] if end is not None else events

    def _is_unwanted(self, order: Order, case: _Case) -> bool:
        """Nobody waits for what was given up; a replacement was only not found at once."""
        return not order.replaces or self._is_late(order, case) or bool(self._desk.stopped(order))

    # ---- cancelling ----

    async def _cancel(self, order: Order, case: _Case) -> bool:
        """Ask; before asking again, look whether it is over. True when the broker has granted it."""
        if case.was_asked and await self._is_over(order):
            return not self._order(order.order_id).state.is_open
        case.was_asked = True
        try:
            await self._desk.cancel_at_broker(order)
        except BrokerRejected as no:
            log.warning("cancel refused: asked again until the order is over", **_words(order), reason=str(no))
            return False
        self._watch(order.order_id, case)
        return True

    async def _is_over(self, order: Order) -> bool:
        """What the broker says of an order that it did not cancel. Its end is booked where the quantities agree,
        else its executions come first."""
        desk = self._desk
        found = await desk.broker.find(order)
        order = self._order(order.order_id)
        if not order.state.is_open:
            return True
        if found is None:
            log.error("the broker no longer finds an order that it had", **_words(order))
            desk.soon()
            return True
        if found.is_open:
            return False
        end = _end(order, found, desk.clock.now())
        if end is None:
            desk.soon()
        else:
            await self._record_while(order, OPEN_STATES, lambda now: [end] if _agree(now, found) else [])
        return True

    def _watch(self, order_id: OrderId, case: _Case) -> None:
        case.was_asked = case.wants_cancel = True
        case.look_at_s = self._desk.clock.monotonic_s() + case.stuck_s
        case.stuck_s = min(case.stuck_s * 2, _LONGEST_STUCK_S)
        self._granted[order_id] = case
        if self._watcher is None and not self._is_closed:
            self._watcher = asyncio.create_task(self._watch_granted(), name="look after cancels")

    async def _watch_granted(self) -> None:
        try:
            while self._granted:
                await asyncio.sleep(_WATCH_EVERY_S)
                now_s = self._desk.clock.monotonic_s()
                for order_id, case in list(self._granted.items()):
                    self._look_at_granted(order_id, case, now_s)
        finally:
            self._watcher = None

    def _look_at_granted(self, order_id: OrderId, case: _Case, now_s: float) -> None:
        order = self._order(order_id)
        if order.state.is_open and now_s < case.look_at_s:
            return
        del self._granted[order_id]
        if order.state is State.REPLACED:
            self.cancel_heir(order)
        elif order.state.is_open:
            log.warning("cancel granted, not carried out: asking again", **_words(order))
            case.wait_s = _FIRST_WAIT_S
            self._take(order_id, case)


def _lives(order: Order, found: BrokerOrder, now: datetime) -> AnyEvent:
    if order.replaces:
        return OrderReplaced(
            at=now,
            order_id=OrderId(order.replaces),
            new_order_id=order.order_id,
            broker_order_id=found.broker_order_id,
            qty=found.qty,
            status=working(found.status),
        )
    return OrderAccepted(
        at=now,
        order_id=order.order_id,
        broker_order_id=found.broker_order_id,
        status=working(found.status),
        leg_broker_ids=tuple(leg.broker_order_id for leg in found.legs),
    )


def _end(order: Order, found: BrokerOrder, now: datetime) -> OrderEnded | OrderRejected | None:
    """The order's end as the broker's record tells it; None while executions are missing, or it is none."""
    if found.end is None or not _agree(order, found):
        return None
    if found.end is What.REJECTED and not found.filled_qty and not order.replaces:
        return OrderRejected(at=now, order_id=order.order_id, code="rejected", message=found.message or "no reason")
    state = _ENDS.get(found.end)
    return None if state is None else OrderEnded(at=now, order_id=order.order_id, state=state, reason=found.message)


def _agree(order: Order, found: BrokerOrder) -> bool:
    return found.filled_qty == order.filled_qty


def working(status: str) -> str:
    """The broker's word for an order that it has taken. Fills and ends have events of their own, which count: a
    broker may be further than what the desk has booked."""
    return status if status in _WORKING else "new"


def _words(order: Order) -> dict[str, str]:
    return {"order_id": order.order_id, "client_order_id": order.client_order_id, "user": order.user}
