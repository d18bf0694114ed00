"""Reads a ledger with nothing of the desk's: its rows, its postings, and whether it is sound."""

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

from tests.crash.history import History, Posting, Row

_EVENTS = "SELECT seq, kind, body, hash FROM events ORDER BY seq"
_POSTINGS = "SELECT seq, account, asset, amount FROM postings ORDER BY seq, n"


def read_sqlite(path: Path, into: History) -> None:
    """What lies there now; the desk may be alive."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as connection:
        # One moment for both tables.
        connection.execute("BEGIN")
        into.integrity += [line for (line,) in connection.execute("PRAGMA integrity_check") if line != "ok"]
        take_events(connection.execute(_EVENTS).fetchall(), into)
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "postings" in tables:
            take_postings(connection.execute(_POSTINGS).fetchall(), into)


def take_events(rows: Iterable[Any], into: History) -> None:
    last = bytes(32)
    for seq, kind, body, row_hash in rows:
        text = bytes(body)
        last = hashlib.sha256(last + text).digest()
        if last != bytes(row_hash):
            into.integrity.append(f"event {seq} is not what was written: its hash does not follow")
            last = bytes(row_hash)
        into.rows.append(Row(seq, kind, json.loads(text)))


def take_postings(rows: Iterable[Any], into: History) -> None:
    into.postings = [Posting(seq, account, asset, Decimal(amount)) for seq, account, asset, amount in rows]
