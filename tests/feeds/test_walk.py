"""The random walk: reproducible, inside trading hours, and at the speed asked for."""

import time
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest
from taking import take

from desk_server.feeds.walk import WalkFeed
from desk_server.lines import parse
from tests.counting import calls_in

NEW_YORK = ZoneInfo("America/New_York")


def test_another_seed_is_another_walk():
    """The seed decides, and nothing else."""
    one, same, other = (list(islice(WalkFeed(["SPY"], seed).lines(None), 500)) for seed in (1, 1, 2))
    assert one == same != other


def test_equities_stay_inside_regular_hours():
    """After the close comes the next session's open: no weekend, no holiday, and early closes are early."""
    feed = WalkFeed(["SPY", "BTC/USD"], lines_per_s=0.01)
    times = [parse(line).timestamp.astimezone(NEW_YORK) for line in islice(feed.lines(None), 60_000)]
    assert {at.weekday() for at in times} == {0, 1, 2, 3, 4}
    assert all(9.5 <= at.hour + at.minute / 60 < 16 for at in times)
    days = {at.date().isoformat() for at in times}
    assert "2026-01-19" not in days and "2026-12-25" not in days and "2026-12-24" in days
    assert max(at.hour for at in times if at.date().isoformat() == "2026-12-24") == 12


def test_crypto_alone_never_sleeps():
    """Round the clock, seven days a week."""
    times = [parse(line).timestamp for line in islice(WalkFeed(["BTC/USD"], lines_per_s=0.01).lines(None), 9000)]
    assert {at.weekday() for at in times} == set(range(7))
    assert {two - one for one, two in pairwise(times)} == {timedelta(seconds=100)}


def test_quotes_are_quotes():
    """Bid below ask, price between them; trades at one of the two; prices that move, but not out of this world."""
    heads = [parse(line) for line in islice(WalkFeed(["SPY"], lines_per_s=1).lines(None), 20_000)]
    quotes = [head for head in heads if head.type == "quote"]
    assert 0.5 < len(quotes) / len(heads) < 0.8
    assert all(head.bid < head.price < head.ask and head.bid_size > 0 and head.ask_size > 0 for head in quotes)
    prices = [float(head.price) for head in heads]
    assert 1.005 < max(prices) / min(prices) < 1.2


def test_resuming_in_a_far_year_is_quick():
    """The walk computes where it is; it does not walk there, over millions of lines."""
    after = datetime(2031, 6, 4, 15, 0, 0, tzinfo=UTC)
    found = []
    work = calls_in(lambda: found.append(next(WalkFeed(["SPY", "IBM"], lines_per_s=1000).lines(after))))
    assert parse(found[0]).timestamp > after
    assert work < 100_000


async def test_it_keeps_its_rate():
    """200 lines a second take a second, no less, and are a second on the market's clock."""
    began = time.monotonic()
    lines = await take(WalkFeed(["SPY"], lines_per_s=200), 201)
    assert time.monotonic() - began > 0.9
    assert parse(lines[200]).timestamp - parse(lines[0]).timestamp == timedelta(seconds=1)


@pytest.mark.parametrize(("symbols", "rate"), [([], 1), ([" "], 1), (["SPY"], 0), (["SPY"], 1e9)])
def test_senseless_settings_are_refused(symbols, rate):
    """With the name of the setting to correct."""
    with pytest.raises(ValueError, match="DESK_WALK_"):
        WalkFeed(symbols, lines_per_s=rate)
