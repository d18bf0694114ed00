"""Alpaca's clock and calendar, looked up without asking it each time: its limit of requests is there for orders."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from datetime import date, timedelta
from typing import Any, TypeVar

from msgspec.structs import replace

from desk_server.brokers import BrokerThrottled, BrokerUnknown, MarketClock
from desk_server.brokers.alpaca import Tuning, records
from desk_server.brokers.alpaca.account import looked_up
from desk_server.brokers.alpaca.fields import mapping, rows
from desk_server.brokers.alpaca.rest import Lane, Rest
from desk_server.clock import Clock
from desk_server.sessions import NEW_YORK, TradingDay

T = TypeVar("T")

YEARS_PER_MINUTE_MAX = 20


class Hours:
    """The clock is asked for again after `tuning.clock_s` and whenever the market should have opened or closed since;
    a year's trading days after `tuning.calendar_s`. Who asks while an answer is on its way waits for that one."""

    def __init__(self, rest: Rest, clock: Clock, tuning: Tuning) -> None:
        self._rest = rest
        self._clock = clock
        self._tuning = tuning
        # What was told, and when, by the monotonic clock.
        self._told: tuple[MarketClock, float] | None = None
        self._years: dict[int, tuple[Sequence[TradingDay], float]] = {}
        self._asked_for: deque[float] = deque(maxlen=YEARS_PER_MINUTE_MAX)
        self._asking: dict[int, asyncio.Task[Any]] = {}

    async def clock(self) -> MarketClock:
        """Raises BrokerUnknown, BrokerThrottled."""
        known = self._known_clock()
        return await self._once(0, self._ask_clock) if known is None else known

    async def calendar(self, start: date, end: date) -> Sequence[TradingDay]:
        """As the protocol says. Raises BrokerUnknown, BrokerThrottled."""
        found: list[TradingDay] = []
        for year in range(start.year, end.year + 1):
            found += await self._year(year)
        return [day for day in found if start <= day.open.astimezone(NEW_YORK).date() <= end]

    def _known_clock(self) -> MarketClock | None:
        """What was told, moved on to now, while that is still the market's state."""
        if self._told is None:
            return None
        told, told_s = self._told
        age_s = self._clock.monotonic_s() - told_s
        now = told.at + timedelta(seconds=age_s)
        if age_s >= self._tuning.clock_s or now >= min(told.next_open, told.next_close):
            return None
        return replace(told, at=now)

    async def _ask_clock(self) -> MarketClock:
        asked_s = self._clock.monotonic_s()
        told = records.market_clock(mapping(looked_up(await self._rest.ask(Lane.RECORDS, "GET", "/clock"))))
        # Counted from when it was asked: a late answer is already older.
        self._told = told, asked_s
        return told

    async def _year(self, year: int) -> Sequence[TradingDay]:
        known = self._years.get(year)
        if known is not None and self._clock.monotonic_s() - known[1] < self._tuning.calendar_s:
            return known[0]
        return await self._once(year, lambda: self._ask_year(year))

    async def _ask_year(self, year: int) -> Sequence[TradingDay]:
        now_s, asked_for = self._clock.monotonic_s(), self._asked_for
        if len(asked_for) == YEARS_PER_MINUTE_MAX and now_s - asked_for[0] < 60:
            raise BrokerThrottled(60 - (now_s - asked_for[0]))
        asked_for.append(now_s)
        query = {"start": f"{year:04}-01-01", "end": f"{year:04}-12-31"}
        answer = rows(looked_up(await self._rest.ask(Lane.RECORDS, "GET", "/calendar", query)))
        days = sorted((records.trading_day(row) for row in answer), key=lambda day: day.open)
        self._years[year] = days, now_s
        return days

    async def _once(self, key: int, ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Ask, unless that is under way (`key` is the year, 0 for the clock): the result, or what went wrong."""
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.create_task(ask(), name=f"alpaca hours {key}")
            task.add_done_callback(lambda done: self._done(key, done))
        # Whoever hangs up ends his own wait only.
        await asyncio.wait({task})
        if task.cancelled():
            raise BrokerUnknown("the desk stopped asking")
        result: T = task.result()
        return result

    def _done(self, key: int, task: asyncio.Task[Any]) -> None:
        self._asking.pop(key, None)
        if not task.cancelled():
            # Perhaps nobody waits any more.
            task.exception()

    async def close(self) -> None:
        """Ends what is under way."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
