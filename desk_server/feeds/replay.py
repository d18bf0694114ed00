"""Replays a tape file: lines of JSON, ordered by time, gzip where the name ends in .gz.

Lines of one timestamp are published together, so that after a restart everything up to `after`, and nothing
behind it, has been published. A file that the desk wrote itself (with seq) can be replayed, too.
"""

import asyncio
import gzip
import re
import time
import zlib
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from pathlib import Path
from typing import BinaryIO, cast

import msgspec
from msgspec import Struct

from desk_server.domain import Asset, AssetClass, Symbol
from desk_server.feeds import Publish
from desk_server.lines import parse
from desk_server.sessions import NEW_YORK, trading_day

# A pause on the tape (a night, a holiday) lasts no longer than this, in market time.
PAUSE_S_MAX = 60.0
# How long lines may be published without letting others run.
_BUSY_S_MAX = 0.003
# Further behind its time than this (the machine slept), the replay goes on from now instead of hurrying.
_BEHIND_S_MAX = 5.0
_OWN_HEAD = re.compile(rb'\{"seq":\d+,(?:"missed":\d+,)?')
_TIMESTAMP = re.compile(rb'"timestamp"\s*:\s*"(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d)([^"]*)"')


class BadTapeFile(Exception):
    """The file cannot be replayed; the message names the line and says what to do."""


class FileLine(Struct, gc=False):
    """A line of the file, and its own time."""

    at: datetime
    symbol: str
    data: bytes


class ReplayFeed:
    """Raises BadTapeFile at construction for a file that is missing, damaged, empty or not in order of time.

    `speed`: 1 = as recorded, 60 = a minute a second, 0 = as fast as possible. With `loop` the tape starts over at
    its end, whole weeks later, at the same time of day in New York.
    """

    name = "replay"

    def __init__(self, path: Path, speed: float = 1.0, loop: bool = True) -> None:
        self._path = path
        self._speed = speed
        self._loop = loop
        self._problem = ""
        self._symbols: dict[str, None] = {}
        self._first: datetime | None = None
        self._last = datetime.min.replace(tzinfo=UTC)
        days: set[date] = set()
        for line in _read(path):
            self._symbols[line.symbol] = None
            days.add(line.at.date())
            self._first = self._first or line.at
            self._last = line.at
        if self._first is None:
            raise BadTapeFile(f"{path} has no lines: DESK_REPLAY_FILE must name a tape of market lines.")
        self._shift = _Shift(self._first, self._last, self._sessions(days))

    def assets(self) -> list[Asset]:
        return [asset_of(symbol) for symbol in self._symbols]

    def problem(self) -> str:
        return self._problem

    def _sessions(self, days: set[date]) -> list[date]:
        """The trading days of the tape, where it has anything that keeps to them."""
        equities = any(asset.asset_class is AssetClass.US_EQUITY for asset in self.assets())
        return sorted(day for day in days if equities and trading_day(day) is not None)

    async def run(self, publish: Publish, after: datetime | None) -> None:
        self._problem = ""
        pace = _Pace(self._speed)
        loop = self._shift.loop_behind(after) if after is not None and self._loop else 0
        last = after
        while True:
            published = False
            for at, lines in self._batches(loop, last):
                await pace.wait(at)
                for line in lines:
                    publish(line)
                last = at
                published = True
            if not self._loop:
                break
            loop += 1
        self._problem = f"the tape {self._path} has ended; set DESK_REPLAY_LOOP=1 to start it over"
        if not published:
            self._problem = (
                f"all of the tape {self._path} (to {self._last:%Y-%m-%d %H:%M:%S}Z) was published before the restart; "
                "set DESK_REPLAY_LOOP=1, or remove the tape directory in DESK_RUN_DIR to begin anew"
            )

    def _batches(self, loop: int, after: datetime | None) -> Iterator[tuple[datetime, list[bytes]]]:
        """The lines of one timestamp at a time, shifted to this loop's time, those after `after` only."""
        at: datetime | None = None
        batch: list[bytes] = []
        for line in _read(self._path):
            shifted = self._shift.shifted(line.at, loop)
            if after is not None and shifted <= after:
                continue
            # An hour that a change of the clocks would repeat: time stands still instead.
            shifted = max(shifted, at or shifted)
            if shifted != at:
                if at is not None and batch:
                    yield at, batch
                at, batch = shifted, []
            batch.append(line.data if shifted == line.at else with_timestamp(line, shifted))
        if at is not None and batch:
            yield at, batch


def asset_of(symbol: str) -> Asset:
    kind = AssetClass.CRYPTO if "/" in symbol else AssetClass.US_EQUITY
    return Asset(Symbol(symbol), kind)


def with_timestamp(line: FileLine, at: datetime) -> bytes:
    """The line with another time, everything else as it was; digits finer than a microsecond stay."""
    found = _TIMESTAMP.findall(line.data)
    if len(found) == 1 and at.microsecond == line.at.microsecond:
        stamp = at.strftime("%Y-%m-%dT%H:%M:%S").encode()
        return _TIMESTAMP.sub(rb'"timestamp":"%b\2"' % stamp, line.data)
    fields = msgspec.json.decode(line.data)
    fields["timestamp"] = at.isoformat().replace("+00:00", "Z")
    return msgspec.json.encode(fields)


class _Shift:
    """Moves a tape on by whole weeks of New York's local time, so that sessions keep their hours and weekdays.

    Weeks in which a holiday or an early close would fall on one of the tape's `sessions` are left out; not for
    tapes of more than a week, which could not avoid them.
    """

    def __init__(self, first: datetime, last: datetime, sessions: list[date]) -> None:
        self._last = last
        self._span_weeks = (last.astimezone(NEW_YORK).date() - first.astimezone(NEW_YORK).date()).days // 7 + 1
        self._sessions = sessions if self._span_weeks == 1 else []
        # By how many weeks each loop is moved.
        self._weeks = [0]
        self._cached: tuple[date, int, timedelta] = (date.min, 0, timedelta(0))

    def shifted(self, at: datetime, loop: int) -> datetime:
        if loop == 0:
            return at
        day = at.astimezone(NEW_YORK).date()
        cached_day, cached_loop, by = self._cached
        if day != cached_day or loop != cached_loop:
            # One shift for a whole local day, taken at noon: clocks change at night.
            old = datetime.combine(day, time_of_day(12), NEW_YORK)
            new = datetime.combine(day + timedelta(weeks=self._weeks_of(loop)), time_of_day(12), NEW_YORK)
            by = new.astimezone(UTC) - old.astimezone(UTC)
            self._cached = (day, loop, by)
        return at + by

    def loop_behind(self, after: datetime) -> int:
        """The first loop that has lines behind `after`."""
        loop = 0
        while self.shifted(self._last, loop) <= after:
            loop += 1
        return loop

    def _weeks_of(self, loop: int) -> int:
        while len(self._weeks) <= loop:
            weeks = self._weeks[-1] + self._span_weeks
            while not all(_same_hours(day, day + timedelta(weeks=weeks)) for day in self._sessions):
                weeks += self._span_weeks
            self._weeks.append(weeks)
        return self._weeks[loop]


def _same_hours(day: date, other: date) -> bool:
    hours, others = trading_day(day), trading_day(other)
    return hours is not None and others is not None and hours.close - hours.open == others.close - others.open


class _Pace:
    """Waits until it is a line's turn."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._last: datetime | None = None
        self._due_s = 0.0
        self._yielded_s = time.monotonic()

    async def wait(self, at: datetime) -> None:
        now_s = time.monotonic()
        if self._speed > 0:
            pause_s = min((at - self._last).total_seconds(), PAUSE_S_MAX) if self._last is not None else 0.0
            self._last = at
            self._due_s += pause_s / self._speed
            if self._due_s < now_s - _BEHIND_S_MAX:
                self._due_s = now_s
            if self._due_s > now_s:
                await asyncio.sleep(self._due_s - now_s)
                self._yielded_s = time.monotonic()
                return
        if now_s - self._yielded_s > _BUSY_S_MAX:
            await asyncio.sleep(0)
            self._yielded_s = time.monotonic()


def _read(path: Path) -> Iterator[FileLine]:
    """The lines of the file without seq, each checked. Raises BadTapeFile."""
    number = 0
    last: datetime | None = None
    try:
        with _opened(path) as file:
            for raw in file:
                number += 1
                line = _checked(raw)
                if line is None:
                    continue
                if last is not None and line.at < last:
                    raise ValueError(f"its time {line.at:%H:%M:%S.%f} is before that of the line above; sort the file")
                last = line.at
                yield line
    except FileNotFoundError:
        raise BadTapeFile(f"{path} does not exist: DESK_REPLAY_FILE must name a tape of market lines.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise BadTapeFile(f"{path} cannot be read behind line {number}: {error}") from error
    except ValueError as error:
        raise BadTapeFile(f"{path}, line {number}: {error}") from error


def _opened(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _checked(raw: bytes) -> FileLine | None:
    data = raw.strip()
    if not data:
        return None
    data = _OWN_HEAD.sub(b"{", data, count=1)
    head = parse(data)
    return FileLine(head.timestamp, head.symbol, data)
