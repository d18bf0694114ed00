"""Trade updates to whoever listens: the websocket's, which replays nothing, and the replayable server-sent events."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from tests.alpaca.faults import Kind, Pick
from tests.alpaca.orders import stamp
from tests.alpaca.rules import Refused, bad

if TYPE_CHECKING:
    from tests.alpaca.exchange import Exchange
    from tests.alpaca.records import Records

# An update that was held back is sent at the latest after this long, where no other one comes.
HELD_BACK_S = 0.05
KEEPALIVE_S = 5.0
_ULID = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


class Sink(Protocol):
    """The connection below a listener."""

    def send(self, data: bytes) -> None: ...

    def finish(self) -> None: ...

    def cut(self, *, reset: bool) -> None: ...

    def freeze(self) -> None: ...


class Listener:
    """Someone who is told of one account's updates (a websocket), or of all sub-accounts' (server-sent events)."""

    def __init__(self, sink: Sink, account: "Records | None", *, version: int = 0, until: "Bound | None" = None):
        self.sink = sink
        self.account = account
        self.version = version
        self.until = until
        self.mute = False
        self.frozen = False

    @property
    def replayable(self) -> bool:
        return self.account is None

    def hears(self, account: "Records") -> bool:
        return account.exchange.main is not account if self.account is None else self.account is account


class Event(msgspec.Struct, frozen=True):
    id: int
    ulid: str
    at_ns: int
    account: str
    data: dict[str, Any]

    def sse(self, version: int) -> bytes:
        """One server-sent event: version 1 has integer ids, version 2 ULIDs."""
        told = {"account_id": self.account, "at": stamp(self.at_ns), **self.data}
        if version == 1:
            told |= {"event_id": self.id, "event_ulid": self.ulid}
        else:
            told |= {"event_id": self.ulid}
        return b"data: " + msgspec.json.encode(told) + b"\n\n"


class Bound(msgspec.Struct, frozen=True):
    """Where a replay starts or ends: by time, by integer id or by ULID; both ends included."""

    at_ns: int | None = None
    id: int | None = None
    ulid: str | None = None

    def reached(self, event: Event) -> bool:
        if self.at_ns is not None:
            return event.at_ns >= self.at_ns
        if self.id is not None:
            return event.id >= self.id
        return event.ulid >= (self.ulid or "")

    def passed(self, event: Event) -> bool:
        if self.at_ns is not None:
            return event.at_ns > self.at_ns
        if self.id is not None:
            return event.id > self.id
        return event.ulid > (self.ulid or "")


class Streams:
    def __init__(self, exchange: "Exchange") -> None:
        self._exchange = exchange
        self.listeners: list[Listener] = []
        self.reset()

    def reset(self) -> None:
        self.cut(reset=False)
        self.events: list[Event] = []
        self._held: dict[Listener, bytes] = {}

    def wanted(self, account: "Records") -> bool:
        return bool(self.listeners) or self._keeps(account)

    def _keeps(self, account: "Records") -> bool:
        return account is not self._exchange.main or self._exchange.settings.keep_events

    def publish(self, account: "Records", data: dict[str, Any], about: dict[str, str]) -> None:
        event: Event | None = None
        if self._keeps(account):
            now = time.time_ns()
            number = len(self.events) + 1
            event = Event(number, _ulid(now, number), now, account.id, data)
            self.events.append(event)
        hearing = [listener for listener in self.listeners if listener.hears(account)]
        if not hearing:
            return
        pick = self._exchange.faults.pick(Kind.EVENT, about)
        line = b""
        for listener in hearing:
            if listener.replayable:
                assert event is not None
                self._tell(listener, event.sse(listener.version), pick)
                if listener.until is not None and listener.until.reached(event):
                    self.drop(listener)
                    listener.sink.finish()
            else:
                line = line or msgspec.json.encode({"stream": "trade_updates", "data": data})
                self._tell(listener, line, pick)

    def _tell(self, listener: Listener, line: bytes, pick: Pick | None) -> None:
        faults = self._exchange.faults
        if listener.mute:
            faults.count("half_open_tcp" if listener.frozen else "stream_silent")
            return
        match pick.name if pick is not None else "":
            case "stream_lost" if not listener.replayable:
                self._shown(pick)
            case "stream_reordered" if not listener.replayable and listener not in self._held:
                self._shown(pick)
                self._held[listener] = line
                asyncio.get_running_loop().call_later(HELD_BACK_S, self._send_held, listener)
            case "stream_tripled":
                self._shown(pick)
                for _ in range(3):
                    self._send(listener, line)
            case "stream_disconnect":
                self._shown(pick)
                self.drop(listener)
                listener.sink.cut(reset=False)
            case "stream_silent":
                self._shown(pick)
                listener.mute = True
            case "half_open_tcp":
                self._shown(pick)
                listener.mute = listener.frozen = True
                listener.sink.freeze()
            case _:
                self._send(listener, line)

    def _shown(self, pick: Pick | None) -> None:
        assert pick is not None
        self._exchange.faults.show(pick)

    def _send(self, listener: Listener, line: bytes) -> None:
        listener.sink.send(line)
        self._send_held(listener)

    def _send_held(self, listener: Listener) -> None:
        held = self._held.pop(listener, None)
        if held is not None and listener in self.listeners:
            listener.sink.send(held)

    def listen(self, listener: Listener, since: Bound | None = None) -> None:
        """Add a listener; a replayable one is first told what it asks for. May finish it at once."""
        if since is not None:
            for event in self.events:
                if since.reached(event):
                    if listener.until is not None and listener.until.passed(event):
                        break
                    listener.sink.send(event.sse(listener.version))
        until = listener.until
        if until is not None and (self._is_past(until)):
            listener.sink.finish()
            return
        self.listeners.append(listener)

    def _is_past(self, until: Bound) -> bool:
        if until.at_ns is not None:
            return until.at_ns <= time.time_ns()
        return bool(self.events) and until.reached(self.events[-1])

    def drop(self, listener: Listener) -> None:
        if listener in self.listeners:
            self.listeners.remove(listener)
        self._held.pop(listener, None)

    def heal(self) -> None:
        """Mute streams speak again; a frozen one cannot, and is closed."""
        for listener in list(self.listeners):
            listener.mute = False
            if listener.frozen:
                self.drop(listener)
                listener.sink.cut(reset=True)

    def cut(self, *, reset: bool) -> int:
        """Every stream is disconnected."""
        listeners, self.listeners = self.listeners, []
        for listener in listeners:
            listener.sink.cut(reset=reset)
        return len(listeners)


def bounds(first: Callable[[str], str | None]) -> tuple[Bound | None, Bound | None]:
    """since… and until… of a request, by Alpaca's rules."""
    since, until = _bound(first, "since"), _bound(first, "until")
    if until is not None and since is None:
        raise bad("since is required if until is specified")
    return since, until


def _bound(first: Callable[[str], str | None], name: str) -> Bound | None:
    given = {end: value for end in ("", "_id", "_ulid") if (value := first(name + end))}
    if len(given) > 1:
        raise bad(f"{name}, {name}_id and {name}_ulid can't be used at the same time")
    for end, value in given.items():
        if end == "":
            return Bound(at_ns=moment_ns(value, name))
        return Bound(id=int(value)) if value.isdigit() and end == "_id" else Bound(ulid=value)
    return None


def moment_ns(value: str, name: str) -> int:
    """A date or an RFC 3339 time, as nanoseconds."""
    try:
        if len(value) == len("2026-01-01"):
            at = datetime.combine(date.fromisoformat(value), datetime.min.time(), UTC)
        else:
            at = datetime.fromisoformat(value.replace(" ", "+"))
    except ValueError as error:
        raise Refused(422, 40010001, f"invalid {name}: {value}") from error
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    whole = int(at.replace(microsecond=0).timestamp())
    return whole * 1_000_000_000 + at.microsecond * 1000


def _ulid(at_ns: int, number: int) -> str:
    """Sorts as the events came: the time, then the event's number."""
    value = (at_ns // 1_000_000) << 80 | number
    return "".join(_ULID[(value >> shift) & 31] for shift in range(125, -1, -5))
