"""Structured logs: JSON or console, with the ids of the request at hand, and never a secret.

`bind(...)` adds ids to every line of the present task; structlog's own contextvars work too. `brief(...)` is for
lines that come by the thousand.
"""

import asyncio
import atexit
import logging
import re
import sys
import threading
from collections.abc import Mapping, MutableMapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec
import structlog
from structlog.typing import EventDict, WrappedLogger

from desk_server.settings import Settings

REDACTED = "[redacted]"
_SECRET_KEY = re.compile(r"token$|authorization|secret|password|api_key|^key$|_key$", re.IGNORECASE)
_SECRET_TEXT = re.compile(r"desk_[a-z]+_[A-Za-z0-9_-]{8,}|(?<=[Bb]earer )[^\s\"']+")
# The ids bound last, and what was bound before them: put together only when a line is written.
_Bound = tuple[Mapping[str, str], "_Bound | None"]
_context: ContextVar[_Bound | None] = ContextVar("desk_log_context", default=None)


def bind(**ids: str) -> None:
    """Add these ids to every later line of the present task; empty ones are left out."""
    _context.set((ids, _context.get()))


def bind_only(ids: Mapping[str, str]) -> None:
    """Replace what was bound: the start of a request. Costs one ContextVar write."""
    _context.set((ids, None))


def bound() -> Mapping[str, str]:
    ids: dict[str, str] = {}
    layer = _context.get()
    while layer is not None:
        newer, layer = layer
        ids = {**{name: value for name, value in newer.items() if value}, **ids}
    return ids


def brief(event: str, **values: str) -> None:
    """As `info` of a structlog logger writes it, at a tenth of the cost: JSON is made in one go, and lines of one turn
    of the event loop are written together at its end. structlog's own contextvars are not looked at."""
    brief_lines = _output.brief
    if brief_lines is None:
        structlog.get_logger("desk").info(event, **values)
    elif brief_lines.are_shown:
        at = msgspec.to_builtins(datetime.now(UTC))
        line = _to_json({**brief_lines.always, **values, **bound(), "event": event, "level": "info", "timestamp": at})
        if b"desk_" in line or b"earer " in line:
            # Perhaps a secret, in something that a caller named: looked at closely.
            structlog.get_logger("desk").info(event, **values)
        else:
            brief_lines.put(line)


class _Brief:
    """Lines that wait for the end of this turn of the loop, in front of whatever else is written to `stream`."""

    def __init__(self, stream: TextIO, always: Mapping[str, str], *, are_shown: bool) -> None:
        self.always = always
        self.are_shown = are_shown
        self._stream = stream
        self._waiting: list[bytes] = []
        self._lock = threading.Lock()

    def put(self, line: bytes) -> None:
        with self._lock:
            self._waiting.append(line)
            is_first = len(self._waiting) == 1
        if is_first:
            try:
                asyncio.get_running_loop().call_soon(self.flush)
            except RuntimeError:
                self.flush()

    def write(self, text: str) -> int:
        self._write_waiting()
        return self._stream.write(text)

    def flush(self) -> None:
        self._write_waiting()
        self._stream.flush()

    def end(self) -> None:
        if self._waiting and not self._stream.closed:
            self.flush()

    def _write_waiting(self) -> None:
        with self._lock:
            lines, self._waiting = self._waiting, []
            if lines:
                self._stream.write(b"\n".join([*lines, b""]).decode())


class _Output:
    # None before `configure`, and where lines are not JSON.
    brief: _Brief | None = None


_output = _Output()
_to_json = msgspec.json.Encoder().encode


def configure(settings: Settings) -> None:
    """Send structlog's and the standard library's records to standard error, in one format.

    On a live account, every line says so.
    """
    shared: list[Any] = [
        *([_say_live] if settings.is_live else []),
        _add_bound,
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    if settings.log_format == "json":
        last: list[Any] = [structlog.processors.format_exc_info, redact, structlog.processors.JSONRenderer()]
    else:
        last = [structlog.processors.format_exc_info, redact, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    stream: Any = sys.stderr
    _output.brief = None
    if settings.log_format == "json":
        always = {str(name): str(value) for name, value in _say_live(None, "", {}).items()} if settings.is_live else {}
        stream = _output.brief = _Brief(sys.stderr, always, are_shown=level <= logging.INFO)
        atexit.register(stream.end)
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Other libraries' chatter stays out unless it says that something is wrong.
    root.setLevel(max(level, logging.WARNING))


def redact(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """A processor: blanks values under secret names, and whatever looks like a desk token, at any depth."""
    for name, value in event.items():
        event[name] = _clean(name, value)
    return event


def _clean(name: str, value: Any) -> Any:
    if isinstance(value, str):
        if value and _SECRET_KEY.search(name):
            return REDACTED
        return _SECRET_TEXT.sub(REDACTED, value)
    if isinstance(value, bytes):
        return _clean(name, value.decode("utf-8", "replace"))
    if isinstance(value, Mapping):
        return {key: _clean(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(name, item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return REDACTED if isinstance(value, int) and not isinstance(value, bool) and name == "secret" else value
    return _clean(name, str(value))


def _say_live(_: WrappedLogger, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """On every line of a desk that trades real money."""
    event["account"] = "LIVE"
    return event


def _add_bound(_: WrappedLogger, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in bound().items():
        event.setdefault(name, value)
    return event
