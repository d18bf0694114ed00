"""Orders that the desk keeps back because the broker would refuse them: sent when it would not, oldest first.

They stand in the book as WAITING, so they are reserved for, counted and shown like all open orders, and survive a
restart. Between the decision to send one and its way to the broker it is *leaving*: it can be cancelled then like
any order that is being sent.
"""

import asyncio
from collections.abc import Coroutine, Iterable
from datetime import datetime
from itertools import takewhile
from typing import Any, Protocol

import structlog

from desk_server.book import Book
from desk_server.domain import Order, OrderId, State, TimeInForce
from desk_server.sessions import NYSE

log = structlog.get_logger(__name__)

_LOOK_EVERY_S = 0.1
# Looked at although nothing has happened in the book: a halt may be over, or market data be back.
_LOOK_ANYWAY_S = 2.0


class Sender(Protocol):
    """The part of the desk that judges and sends what waits: see desk.py."""

    book: Book

    async def judge_waiting(self, order: Order, *, end: datetime | None) -> bool:
        """True when it need not wait any more: it is about to be sent, or it has ended. `end` is when its day is over
        (the market's time)."""


class Waiting:
    """One task while anything waits."""

    def __init__(self, desk: Sender) -> None:
        self._desk = desk
        # In the order they came, with the end of the day for which they were meant (the market's time).
        self._queue: dict[OrderId, datetime | None] = {}
        self._leaving: dict[OrderId, asyncio.Task[None]] = {}
        self._watcher: asyncio.Task[None] | None = None
        self._is_closed = False

    def take(self, order: Order, market_now: datetime) -> None:
        request = order.request
        hours = NYSE.day_for(market_now, extended=request.extended_hours)
        end = hours.late if request.extended_hours else hours.close
        self._queue[order.order_id] = None if request.time_in_force is TimeInForce.GTC else end
        if self._watcher is None and not self._is_closed:
            self._watcher = asyncio.create_task(self._watch(), name="waiting orders")

    def leave(self, order_id: OrderId, way: Coroutine[Any, Any, None]) -> None:
        """It goes to the broker, on its own `way`."""
        task = self._leaving[order_id] = asyncio.create_task(way, name=f"send {order_id}")
        task.add_done_callback(lambda _: self._leaving.pop(order_id, None))

    def is_leaving(self, order_id: OrderId) -> bool:
        return order_id in self._leaving

    def in_the_way(self, orders: Iterable[Order], of: OrderId | None = None) -> list[Order]:
        """Of an account's open orders those that `of` (None: a new order) must not meet: what is or may be at the
        broker, and what has been waiting for longer."""
        older = self._older_than(of)
        return [
            one
            for one in orders
            if one.order_id != of
            and (one.state is not State.WAITING or one.order_id in older or one.order_id in self._leaving)
        ]

    def _older_than(self, order_id: OrderId | None) -> set[OrderId]:
        return set(takewhile(lambda one: one != order_id, self._queue))

    async def close(self) -> None:
        """Leave what waits to the next start."""
        self._is_closed = True
        tasks = [*self._leaving.values(), *((self._watcher,) if self._watcher else ())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self) -> None:
        seen, idle_s = -1, 0.0
        try:
            while self._queue:
                if self._desk.book.seq != seen or idle_s >= _LOOK_ANYWAY_S:
                    seen, idle_s = self._desk.book.seq, 0.0
                    for order_id in list(self._queue):
                        await self._look(order_id)
                await asyncio.sleep(_LOOK_EVERY_S)
                idle_s += _LOOK_EVERY_S
        finally:
            self._watcher = None

    async def _look(self, order_id: OrderId) -> None:
        order, end = self._desk.book.orders[order_id], self._queue[order_id]
        try:
            if order.state is not State.WAITING or await self._desk.judge_waiting(order, end=end):
                del self._queue[order_id]
        except Exception:
            log.exception("an order that waits could not be judged: it goes on waiting", order_id=order_id)
