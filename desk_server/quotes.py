"""What each symbol is worth, as its lines say. docs/market-lines.md has the rules."""

from datetime import datetime, timedelta
from decimal import Decimal

from msgspec import Struct

from desk_server.domain import Quote, Symbol
from desk_server.lines import Head

# Only these types of line say what a symbol is worth now.
PRICED = frozenset({"quote", "trade", "bar"})
# A trade or a bar keeps the bid and ask of a quote that is no older than this, in market time.
QUOTE_KEPT = timedelta(seconds=60)


class _Sides(Struct, frozen=True, gc=False):
    bid: Decimal | None
    ask: Decimal | None
    bid_size: Decimal | None
    ask_size: Decimal | None
    at: datetime


class Quotes:
    """The newest quote of every symbol."""

    def __init__(self) -> None:
        self._quotes: dict[Symbol, Quote] = {}
        self._sides: dict[Symbol, _Sides] = {}

    def latest(self, symbol: Symbol) -> Quote | None:
        return self._quotes.get(symbol)

    def all(self) -> dict[Symbol, Quote]:
        return dict(self._quotes)

    def take(self, head: Head, seq: int, received_s: float) -> Quote | None:
        """The symbol's new quote; None where the line changes nothing: too old, or not about a price."""
        symbol = Symbol(head.symbol)
        old = self._quotes.get(symbol)
        if head.type not in PRICED or (old is not None and head.timestamp < old.at):
            return None
        sides = self._sides_of(head, symbol)
        quote = Quote(
            symbol=symbol,
            price=head.price,
            bid=sides.bid,
            ask=sides.ask,
            at=head.timestamp,
            seq=seq,
            received_s=received_s,
            kind=head.type,
            bid_size=sides.bid_size,
            ask_size=sides.ask_size,
        )
        self._quotes[symbol] = quote
        return quote

    def _sides_of(self, head: Head, symbol: Symbol) -> _Sides:
        if head.type == "quote" or head.bid is not None or head.ask is not None:
            new = _Sides(head.bid or None, head.ask or None, head.bid_size, head.ask_size, head.timestamp)
            self._sides[symbol] = new
            return new
        last = self._sides.get(symbol)
        if last is not None and last.at >= head.timestamp - QUOTE_KEPT:
            return last
        return _Sides(None, None, None, None, head.timestamp)
