"""JSON bodies and query strings into the contract's messages, taking nothing that could be meant otherwise.

A duplicate key, an unknown field, a list where a value belongs: each is an error that names the place.
Numbers may be JSON strings or JSON numbers; they are carried digit by digit, never through a float.
"""

import json
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal, InvalidOperation
from difflib import get_close_matches
from functools import cache
from typing import Any, NoReturn, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from desk_server.errors import Code, DeskError

M = TypeVar("M", bound=Message)

# Fields of the contract that hold a number; every other string field takes JSON strings only.
NUMBERS = frozenset({"qty", "notional", "limit_price", "stop_price", "trail_price", "trail_percent", "trail"})
# What other APIs call the same things: no alias, but the right name in the error.
_OTHER_NAMES = {
    "type": "order_type",
    "client_order_id": "request_id",
    "quantity": "qty",
    "amount": "qty",
    "ticker": "symbol",
    "tif": "time_in_force",
    "price": "limit_price",
    "action": "side",
}
# Messages that say something: an empty body is a mistake, not one with every field left out.
_NEVER_EMPTY = frozenset({"OrderRequest", "CreateDeploymentRequest", "CreateUserTokenRequest", "SetHaltRequest"})
_DEPTH_MAX = 8
_EXPONENT_MAX = 100
_UINT = re.compile(r"[0-9]{1,20}")


def message_of_json(body: bytes, kind: type[M]) -> M:
    """Raises DeskError MALFORMED for what is not JSON, INVALID for what is not this message."""
    message = kind()
    _fill(message, _load(body), kind.DESCRIPTOR, "")
    return message


def message_of_query(items: Iterable[tuple[str, str]], kind: type[M]) -> M:
    """A query string's pairs as a message: lists are separated by commas. Raises DeskError INVALID."""
    message = kind()
    seen: set[str] = set()
    for name, text in items:
        field = _field(kind.DESCRIPTOR, name, "", "parameter")
        if name in seen:
            _invalid(f"parameter {name} is given twice: give it once")
        seen.add(name)
        if field.is_repeated:
            getattr(message, name).extend(part for part in text.split(",") if part)
        elif field.type in _INTEGERS:
            setattr(message, name, _integer(text, name, field))
        elif field.type == FieldDescriptor.TYPE_BOOL:
            setattr(message, name, _boolean_word(text, name))
        else:
            setattr(message, name, text)
    return message


def message_of_protobuf(body: bytes, kind: type[M]) -> M:
    """Raises DeskError MALFORMED; unknown fields are left alone (newer clients)."""
    if not body and kind.DESCRIPTOR.name in _NEVER_EMPTY:
        raise DeskError(Code.MALFORMED, f"the body is empty: send a protobuf {kind.DESCRIPTOR.name}")
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise DeskError(
            Code.MALFORMED, f"the body is not a protobuf {kind.DESCRIPTOR.name}: see proto/desk/v1"
        ) from error


def nearest(word: str, words: Iterable[str]) -> str:
    """`, did you mean "…"?` or nothing."""
    close = get_close_matches(word[:64].lower(), list(words), n=1, cutoff=0.6)
    return f'; did you mean "{close[0]}"?' if close else ""


def quoted(text: str) -> str:
    """A caller's text for an error message: shortened, and nothing but printable ASCII."""
    return ascii(text if len(text) <= 40 else text[:40] + "…")


_INTEGERS = {
    FieldDescriptor.TYPE_UINT32: 2**32 - 1,
    FieldDescriptor.TYPE_UINT64: 2**64 - 1,
}


def _load(body: bytes) -> dict[str, Any]:
    if not body.strip():
        raise DeskError(Code.MALFORMED, "the body is empty: send a JSON object")
    try:
        value = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_object,
            parse_float=_number,
            parse_int=_number,
            parse_constant=_number,
        )
    except UnicodeDecodeError as error:
        raise DeskError(Code.MALFORMED, f"the body is not UTF-8 (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise DeskError(
            Code.MALFORMED, f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error
    except RecursionError as error:
        raise DeskError(Code.MALFORMED, "the body is nested too deeply") from error
    if _depth(value) > _DEPTH_MAX:
        raise DeskError(Code.MALFORMED, f"the body is nested more than {_DEPTH_MAX} deep")
    if not isinstance(value, dict):
        _invalid(f"the body must be a JSON object, not {_kind(value)}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise DeskError(Code.MALFORMED, f"the key {quoted(name)} stands twice in one object: send it once.")
        result[name] = value
    return result


def _number(text: str) -> Decimal:
    try:
        return Decimal(text.replace("Infinity", "inf"))
    except InvalidOperation as error:
        raise DeskError(Code.INVALID, f"the number {quoted(text)} is out of range") from error


def _depth(value: Any) -> int:
    deepest, layer = 0, [value]
    while layer := [item for item in layer if isinstance(item, dict | list)]:
        deepest += 1
        layer = [child for item in layer for child in (item.values() if isinstance(item, dict) else item)]
    return deepest


def _fill(message: Message, values: dict[str, Any], descriptor: Any, place: str) -> None:
    for name, value in values.items():
        field = _field(descriptor, name, place, "field")
        path = place + name
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            getattr(message, name).update(_notes(value, path))
        elif field.is_repeated:
            getattr(message, name).extend(_strings(value, path))
        elif field.message_type is not None:
            if not isinstance(value, dict):
                _invalid(f"{path} must be an object, not {_kind(value)}")
            getattr(message, name).SetInParent()
            _fill(getattr(message, name), value, field.message_type, path + ".")
        else:
            setattr(message, name, _scalar(value, name, path, field))


def _field(descriptor: Any, name: str, place: str, what: str) -> Any:
    known = _fields(descriptor)
    # Not the descriptor's own map: it cannot be asked for a name that is not UTF-8.
    field = known.get(name)
    if field is None:
        if name == "user_id":
            _invalid("user_id does not belong here: the desk takes the user from the token; leave it out")
        other = _OTHER_NAMES.get(name)
        hint = f'; did you mean "{other}"?' if other in known else nearest(name, known)
        _invalid(f"unknown {what} {quoted(place + name)}{hint}")
    return field


@cache
def _fields(descriptor: Any) -> dict[str, Any]:
    return {field.name: field for field in descriptor.fields}


def _scalar(value: Any, name: str, path: str, field: Any) -> str | int | bool:
    if field.type == FieldDescriptor.TYPE_BOOL:
        if not isinstance(value, bool):
            _invalid(f"{path} must be true or false, not {_kind(value)}")
        return value
    if field.type in _INTEGERS:
        if isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value():
            return _integer(_plain(value, path), path, field)
        if isinstance(value, str):
            return _integer(value, path, field)
        _invalid(f"{path} must be a whole number, not {_kind(value)}")
    if isinstance(value, str):
        return _text(value, path)
    if name in NUMBERS and isinstance(value, Decimal):
        return _plain(value, path)
    wanted = "a number (as a string or a JSON number)" if name in NUMBERS else "a string"
    _invalid(f"{path} must be {wanted}, not {_kind(value)}")


def _plain(value: Decimal, path: str) -> str:
    """The number's digits without an exponent: 1e2 is 100."""
    if not value.is_finite() or abs(value.adjusted()) > _EXPONENT_MAX:
        _invalid(f"{path} must be a finite number of ordinary size")
    return format(value, "f")


def _integer(text: str, path: str, field: Any) -> int:
    most = _INTEGERS[field.type]
    if not _UINT.fullmatch(text) or int(text) > most:
        _invalid(f"{path} must be a whole number from 0 to {most}")
    return int(text)


def _boolean_word(text: str, path: str) -> bool:
    if text.lower() not in ("1", "0", "true", "false"):
        _invalid(f"{path} must be 1 or 0")
    return text.lower() in ("1", "true")


def _strings(value: Any, path: str) -> Sequence[str]:
    if not isinstance(value, list):
        _invalid(f"{path} must be a list of strings, not {_kind(value)}")
    for index, item in enumerate(value):
        if not isinstance(item, str):
            _invalid(f"{path}[{index}] must be a string, not {_kind(item)}")
        _text(item, f"{path}[{index}]")
    return value


def _notes(value: Any, path: str) -> dict[str, str]:
    if not isinstance(value, dict):
        _invalid(f"{path} must be an object of strings, not {_kind(value)}")
    for key, item in value.items():
        if not isinstance(item, str):
            _invalid(f"{path}.{quoted(key)} must be a string, not {_kind(item)}")
        _text(key, path)
        _text(item, path)
    return value


def _text(value: str, path: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            _invalid(f"{path} has half of a surrogate pair: it is not text")
    return value


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null (leave it out instead)"
        case bool():
            return "true or false"
        case Decimal():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
    return "an object"


def _invalid(message: str) -> NoReturn:
    raise DeskError(Code.INVALID, message)
