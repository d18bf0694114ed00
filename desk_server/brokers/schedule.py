"""The paper exchange's time: the market's, and what falls due in it."""

import heapq
from collections.abc import Iterator
from datetime import datetime, timedelta

from desk_server.brokers.resting import Resting
from desk_server.clock import Clock
from desk_server.domain import TimeInForce
from desk_server.sessions import Calendar, Session, Window

GTC_LASTS = timedelta(days=90)
# A market that is further from the clock than this is a tape.
LIVE_WITHIN = timedelta(hours=1)


class Schedule:
    """Time is the newest line's timestamp; the clock's before the first line. It never steps back."""

    def __init__(self, calendar: Calendar, clock: Clock) -> None:
        self._calendar = calendar
        self._clock = clock
        self._line_at: datetime | None = None
        self._window: Window | None = None
        self._timers: list[tuple[datetime, int, Resting]] = []
        self._timer_count = 0
        # Orders given before the first line: which day they are for, only that line's time can tell.
        self._undated: list[Resting] = []

    @property
    def has_begun(self) -> bool:
        return self._line_at is not None

    def now(self) -> datetime:
        return self._line_at if self._line_at is not None else self._clock.now()

    def session(self) -> Window:
        window, now = self._window, self.now()
        if window is None or not window.start <= now < window.end:
            window = self._calendar.window(now)
        return window

    def works(self, order: Resting) -> bool:
        """Whether the order may execute at this hour."""
        if order.crypto:
            return True
        session = self.session().session
        if order.tif is TimeInForce.OPG or order.tif is TimeInForce.CLS:
            return session is Session.REGULAR and order.opens_at is not None and self.now() >= order.opens_at
        return session is Session.REGULAR or (order.extended and session is not Session.CLOSED)

    def date(self, order: Resting) -> None:
        """Set which day it is for, and when it expires; before the first line, later."""
        if self._line_at is None:
            self._undated.append(order)
            return
        since = order.since
        match order.tif:
            case TimeInForce.DAY:
                day = self._calendar.day_for(since, extended=order.extended)
                order.due = day.late if order.extended else day.close
            case TimeInForce.GTC:
                order.due = since + GTC_LASTS
            case TimeInForce.OPG:
                day = self._calendar.day_for(since)
                if since >= day.open:
                    day = self._calendar.day_for(day.close)
                order.opens_at, order.due = day.open, day.close
            case TimeInForce.CLS:
                order.due = self._calendar.day_for(since).close
        if order.due is not None:
            self._timer_count += 1
            heapq.heappush(self._timers, (order.due, self._timer_count, order))

    def begin(self, first_line_at: datetime) -> None:
        """Date the orders given before the first line: by it, unless the market's time and the clock's are one."""
        if self._line_at is not None:
            return
        is_live = abs(self._clock.now() - first_line_at) <= LIVE_WITHIN
        self._line_at = first_line_at
        early, self._undated = self._undated, []
        for order in early:
            if order.is_open:
                order.since = min(order.since, first_line_at) if is_live else first_line_at
                self.date(order)

    def due_by(self, at: datetime) -> Iterator[Resting]:
        """Open orders that fall due up to `at`, each at its time."""
        while self._timers and self._timers[0][0] <= at:
            due, _, order = heapq.heappop(self._timers)
            if order.is_open:
                self._line_at = max(due, self.now())
                yield order

    def reach(self, at: datetime) -> bool:
        """Let it be `at`, unless it is later already; True when another session has begun with it."""
        if self._line_at is None or at > self._line_at:
            self._line_at = at
        window, now = self._window, self._line_at
        if window is not None and window.start <= now < window.end:
            return False
        self._window = self._calendar.window(now)
        return True

    def opened_on(self, due: datetime) -> datetime:
        """When the session that ends at `due` began."""
        return self._calendar.window(due - timedelta(microseconds=1)).start
