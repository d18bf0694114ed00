"""What a market line is. docs/market-lines.md says the same to people."""

import re
from datetime import datetime, timedelta
from decimal import Decimal

import msgspec
from msgspec import UNSET, Struct, UnsetType

LINE_BYTES_MAX = 64 * 2**10
_PRICE_MAX = Decimal(10) ** 12
_NUMBER_AS_TEXT = re.compile(rb'"(?:price|bid|ask|bid_size|ask_size)"\s*:\s*"')


class BadLine(ValueError):
    """Not a market line; says what is wrong with it."""


class Head(Struct, gc=False):
    """What every line must have, and what the desk reads of it where it is there."""

    symbol: str
    price: Decimal
    type: str
    timestamp: datetime
    bid: Decimal | None = None
    ask: Decimal | None = None
    bid_size: Decimal | None = None
    ask_size: Decimal | None = None
    seq: msgspec.Raw | UnsetType = UNSET
    missed: msgspec.Raw | UnsetType = UNSET


_decoder = msgspec.json.Decoder(Head)


def parse(line: bytes) -> Head:
    """The head of a market line as a feed sends it. Raises BadLine."""
    if len(line) > LINE_BYTES_MAX:
        raise BadLine(f"{len(line)} bytes long; {LINE_BYTES_MAX} are allowed")
    if b"\n" in line or b"\r" in line:
        raise BadLine("a line break inside the line")
    try:
        head = _decoder.decode(line)
        if not line.isascii():
            line.decode()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadLine(str(error)) from None
    _check(head, line)
    return head


def _check(head: Head, line: bytes) -> None:
    if head.seq is not UNSET or head.missed is not UNSET:
        raise BadLine("seq and missed are the desk's own fields; a feed must name its own otherwise")
    if not 0 < len(head.symbol) <= 64 or not 0 < len(head.type) <= 64:
        raise BadLine("symbol and type must have 1 to 64 characters")
    if _NUMBER_AS_TEXT.search(line) and _has_text_for_number(line):
        raise BadLine("price, bid, ask and their sizes must be numbers, not text")
    if not 0 < head.price < _PRICE_MAX:
        raise BadLine(f"price {head.price} is not a price")
    for number in (head.bid, head.ask, head.bid_size, head.ask_size):
        if number is not None and not 0 <= number < _PRICE_MAX:
            raise BadLine(f"{number} is not a bid, an ask or a size")
    if head.timestamp.utcoffset() != timedelta(0):
        raise BadLine("timestamp must be UTC and say so, as 2026-01-02T14:30:00Z")


def _has_text_for_number(line: bytes) -> bool:
    """The expression also matches inside of nested objects, where anything is allowed."""
    fields = msgspec.json.decode(line)
    return any(isinstance(fields.get(name), str) for name in ("price", "bid", "ask", "bid_size", "ask_size"))


def decode_head(line: bytes) -> Head:
    """The head of a line that the desk published. Raises ValueError (msgspec.ValidationError) where it is none."""
    return _decoder.decode(line)
