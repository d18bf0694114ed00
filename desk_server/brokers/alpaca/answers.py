"""What an answer of Alpaca's proves: that it was done, that it never will be, or nothing at all.

Errors are `{"code": 42210000, "message": "…", …}`; codes are reused, so HTTP status and text count too. A code
is what tells the broker's own no from that of something in front of it (a proxy, a firewall, a maintenance page).
"""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

from msgspec import Struct

from desk_server.brokers import BrokerHasIt, BrokerRejected, BrokerThrottled, BrokerUnknown

KEY_REFUSED = "Alpaca refuses the key: check the key id and the secret, and that they belong to this host"
_DEFINITIVE = frozenset({400, 403, 422})
_RETRY_S_DEFAULT, _RETRY_S_MIN, _RETRY_S_MAX = 3.0, 0.1, 65.0
_MESSAGE_MAX = 300
# Ids of orders, which may be other people's: UUIDs, and the desk's own names.
_IDS = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|\bd1\.[A-Za-z0-9_.-]*[A-Za-z0-9_-]")

# "(requested: 10, available: 5)"
_AMOUNTS = re.compile(r"\s*\([^()]*\d[^()]*\)")


class NoAnswer(Exception):
    """The request got no answer that could be read; it may have been carried out."""


class Answer(Struct, frozen=True):
    """`headers` have lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Refusal(Struct, frozen=True):
    """An error of the broker's own. `message` is fit for anybody's eyes; `code` is "" where none was told."""

    status: int
    code: str
    message: str


def decoded(body: bytes) -> Any:
    """JSON with its numbers exactly as written. Raises BrokerUnknown."""
    try:
        return json.loads(body, parse_float=Decimal, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise BrokerUnknown(f"Alpaca's answer is no JSON ({len(body)} bytes)") from None


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def result(answer: Answer) -> Any:
    """What was answered to a request that was carried out (None where the body is empty).

    Raises BrokerRejected where the broker definitely will not, BrokerHasIt, BrokerThrottled, BrokerUnknown.
    """
    if 200 <= answer.status < 300:
        return decoded(answer.body) if answer.body.strip() else None
    no = refusal(answer)
    if no is None:
        raise BrokerUnknown(f"HTTP {answer.status} without a word of Alpaca's own")
    if is_key_refused(answer):
        raise BrokerUnknown(KEY_REFUSED)
    if answer.status == 429:
        raise BrokerThrottled(retry_after_s(answer.headers))
    if no.code and "client_order_id must be unique" in no.message.lower():
        raise BrokerHasIt(no.code, "client_order_id must be unique")
    about_asset = answer.status == 404 and re.search(r"\b(asset|symbol|account)\b", no.message, re.IGNORECASE)
    if no.code and (answer.status in _DEFINITIVE or about_asset):
        raise BrokerRejected(no.code, no.message)
    raise BrokerUnknown(f"HTTP {answer.status}: {no.message}")


def is_not_found(answer: Answer) -> bool:
    """True when the broker itself says that there is no such thing."""
    no = refusal(answer) if answer.status == 404 else None
    return no is not None and bool(no.code)


def is_key_refused(answer: Answer) -> bool:
    """True when the broker itself (not something in front of it) does not accept the key."""
    return answer.status == 401 and refusal(answer) is not None


def refusal(answer: Answer) -> Refusal | None:
    """None where the body is not the broker's: HTML, cut off, or without a message."""
    try:
        body = decoded(answer.body)
    except BrokerUnknown:
        return None
    if not isinstance(body, dict) or not isinstance(body.get("message"), str):
        return None
    code = body.get("code")
    known = isinstance(code, int) and not isinstance(code, bool)
    # What the account has (403) is everybody's together: no figure of it is told to one of them.
    message = _AMOUNTS.sub("", body["message"]) if answer.status == 403 else body["message"]
    return Refusal(answer.status, str(code) if known else "", scrubbed(message))


def scrubbed(message: str) -> str:
    """Without the ids of orders (a wash trade's names somebody else's), on one line, of bounded length.

    Other fields of an error (existing_order_id, related_orders, held_for_orders) are never passed on.
    """
    plain = " ".join("".join(ch if ch.isprintable() else " " for ch in message).split())
    return _IDS.sub("…", plain)[:_MESSAGE_MAX]


def retry_after_s(headers: Mapping[str, str], now: datetime | None = None) -> float:
    """How long the broker wants to be left alone. Its own `Date` is the clock, as ours may be wrong; without any
    of Retry-After and X-RateLimit-Reset (epoch seconds), a guess. Never below 0.1 s or above 65 s."""
    wait_s = _RETRY_S_DEFAULT
    told = headers.get("retry-after", "").strip()
    reset = headers.get("x-ratelimit-reset", "").strip()
    there = _date(headers.get("date", "")) or now or datetime.now(UTC)
    if re.fullmatch(r"\d{1,9}(\.\d+)?", told):
        wait_s = float(told)
    elif told and (at := _date(told)):
        wait_s = (at - there).total_seconds()
    elif re.fullmatch(r"\d{1,11}(\.\d+)?", reset):
        wait_s = float(reset) - there.timestamp()
    return min(max(wait_s, _RETRY_S_MIN), _RETRY_S_MAX)


def _date(text: str) -> datetime | None:
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)
