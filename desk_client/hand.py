"""The line in hand: the market line a strategy read last, which goes along with each order it sends.

The desk keeps it with the order, so that "why this order?" has an answer: the tape holds that line.
"""

from __future__ import annotations

import json
from collections.abc import ItemsView, Iterator, ValuesView
from typing import Any

from desk.v1.orders_pb2 import LineInHand

FIELDS_READ_MAX = 64


class Line(dict[str, Any]):
    """A market line as a dict, which notes the fields that were read."""

    __slots__ = ("fields_read",)

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__(fields)
        self.fields_read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        self.fields_read.add(key)
        return value

    def get(self, key: str, default: Any = None) -> Any:
        self.fields_read.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        if isinstance(key, str):
            self.fields_read.add(key)
        return super().__contains__(key)

    def __iter__(self) -> Iterator[str]:
        # That there is one makes dict(line) and **line read every field by its key, instead of past us.
        return super().__iter__()

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]
        self.fields_read.update(super().keys())
        return super().items()

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        self.fields_read.update(super().keys())
        return super().values()


class Hand:
    """What the strategy has read so far. Written by whoever reads lines, read by whoever sends orders."""

    __slots__ = ("line", "lines_read", "parsed")

    def __init__(self) -> None:
        self.lines_read = 0
        # The bytes of the last line, with or without its newline. They are parsed only when asked for.
        self.line: bytes | None = None
        # The last line as market() gave it to the strategy, where it did.
        self.parsed: Line | None = None

    def take(self, line: bytes) -> None:
        self.parsed = None
        self.line = line
        self.lines_read += 1

    def in_hand(self) -> LineInHand | None:
        """The line for an order; None where nothing was read."""
        line, parsed = self.line, self.parsed
        if line is None:
            return None
        bare = line.rstrip(b"\r\n")
        fields = sorted(parsed.fields_read)[:FIELDS_READ_MAX] if parsed is not None else ()
        return LineInHand(seq=seq_of(bare), sha256=_sha256_hex(bare)[:16], fields_read=fields)

    def seq(self) -> int:
        """The last line's sequence number; 0 where it has none."""
        return seq_of(self.line or b"")


HAND = Hand()
"""The process has one standard input, and so one line in hand."""


def fields_of(line: bytes) -> dict[str, Any]:
    """A line's fields; none where it is not a JSON object (a strategy may be fed anything on stdin)."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def seq_of(line: bytes) -> int:
    """A line's sequence number; 0 where it has none."""
    seq = fields_of(line).get("seq")
    return seq if isinstance(seq, int) and not isinstance(seq, bool) and 0 <= seq < 1 << 64 else 0


def _sha256_hex(data: bytes) -> str:
    # Python's own SHA-256 where it can be had: hashlib loads OpenSSL, 4 MiB for nothing.
    try:
        from _sha256 import sha256  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415  (3.11)
    except ImportError:
        try:
            from _sha2 import sha256  # type: ignore[import-not-found, no-redef, unused-ignore]  # noqa: PLC0415
        except ImportError:
            from hashlib import sha256  # noqa: PLC0415
    digest: str = sha256(data).hexdigest()
    return digest
