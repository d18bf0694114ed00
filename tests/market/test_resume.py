"""A reader that comes back gets every line that it has not seen, once."""

import asyncio
import json
import os
import resource
import signal
import sys
from pathlib import Path

import pytest
from market_room import hub_in, line, room_with, until

from desk_server.tape import Tape, TapeError

SYMBOLS = ("SPY", "IBM", "BAC")


def publish(hub, first: int, last: int) -> None:
    for number in range(first, last + 1):
        hub.publish(line(number, SYMBOLS[number % 3], "bar"))


async def settled(hub) -> None:
    await until(lambda: hub._recent.delivered_seq == hub.last_seq)


@pytest.mark.parametrize("after", [0, 1, 999, 4500, 4999])
@pytest.mark.parametrize("symbols", [(), ("IBM",)])
async def test_no_gap_and_no_duplicate_while_the_market_goes_on(tmp_path, after, symbols):
    """Lines from the tape, from memory and live join seamlessly, for any place to resume from."""
    async with room_with(hub_in(tmp_path / "tape", lines_kept=1000), tmp_path) as room:
        publish(room.hub, 1, 5000)
        reader = await room.reader(*symbols, after=after)
        for first in range(5001, 6001, 100):
            publish(room.hub, first, first + 99)
            await asyncio.sleep(0.001)
        expected = [n for n in range(after + 1, 6001) if not symbols or SYMBOLS[n % 3] in symbols]
        got = await reader.lines(len(expected))
        assert [each["seq"] for each in got] == expected
        assert not any("missed" in each for each in got)


async def test_a_slow_reader_resumes_without_filling_the_desks_memory(tmp_path):
    """A reader of a long past gets it in pieces, as it takes them; nothing is left out."""
    async with room_with(hub_in(tmp_path / "tape", lines_kept=1000), tmp_path) as room:
        for number in range(1, 30_001):
            room.hub.publish(line(number, kind="bar", padding="x" * 100))
        await settled(room.hub)
        reader = await room.reader(after=0)
        most = 0
        got = 0
        while got < 30_000:
            more = await reader.lines(1000)
            assert [each["seq"] for each in more] == list(range(got + 1, got + 1001))
            got += 1000
            most = max(most, room.subscriptions[0].buffered)
        assert most < 400_000


async def test_a_number_from_the_future_means_from_now_on(tmp_path):
    """An `after` that the desk has not reached does not make a reader wait for it."""
    async with room_with(hub_in(tmp_path / "tape"), tmp_path) as room:
        publish(room.hub, 1, 10)
        await settled(room.hub)
        assert room.hub.first_seq(5) == 6 and room.hub.first_seq(None) == 11 and room.hub.first_seq(99) == 11
        reader = await room.reader(after=1_000_000)
        publish(room.hub, 11, 11)
        assert (await reader.lines(1))[0]["seq"] == 11


async def test_a_restarted_desk_goes_on_with_the_numbers(tmp_path):
    """Seq, last time, quotes and lines in memory come back from the tape; the quotes are too old to trade on."""
    hub = hub_in(tmp_path / "tape", lines_kept=1000)
    publish(hub, 1, 3000)
    last_at, price = hub.last_at, hub.latest("IBM").price
    hub.close()
    async with room_with(hub_in(tmp_path / "tape", lines_kept=1000), tmp_path) as room:
        assert (room.hub.last_seq, room.hub.last_at) == (3000, last_at)
        assert room.hub.latest("IBM").price == price
        assert room.hub.latest("IBM").received_s == float("-inf")
        reader = await room.reader(after=10)
        publish(room.hub, 3001, 3010)
        assert [each["seq"] for each in await reader.lines(3000)] == list(range(11, 3011))


WRITER = """
import asyncio, os, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from market_room import hub_in, line
from desk_server.sinks import QueueSink

class Printer(QueueSink):
    def write(self, data):
        for each in data.split(b"\\n"):
            if each:
                os.write(1, each.split(b",")[0][7:] + b"\\n")

async def main():
    hub = hub_in(Path(sys.argv[1]), lines_kept=1000)
    hub.subscribe(None, None, Printer())
    await asyncio.sleep(0)
    number = hub.last_seq
    while True:
        for _ in range(10):
            number += 1
            hub.publish(line(number))
        await asyncio.sleep(0)

asyncio.run(main())
"""


async def test_no_delivered_line_is_lost_by_kill_9(tmp_path):
    """Whatever a reader was sent is on the tape after SIGKILL, and its number is never given out again."""
    on_tape = 0
    for round_number in range(1, 4):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", WRITER, str(tmp_path / "tape"), str(Path(__file__).parent)),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        delivered = [int(await process.stdout.readline()) for _ in range(500 * round_number)]
        process.send_signal(signal.SIGKILL)
        rest = await process.stdout.read()
        delivered += [int(each) for each in rest[: rest.rfind(b"\n") + 1].split()]
        await process.wait()
        assert delivered[0] == on_tape + 1
        tape = Tape(tmp_path / "tape", 2**26)
        seqs = [json.loads(each)["seq"] for each in tape.tail(10**6)]
        tape.close()
        on_tape = len(seqs)
        assert seqs == list(range(1, on_tape + 1))
        assert delivered == list(range(delivered[0], delivered[-1] + 1)) and delivered[-1] <= on_tape


async def test_a_power_cut_may_cost_lines_but_no_number_is_used_again(tmp_path):
    """After the machine itself has died, what was not synced is gone; new lines get numbers never given out."""
    hub = hub_in(tmp_path / "tape", lines_kept=1000)
    publish(hub, 1, 2000)
    await settled(hub)
    reserved = (tmp_path / "tape" / "reserved").read_text().split()
    hub.close()
    # As the disk would look: the last lines never got there, and the machine has started anew.
    segment = next((tmp_path / "tape").glob("*.jsonl"))
    os.truncate(segment, segment.stat().st_size // 2)
    (tmp_path / "tape" / "reserved").write_text(f"{reserved[0]} another-life-of-the-machine")
    async with room_with(hub_in(tmp_path / "tape", lines_kept=1000), tmp_path) as room:
        assert room.hub.last_seq == int(reserved[0]) > 2000
        publish(room.hub, 2001, 2010)
        reader = await room.reader(after=900)
        got = await reader.until_seq(room.hub.last_seq)
        kept = [each["seq"] for each in got[:-10]]
        assert kept == list(range(901, kept[-1] + 1))
        assert [each["seq"] for each in got[-10:]] == list(range(room.hub.last_seq - 9, room.hub.last_seq + 1))
        assert got[-10]["missed"] == got[-10]["seq"] - kept[-1] - 1


def test_numbers_go_on_without_a_gap_after_a_proper_stop_and_a_reboot(tmp_path):
    """Only a desk that could not stop properly leaves numbers out."""
    tape = Tape(tmp_path / "tape", 2**20)
    tape.append(1, 1, b'{"seq":1,"symbol":"S"}\n')
    tape.close()
    (tmp_path / "tape" / "reserved").write_text("1 another-life-of-the-machine")
    tape = Tape(tmp_path / "tape", 2**20)
    assert tape.last_seq == 1
    tape.append(2, 2, b'{"seq":2,"symbol":"S"}\n')
    assert [path.name for path in (tmp_path / "tape").glob("*.jsonl")] == ["00000000000000000001.jsonl"]
    tape.close()


async def test_a_full_disk_stops_the_tape_and_not_the_market(tmp_path):
    """Lines are delivered while the tape cannot be written; problem() says so, and is well again with the disk."""
    async with room_with(hub_in(tmp_path / "tape", lines_kept=1000), tmp_path) as room:
        reader = await room.reader()
        publish(room.hub, 1, 300)
        assert len(await reader.lines(300)) == 300
        assert room.hub.problem() == ""
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
        try:
            publish(room.hub, 301, 600)
            assert [each["seq"] for each in await reader.lines(300)] == list(range(301, 601))
            assert "cannot be written" in room.hub.problem()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        publish(room.hub, 601, 2000)
        assert len(await reader.lines(1400)) == 1400
        assert room.hub.problem() == ""
        back = await room.reader(after=0)
        first = await back.lines(300)
        assert [each["seq"] for each in first] == list(range(1, 301))
        after_gap = (await back.lines(1))[0]
        assert (after_gap["seq"], after_gap["missed"]) == (601, 300)
        assert [each["seq"] for each in await back.lines(1399)] == list(range(602, 2001))


async def test_the_oldest_lines_make_room_for_new_ones(tmp_path):
    """The tape stays below its size; a reader from before its beginning starts there, and is told what is missing."""
    hub = hub_in(tmp_path / "tape", lines_kept=1000, bytes_max=2**20)
    async with room_with(hub, tmp_path) as room:
        for number in range(1, 12_001):
            room.hub.publish(line(number, padding="x" * 100))
            if number % 100 == 0:
                await asyncio.sleep(0)
        size = sum(path.stat().st_size for path in (tmp_path / "tape").glob("*.jsonl"))
        assert size <= 2**20 + 2**18
        oldest = room.hub.first_seq(0)
        assert oldest > 1
        reader = await room.reader(after=0)
        got = await reader.lines(12_000 - oldest + 1)
        assert [each["seq"] for each in got] == list(range(oldest, 12_001))
        assert got[0]["missed"] == oldest - 1


def test_two_desks_cannot_write_one_tape(tmp_path):
    """The second one is told what to do about it."""
    first = Tape(tmp_path / "tape", 2**20)
    with pytest.raises(TapeError, match="DESK_RUN_DIR"):
        Tape(tmp_path / "tape", 2**20)
    first.close()
    Tape(tmp_path / "tape", 2**20).close()
