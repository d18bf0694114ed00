"""Replaying a tape: what is refused, how fast it goes, and how its times move on from loop to loop."""

import asyncio
import gzip
import json
import time
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from taking import take

from desk_server.feeds.replay import BadTapeFile, ReplayFeed
from desk_server.lines import parse

DATA = Path(__file__).parent.parent / "data" / "three-minutes.jsonl.gz"
SHIPPED = Path(__file__).parents[2] / "desk_server" / "feeds" / "tapes" / "us-equities-2013-10-07.jsonl.gz"
NEW_YORK = ZoneInfo("America/New_York")


def line(at: str, price: float = 1, symbol: str = "SPY", **more) -> str:
    return json.dumps({"type": "trade", "symbol": symbol, "timestamp": at, "price": price, **more})


def tape(tmp_path, *lines: str) -> Path:
    path = tmp_path / "tape.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


GOOD = line("2013-10-07T13:30:00Z")
REFUSED = {
    "it is not JSON": ([GOOD, "nonsense"], "line 2"),
    "its price is text": ([GOOD, GOOD, line("2013-10-07T13:30:00Z", "1.5")], "line 3: price"),
    "its price is missing": ([GOOD.replace("price", "prize")], "line 1.*price"),
    "its time is not UTC": ([GOOD, line("2013-10-07T13:30:00-04:00")], "line 2.*UTC"),
    "its time goes back": ([GOOD, "", line("2013-10-07T13:29:59Z")], "line 3.*before.*sort"),
    "there are no lines": ([""], "no lines"),
}


@pytest.mark.parametrize("reason", REFUSED, ids=str)
def test_a_bad_tape_is_refused_with_the_line_and_the_reason(tmp_path, reason):
    """At construction, before the desk opens its doors."""
    lines, message = REFUSED[reason]
    with pytest.raises(BadTapeFile, match=message):
        ReplayFeed(tape(tmp_path, *lines))


def test_a_missing_tape_is_named(tmp_path):
    """And so is the setting to correct."""
    with pytest.raises(BadTapeFile, match=r"nowhere\.jsonl\.gz does not exist: DESK_REPLAY_FILE"):
        ReplayFeed(tmp_path / "nowhere.jsonl.gz")
    with pytest.raises(BadTapeFile, match="cannot be read"):
        ReplayFeed(tmp_path)


def test_a_damaged_gzip_file_is_refused(tmp_path):
    """Cut short or not gzip at all."""
    cut = tmp_path / "cut.gz"
    cut.write_bytes(DATA.read_bytes()[:5000])
    with pytest.raises(BadTapeFile, match="cannot be read behind line"):
        ReplayFeed(cut)
    plain = tmp_path / "plain.gz"
    plain.write_text(GOOD)
    with pytest.raises(BadTapeFile, match="cannot be read"):
        ReplayFeed(plain)


async def test_the_shipped_tape_replays(tmp_path):
    """An hour of four symbols, byte for byte."""
    feed = ReplayFeed(SHIPPED, speed=0)
    assert [asset.symbol for asset in feed.assets()] == ["SPY", "IBM", "BAC", "AIG"]
    expected = gzip.decompress(SHIPPED.read_bytes()).splitlines()
    assert (await take(feed, len(expected)))[: len(expected)] == expected


async def test_it_keeps_the_recorded_speed_times_n(tmp_path):
    """Ten seconds of the market at x20 take half a second; a pause of hours lasts a minute of the market."""
    path = tape(
        tmp_path,
        line("2013-10-07T13:30:00Z"),
        line("2013-10-07T13:30:10Z"),
        line("2013-10-07T13:30:10Z"),
        line("2013-10-07T19:30:00Z"),
    )
    published = []
    began = time.monotonic()
    feed = ReplayFeed(path, speed=20, loop=False)
    await feed.run(lambda each: published.append(time.monotonic() - began), None)
    assert [round(each, 1) for each in published] == [0.0, 0.5, 0.5, 3.5]
    assert "has ended" in feed.problem() and "DESK_REPLAY_LOOP" in feed.problem()


async def test_a_tape_that_was_all_published_says_so(tmp_path):
    """Restarted behind its end and not looping, it publishes nothing and tells what to do."""
    feed = ReplayFeed(tape(tmp_path, GOOD), speed=0, loop=False)
    published = []
    await feed.run(published.append, datetime(2013, 10, 7, 13, 30, tzinfo=UTC))
    assert not published and "before the restart" in feed.problem()


async def test_the_desks_own_tape_can_be_replayed(tmp_path):
    """The numbers it was published under before are taken off; the rest passes through untouched."""
    own = '{"seq":17,"missed":3,' + GOOD[1:]
    assert (await take(ReplayFeed(tape(tmp_path, own, own), speed=0), 2))[:2] == [b"{" + GOOD[1:].encode()] * 2


async def test_each_loop_is_at_the_same_time_of_day_and_week(tmp_path):
    """Over both changes of the clocks and over holidays, a session's lines stay in a session, times strictly rise."""
    path = tape(tmp_path, line("2013-10-07T13:30:01Z"), line("2013-10-07T19:59:59Z"))
    times = [parse(each).timestamp for each in await take(ReplayFeed(path, speed=0), 200)]
    local = [at.astimezone(NEW_YORK) for at in times]
    assert {(f"{at:%A %H:%M:%S}") for at in local} == {"Monday 09:30:01", "Monday 15:59:59"}
    assert all(one < two for one, two in pairwise(times))
    assert {at.utcoffset() for at in local} != {local[0].utcoffset()}
    holidays = {"2014-01-20", "2014-02-17", "2014-05-26", "2014-09-01"}
    assert not holidays & {f"{at:%Y-%m-%d}" for at in local}


async def test_a_tape_of_two_weeks_moves_on_by_two_weeks(tmp_path):
    """The second loop begins behind the first one's end, on the same weekday."""
    path = tape(tmp_path, line("2013-10-07T13:30:00Z"), line("2013-10-15T13:30:00Z"))
    times = [parse(each).timestamp for each in await take(ReplayFeed(path, speed=0), 4)]
    assert [f"{at:%m-%d}" for at in times[:4]] == ["10-07", "10-15", "10-21", "10-29"]


async def test_times_never_go_back_where_the_clocks_do(tmp_path):
    """Round the clock lines over the night in which an hour comes twice: time stands still, or jumps, never back."""
    lines = [line(f"2013-10-{day:02d}T{hour:02d}:30:00Z", symbol="BTC/USD") for day in (26, 27) for hour in range(24)]
    feed = ReplayFeed(tape(tmp_path, *lines), speed=0)
    times = [parse(each).timestamp for each in await take(feed, 60 * 48)]
    assert all(one <= two for one, two in pairwise(times))


async def test_a_restart_years_later_finds_its_loop(tmp_path):
    """`after` may lie in any loop; what comes first is the first line behind it."""
    feed = ReplayFeed(DATA, speed=0)
    first = parse((await take(feed, 1, after=datetime(2026, 1, 1, tzinfo=UTC)))[0])
    assert first.timestamp == datetime(2026, 1, 5, 14, 30, 1, tzinfo=UTC)


async def test_only_the_time_of_a_shifted_line_changes(tmp_path):
    """Every other byte stays, fractions of a second too, even where another field looks like the time."""
    odd = '{"x": {"timestamp":"2013-10-07T13:30:00Z"}, "price":1.10,"type":"trade","symbol":"A","timestamp":"%s"}'
    fine = '{"price":1.10, "type":"trade","symbol":"A","timestamp":"2013-10-07T13:30:00.123456789Z","big":1e3}'
    lines = await take(ReplayFeed(tape(tmp_path, odd % "2013-10-07T13:30:00Z", fine), speed=0), 4)
    assert json.loads(lines[2]) == json.loads(odd % "2013-10-14T13:30:00Z")
    assert lines[3].decode() == fine.replace("10-07", "10-14")


async def test_lines_of_one_time_are_published_without_a_break(tmp_path):
    """So that they reach the tape together, and a restart knows that all of them have been published."""
    turns = []
    turn = 0

    async def count():
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    feed = ReplayFeed(DATA, speed=0, loop=False)
    await feed.run(lambda each: turns.append((parse(each).timestamp, turn)), None)
    counting.cancel()
    assert len({at for at, _ in turns}) == len(set(turns))
