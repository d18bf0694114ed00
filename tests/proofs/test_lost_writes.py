"""Power cuts: whatever the disk had not synced is lost, kept or torn, and every answered order is in the ledger."""

import contextlib
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from desk_server.book import Book
from desk_server.ledger.sqlite import SqliteLedger
from tests.proofs.disk import Disk, Fate
from tests.proofs.recording import PROJECT, Call, RecordedDesk, read, strace_or_skip

# One cut in so many places where the disk changed, besides those right before and after each sync.
_EVERY = 5
_STARTS = 3
_ANSWER = re.compile(rb'"order_id":"([0-9A-HJKMNP-TV-Z]{26})"')


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> tuple[Path, list[Call]]:
    """Two runs of a desk on one directory: the first stops in good order (and copies its log into the file), the
    second is killed."""
    directory = tmp_path_factory.mktemp("recorded")
    calls: list[Call] = []
    with strace_or_skip():
        for number in (1, 2):
            trace = directory / f"trace{number}"
            with RecordedDesk(directory, trace) as desk:
                trade(desk, number)
                if number == 1:
                    desk.stop()
                else:
                    desk.kill()
            offset = calls[-1].ended + 1 if calls else 0
            calls += [_later(call, offset) for call in read(trace)]
    return directory, calls


def _later(call: Call, by: int) -> Call:
    return Call(call.begun + by, call.ended + by, call.name, call.file, call.data, call.numbers, call.result)


def trade(desk: RecordedDesk, run: int) -> None:
    """Orders that fill, rest, are cancelled, replaced and refused."""
    headers = {"Authorization": f"Bearer {desk.token('alice')}"}
    with httpx.Client(base_url=desk.url, headers=headers, timeout=60) as client:
        for number in range(25):
            order = {"symbol": "AAPL", "side": "buy", "qty": "1", "request_id": f"r{run}.{number}"}
            if number % 3:
                order |= {"order_type": "limit", "limit_price": f"{5 + number}.00"}
            if number % 7 == 6:
                order |= {"side": "sell", "qty": "9999"}
            answer = client.post("/order", json=order)
            order_id = answer.json()["order_id"]
            assert order_id, answer.text
            if number % 5 == 4:
                client.patch(f"/v1/orders/{order_id}", json={"limit_price": "4.00"})
            if number % 4 == 3:
                client.delete(f"/v1/orders/{order_id}")


def answers(calls: list[Call]) -> list[tuple[int, str]]:
    """When the first byte of an answer that names an order left, and which."""
    return [
        (call.begun, found.decode())
        for call in calls
        if call.is_network and call.data.startswith(b"HTTP/1.1")
        for found in _ANSWER.findall(call.data)
    ]


def look(directory: Path, answered: set[str]) -> Book:
    """Open it as the desk does: it is whole, verifies, and has what was answered."""
    path = directory / "desk.db"
    ledger = SqliteLedger(path)
    try:
        book = Book()
        for stored in ledger.read():
            book.fold(stored.seq, stored.event)
        assert ledger.verify() is None
    finally:
        ledger._connection.close()
        os.close(ledger._lock_fd)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    missing = answered - set(book.orders)
    assert not missing, f"answered, and not in the ledger: {missing}"
    return book


def places(calls: list[Call], directory: Path, chance: random.Random) -> list[int]:
    """Where the power is cut: right before and right after every sync, and at random places between."""
    ledger = f"{directory}/ledger/"
    chosen = set()
    for index, call in enumerate(calls):
        if not call.file.startswith(ledger):
            continue
        if call.is_sync:
            chosen |= {index, index + 1}
        elif chance.randrange(_EVERY) == 0:
            chosen.add(index)
    return sorted(chosen)


def test_no_power_cut_loses_an_answered_order(recording, tmp_path):
    """At every sync and between: opened again, the ledger has each order that was answered before, and verifies."""
    directory, calls = recording
    chance = random.Random(20260105)
    calls = sorted(calls, key=lambda call: call.ended)
    told = answers(calls)
    assert len({order_id for _, order_id in told}) >= 40
    disk, cuts, seen = Disk(directory / "ledger"), set(places(calls, directory, chance)), 0
    most = 0
    for index, call in enumerate([*calls, None]):
        if index in cuts:
            # What was sent by now, an answer under way included, counts as answered.
            now = call.ended if call is not None else calls[-1].ended + 1
            answered = {order_id for begun, order_id in told if begun < now}
            for fate in Fate:
                home = tmp_path / "cut"
                home.mkdir()
                disk.cut(home, fate, chance)
                if answered or (home / "desk.db").exists():
                    most = max(most, len(look(home, answered).orders))
                    seen += 1
                shutil.rmtree(home)
        if call is not None:
            disk.take(call)
    assert seen > 300
    assert most >= len({order_id for _, order_id in told})


def test_a_desk_starts_on_what_a_power_cut_left(recording, tmp_path):
    """The server itself, on torn files: it is ready, and the same request is answered with the same order."""
    directory, calls = recording
    chance = random.Random(7)
    calls = sorted(calls, key=lambda call: call.ended)
    told = answers(calls)
    syncs = [index for index, call in enumerate(calls) if call.is_sync and call.file.endswith("-wal")]
    for number, place in enumerate(chance.sample(syncs[len(syncs) // 2 :], _STARTS)):
        disk = Disk(directory / "ledger")
        for call in calls[:place]:
            disk.take(call)
        run_dir = tmp_path / str(number)
        (run_dir / "ledger").mkdir(parents=True, mode=0o700)
        disk.cut(run_dir / "ledger", Fate.ANY, chance)
        answered = {order_id for begun, order_id in told if begun < calls[place].ended}
        start(run_dir, answered)


def start(run_dir: Path, answered: set[str]) -> None:
    """Ready, stopped in good order, and everything still there."""
    settings = {"DESK_RUN_DIR": str(run_dir), "PORT": "0", "GRPC_PORT": "0", "DESK_FEED": "walk"}
    with (run_dir / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "desk_server"],
            cwd=PROJECT,
            env=os.environ | settings | {"DESK_WALK_SYMBOLS": "AAPL"},
            stdout=log,
            stderr=log,
        )
    try:
        until = httpx.HTTPTransport(uds=str(run_dir / "desk" / "desk.sock"), retries=0)
        with httpx.Client(base_url="http://desk", transport=until, timeout=10) as client:
            for _ in range(600):
                assert process.poll() is None, (run_dir / "log").read_text()
                with contextlib.suppress(httpx.TransportError):
                    if client.get("/readyz").status_code == 200:
                        break
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
            else:
                raise AssertionError((run_dir / "log").read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    look(run_dir / "ledger", answered)


def test_the_check_would_notice_a_sync_that_was_left_out(recording, tmp_path):
    """A ledger that answers without syncing loses answered orders on this disk: the check is one that can fail."""
    directory, calls = recording
    calls = sorted(calls, key=lambda call: call.ended)
    told = answers(calls)
    disk = Disk(directory / "ledger")
    first_synced = next(call.ended for call in calls if call.file.endswith("-wal") and call.begun > told[0][0])
    for call in calls:
        if not (call.is_sync and call.ended >= first_synced):
            disk.take(call)
    disk.cut(tmp_path, Fate.NONE, random.Random(1))
    with pytest.raises(AssertionError, match="answered, and not in the ledger"):
        look(tmp_path, {order_id for _, order_id in told})
