"""What the broker tells everybody: what can be traded, whether the market is open, and when it trades."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date

import structlog
from desk.v1 import market_pb2

from desk_server import rules
from desk_server.api import wire
from desk_server.api.strict import quoted
from desk_server.brokers import Broker, BrokerThrottled, BrokerUnknown
from desk_server.errors import Code, DeskError

log = structlog.get_logger("desk.reference")

CALENDAR_DAYS_MAX = 366
# Few enough years that each one asked for may be kept.
FIRST_DAY, LAST_DAY = date(1970, 1, 1), date(2099, 12, 31)
_RETRY_AFTER_S = 1.0
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


async def asset(broker: Broker, name: str) -> market_pb2.Asset:
    """Raises DeskError INVALID (no symbol at all), NOT_FOUND (not listed), NOT_READY."""
    symbol = rules.symbol_of(name)
    with _no_answer_told(broker, f"whether it lists {symbol}"):
        found = await broker.asset(symbol)
    if found is not None:
        return wire.asset_message(found)
    if why := broker.problem():
        # A list that is not there yet lists nothing.
        raise _not_ready(f"the desk is not ready: {why}")
    raise DeskError(Code.NOT_FOUND, f"the broker does not list {symbol}: check its spelling (AAPL, BTC/USD)")


async def clock(broker: Broker) -> market_pb2.Clock:
    """Raises DeskError NOT_READY."""
    with _no_answer_told(broker, "whether the market is open"):
        told = await broker.market_clock()
    return market_pb2.Clock(
        at=wire.time_text(told.at),
        is_open=told.is_open,
        next_open=wire.time_text(told.next_open),
        next_close=wire.time_text(told.next_close),
    )


async def calendar(broker: Broker, start: str, end: str) -> market_pb2.Calendar:
    """Raises DeskError INVALID (which says of what), NOT_READY."""
    first, last = _date(start, "start"), _date(end, "end")
    if last < first:
        raise DeskError(Code.INVALID, f"end {last} lies before start {first}: give the earlier day as start")
    days = (last - first).days + 1
    if days > CALENDAR_DAYS_MAX:
        raise DeskError(
            Code.INVALID,
            f"{first} to {last} are {days} days: ask for at most {CALENDAR_DAYS_MAX} at a time",
            limit=str(CALENDAR_DAYS_MAX),
            observed=str(days),
        )
    with _no_answer_told(broker, "when the market trades"):
        told = await broker.calendar(first, last)
    return market_pb2.Calendar(days=[wire.trading_day_message(day) for day in told])


@contextmanager
def _no_answer_told(broker: Broker, what: str) -> Iterator[None]:
    try:
        yield
    except (BrokerUnknown, BrokerThrottled) as silence:
        why = broker.problem()
        if not why:
            log.warning("the broker does not answer a question", what=what, reason=str(silence))
        told = f"the desk is not ready: {why}" if why else f"the broker does not tell now {what}"
        raise _not_ready(told, getattr(silence, "retry_after_s", 0.0)) from silence


def _not_ready(told: str, retry_after_s: float = 0.0) -> DeskError:
    return DeskError(Code.NOT_READY, f"{told}; ask again in a moment", retry_after_s=max(_RETRY_AFTER_S, retry_after_s))


def _date(text: str, field: str) -> date:
    if not text:
        raise DeskError(Code.INVALID, f'{field} is required: a New York date such as "2026-11-27"')
    try:
        # fromisoformat alone would also take weeks, and dates without hyphens.
        day = date.fromisoformat(text) if _DATE.fullmatch(text) else None
    except ValueError:
        day = None
    if day is None:
        raise DeskError(Code.INVALID, f'{field} must be a New York date such as "2026-11-27", not {quoted(text)}')
    if not FIRST_DAY <= day <= LAST_DAY:
        raise DeskError(Code.INVALID, f"{field} must lie between {FIRST_DAY} and {LAST_DAY}, not {day}")
    return day
