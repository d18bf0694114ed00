"""When the market trades: New York's hours and holidays, looked up in well under a microsecond.

Regular hours 9:30–16:00 New York time, before them from 4:00, after them to 20:00. Holidays and early closes
come from the `holidays` package's NYSE calendar (public and half-day categories: the day after Thanksgiving,
3 July and Christmas Eve where they fall on trading days). On an early close, regular hours end at 13:00 and
late trading at 17:00 (NYSE Group's calendar announcements).
"""

from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Protocol
from zoneinfo import ZoneInfo

import holidays
from msgspec import Struct

NEW_YORK = ZoneInfo("America/New_York")
_CLOSED_DAYS = holidays.financial_holidays("NYSE", categories=("public",))
_HALF_DAYS = holidays.financial_holidays("NYSE", categories=("half_day",))


class Session(StrEnum):
    PRE = "pre"
    REGULAR = "regular"
    POST = "post"
    CLOSED = "closed"


class Window(Struct, frozen=True):
    """A stretch of one session: `start` <= time < `end`."""

    session: Session
    start: datetime
    end: datetime


class TradingDay(Struct, frozen=True):
    """The hours of one trading day, UTC: early trading from `early`, late trading to `late`."""

    early: datetime
    open: datetime
    close: datetime
    late: datetime


class Calendar(Protocol):
    def window(self, at: datetime) -> Window:
        """The session at that time, and how long it lasts."""
        ...

    def day_for(self, at: datetime, *, extended: bool = False) -> TradingDay:
        """The trading day that a day order given at `at` belongs to: the first that closes after it.

        With `extended`, the first whose late trading ends after it.
        """
        ...


class NewYork:
    """The New York Stock Exchange's hours."""

    def __init__(self) -> None:
        self._last = Window(Session.CLOSED, datetime.max.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
        # The last answers of `day_for`, without and with late trading, and from when on they hold.
        self._days: dict[bool, tuple[datetime, TradingDay]] = {}

    def window(self, at: datetime) -> Window:
        last = self._last
        if not last.start <= at < last.end:
            last = self._last = _window(at)
        return last

    def day_for(self, at: datetime, *, extended: bool = False) -> TradingDay:
        known = self._days.get(extended)
        if known is not None and known[0] <= at < (known[1].late if extended else known[1].close):
            return known[1]
        day = at.astimezone(NEW_YORK).date()
        while (hours := trading_day(day)) is None or at >= (hours.late if extended else hours.close):
            day += timedelta(days=1)
        self._days[extended] = (at, hours)
        return hours


class AlwaysOpen:
    """A market that never closes; its trading days are those of UTC."""

    def window(self, at: datetime) -> Window:
        day = self.day_for(at)
        return Window(Session.REGULAR, day.open, day.close)

    def day_for(self, at: datetime, *, extended: bool = False) -> TradingDay:
        start = datetime.combine(at.astimezone(UTC).date(), time(), UTC)
        end = start + timedelta(days=1)
        return TradingDay(early=start, open=start, close=end, late=end)


NYSE = NewYork()


def session_of(at: datetime) -> Session:
    return NYSE.window(at).session


def is_open(at: datetime) -> bool:
    """True in regular hours."""
    return NYSE.window(at).session is Session.REGULAR


def close_of(day: date) -> datetime | None:
    """When regular hours end on that New York date; None where there are none."""
    hours = trading_day(day)
    return None if hours is None else hours.close


def next_open(at: datetime) -> datetime:
    """The first opening of regular hours after `at`."""
    day = at.astimezone(NEW_YORK).date()
    while (hours := trading_day(day)) is None or hours.open <= at:
        day += timedelta(days=1)
    return hours.open


@lru_cache(maxsize=4096)
def trading_day(day: date) -> TradingDay | None:
    """The hours of that New York date; None on weekends and holidays."""
    if day.weekday() >= 5 or day in _CLOSED_DAYS:
        return None
    early_close = day in _HALF_DAYS
    return TradingDay(
        early=_utc(day, time(4)),
        open=_utc(day, time(9, 30)),
        close=_utc(day, time(13) if early_close else time(16)),
        late=_utc(day, time(17) if early_close else time(20)),
    )


def _window(at: datetime) -> Window:
    day = at.astimezone(NEW_YORK).date()
    hours = trading_day(day)
    if hours is None:
        return Window(Session.CLOSED, _utc(day, time()), _utc(day + timedelta(days=1), time()))
    edges = (_utc(day, time()), hours.early, hours.open, hours.close, hours.late, _utc(day + timedelta(days=1), time()))
    sessions = (Session.CLOSED, Session.PRE, Session.REGULAR, Session.POST, Session.CLOSED)
    for session, start, end in zip(sessions, edges, edges[1:], strict=False):
        if start <= at < end:
            return Window(session, start, end)
    raise AssertionError(f"{at} lies outside its own day")


def _utc(day: date, at: time) -> datetime:
    return datetime.combine(day, at, NEW_YORK).astimezone(UTC)
