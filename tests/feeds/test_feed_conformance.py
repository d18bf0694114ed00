"""What the desk relies on in every feed."""

import asyncio
import gzip
import time
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from taking import take

from desk_server.feeds.replay import ReplayFeed
from desk_server.feeds.walk import WalkFeed
from desk_server.lines import parse

TAPE = Path(__file__).parent.parent / "data" / "three-minutes.jsonl.gz"
LINES = 2500


def plain_replay(tmp_path):
    path = tmp_path / "tape.jsonl"
    path.write_bytes(gzip.decompress(TAPE.read_bytes()))
    return ReplayFeed(path, speed=0)


FEEDS = {
    "replay, gzip, looping": lambda tmp_path: ReplayFeed(TAPE, speed=0),
    "replay, plain": plain_replay,
    "replay, at a speed": lambda tmp_path: ReplayFeed(TAPE, speed=1000),
    "walk": lambda tmp_path: WalkFeed(["SPY", "IBM", "BTC/USD"], lines_per_s=50_000),
    "walk, crypto": lambda tmp_path: WalkFeed(["BTC/USD"], seed=7, lines_per_s=50_000),
}


@pytest.fixture(params=FEEDS, ids=str)
def feed(request, tmp_path):
    return FEEDS[request.param](tmp_path)


async def test_its_lines_are_market_lines_of_its_assets_in_order_of_time(feed):
    """Each line is one that the hub takes, of a listed symbol, and none is older than the one before."""
    heads = [parse(line) for line in await take(feed, LINES)]
    assert {head.symbol for head in heads} == {asset.symbol for asset in feed.assets()}
    assert all(one.timestamp <= two.timestamp for one, two in pairwise(heads))
    assert feed.problem() == ""


async def test_it_is_the_same_every_time(feed):
    """Two runs publish the same lines."""
    assert (await take(feed, LINES))[:LINES] == (await take(feed, LINES))[:LINES]


async def test_it_resumes_exactly(feed):
    """Resumed behind any line's time, it goes on with the first line behind that time."""
    lines = await take(feed, LINES)
    times = [parse(line).timestamp for line in lines]
    for cut in (0, 1, 7, 500, 998, 999, 1500):
        expected = [line for line, at in zip(lines, times, strict=True) if at > times[cut]]
        got = await take(feed, 300, after=times[cut])
        assert got[:300] == expected[:300]


async def test_it_begins_at_its_start_when_all_is_yet_to_come(feed):
    """An `after` from before the feed's first line changes nothing."""
    lines = await take(feed, 50)
    before = parse(lines[0]).timestamp - timedelta(days=3)
    assert (await take(feed, 50, after=before))[:50] == lines[:50]


async def test_it_lets_others_run(feed):
    """However fast it is, the event loop gets its turn within milliseconds."""
    slowest = 0.0

    async def tick():
        nonlocal slowest
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0)
            slowest = max(slowest, time.perf_counter() - began)

    ticking = asyncio.create_task(tick())
    await take(feed, 5 * LINES)
    ticking.cancel()
    assert slowest < 0.1


def test_crypto_is_told_by_its_slash():
    """A pair with a slash is crypto, anything else an equity."""
    kinds = {asset.symbol: asset.asset_class for asset in WalkFeed(["spy", "BTC/USD", "SPY"]).assets()}
    assert kinds == {"SPY": "us_equity", "BTC/USD": "crypto"}
