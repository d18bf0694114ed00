"""A random walk for trying things out: quotes and trades of invented prices, the same for the same seed.

Nothing is remembered: the line at any moment follows from the seed and the moment, so a restart goes on exactly
where it ended, at once. Prices walk from minute to minute; within a minute they run to the next with a little noise.
"""

import asyncio
import math
import random
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from functools import lru_cache

from desk_server.domain import Asset, AssetClass
from desk_server.feeds import Publish
from desk_server.feeds.replay import asset_of
from desk_server.sessions import NEW_YORK, trading_day

# The walk's first day, a Monday.
FIRST_DAY = date(2026, 1, 5)
LINES_PER_S_MAX = 100_000
_DAY_MINUTES = 1440
# Standard deviations of the logarithm of the price.
_DAILY = 0.012
_PER_MINUTE = 0.0006
_NOISE = 0.00005
_TRADES = 0.35
_BUSY_S_MAX = 0.003
_BEHIND_S_MAX = 5.0
_BLOCK_LINES = 64


class WalkFeed:
    """`lines_per_s` lines a second, all symbols together, market time running as fast as real time.

    With an equity among the symbols the time stays within New York's regular hours: the close is followed by the
    next session's open. Crypto ("BTC/USD") alone trades round the clock.
    """

    name = "walk"

    def __init__(self, symbols: Sequence[str], seed: int = 1, lines_per_s: float = 10.0) -> None:
        names = list(dict.fromkeys(symbol.strip().upper() for symbol in symbols if symbol.strip()))
        if not names:
            raise ValueError("the random walk needs at least one symbol: set DESK_WALK_SYMBOLS, as AAPL,BTC/USD")
        if not 0 < lines_per_s <= LINES_PER_S_MAX:
            raise ValueError(f"DESK_WALK_LINES_PER_S must be above 0 and at most {LINES_PER_S_MAX}")
        self._assets = [asset_of(name) for name in names]
        self._seed = seed
        self._lines_per_s = lines_per_s
        self._has_equities = any(asset.asset_class is AssetClass.US_EQUITY for asset in self._assets)
        self._step = timedelta(seconds=1 / lines_per_s)
        self._day_path = lru_cache(maxsize=2 * len(names))(self._day_path_uncached)

    def assets(self) -> list[Asset]:
        return list(self._assets)

    def problem(self) -> str:
        return ""

    async def run(self, publish: Publish, after: datetime | None) -> None:
        due_s = yielded_s = time.monotonic()
        for line in self.lines(after):
            now_s = time.monotonic()
            if due_s > now_s + 0.001:
                await asyncio.sleep(due_s - now_s)
                yielded_s = time.monotonic()
            elif now_s - yielded_s > _BUSY_S_MAX:
                await asyncio.sleep(0)
                yielded_s = time.monotonic()
            due_s = max(due_s, now_s - _BEHIND_S_MAX) + 1 / self._lines_per_s
            publish(line)

    def lines(self, after: datetime | None) -> Iterator[bytes]:
        """The walk from behind `after`, without end."""
        day = FIRST_DAY if after is None else max(FIRST_DAY, after.astimezone(NEW_YORK).date() - timedelta(days=1))
        while True:
            hours = self._hours(day)
            if hours is not None:
                yield from self._session(day, *hours, after)
            day += timedelta(days=1)

    def _session(self, day: date, opening: datetime, close: datetime, after: datetime | None) -> Iterator[bytes]:
        count = int((close - opening) / self._step)
        first = 0 if after is None or after < opening else int((after - opening) / self._step) + 1
        rng = random.Random()
        for index in range(max(first - first % _BLOCK_LINES, 0), count):
            if index % _BLOCK_LINES == 0:
                rng.seed(f"{self._seed}:{day}:{index}")
            at = opening + index * self._step
            line = self._line(
                self._assets[index % len(self._assets)], day, at, (at - opening) / timedelta(minutes=1), rng
            )
            if index >= first and (after is None or at > after):
                yield line

    def _hours(self, day: date) -> tuple[datetime, datetime] | None:
        """From when to when lines come on that day; None on a day off."""
        if not self._has_equities:
            opening = datetime.combine(day, time_of_day(0), UTC)
            return opening, opening + timedelta(days=1)
        hours = trading_day(day)
        return None if hours is None else (hours.open, hours.close)

    def _line(self, asset: Asset, day: date, at: datetime, minute: float, rng: random.Random) -> bytes:
        path = self._day_path(asset.symbol, day)
        whole = int(minute)
        middle = path[whole] + (path[whole + 1] - path[whole]) * (minute - whole)
        price = math.exp(middle + rng.gauss(0, _NOISE))
        spread = max(0.01, round(price * 0.0001 * rng.choice((1, 1, 2)), 2))
        bid = max(round(price - spread / 2, 2), 0.01)
        ask = bid + spread
        bid_size, ask_size = rng.randint(1, 50) * 100, rng.randint(1, 50) * 100
        head = f'"symbol":"{asset.symbol}","timestamp":"{at.strftime("%Y-%m-%dT%H:%M:%S.%f")}Z"'
        if rng.random() < _TRADES:
            traded = bid if rng.random() < 0.5 else ask
            return f'{{"type":"trade",{head},"price":{traded:.2f},"size":{bid_size // 10}}}'.encode()
        return (
            f'{{"type":"quote",{head},"bid":{bid:.2f},"bid_size":{bid_size},"ask":{ask:.2f},"ask_size":{ask_size},'
            f'"price":{(bid + ask) / 2:.3f}}}'
        ).encode()

    def _day_path_uncached(self, symbol: str, day: date) -> list[float]:
        """The logarithm of the price at each minute of the day, and one more."""
        rng = random.Random(f"{self._seed}:{symbol}")
        level = math.log(rng.uniform(100, 2000) if "/" in symbol else rng.uniform(20, 400))
        for _ in range((day - FIRST_DAY).days):
            level += rng.gauss(0, _DAILY)
        rng = random.Random(f"{self._seed}:{symbol}:{day}")
        path = [level]
        for _ in range(_DAY_MINUTES + 1):
            path.append(path[-1] + rng.gauss(0, _PER_MINUTE))
        return path
