"""A reader who cannot keep up gets the newest of everything, every bar, and an honest count of what it missed."""

import asyncio

from market_room import hub_in, line, room_with, until

from desk_server import sinks
from desk_server.recent import _KEPT_PER_READER as BARS_KEPT
from desk_server.subscriptions import Mode

PADDING = "x" * 400


async def fill(room, number: int, **fields) -> int:
    """Publish quotes until the reader, which reads nothing, is behind; the last number used."""
    while room.subscriptions[-1].mode is Mode.LIVE or room.subscriptions[-1].mode is Mode.RESUMING:
        number += 1
        room.hub.publish(line(number, padding=PADDING, **fields))
        await asyncio.sleep(0)
        assert number < 20_000, "the reader is never behind"
    return number


async def publish(room, numbers, **fields) -> None:
    for number in numbers:
        room.hub.publish(line(number, **fields))
        if number % 50 == 0:
            await asyncio.sleep(0)
    await until(lambda: room.hub._recent.delivered_seq == room.hub.last_seq)


async def test_quotes_conflate_and_the_count_is_exact(tmp_path):
    """Of many quotes the newest per symbol and type is sent; sent and missed add up to all."""
    async with room_with(hub_in(tmp_path / "tape"), tmp_path) as room:
        reader = await room.reader()
        behind = await fill(room, 0)
        await publish(room, range(behind + 1, behind + 5001))
        await publish(room, [behind + 5001], symbol="IBM", kind="trade")
        await publish(room, [behind + 5002], symbol="IBM")
        await publish(room, [behind + 5003], symbol="IBM")
        assert room.subscriptions[0].buffered < 300_000, "nothing is piled up for a reader who is behind"
        got = await reader.until_seq(room.hub.last_seq)
        assert [each["seq"] for each in got[:behind]] == list(range(1, behind + 1))
        conflated = [(each["symbol"], each["type"], each["seq"]) for each in got[behind:]]
        assert conflated == [
            ("SPY", "quote", behind + 5000),
            ("IBM", "trade", behind + 5001),
            ("IBM", "quote", behind + 5003),
        ]
        assert [each.get("missed") for each in got[behind:]] == [5000, None, None]
        await publish(room, [behind + 5004])
        assert "missed" not in (await reader.lines(1))[0]
        assert room.subscriptions[0].missed == 5000
        assert room.subscriptions[0].lines_sent + 5000 == room.hub.last_seq


async def test_bars_are_all_kept(tmp_path):
    """Bars published while the reader was behind arrive all, in order, without a gap."""
    async with room_with(hub_in(tmp_path / "tape"), tmp_path) as room:
        reader = await room.reader()
        behind = await fill(room, 0, kind="bar")
        await publish(room, range(behind + 1, behind + 1001), kind="bar")
        got = await reader.lines(behind + 1000)
        assert [each["seq"] for each in got] == list(range(1, behind + 1001))
        assert not any("missed" in each for each in got)


async def test_too_many_bars_lose_the_oldest_and_say_so(tmp_path):
    """Beyond the bound the oldest bars go; the first line after them says how many."""
    async with room_with(hub_in(tmp_path / "tape"), tmp_path) as room:
        reader = await room.reader()
        behind = await fill(room, 0, kind="bar")
        await publish(room, range(behind + 1, behind + BARS_KEPT + 501), kind="bar")
        got = await reader.until_seq(behind + BARS_KEPT + 500)
        assert len(got) == behind + BARS_KEPT
        assert (got[behind]["seq"], got[behind]["missed"]) == (behind + 501, 500)
        assert sum(each.get("missed", 0) for each in got) == 500


async def test_a_filtered_reader_counts_its_own_symbols_only(tmp_path):
    """What a reader did not ask for is not missed."""
    async with room_with(hub_in(tmp_path / "tape"), tmp_path) as room:
        reader = await room.reader("SPY")
        behind = await fill(room, 0)
        for number in range(behind + 1, behind + 3001):
            room.hub.publish(line(number, symbol=("SPY", "IBM", "BAC")[number % 3]))
            if number % 50 == 0:
                await asyncio.sleep(0)
        got = await reader.lines(behind + 1)
        assert got[behind]["symbol"] == "SPY"
        assert got[behind]["missed"] == 999


async def test_a_slow_reader_harms_no_other(tmp_path):
    """One who reads nothing does not delay or thin out what others get."""
    async with room_with(hub_in(tmp_path / "tape"), tmp_path) as room:
        await room.reader()
        quick = await room.reader()
        taken = asyncio.create_task(quick.lines(6000))
        for number in range(1, 6001):
            room.hub.publish(line(number, padding=PADDING))
            if number % 20 == 0:
                await asyncio.sleep(0)
        got = await taken
        assert [each["seq"] for each in got] == list(range(1, 6001))
        assert room.subscriptions[0].mode is Mode.BEHIND
        assert room.subscriptions[0].buffered < 300_000


async def test_a_reader_slower_than_the_market_stops_resuming_and_conflates(tmp_path):
    """Who resumes and cannot gain on the market gets the past complete, then the newest, not ever older lines."""
    async with room_with(hub_in(tmp_path / "tape", lines_kept=1000), tmp_path) as room:
        await publish(room, range(1, 3001))
        reader = await room.reader(after=0)
        first = 0
        published = 3000
        seqs, missed = [], 0
        while not missed:
            await publish(room, range(published + 1, published + 1001), padding=PADDING)
            published += 1000
            got = await reader.lines(300)
            seqs += [each["seq"] for each in got]
            missed = sum(each.get("missed", 0) for each in got)
            assert published < 100_000, "it never stops resuming"
        assert seqs[:3000] == list(range(1, 3001))
        got = await reader.until_seq(room.hub.last_seq)
        missed += sum(each.get("missed", 0) for each in got)
        assert len(seqs) + len(got) + missed == room.hub.last_seq - first
        assert seqs + [each["seq"] for each in got] == sorted({*seqs, *(each["seq"] for each in got)})


async def test_a_closed_subscription_does_not_wait_for_its_reader_for_ever(tmp_path, monkeypatch):
    """Who is cut off and takes nothing more loses the connection; who takes the rest gets a proper end."""
    monkeypatch.setattr(sinks, "CLOSE_TIMEOUT_S", 0.3)
    async with room_with(hub_in(tmp_path / "tape"), tmp_path) as room:
        await room.reader()
        await fill(room, 0)
        room.subscriptions[0].close("the token was revoked")
        await until(room.doors[0].lost.is_set, timeout_s=5)
        polite = await room.reader()
        behind = await fill(room, 0)
        room.subscriptions[1].close("the token was revoked")
        assert len(await polite.lines(behind + 1)) == behind
        assert polite.ended_well
