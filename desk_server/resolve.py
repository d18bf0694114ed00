"""What became of orders that the broker did not answer: asked, never guessed.

An UNKNOWN order is looked up under its client_order_id. Found: it is accepted. Not there: it is sent again
under the same id, which the broker takes at most once. A lookup that fails proves nothing and is repeated.
"""

import asyncio
import contextlib
from typing import TYPE_CHECKING

import structlog

from desk_server.brokers import BrokerOrder, BrokerRejected, BrokerThrottled, BrokerUnknown
from desk_server.domain import Order, OrderId, State
from desk_server.events import AnyEvent, OrderAccepted, OrderNotSent, OrderReplaced, ReplaceRejected

if TYPE_CHECKING:
    from desk_server.desk import Desk

log = structlog.get_logger(__name__)

_FIRST_WAIT_S = 0.05
_LONGEST_WAIT_S = 5.0


class Resolver:
    """One task for each order in doubt, until it is not."""

    def __init__(self, desk: "Desk") -> None:
        self._desk = desk
        self._tasks: dict[OrderId, asyncio.Task[None]] = {}

    def take(self, order_id: OrderId) -> None:
        """Clear this order up. Taking it twice is the same as once."""
        if order_id not in self._tasks:
            task = asyncio.create_task(self._until_known(order_id), name=f"resolve {order_id}")
            self._tasks[order_id] = task
            task.add_done_callback(lambda _: self._tasks.pop(order_id, None))

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _until_known(self, order_id: OrderId) -> None:
        wait_s = _FIRST_WAIT_S
        while (order := self._desk.book.orders[order_id]).state is State.UNKNOWN:
            try:
                await self._ask(order)
            except (BrokerUnknown, BrokerThrottled) as silence:
                log.warning("still unknown", order_id=order_id, reason=str(silence), next_try_s=wait_s)
            if self._desk.book.orders[order_id].state is State.UNKNOWN:
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, _LONGEST_WAIT_S)
        if order.cancel_requested and order.state.is_open:
            with contextlib.suppress(BrokerRejected, BrokerUnknown, BrokerThrottled):
                await self._desk.broker.cancel(order)

    async def _ask(self, order: Order) -> None:
        desk = self._desk
        found = await desk.broker.find(order.client_order_id)
        if found is None and not order.replaces and not order.cancel_requested:
            legs = [desk.book.orders[leg_id] for leg_id in order.leg_ids]
            await desk.send(order, legs)
            return
        await desk.keeper.record_stubbornly(self._verdict(order, found))

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
            return OrderNotSent(at=now, order_id=order.order_id, reason="canceled before the broker had it")
        if order.replaces:
            return OrderReplaced(
                at=now,
                order_id=OrderId(order.replaces),
                new_order_id=order.order_id,
                broker_order_id=found.broker_order_id,
                qty=found.qty,
            )
        return OrderAccepted(
            at=now,
            order_id=order.order_id,
            broker_order_id=found.broker_order_id,
            status=found.status,
            leg_broker_ids=tuple(leg.broker_order_id for leg in found.legs),
        )
