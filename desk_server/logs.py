"""Structured logs: JSON or console, with the ids of the request at hand, and never a secret.

`bind(...)` adds ids to every line of the present task; structlog's own contextvars work too.
"""

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from contextvars import ContextVar
from typing import Any

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
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
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
