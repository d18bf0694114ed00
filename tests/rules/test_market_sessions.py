"""New York's hours, in and out of summer time, on holidays and half days."""

from datetime import UTC, date, datetime, timedelta

import pytest

from desk_server import sessions
from desk_server.sessions import NEW_YORK, Session
from tests.counting import calls_in


def at(text: str) -> datetime:
    """A time in New York, as UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=NEW_YORK).astimezone(UTC)


@pytest.mark.parametrize(
    ("moment", "session"),
    [
        ("2026-11-19T03:59:59", Session.CLOSED),
        ("2026-11-19T04:00:00", Session.PRE),
        ("2026-11-19T09:29:59", Session.PRE),
        ("2026-11-19T09:30:00", Session.REGULAR),
        ("2026-11-19T15:59:59", Session.REGULAR),
        ("2026-11-19T16:00:00", Session.POST),
        ("2026-11-19T19:59:59", Session.POST),
        ("2026-11-19T20:00:00", Session.CLOSED),
        ("2026-07-15T09:30:00", Session.REGULAR),
        ("2026-11-21T12:00:00", Session.CLOSED),  # Saturday
        ("2026-11-26T12:00:00", Session.CLOSED),  # Thanksgiving
        ("2026-07-03T12:00:00", Session.CLOSED),  # Independence Day, observed
        ("2026-04-03T12:00:00", Session.CLOSED),  # Good Friday
        ("2021-12-31T12:00:00", Session.REGULAR),  # New Year's Day on a Saturday is not observed
        ("2026-11-27T12:59:59", Session.REGULAR),  # the day after Thanksgiving closes at 13:00
        ("2026-11-27T13:00:00", Session.POST),
        ("2026-11-27T17:00:00", Session.CLOSED),
        ("2013-10-07T09:30:00", Session.REGULAR),
    ],
)
def test_sessions_follow_the_exchange(moment, session):
    """Pre, regular, post and closed, by the second."""
    assert sessions.session_of(at(moment)) is session
    assert sessions.is_open(at(moment)) is (session is Session.REGULAR)


@pytest.mark.parametrize(
    ("year", "early"),
    [
        (2013, ["07-03", "11-29", "12-24"]),
        (2015, ["11-27", "12-24"]),
        (2022, ["11-25"]),
        (2024, ["07-03", "11-29", "12-24"]),
        (2026, ["11-27", "12-24"]),
    ],
)
def test_early_closes_are_those_the_exchange_announced(year, early):
    """Every day of the year that closes before 16:00 (NYSE Group's announcements)."""
    days = (date(year, 1, 1) + timedelta(days=n) for n in range(365))
    closes = {day: sessions.close_of(day) for day in days}
    short = [f"{day:%m-%d}" for day, close in closes.items() if close and close.astimezone(NEW_YORK).hour < 16]
    assert short == early


def test_the_next_open_skips_nights_weekends_and_holidays():
    """From Wednesday evening before Thanksgiving to Friday morning, from Friday's close to Monday."""
    assert sessions.next_open(at("2026-11-25T18:00")) == at("2026-11-27T09:30")
    assert sessions.next_open(at("2026-11-27T13:00")) == at("2026-11-30T09:30")
    assert sessions.next_open(at("2026-11-19T09:29:59")) == at("2026-11-19T09:30")
    assert sessions.next_open(at("2026-11-19T09:30")) == at("2026-11-20T09:30")


def test_a_day_order_belongs_to_the_first_day_that_closes_after_it():
    """Before the close it is today's, after it the next day's; with extended hours, until 20:00."""
    calendar = sessions.NYSE
    assert calendar.day_for(at("2026-11-19T15:59")).close == at("2026-11-19T16:00")
    assert calendar.day_for(at("2026-11-19T16:00")).close == at("2026-11-20T16:00")
    assert calendar.day_for(at("2026-11-19T16:00"), extended=True).late == at("2026-11-19T20:00")
    assert calendar.day_for(at("2026-11-20T20:00"), extended=True).late == at("2026-11-23T20:00")


def test_windows_follow_one_another_without_a_gap():
    """Over two weeks with a holiday and a half day, each window begins where the last one ended."""
    moment, end = at("2026-11-20T00:00"), at("2026-12-04T00:00")
    while moment < end:
        window = sessions.NYSE.window(moment)
        assert window.start <= moment < window.end
        assert sessions.NYSE.window(window.end).start == window.end
        moment = window.end


def test_a_market_that_never_closes_is_always_regular():
    """For crypto-only tests and backtests."""
    window = sessions.AlwaysOpen().window(at("2026-11-21T12:00"))
    assert window.session is Session.REGULAR
    assert window.end - window.start == timedelta(days=1)


def test_a_second_lookup_of_a_session_computes_nothing():
    """The day's hours are worked out once."""
    moment = at("2026-11-19T12:00")
    sessions.NYSE.window(moment)
    assert calls_in(lambda: sessions.NYSE.window(moment)) <= 5
