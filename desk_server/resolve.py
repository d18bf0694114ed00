"""What became of orders that the broker did not answer: asked, never guessed.

An UNKNOWN order is looked up under its client_order_id. Found: it is accepted. Not there: it is sent again
under the same id, which the broker takes at most once; or, where it must not be (a replacement, a cancel, a
halt), it is given up when it can no longer be under way. A lookup that fails proves nothing and is repeated.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Protocol

import structlog

from desk_server.book import Book
from desk_server.bookkeeper import Bookkeeper
from desk_server.brokers import Broker, BrokerOrder, BrokerThrottled, BrokerUnknown
from desk_server.clock import Clock
from desk_server.domain import Order, OrderId, State
from desk_server.errors import DeskError
from desk_server.events import AnyEvent, OrderAccepted, OrderNotSent, OrderReplaced, ReplaceRejected

log = structlog.get_logger(__name__)

_FIRST_WAIT_S = 0.05
_LONGEST_WAIT_S = 5.0
_WORKING = frozenset({"new", "accepted", "pending_new", "held"})


class Sender(Protocol):
    """The part of the desk that the resolver works with: see desk.py."""

    book: Book
    broker: Broker
    clock: Clock
    keeper: Bookkeeper

    def shown(self, order: Order) -> Order: ...

    def stopped(self, order: Order) -> str: ...

    async def send(self, order: Order, legs: Sequence[Order] = ()) -> Order: ...

    async def cancel_at_broker(self, order: Order) -> None: ...


class Resolver:
    """One task for each order in doubt, until it is not."""

    def __init__(self, desk: Sender) -> None:
        self._desk = desk
        self._tasks: dict[OrderId, asyncio.Task[None]] = {}
        self._is_closed = False

    def take(self, order_id: OrderId) -> None:
        """Clear this order up, and carry out a cancel that is due. Taking it twice is the same as once."""
        if order_id not in self._tasks and not self._is_closed:
            self._tasks[order_id] = asyncio.create_task(self._until_known(order_id), name=f"resolve {order_id}")

    async def close(self) -> None:
        """Leave what is in doubt to the next start."""
        self._is_closed = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _until_known(self, order_id: OrderId) -> None:
        wait_s, sent_s = _FIRST_WAIT_S, self._desk.clock.monotonic_s()
        try:
            while True:
                try:
                    if self._order(order_id).state is State.UNKNOWN:
                        sent_s = await self._ask(self._order(order_id), sent_s)
                    if self._order(order_id).state is not State.UNKNOWN:
                        return await self._cancel_if_asked(self._order(order_id))
                except (BrokerUnknown, BrokerThrottled) as silence:
                    log.warning("still unknown", order_id=order_id, reason=str(silence), next_try_s=wait_s)
                except Exception:
                    log.exception("looking an order up failed: it is tried again", order_id=order_id)
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, _LONGEST_WAIT_S)
        finally:
            del self._tasks[order_id]

    def _order(self, order_id: OrderId) -> Order:
        return self._desk.shown(self._desk.book.orders[order_id])

    async def _cancel_if_asked(self, order: Order) -> None:
        for leg in self._desk.book.legs(order):
            if leg.cancel_requested:
                self.take(leg.order_id)
        if order.cancel_requested and order.state in (State.LIVE, State.HELD):
            with contextlib.suppress(DeskError):
                await self._desk.cancel_at_broker(order)

    async def _ask(self, order: Order, sent_s: float) -> float:
        """Look it up, and act on that. `sent_s` is when it was sent last, and so is the answer (monotonic)."""
        desk = self._desk
        found = await desk.broker.find(order)
        order = desk.book.orders[order.order_id]
        now_s = desk.clock.monotonic_s()
        if order.state is not State.UNKNOWN:
            return sent_s
        if found is None and not (order.replaces or order.cancel_requested or desk.stopped(order)):
            await desk.send(order, desk.book.legs(order))
            return now_s
        if found is not None or now_s - sent_s >= desk.broker.capabilities.lookup_lag_s:
            await desk.keeper.record_stubbornly(self._verdict(order, found))
        return sent_s

    def _verdict(self, order: Order, found: BrokerOrder | None) -> AnyEvent:
        now = self._desk.clock.now()
        if found is None and order.replaces:
            return ReplaceRejected(
                at=now,
                order_id=OrderId(order.replaces),
                new_order_id=order.order_id,
                code="NOT_SENT",
                message="the broker never got the replacement; the old order stands",
            )
        if found is None:
            stopped = self._desk.stopped(order)
            reason = "canceled before the broker had it" if order.cancel_requested else f"trading was halted: {stopped}"
            return OrderNotSent(at=now, order_id=order.order_id, reason=reason)
        if order.replaces:
            return OrderReplaced(
                at=now,
                order_id=OrderId(order.replaces),
                new_order_id=order.order_id,
                broker_order_id=found.broker_order_id,
                qty=found.qty,
                status=_working_status(found),
            )
        return OrderAccepted(
            at=now,
            order_id=order.order_id,
            broker_order_id=found.broker_order_id,
            status=_working_status(found),
            leg_broker_ids=tuple(leg.broker_order_id for leg in found.legs),
        )


def _working_status(found: BrokerOrder) -> str:
    """Fills and ends have events of their own, which count."""
    return found.status if found.status in _WORKING else "new"
