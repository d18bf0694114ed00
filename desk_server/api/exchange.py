"""What every HTTP route shares: the headers that matter, and answers in the caller's language.

A caller speaks protobuf or JSON; errors speak the same. Both doors (`http.py`, `fast.py`) use this module, so
that they cannot differ.
"""

import re
import secrets
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from itertools import count
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

import msgspec
import structlog
from google.protobuf.message import Message

from desk_server import logs
from desk_server.api import as_json, errors, strict
from desk_server.api.auth import UNIX_PEER, Door, is_loopback
from desk_server.domain import Identity
from desk_server.errors import Code, DeskError

M = TypeVar("M", bound=Message)
Headers = Iterable[tuple[bytes, bytes]]

PROTOBUF = b"application/x-protobuf"
JSON = b"application/json"
BODY_BYTES_MAX = 16 * 1024
_PROTOBUF_TYPE = (b"content-type", PROTOBUF)
_PROTOBUF_NAMES = frozenset({PROTOBUF, b"application/protobuf", b"application/octet-stream"})
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
# Headers that change how a body travels; the plain route alone handles them.
_ODD = frozenset({b"expect", b"transfer-encoding", b"upgrade"})

_ids = count()
_ids_prefix = secrets.token_hex(4).encode()

log = structlog.get_logger("desk.http")


# What every answer has, of `Answer.headers`: an answer with more says something unusual.
USUAL_HEADERS = 3


class Answer(NamedTuple):
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


@dataclass(slots=True)
class Head:
    """A request's headers, read once. `odd` where the body does not simply follow."""

    authorization: str | None = None
    user: str | None = None
    request_id: bytes = b""
    content_type: bytes = b""
    accept: bytes = b""
    content_length: int | None = None
    odd: bool = False
    # A header that decides who asks was sent twice.
    ambiguous: bool = False
    host: str = ""
    origin: str = ""
    # Whether the caller named the request; else the desk does, each anew.
    is_named: bool = False
    # Who asks, once it has been found out; on a connection that repeats its headers it need not be again.
    who: Identity | None = None

    def again(self) -> None:
        """The same headers have come once more, with another request."""
        if not self.is_named:
            self.request_id = new_request_id()

    @property
    def sends_protobuf(self) -> bool:
        return self.content_type in _PROTOBUF_NAMES

    @property
    def wants_protobuf(self) -> bool:
        """As Accept says; where it says nothing, the language of the body."""
        if b"protobuf" in self.accept:
            return True
        return self.content_type in _PROTOBUF_NAMES and b"json" not in self.accept


def new_request_id() -> bytes:
    """Unique among this desk's requests, and as good as unique among all desks'. Not a secret."""
    return b"%b%08x" % (_ids_prefix, next(_ids) & 0xFFFFFFFF)


def head_of(headers: Headers) -> Head:
    """Names are lower case, as ASGI has them."""
    head = Head()
    for name, value in headers:
        if name == b"authorization":
            head.ambiguous |= head.authorization is not None
            head.authorization = value.decode("latin-1")
        elif name == b"content-type":
            head.content_type = value.partition(b";")[0].strip().lower()
        elif name == b"content-length":
            head.content_length = int(value) if value.isdigit() and len(value) < 16 else -1
        elif name == b"accept":
            head.accept = value.lower()
        elif name == b"x-user-id":
            head.ambiguous |= head.user is not None
            head.user = value.decode("latin-1")
        elif name == b"x-request-id":
            head.request_id = value if _REQUEST_ID.fullmatch(value) else b""
        elif name == b"host":
            head.host = value.decode("latin-1")
        elif name == b"origin":
            head.origin = value.decode("latin-1")
        elif name in _ODD:
            head.odd = True
    head.is_named = bool(head.request_id)
    head.again()
    return head


async def answered(head: Head, work: Awaitable[Message], status: int = HTTPStatus.OK) -> Answer:
    """The work's result or error as an answer; never raises but CancelledError."""
    try:
        return answer_of(head, await work, status)
    except Exception as error:  # the boundary of a request
        return failure(head, error)


def failure(head: Head, error: Exception) -> Answer:
    """The answer where a request ended with `error`: what nobody foresaw is logged, and the caller told no more
    than the request's id. Call it where the error is handled."""
    if isinstance(error, DeskError):
        return refusal(head, error)
    log.exception("request failed")
    return refusal(head, errors.internal(head.request_id.decode()))


def answer_of(head: Head, message: Message, status: int = HTTPStatus.OK) -> Answer:
    if head.content_type == PROTOBUF and not head.accept:
        # As nearly every strategy asks.
        body = message.SerializeToString()
        length = b"%d" % len(body)
        headers = [_PROTOBUF_TYPE, (b"content-length", length), (b"x-request-id", head.request_id)]
        return Answer(int(status), headers, body)
    if head.wants_protobuf:
        return _answer(head, status, PROTOBUF, message.SerializeToString())
    return _answer(head, status, JSON, as_json.json_bytes(message))


def refusal(head: Head, error: DeskError, status: int | None = None) -> Answer:
    """`status` only where HTTP knows better than the error's code (405, 431)."""
    if head.wants_protobuf:
        kind, body = PROTOBUF, errors.as_message(error).SerializeToString()
    else:
        kind, body = JSON, msgspec.json.encode(errors.as_dict(error))
    answer = _answer(head, status or errors.TABLE[error.code].http, kind, body)
    if wait := errors.retry_after(error):
        answer.headers.append((b"retry-after", wait.encode()))
    if error.code is Code.UNAUTHENTICATED:
        answer.headers.append((b"www-authenticate", b"Bearer"))
    if error.code is Code.TOO_LARGE:
        # What is left of the body is not worth reading.
        answer.headers.append((b"connection", b"close"))
    return answer


def message_of(head: Head, body: bytes, kind: type[M]) -> M:
    """The body as a message. Raises DeskError MALFORMED, UNSUPPORTED_MEDIA or INVALID."""
    if head.sends_protobuf:
        return strict.message_of_protobuf(body, kind)
    if head.content_type == JSON:
        return strict.message_of_json(body, kind)
    if not body and not head.content_type:
        return strict.message_of_protobuf(b"", kind)
    raise DeskError(
        Code.UNSUPPORTED_MEDIA,
        "send the body as JSON with `Content-Type: application/json`, "
        f"or as a protobuf {kind.DESCRIPTOR.name} with `Content-Type: application/x-protobuf`",
    )


def too_large() -> DeskError:
    return DeskError(
        Code.TOO_LARGE, f"the body is larger than {BODY_BYTES_MAX} bytes: send less", limit=str(BODY_BYTES_MAX)
    )


def start_log(head: Head) -> None:
    ids = {"request_id": head.request_id.decode()}
    logs.bind_only(ids if head.who is None else ids | _ids_of(head.who))


def identify(door: Door, head: Head, peer: str) -> Identity:
    """Raises DeskError UNAUTHENTICATED or FORBIDDEN. `head` is of one connection, whose peer does not change."""
    who = head.who
    if who is None or not door.stands(who):
        who = head.who = _identify(door, head, peer)
        logs.bind(**_ids_of(who))
    return who


def _ids_of(who: Identity) -> dict[str, str]:
    return {"user": who.user, "deployment_id": who.deployment_id}


def _identify(door: Door, head: Head, peer: str) -> Identity:
    if head.ambiguous:
        raise DeskError(
            Code.UNAUTHENTICATED,
            "Authorization or X-User-ID was sent twice: send each once, so that it is clear who asks",
        )
    if head.authorization is None and peer != UNIX_PEER and _may_be_a_web_page(head):
        # A page in a browser on this machine must not trade in the name of who looks at it.
        peer = ""
    return door.identify(head.authorization, head.user, peer)


def _may_be_a_web_page(head: Head) -> bool:
    """From another site, or under a name that somebody has made to mean this machine (DNS rebinding)."""
    foreign = bool(head.origin) and urlsplit(head.origin).netloc != head.host
    name = urlsplit(f"//{head.host}").hostname or ""
    return foreign or (name != "localhost" and not is_loopback(name))


def _answer(head: Head, status: int, kind: bytes, body: bytes) -> Answer:
    return Answer(
        int(status),
        [(b"content-type", kind), (b"content-length", b"%d" % len(body)), (b"x-request-id", head.request_id)],
        body,
    )
