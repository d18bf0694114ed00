"""market(): the lines of standard input, or of the desk, as dicts; and each of them taken in hand."""

from __future__ import annotations

import io
import json
import os
import stat
import sys
from collections.abc import Iterator

from desk_client.calls import Caller
from desk_client.errors import ProtocolError
from desk_client.hand import Hand, Line
from desk_client.market_lines import MarketLines
from desk_client.stdin import MarketStdin


def stdin_has_lines() -> bool:
    """True where somebody gives lines on standard input: a pipe, a file, run.py's stream, a test's text."""
    if sys.stdin is None or sys.stdin.closed:
        return False
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (io.UnsupportedOperation, AttributeError):
        return True  # an object in memory: somebody put it there
    except OSError:
        return False
    return not stat.S_ISCHR(mode)


def lines_of_stdin(hand: Hand, symbols: list[str]) -> Iterator[Line]:
    """Until the end of standard input."""
    stdin = sys.stdin
    # Text, also where bytes would do: what the strategy read before may have filled the text's buffer.
    while text := stdin.readline():
        line = text.encode("utf-8", "surrogateescape")
        if not line.strip():
            continue
        if not isinstance(stdin, MarketStdin):
            hand.take(line)
        parsed = _parsed(line)
        if not symbols or dict.get(parsed, "symbol") in symbols:
            hand.parsed = parsed
            yield parsed


def lines_of_desk(caller: Caller, hand: Hand, symbols: list[str], after: int | None) -> Iterator[Line]:
    """Without end; asks the desk when the first line is asked for."""
    lines = MarketLines(caller, symbols, after)
    while line := lines.readline():
        hand.take(line)
        hand.parsed = parsed = _parsed(line)
        yield parsed


def _parsed(line: bytes) -> Line:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a market line is not JSON ({error}): {line[:200]!r}") from error
    if not isinstance(fields, dict):
        raise ProtocolError(f"a market line is not a JSON object: {line[:200]!r}")
    return Line(fields)
