"""What happens in a forked desk before it starts: kill points, a witness, a clock that can step; perhaps a mutant.

Production code knows nothing of this. Each patch fails loudly where what it patches is no longer there.
"""

import json
import os
import random
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import requests

import desk_server.__main__ as entry
from desk_server import clock, ids
from desk_server.events import AnyEvent, Executed, OrderAccepted, OrderIntended, ReplaceIntended
from desk_server.ledger.sqlite import SqliteLedger
from tests.crash import mutants
from tests.crash.board import Board

_GROUPS: dict[str, tuple[type, ...]] = {
    "intent": (OrderIntended, ReplaceIntended),
    "ack": (OrderAccepted,),
    "fill": (Executed,),
}
_KINDS = {kind.__name__: group for group, kinds in _GROUPS.items() for kind in kinds}


def run(number: int, board_path: Path, witness_path: Path, mutant: str) -> int:
    """Be desk `number` until it ends; its exit code."""
    board = Board(board_path)
    witness = Witness(number, witness_path)
    points = Points(board)
    _watch_ledgers(points, witness)
    _watch_requests(points, witness)
    _step_clock(board)
    _tell_when_ready(board, number)
    if mutant:
        mutants.apply(mutant)
    return entry.main(["serve"])


class Points:
    """`reach` a point: the end, if it is the armed one."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def reach(self, point: str) -> None:
        if self._board.arrive(point):
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)

    def reach_soon(self, point: str) -> None:
        """The end comes from another thread, while this one goes on for a few milliseconds."""
        if self._board.arrive(point):
            threading.Timer(random.uniform(0, 0.004), os.kill, (os.getpid(), signal.SIGKILL)).start()

    def reach_for(self, when: str, events: Iterable[AnyEvent]) -> None:
        kinds = {type(event) for event in events}
        for group, members in _GROUPS.items():
            if kinds & set(members):
                self.reach(f"{when}_{group}_commit")


class Witness:
    """Lines of a file that survive the desk: when intents were committed, when requests were sent."""

    def __init__(self, number: int, path: Path) -> None:
        self._number = number
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, what: str, **fields: object) -> None:
        line = {"w": what, "t": time.time_ns(), "child": self._number, **fields}
        os.write(self._fd, json.dumps(line).encode() + b"\n")


def wrap(owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Put `wrapper(original)` in the place of the attribute; it must be there."""
    original = getattr(owner, name)
    setattr(owner, name, wrapper(original))


def ledger_classes() -> list[type]:
    found: list[type] = [SqliteLedger]
    try:
        from desk_server.ledger.postgres import PostgresLedger  # noqa: PLC0415  (psycopg may be missing)
    except ImportError:
        return found
    return [*found, PostgresLedger]


def _watch_ledgers(points: Points, witness: Witness) -> None:
    def appending(append: Callable[..., Any]) -> Callable[..., Any]:
        def appended(self: Any, *events: AnyEvent) -> Any:
            points.reach_for("before", events)
            return append(self, *events)

        return appended

    def opening(open_: Callable[..., Any]) -> Callable[..., Any]:
        def opened(self: Any, on_committed: Callable[..., Any], *more: Any, **named: Any) -> Any:
            def committed(stored: Any) -> None:
                events = [one.event for one in stored]
                intents = [event for event in events if isinstance(event, OrderIntended | ReplaceIntended)]
                if intents:
                    names = [o.client_order_id for event in intents for o in (event.order, *getattr(event, "legs", ()))]
                    witness.write("commit", names=names)
                points.reach_for("after", events)
                on_committed(stored)

            return open_(self, committed, *more, **named)

        return opened

    for kind in ledger_classes():
        wrap(kind, "append", appending)
        wrap(kind, "open", opening)
    _watch_sqlite(points)
    _watch_postgres(points)


def _watch_sqlite(points: Points) -> None:
    """Every connection of this process looks at what it is told: migrations, and what stands before a COMMIT."""

    class Watched(sqlite3.Connection):
        groups: frozenset[str] = frozenset()

        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            if sql == "COMMIT":
                groups, self.groups = self.groups, frozenset()
                for group in groups:
                    points.reach(f"in_{group}_commit")
                done = super().execute(sql, *parameters)
                for group in groups:
                    points.reach(f"after_{group}_commit")
                return done
            if sql in ("BEGIN IMMEDIATE", "ROLLBACK"):
                self.groups = frozenset()
            elif "PRAGMA user_version =" in sql:
                points.reach("mid_migration")
            elif "INTO events " in sql:
                cells = [cell for cell in parameters[0] if isinstance(cell, str)]
                self.groups |= {group for cell in cells if (group := _KINDS.get(cell))}
            return super().execute(sql, *parameters)

        def executescript(self, script: str) -> sqlite3.Cursor:
            if "CREATE TABLE" in script:
                self.set_trace_callback(lambda _: points.reach("mid_migration"))
            try:
                return super().executescript(script)
            finally:
                self.set_trace_callback(None)

    def connecting(connect: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **named: connect(*args, **{"factory": Watched, **named})

    wrap(sqlite3, "connect", connecting)


def _watch_postgres(points: Points) -> None:
    """A batch is one statement there, which is its transaction: it is killed while the server works at it."""
    try:
        from desk_server.ledger import postgres, postgres_file  # noqa: PLC0415  (psycopg may be missing)
    except ImportError:
        return

    def inserting(insert: Callable[..., bool]) -> Callable[..., bool]:
        def inserted(link: Any, epoch: int, before: int, rows: Any, moved: Any) -> bool:
            for group in {group for row in rows if (group := _KINDS.get(row[2]))}:
                points.reach_soon(f"in_{group}_commit")
            return insert(link, epoch, before, rows, moved)

        return inserted

    def migrating(execute: Callable[..., Any]) -> Callable[..., Any]:
        def executed(self: Any, query: Any, *more: Any, **named: Any) -> Any:
            steps = (*postgres_file.MIGRATIONS, "INSERT INTO desk.migrations")
            if isinstance(query, str) and query.startswith(steps):
                points.reach("mid_migration")
                answer = execute(self, query, *more, **named)
                points.reach("mid_migration")
                return answer
            return execute(self, query, *more, **named)

        return executed

    wrap(postgres, "insert", inserting)
    wrap(postgres_file.Link, "execute", migrating)


def _watch_requests(points: Points, witness: Witness) -> None:
    """What alpaca-py sends goes through here: an order's bytes leave right after `before_post`."""

    def sending(send: Callable[..., Any]) -> Callable[..., Any]:
        def sent(self: Any, request: Any, **named: Any) -> Any:
            path = request.path_url.partition("?")[0]
            is_order = request.method == "POST" and path.endswith("/orders")
            is_order = is_order or (request.method == "PATCH" and "/orders/" in path)
            if not is_order:
                return send(self, request, **named)
            name = json.loads(request.body or b"{}").get("client_order_id", "")
            points.reach("before_post")
            witness.write("send", name=name, method=request.method)
            answer = send(self, request, **named)
            points.reach("after_post")
            return answer

        return sent

    wrap(requests.Session, "send", sending)


def _step_clock(board: Board) -> None:
    """The desk's wall clock is off by what the board says, from one moment to the next. Monotonic time is not."""

    def now(_: object) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=board.clock_s)

    wrap(clock.SystemClock, "now", lambda _: now)
    shifted = SimpleNamespace(time_ns=lambda: time.time_ns() + int(board.clock_s * 1e9))
    wrap(ids, "time", lambda _: shifted)


def _tell_when_ready(board: Board, number: int) -> None:
    def announcing(announce: Callable[..., None]) -> Callable[..., None]:
        def announced(*args: Any, **named: Any) -> None:
            announce(*args, **named)
            board.ready = number

        return announced

    wrap(entry, "_announce", announcing)
