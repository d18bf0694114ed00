"""Alpaca's clock and calendar cost few requests, and are never older than they may be."""

import asyncio
import json
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
from msgspec.structs import replace
from odd_server import http, odd_server, silence
from paper_samples import FixedClock
from rigs import FAST

from desk_server.brokers import BrokerThrottled, BrokerUnknown
from desk_server.brokers.alpaca.hours import YEARS_PER_MINUTE_MAX
from desk_server.brokers.alpaca.trading import AlpacaBroker

TUNING = replace(FAST, request_s=0.6, read_s=0.4, connect_s=0.4)
OPENING = datetime(2026, 11, 27, 14, 30, tzinfo=UTC)
CLOSE = datetime(2026, 11, 27, 18, 0, tzinfo=UTC)


class Alpaca:
    """Answers as Alpaca does at its clock's time; `fails` answers 503 instead."""

    def __init__(self) -> None:
        self.clock = FixedClock(OPENING - timedelta(minutes=1))
        self.fails = False

    def __call__(self, method, path, headers, body) -> bytes:
        if self.fails:
            return http(503)
        if path.startswith("/v2/clock"):
            return http(200, json.dumps(self._told()))
        query = {name: values[0] for name, values in parse_qs(urlsplit(path).query).items()}
        year = query["start"][:4]
        assert query == {"start": f"{year}-01-01", "end": f"{year}-12-31"}
        day = {"open": "09:30", "close": "16:00", "session_open": "0400", "session_close": "2000"}
        short = day | {"date": f"{year}-11-27", "close": "13:00", "session_close": "1700"}
        ends = [day | {"date": f"{year}-{on}"} for on in ("01-02", "12-31")]
        return http(200, json.dumps([*ends, short]))

    def _told(self):
        now = self.clock.at
        is_open = OPENING <= now < CLOSE
        return {
            "timestamp": now.isoformat(),
            "is_open": is_open,
            "next_open": (OPENING if now < OPENING else OPENING + timedelta(days=3)).isoformat(),
            "next_close": (CLOSE if now < CLOSE else CLOSE + timedelta(days=3, hours=3)).isoformat(),
        }


@asynccontextmanager
async def broker_at(alpaca, answer=None):
    async with odd_server(answer or alpaca) as server:
        clock = alpaca.clock
        broker = AlpacaBroker("the-key", "the-secret", base_url=server.url, tuning=TUNING, clock=clock)
        try:
            yield broker, server, clock
        finally:
            await broker.close()


async def test_the_clock_moves_on_between_requests():
    """Within `clock_s` the broker is not asked, and the time told is the present all the same."""
    async with broker_at(Alpaca()) as (broker, server, clock):
        for second in range(5):
            told = await broker.market_clock()
            assert (told.at, told.is_open, told.next_open) == (clock.at, False, OPENING)
            assert len(server.seen) == 1, second
            clock.at += timedelta(seconds=1)
        await broker.market_clock()
        assert len(server.seen) == 2


async def test_the_opening_and_the_close_are_never_late():
    """However young the last answer is, the broker is asked again when the market should have opened or closed."""
    async with broker_at(Alpaca()) as (broker, server, clock):
        for edge, before, after in ((OPENING, False, True), (CLOSE, True, False)):
            clock.at = edge - timedelta(seconds=1)
            assert (await broker.market_clock()).is_open is before
            clock.at = edge
            told = await broker.market_clock()
            assert (told.is_open, told.at) == (after, edge)
        assert len(server.seen) == 4


async def test_many_who_ask_at_once_are_one_request():
    """For the clock and for a year; whoever hangs up takes no answer from the others."""
    async with broker_at(Alpaca()) as (broker, server, _):
        asking = [asyncio.create_task(broker.market_clock()) for _ in range(100)]
        asking += [asyncio.create_task(broker.calendar(date(2026, 1, 1), date(2026, 12, 31))) for _ in range(100)]
        await asyncio.sleep(0)
        asking[0].cancel()
        asking[100].cancel()
        told = await asyncio.gather(*asking, return_exceptions=True)
        assert [type(one) for one in told].count(asyncio.CancelledError) == 2
        assert all(one.next_open == OPENING for one in told[1:100])
        assert all(len(days) == 3 for days in told[101:])
        assert len(server.seen) == 2


async def test_a_calendar_is_cut_to_the_days_asked_for():
    """Out of one year, and across two; each year is fetched once and again after `calendar_s`."""
    async with broker_at(Alpaca()) as (broker, server, clock):
        days = await broker.calendar(date(2026, 11, 27), date(2027, 1, 2))
        assert [day.open.date() for day in days] == [date(2026, 11, 27), date(2026, 12, 31), date(2027, 1, 2)]
        assert (days[0].close, days[0].late) == (CLOSE, CLOSE + timedelta(hours=4))
        assert await broker.calendar(date(2026, 11, 28), date(2026, 12, 30)) == []
        assert len(server.seen) == 2
        clock.at += timedelta(seconds=TUNING.calendar_s)
        assert await broker.calendar(date(2026, 1, 1), date(2026, 1, 2))
        assert len(server.seen) == 3


async def test_years_nobody_needs_cannot_use_up_the_broker_s_patience():
    """After so many in a minute it is BrokerThrottled with the seconds to wait; known years are told on."""
    async with broker_at(Alpaca()) as (broker, server, clock):
        for year in range(1970, 1970 + YEARS_PER_MINUTE_MAX):
            assert await broker.calendar(date(year, 1, 1), date(year, 12, 31))
        with pytest.raises(BrokerThrottled) as no:
            await broker.calendar(date(2030, 1, 1), date(2030, 12, 31))
        assert 0 < no.value.retry_after_s <= 60
        assert await broker.calendar(date(1970, 1, 1), date(1970, 12, 31))
        clock.at += timedelta(seconds=no.value.retry_after_s)
        assert await broker.calendar(date(2030, 1, 1), date(2030, 12, 31))
        assert len(server.seen) == YEARS_PER_MINUTE_MAX + 1


async def test_no_answer_is_no_guess():
    """503, silence and nonsense are BrokerUnknown for all who wait; an old answer is not told for a new one."""
    alpaca = Alpaca()
    async with broker_at(alpaca) as (broker, server, clock):
        assert (await broker.market_clock()).is_open is False
        alpaca.fails = True
        clock.at += timedelta(seconds=TUNING.clock_s)
        told = await asyncio.gather(*[broker.market_clock() for _ in range(5)], return_exceptions=True)
        assert [type(one) for one in told] == [BrokerUnknown] * 5
        alpaca.fails = False
        assert (await broker.market_clock()).at == clock.at
        assert len(server.seen) == 3
    for answer in (http(200, '{"timestamp": 1}'), http(200, '[{"date": "2026-99-99"}]'), http(403, "<html>"), silence):
        async with broker_at(alpaca, lambda *_, answer=answer: answer) as (broker, _, _):
            with pytest.raises(BrokerUnknown):
                await broker.market_clock()
            with pytest.raises(BrokerUnknown):
                await broker.calendar(date(2026, 1, 1), date(2026, 1, 2))


async def test_a_close_ends_whoever_waits():
    """With BrokerUnknown, at once."""
    arrived = asyncio.Event()

    def answer(*_):
        arrived.set()
        return silence

    async with broker_at(Alpaca(), answer) as (broker, _, _):
        asking = asyncio.create_task(broker.market_clock())
        async with asyncio.timeout(5):
            await arrived.wait()
            await broker.close()
            with pytest.raises(BrokerUnknown):
                await asking
