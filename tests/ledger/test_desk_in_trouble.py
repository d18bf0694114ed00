"""A whole desk whose ledger cannot be written: orders are refused with 503, nothing is half stored, and service
resumes by itself, without a restart. And one whose ledger is moved."""

import contextlib
import itertools
import resource
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from beds import Bed, PostgresBed, SqliteBed

from desk_server import events
from desk_server.ledger.chain import checked_rows, verify
from tests.e2e.conftest import PROJECT, DeskProcess, until
from tests.postgres_server import Server

BUY = {"symbol": "AAPL", "qty": "1", "side": "buy", "order_type": "market"}


class Desk(DeskProcess):
    """Anybody may order, by name."""

    def __init__(self, run_dir: Path, **settings: str) -> None:
        super().__init__(run_dir, DESK_FEED="walk", DESK_TRUST_USER_HEADER="true", DESK_DRAIN_S="1", **settings)

    def has_price(self, symbol: str) -> bool:
        token = (self.run_dir / "admin.token").read_text().strip()
        answer = self._http.get("/v1/market/latest", headers={"Authorization": f"Bearer {token}"})
        return answer.status_code == 200 and symbol in answer.text

    def order(self, request_id: str, timeout: float = 60) -> httpx.Response:
        body = {**BUY, "request_id": request_id}
        return self._http.post("/v1/orders", json=body, headers={"X-User-ID": "alice"}, timeout=timeout)


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """Not pytest's own directory: the path of a unix socket has room for about a hundred characters."""
    with tempfile.TemporaryDirectory(prefix="desk-tr-", dir="/tmp") as directory:
        yield Path(directory)


@contextlib.contextmanager
def running(desk: Desk) -> Iterator[Desk]:
    try:
        desk.start()
        until(lambda: desk.has_price("AAPL"), "there is a price")
        assert desk.order("warm").status_code == 201
        yield desk
    finally:
        if desk.process and desk.process.poll() is None:
            desk.kill()


@contextlib.contextmanager
def full_disk(desk: Desk) -> Iterator[None]:
    """No file of the desk may grow beyond what its write-ahead log has already."""
    size = (desk.run_dir / "ledger" / "desk.db-wal").stat().st_size
    soft, hard = resource.prlimit(desk.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(desk.process.pid, resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.prlimit(desk.process.pid, resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def locked(desk: Desk) -> Iterator[None]:
    """Another program holds the write lock of the file."""
    with contextlib.closing(sqlite3.connect(desk.run_dir / "ledger" / "desk.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


@pytest.mark.parametrize("trouble", [full_disk, locked])
def test_a_desk_on_a_full_or_locked_disk_refuses_and_resumes(
    run_dir: Path, trouble: Callable[[Desk], contextlib.AbstractContextManager]
):
    """503 LEDGER for each order of that time, and the same request is taken when it is over."""
    bed = SqliteBed(run_dir / "ledger" / "desk.db")
    with running(Desk(run_dir)) as desk:
        with trouble(desk):
            # What still fits into the last page may be taken.
            answers = [desk.order(f"during-{number}") for number in range(12)]
            said = Counter((answer.status_code, answer.json().get("code")) for answer in answers)
            assert said[503, "LEDGER"] >= 5 and set(said) <= {(503, "LEDGER"), (201, None)}, said
            assert desk.process.poll() is None
        answers = {f"during-{number}": desk.order(f"during-{number}") for number in range(12)}
        assert {answer.status_code for answer in answers.values()} == {201}
        stored_once(bed, {"warm", *answers})
        assert desk.stop() == 0


def test_a_desk_whose_database_is_away_refuses_and_resumes(run_dir: Path, postgres_server: Server):
    """Only the order whose commit was under way waits; it is told the truth when the database is back."""
    with postgres_server.database() as url:
        bed = PostgresBed(postgres_server, url)
        with running(Desk(run_dir, DESK_DATABASE_URL=url, DESK_LEASE_S="2")) as desk:
            postgres_server.stop()
            try:
                first: list[httpx.Response] = []
                waiting = threading.Thread(target=lambda: first.append(desk.order("first")))
                waiting.start()
                until(lambda: refused(desk, "second"), "orders are refused")
                begun = time.monotonic()
                assert refused(desk, "third") and time.monotonic() - begun < 2
            finally:
                postgres_server.start()
            waiting.join(60)
            assert first and first[0].status_code in (201, 503), first
            until(lambda: desk.order("second").status_code == 201, "orders are taken again")
            assert desk.order("first").status_code == desk.order("third").status_code == 201
            stored_once(bed, {"warm", "first", "second", "third"})
            assert desk.stop() == 0


def refused(desk: Desk, request_id: str) -> bool:
    try:
        answer = desk.order(request_id, timeout=1)
    except httpx.TimeoutException:
        return False
    assert answer.status_code == 503, answer.text
    return True


def stored_once(bed: Bed, request_ids: set[str]) -> None:
    """Every request is in the ledger as one intent, and the ledger is whole."""
    with bed.reading() as reader:
        assert verify(reader) is None
        intents = [event for _, event in checked_rows(reader) if isinstance(event, events.OrderIntended)]
    assert Counter(event.order.request.request_id for event in intents) == dict.fromkeys(request_ids, 1)


def server(desk: Desk, *arguments: str) -> str:
    """What `python -m desk_server` prints, with the desk's own settings."""
    words = [sys.executable, "-m", "desk_server", *arguments]
    done = subprocess.run(words, cwd=PROJECT, env=desk.env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_desk_moves_to_postgresql_by_a_backup_and_a_restore(run_dir: Path, postgres_server: Server):
    """Made while it traded: all that was answered before is answered the same there, and trading goes on."""
    with postgres_server.database() as url:
        with running(Desk(run_dir)) as desk:
            before = {f"r{number}": desk.order(f"r{number}").json() for number in range(10)}
            server(desk, "backup", str(run_dir / "copy.db"))
            desk.order("too late for the copy")
            assert desk.stop() == 0
        moved = Desk(run_dir, DESK_DATABASE_URL=url)
        assert "Restored" in server(moved, "restore", str(run_dir / "copy.db"))
        with running(moved):
            assert {key: moved.order(key).json()["order_id"] for key in before} == {
                key: answer["order_id"] for key, answer in before.items()
            }
            # The newest price is the old desk's until a line comes, and may be too old.
            names = (f"new-{number}" for number in itertools.count())
            taken: list[str] = []
            until(lambda: taken.append(next(names)) or moved.order(taken[-1]).status_code == 201, "orders are taken")
            stored_once(PostgresBed(postgres_server, url), {"warm", taken[-1], *before})
            assert moved.stop() == 0
        assert "all as they were written" in server(moved, "verify-ledger")
