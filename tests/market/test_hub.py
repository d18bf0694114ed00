"""The hub takes lines from a feed, numbers them, knows what a symbol is worth, and survives bad ones."""

import asyncio
import gzip
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from market_room import hub_in, line, room_with, until

TAPE = Path(__file__).parent.parent / "data" / "three-minutes.jsonl.gz"

BAD = [
    b"",
    b"nonsense",
    b"[1,2]",
    b"null",
    b'{"symbol":"SPY"}',
    b'{"symbol":"SPY","price":1,"type":"quote"}',
    b'{"symbol":"SPY","price":1,"timestamp":"2013-10-07T13:30:00Z"}',
    b'{"price":1,"type":"quote","timestamp":"2013-10-07T13:30:00Z"}',
    b'{"symbol":"","price":1,"type":"quote","timestamp":"2013-10-07T13:30:00Z"}',
    b'{"symbol":"SPY","price":NaN,"type":"quote","timestamp":"2013-10-07T13:30:00Z"}',
    b'{"symbol":"SPY","price":Infinity,"type":"quote","timestamp":"2013-10-07T13:30:00Z"}',
    b'{"symbol":"SPY","price":"NaN","type":"quote","timestamp":"2013-10-07T13:30:00Z"}',
    b'{"symbol":"SPY","price":"1.5","type":"quote","timestamp":"2013-10-07T13:30:00Z"}',
    b'{"symbol":"SPY","price":1e400,"type":"quote","timestamp":"2013-10-07T13:30:00Z"}',
    b'{"symbol":"SPY","price":null,"type":"quote","timestamp":"2013-10-07T13:30:00Z"}',
    b'{"symbol":"SPY","price":true,"type":"quote","timestamp":"2013-10-07T13:30:00Z"}',
    b'{"symbol":"SPY","price":0,"type":"quote","timestamp":"2013-10-07T13:30:00Z"}',
    b'{"symbol":"SPY","price":-1,"type":"quote","timestamp":"2013-10-07T13:30:00Z"}',
    b'{"symbol":"SPY","price":1,"bid":-1,"type":"quote","timestamp":"2013-10-07T13:30:00Z"}',
    b'{"symbol":"SPY","price":1,"ask":"2","type":"quote","timestamp":"2013-10-07T13:30:00Z"}',
    b'{"symbol":"SPY","price":1,"type":"quote","timestamp":"yesterday"}',
    b'{"symbol":"SPY","price":1,"type":"quote","timestamp":1381152600}',
    b'{"symbol":"SPY","price":1,"type":"quote","timestamp":"2013-10-07T13:30:00"}',
    b'{"symbol":"SPY","price":1,"type":"quote","timestamp":"2013-10-07T13:30:00+02:00"}',
    b'{"symbol":"SPY","price":1,"type":"quote","timestamp":"2013-10-07T13:30:00Z","seq":7}',
    b'{"symbol":"SPY","price":1,"type":"quote","timestamp":"2013-10-07T13:30:00Z","missed":7}',
    b'{"symbol":"SPY","price":1,"type":"quote",\n"timestamp":"2013-10-07T13:30:00Z"}',
    b'{"symbol":"SPY","price":1,"type":"quote","timestamp":"2013-10-07T13:30:00Z","by":"\xff"}',
    b'{"symbol":"SPY","price":1,"type":"quote","timestamp":"2013-10-07T13:30:00Z"',
    b'{"symbol":"SPY","price":1,"type":"quote","timestamp":"2013-10-07T13:30:00Z"}{}',
    b'{"symbol":"SPY","price":1,"type":"quote","timestamp":"2013-10-07T13:30:00Z","x":"' + b"y" * 70_000 + b'"}',
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: repr(bad[:60]))
async def test_a_bad_line_is_dropped_and_the_next_good_one_is_not(tmp_path, bad):
    """A bad line is counted, gets no number and is shown to nobody; nothing else suffers."""
    hub = hub_in(tmp_path / "tape")
    seen = []
    hub.taps.append(seen.append)
    assert hub.publish(bad) == 0
    assert hub.bad_lines == 1
    assert not seen and hub.last_seq == 0 and hub.last_at is None
    assert hub.publish(line(1)) == 1
    assert len(seen) == 1
    hub.close()


async def test_every_byte_of_a_line_passes_through_behind_its_number(tmp_path):
    """A subscriber gets the feed's own bytes with the seq in front, fields that the desk does not know included."""
    odd = (
        '{ "type":"trade","symbol":"É/USD","timestamp":"2013-10-07T13:30:00.123456789Z",'
        '"price":1.10,"big":123456789012345678901234567890,"deep":{"seq":1,"price":"x"},"text":"\\u00e9 }\\n"}'
    ).encode()
    async with room_with(hub_in(tmp_path / "tape"), tmp_path) as room:
        reader = await room.reader()
        assert room.hub.publish(odd) == 1
        assert await reader.raw(1) == [b'{"seq":1,' + odd[1:].lstrip()]


async def test_real_lines_arrive_complete_and_in_order(tmp_path):
    """All lines of the test tape reach two subscribers, in order; one of them only what it asked for."""
    lines = gzip.decompress(TAPE.read_bytes()).splitlines()
    async with room_with(hub_in(tmp_path / "tape"), tmp_path) as room:
        all_lines, some = await room.reader(), await room.reader("BAC", "AIG")
        for each in lines:
            room.hub.publish(each)
        expected = [{"seq": seq, **json.loads(each)} for seq, each in enumerate(lines, 1)]
        assert await all_lines.lines(len(lines)) == expected
        wanted = [each for each in expected if each["symbol"] in ("BAC", "AIG")]
        assert await some.lines(len(wanted)) == wanted
        assert room.subscriptions[1].lines_sent == len(wanted)
        assert room.subscriptions[1].last_seq == wanted[-1]["seq"]


async def test_a_quote_is_exact(tmp_path):
    """Prices and sizes of a quote line become decimals as written, never by way of a float."""
    hub = hub_in(tmp_path / "tape")
    hub.publish(
        b'{"type":"quote","symbol":"SPY","timestamp":"2013-10-07T13:30:00Z","price":0.1234567890123456789,'
        b'"bid":0.10,"ask":3e2,"bid_size":1.5,"ask_size":100}'
    )
    quote = hub.latest("SPY")
    assert str(quote.price) == "0.1234567890123456789"
    assert (str(quote.bid), quote.ask, quote.bid_size, quote.ask_size) == ("0.10", 300, Decimal("1.5"), 100)
    assert quote.at == datetime(2013, 10, 7, 13, 30, tzinfo=UTC) and quote.seq == 1 and quote.kind == "quote"
    assert hub.quotes() == {"SPY": quote} and hub.latest("IBM") is None
    hub.close()


async def test_a_bar_keeps_a_young_quotes_bid_and_ask(tmp_path):
    """A trade or bar moves the price; bid and ask of a quote of the last 60 seconds stay, older ones are gone."""
    hub = hub_in(tmp_path / "tape")
    hub.publish(line(0, bid=1.0, ask=2.0))
    hub.publish(line(30, kind="trade"))
    hub.publish(line(60, kind="bar"))
    quote = hub.latest("SPY")
    assert (quote.price, quote.bid, quote.ask, quote.kind) == (Decimal("60.5"), 1, 2, "bar")
    hub.publish(line(61, kind="bar"))
    quote = hub.latest("SPY")
    assert (quote.price, quote.bid, quote.ask) == (Decimal("61.5"), None, None)
    hub.close()


async def test_a_quote_of_nothing_has_no_side(tmp_path):
    """A bid or ask of zero means that nobody quotes."""
    hub = hub_in(tmp_path / "tape")
    hub.publish(line(0, bid=0, ask=2.0))
    assert (hub.latest("SPY").bid, hub.latest("SPY").ask) == (None, 2)
    hub.close()


async def test_a_late_line_is_delivered_but_changes_no_quote(tmp_path):
    """A line older than the symbol's newest keeps the quote, and the taps do not see it."""
    hub = hub_in(tmp_path / "tape")
    seen = []
    hub.taps.append(seen.append)
    hub.publish(line(10))
    assert hub.publish(line(9)) == 2
    assert hub.latest("SPY").price == Decimal("10.5") and len(seen) == 1
    assert hub.last_at == datetime(2013, 10, 7, 13, 0, 10, tzinfo=UTC)
    hub.close()


async def test_news_says_nothing_about_a_price(tmp_path):
    """Only quotes, trades and bars make a quote; other types just pass through."""
    hub = hub_in(tmp_path / "tape")
    assert hub.publish(line(1, kind="news")) == 1
    assert hub.latest("SPY") is None
    hub.close()


async def test_taps_see_a_line_before_its_readers(tmp_path):
    """The paper exchange has handled a line before any strategy can answer to it."""
    async with room_with(hub_in(tmp_path / "tape"), tmp_path) as room:
        reader = await room.reader()
        seen = []
        room.hub.taps.append(lambda quote: seen.append((quote.seq, room.subscriptions[0].lines_sent)))
        room.hub.publish(line(1))
        assert seen == [(1, 0)]
        assert len(await reader.lines(1)) == 1


async def test_silence_is_broken_by_empty_lines(tmp_path):
    """A connection without lines gets an empty line again and again, so that both ends know it lives."""
    async with room_with(hub_in(tmp_path / "tape", keep_alive_s=0.2), tmp_path) as room:
        reader = await room.reader("SPY")
        room.hub.publish(line(1))
        async with asyncio.timeout(5):
            while reader.keep_alives < 3:
                assert await reader.chunk()
        assert room.subscriptions[0].lines_sent == 1


async def test_who_hangs_up_is_forgotten(tmp_path):
    """A closed connection ends its subscription and its group, and the server's own protocol is told."""
    async with room_with(hub_in(tmp_path / "tape"), tmp_path) as room:
        reader, other = await room.reader("SPY"), await room.reader("SPY")
        reader.close()
        await until(lambda: len(room.hub.subscriptions) == 1)
        room.hub.publish(line(1))
        assert len(await other.lines(1)) == 1
        other.close()
        await until(lambda: not room.hub.subscriptions)
        assert not room.hub._groups and not room.hub._by_symbol and not room.hub._for_all


async def test_a_stopping_desk_ends_its_streams_in_good_order(tmp_path):
    """Closing the hub delivers what is there, then ends the chunked response as HTTP asks for."""
    async with room_with(hub_in(tmp_path / "tape"), tmp_path) as room:
        reader = await room.reader()
        room.hub.publish(line(1))
        room.hub.close()
        assert len(await reader.lines(2)) == 1
        assert reader.ended_well


async def test_lines_of_one_turn_share_one_write(tmp_path):
    """What is published within one turn of the loop arrives as one chunk."""
    async with room_with(hub_in(tmp_path / "tape"), tmp_path) as room:
        reader = await room.reader()
        await asyncio.sleep(0)
        for number in range(50):
            room.hub.publish(line(number))
        assert await reader.chunk()
        assert len(await reader.lines(50)) == 50


async def test_an_iterator_reads_the_same_lines(tmp_path):
    """lines() gives seq and bytes without the newline, resumed and live."""
    hub = hub_in(tmp_path / "tape")
    for number in range(10):
        hub.publish(line(number))
    got = []
    async for seq, data in hub.lines(frozenset({"SPY"}), 4):
        got.append(seq)
        assert json.loads(data)["seq"] == seq
        if seq == 10:
            hub.publish(line(10))
        if seq == 11:
            break
    assert got == list(range(5, 12))
    await asyncio.sleep(0)
    hub.close()
