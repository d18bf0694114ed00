"""Single values of Alpaca's JSON: amounts, times, symbols. Pure; what cannot be read raises BrokerUnknown."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from desk_server.brokers import BrokerUnknown
from desk_server.domain import Side, Symbol

Json = Mapping[str, Any]

# Positions and some activities write crypto pairs without the slash. No share's symbol is that long.
_PAIR = re.compile(r"([A-Z0-9]{2,10}?)(USDT|USDC|USD|BTC)")
_PAIR_LENGTH_MIN = 6


def amount(json: Json, name: str) -> Decimal | None:
    """A number written as a string or as a number, exactly; None where absent, null or empty."""
    value = json.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int, Decimal)):
        raise BrokerUnknown(f"{name} is no number in Alpaca's answer")
    try:
        number = Decimal(value)
    except InvalidOperation:
        raise BrokerUnknown(f"{name} is no number in Alpaca's answer") from None
    if not number.is_finite():
        raise BrokerUnknown(f"{name} is no number in Alpaca's answer")
    return number


def needed_amount(json: Json, name: str) -> Decimal:
    number = amount(json, name)
    if number is None:
        raise BrokerUnknown(f"{name} is missing in Alpaca's answer")
    return number


def plain(number: Decimal) -> str:
    """As Alpaca reads it: all digits, no exponent."""
    return format(number, "f")


def text(json: Json, name: str) -> str:
    """ "" where absent or null."""
    value = json.get(name)
    return value if isinstance(value, str) else ""


def needed_text(json: Json, name: str) -> str:
    value = text(json, name)
    if not value:
        raise BrokerUnknown(f"{name} is missing in Alpaca's answer")
    return value


def when(json: Json, name: str) -> datetime | None:
    """RFC 3339, cut to microseconds, UTC; None where absent or unreadable."""
    value = json.get(name)
    if not isinstance(value, str):
        return None
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        return None
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def needed_when(json: Json, name: str) -> datetime:
    at = when(json, name)
    if at is None:
        raise BrokerUnknown(f"{name} is no time in Alpaca's answer")
    return at


def stamp(at: datetime) -> str:
    """A time as a query parameter."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def side(json: Json) -> Side:
    """`sell_short` and its like, which some endpoints say, are sells."""
    value = text(json, "side")
    if value.startswith("sell"):
        return Side.SELL
    if value.startswith("buy"):
        return Side.BUY
    raise BrokerUnknown("side is missing in Alpaca's answer")


def symbol(json: Json, name: str = "symbol") -> Symbol:
    """As in orders: BTC/USD, also where Alpaca writes BTCUSD."""
    return paired(text(json, name))


def paired(written: str) -> Symbol:
    if "/" not in written and len(written) >= _PAIR_LENGTH_MIN and (pair := _PAIR.fullmatch(written)):
        return Symbol(f"{pair[1]}/{pair[2]}")
    return Symbol(written)


def mapping(json: Any) -> Json:
    if not isinstance(json, dict):
        raise BrokerUnknown("Alpaca's answer is not of the kind that was asked for")
    return json


def rows(json: Any) -> list[Json]:
    if not isinstance(json, list):
        raise BrokerUnknown("Alpaca's answer is not the list that was asked for")
    return [mapping(row) for row in json]
