"""The contract as OpenAPI: schemas made from the protobuf messages, with the comments of the .proto files."""

import re
from functools import cache
from importlib.resources import files
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from desk_server.api.strict import NUMBERS

_FIELD = re.compile(r"(?:repeated |optional |map<[^>]*> )?[\w.]*\s*(\w+) = \d+;")
_MESSAGE = re.compile(r"message (\w+) \{")
_DECIMAL = r"^([0-9]{1,18}(\.[0-9]{1,9})?)?$"


def reference(kind: type[Message]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.DESCRIPTOR.name}"}


def schemas(kinds: set[type[Message]]) -> dict[str, Any]:
    """Schemas of these messages and of all that they are made of, by name."""
    found: dict[str, Any] = {"Error": ERROR}
    waiting = [kind.DESCRIPTOR for kind in kinds]
    while waiting:
        descriptor = waiting.pop()
        if descriptor.name in found:
            continue
        found[descriptor.name] = _object(descriptor)
        waiting += [
            field.message_type
            for field in descriptor.fields
            if field.message_type is not None and not field.message_type.GetOptions().map_entry
        ]
    return dict(sorted(found.items()))


def parameters(kind: type[Message], path: str, *, query: bool) -> list[dict[str, Any]]:
    """What stands in the path, and the message's other fields as query parameters."""
    result = []
    for field in kind.DESCRIPTOR.fields:
        in_path = f"{{{field.name}}}" in path
        if in_path or query:
            text = _comments().get((kind.DESCRIPTOR.name, field.name), "")
            more = " Separate several with commas." if field.is_repeated else ""
            result.append(
                {
                    "name": field.name,
                    "in": "path" if in_path else "query",
                    "required": in_path,
                    "description": (text + more).strip(),
                    "schema": {"type": "string"} if field.is_repeated else _value(field),
                }
            )
    return result


ERROR = {
    "type": "object",
    "description": "Why a request was not carried out; docs/errors.md has every code.",
    "required": ["code", "message", "limit", "observed", "order_id"],
    "properties": {
        "code": {"type": "string", "description": "For programs.", "example": "BUYING_POWER"},
        "message": {"type": "string", "description": "For people: what to do about it."},
        "limit": {"type": "string", "description": "The limit that was hit, where there is one."},
        "observed": {"type": "string", "description": "What was observed, where a limit was hit."},
        "order_id": {"type": "string", "description": "The order, where one was recorded."},
    },
}


def _object(descriptor: Any) -> dict[str, Any]:
    comments = _comments()
    properties = {}
    for field in descriptor.fields:
        schema = _field(field)
        if text := comments.get((descriptor.name, field.name)):
            schema = {"allOf": [schema], "description": text} if "$ref" in schema else {**schema, "description": text}
        properties[field.name] = schema
    return {
        "type": "object",
        "description": comments.get((descriptor.name, ""), ""),
        "properties": properties,
        "additionalProperties": False,
    }


def _field(field: Any) -> dict[str, Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return {"type": "object", "additionalProperties": {"type": "string"}}
    one: dict[str, Any]
    if field.message_type is not None:
        one = {"$ref": f"#/components/schemas/{field.message_type.name}"}
    else:
        one = _value(field)
    return {"type": "array", "items": one} if field.is_repeated else one


def _value(field: Any) -> dict[str, Any]:
    if field.type == FieldDescriptor.TYPE_BOOL:
        return {"type": "boolean"}
    if field.type in (FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_UINT64):
        return {"type": "integer", "minimum": 0}
    if field.name in NUMBERS:
        return {"type": "string", "pattern": _DECIMAL}
    return {"type": "string"}


@cache
def _comments() -> dict[tuple[str, str], str]:
    """The comment above each message (field "") and field, by (message, field)."""
    comments: dict[tuple[str, str], str] = {}
    for source in files("desk.v1").iterdir():
        if source.name.endswith(".proto"):
            comments.update(_comments_of(source.read_text()))
    return comments


def _comments_of(text: str) -> dict[tuple[str, str], str]:
    comments: dict[tuple[str, str], str] = {}
    message, above = "", list[str]()
    for line in map(str.strip, text.splitlines()):
        if line.startswith("//"):
            above.append(line.removeprefix("//").strip())
            continue
        if found := _MESSAGE.match(line):
            message = found[1]
            comments[message, ""] = " ".join(above)
        elif message and (found := _FIELD.match(line)):
            comments[message, found[1]] = " ".join(above)
        above = []
    return comments
