"""The contract's messages as JSON: the fields' own names, every field present, integers as numbers."""

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import msgspec
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message


def json_bytes(message: Message) -> bytes:
    """The message as JSON: the contract's field names, every field present ("" where absent), integers as numbers.

    A message field that is not set is null.
    """
    return _json.encode(as_dict(message))


def as_dict(message: Message) -> dict[str, Any]:
    return {name: read(getattr(message, name), message) for name, read in _plan(message.DESCRIPTOR)}


_json = msgspec.json.Encoder()
_Read = Callable[[Any, Message], Any]


@cache
def _plan(descriptor: Descriptor) -> tuple[tuple[str, _Read], ...]:
    return tuple((field.name, _reader(field)) for field in descriptor.fields)


def _reader(field: FieldDescriptor) -> _Read:
    name = field.name
    if field.message_type is None:
        return _list_of if field.is_repeated else _itself
    if field.message_type.GetOptions().map_entry:
        return _mapping_of
    if field.is_repeated:
        return _messages_of
    return lambda value, owner: as_dict(value) if owner.HasField(name) else None


def _itself(value: Any, _: Message) -> Any:
    return value


def _list_of(value: Iterable[Any], _: Message) -> list[Any]:
    return list(value)


def _mapping_of(value: Mapping[str, str], _: Message) -> dict[str, str]:
    return dict(value)


def _messages_of(value: Iterable[Message], _: Message) -> list[dict[str, Any]]:
    return [as_dict(item) for item in value]
