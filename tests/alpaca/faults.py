"""Every fault this broker can show: one table, who picks one when, and how often each was really shown."""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """What a fault can befall: the kinds of requests, then what happens inside."""

    SUBMIT = "submit"
    REPLACE = "replace"
    CANCEL = "cancel"
    CANCEL_ALL = "cancel_all"
    CLOSE = "close"
    LOOKUP = "lookup"
    LIST = "list"
    POSITIONS = "positions"
    ACTIVITIES = "activities"
    READ = "read"
    EVENT = "event"
    EXECUTION = "execution"


class Stage(StrEnum):
    """BEFORE: the book never hears of the request. BOOK: the book behaves so. AFTER: only the answer is bad."""

    BEFORE = "before"
    BOOK = "book"
    AFTER = "after"
    STREAM = "stream"


WRITES = (Kind.SUBMIT, Kind.REPLACE, Kind.CANCEL)
REQUESTS = tuple(kind for kind in Kind if kind not in (Kind.EVENT, Kind.EXECUTION))


@dataclass(frozen=True, slots=True)
class Fault:
    """`params` with their defaults: a range [lo, hi] is drawn from; a "how" of "any" is drawn from what it names."""

    name: str
    stage: Stage
    on: tuple[Kind, ...]
    says: str
    params: Mapping[str, Any] = field(default_factory=dict)


_ALL = (
    Fault("reset", Stage.BEFORE, REQUESTS, "RST instead of an answer; nothing accepted"),
    Fault(
        "half_open_tcp",
        Stage.BEFORE,
        (*REQUESTS, Kind.EVENT),
        "the peer is gone: nothing is read, answered or closed; a stream answers no pings either",
    ),
    Fault("503", Stage.BEFORE, REQUESTS, "503; nothing accepted"),
    Fault("429", Stage.BEFORE, REQUESTS, "429 with Alpaca's body, with or without headers", {"headers": "any"}),
    Fault("html_403", Stage.BEFORE, REQUESTS, "403 with a page of HTML from something in front of the broker"),
    Fault("lookup_503", Stage.BEFORE, (Kind.LOOKUP, Kind.LIST), "lookups and lists answer 503"),
    Fault(
        "late_landing",
        Stage.BEFORE,
        WRITES,
        "no answer now; the request lands later. how: drop (connection closed at once) or silence (left open)",
        {"delay_ms": [20, 400], "how": "any"},
    ),
    Fault("accepted_then_dropped", Stage.AFTER, WRITES, "accepted, then the connection is closed without an answer"),
    Fault("accepted_then_504", Stage.AFTER, WRITES, "accepted, then answered 504"),
    Fault("accepted_then_hang", Stage.AFTER, WRITES, "accepted, then silence on an open connection"),
    Fault("slow_success", Stage.AFTER, REQUESTS, "the right answer, late", {"delay_ms": [100, 1500]}),
    Fault(
        "truncated_json",
        Stage.AFTER,
        REQUESTS,
        "half of the body. how: body (its length agrees) or wire (the connection closes early)",
        {"how": "any"},
    ),
    Fault("byte_by_byte", Stage.AFTER, REQUESTS, "the answer trickles in, a byte at a time", {"gap_ms": 0.2}),
    Fault(
        "wrong_echo",
        Stage.AFTER,
        (Kind.SUBMIT, Kind.REPLACE, Kind.LOOKUP),
        "done, but the answer describes another order",
    ),
    Fault("unknown_enum", Stage.AFTER, (Kind.LIST,), "one order in the list has a status nobody has heard of"),
    Fault(
        "lookup_404_just_after_acceptance",
        Stage.BOOK,
        (Kind.SUBMIT, Kind.REPLACE),
        "an accepted order is not found by lookups and lists for a while",
        {"lag_ms": [50, 1000]},
    ),
    Fault(
        "fill_before_ack",
        Stage.BOOK,
        (Kind.SUBMIT,),
        "fills are on the stream so long before the POST is answered",
        {"delay_ms": [5, 50]},
    ),
    Fault("reject_later", Stage.BOOK, (Kind.SUBMIT,), "answered 200, then `rejected` on the stream"),
    Fault("manual_external_order", Stage.BOOK, (Kind.SUBMIT,), "the owner trades by hand, in the same symbol"),
    Fault(
        "fill_after_cancel",
        Stage.BOOK,
        (Kind.CANCEL,),
        "204, then a fill. how: race (it comes before `canceled`) or late (after it)",
        {"how": "any"},
    ),
    Fault("stuck_pending_cancel", Stage.BOOK, (Kind.CANCEL,), "204, then long nothing", {"lag_ms": [1000, 5000]}),
    Fault("cancel_refused", Stage.BOOK, (Kind.CANCEL,), "422 and order_cancel_rejected for an order that is open"),
    Fault(
        "stale",
        Stage.BOOK,
        (Kind.LIST, Kind.POSITIONS),
        "orders or positions as they were a while ago",
        {"lag_ms": [200, 3000]},
    ),
    Fault(
        "bust_and_correction",
        Stage.BOOK,
        (Kind.EXECUTION,),
        "an execution is undone, or its price changed, a while later. how: bust or correct",
        {"delay_ms": [20, 500], "how": "any"},
    ),
    Fault("stream_lost", Stage.STREAM, (Kind.EVENT,), "an update is never sent (websocket)"),
    Fault("stream_tripled", Stage.STREAM, (Kind.EVENT,), "an update is sent three times"),
    Fault("stream_reordered", Stage.STREAM, (Kind.EVENT,), "an update comes after the next one (websocket)"),
    Fault("stream_disconnect", Stage.STREAM, (Kind.EVENT,), "the stream closes in place of the update"),
    Fault("stream_silent", Stage.STREAM, (Kind.EVENT,), "the stream stays open, answers pings, says nothing more"),
)
FAULTS: dict[str, Fault] = {fault.name: fault for fault in _ALL}

# What "any" stands for.
_HOWS: dict[str, tuple[Any, ...]] = {
    "late_landing": ("drop", "silence"),
    "truncated_json": ("body", "wire"),
    "fill_after_cancel": ("race", "late"),
    "bust_and_correction": ("bust", "correct"),
    "429": (True, False),
}


@dataclass(slots=True)
class Arm:
    """A fault that the next `times` matching ones show surely."""

    fault: Fault
    times: int
    on: tuple[Kind, ...]
    match: Mapping[str, str]
    params: Mapping[str, Any]

    def fits(self, kind: Kind, about: Mapping[str, str]) -> bool:
        if self.times <= 0 or kind not in self.on:
            return False
        for name, wanted in self.match.items():
            if name == "prefix":
                if not about.get("client_order_id", "").startswith(wanted):
                    return False
            elif about.get(name) != wanted:
                return False
        return True


@dataclass(slots=True)
class Pick:
    """A fault that is about to be shown, its params drawn."""

    fault: Fault
    params: dict[str, Any]
    arm: Arm | None
    used: bool = False

    @property
    def name(self) -> str:
        return self.fault.name


class Unknown(ValueError):
    """A name or a value that makes no sense; the message says which are allowed."""


class Faults:
    """Decides, from a seed or by what was armed, which fault the next one shows, and counts those shown."""

    def __init__(self, seed: int) -> None:
        self.counts: Counter[str] = Counter({name: 0 for name in FAULTS})
        self.reseed(seed)
        self.heal()

    def reseed(self, seed: int) -> None:
        self._chance = random.Random(f"faults {seed}")

    def heal(self) -> None:
        self.probabilities: dict[str, float] = {}
        self._params: dict[str, Mapping[str, Any]] = {}
        self._armed: list[Arm] = []
        self._by_kind: dict[Kind, list[tuple[float, Fault]]] = {}

    def set_probabilities(self, wanted: Mapping[str, float], params: Mapping[str, Mapping[str, Any]]) -> None:
        """`wanted` by fault, by fault@kind, and "*" for all that are not named."""
        for name in wanted:
            fault, _, kind = name.partition("@")
            if name != "*" and kind and kind not in _known(fault).on:
                raise Unknown(f"{fault} can be shown on {', '.join(FAULTS[fault].on)}; not on {kind!r}")
            if name != "*":
                _known(fault)
        for name, given in params.items():
            _check_params(_known(name), given)
        self.probabilities = dict(wanted)
        self._params = dict(params)
        self._by_kind = {kind: self._cumulated(kind) for kind in Kind}

    def probability(self, name: str, kind: Kind) -> float:
        wanted = self.probabilities
        return float(wanted.get(f"{name}@{kind}", wanted.get(name, wanted.get("*", 0))))

    def _cumulated(self, kind: Kind) -> list[tuple[float, Fault]]:
        total, out = 0.0, []
        for fault in FAULTS.values():
            probability = self.probability(fault.name, kind) if kind in fault.on else 0
            if probability > 0:
                total += probability
                out.append((total, fault))
        return out

    def arm(self, name: str, times: int, on: str | None, match: Mapping[str, str], params: Mapping[str, Any]) -> int:
        fault = _known(name)
        if on is not None and on not in fault.on:
            raise Unknown(f"{name} can be shown on {', '.join(fault.on)}; not on {on!r}")
        _check_params(fault, params)
        self._armed.append(Arm(fault, times, (Kind(on),) if on else fault.on, match, params))
        return sum(arm.times for arm in self._armed)

    def pick(self, kind: Kind, about: Mapping[str, str]) -> Pick | None:
        """The fault to show now, if any. It is spent by `use`, and counted by `count`."""
        for arm in self._armed:
            if arm.fits(kind, about):
                return self._drawn(arm.fault, arm.params, arm)
        chances = self._by_kind.get(kind)
        if not chances:
            return None
        drawn = self._chance.random()
        for bound, fault in chances:
            if drawn < bound:
                return self._drawn(fault, self._params.get(fault.name, {}), None)
        return None

    def _drawn(self, fault: Fault, given: Mapping[str, Any], arm: Arm | None) -> Pick:
        params: dict[str, Any] = {}
        for name, default in fault.params.items():
            value = given.get(name, default)
            if isinstance(value, list):
                value = self._chance.uniform(float(value[0]), float(value[1]))
            elif value == "any":
                value = self._chance.choice(_HOWS[fault.name])
            params[name] = value
        return Pick(fault, params, arm)

    def use(self, pick: Pick) -> None:
        """The pick takes effect: one of the armed is spent."""
        pick.used = True
        if pick.arm is not None:
            pick.arm.times -= 1
            if pick.arm.times <= 0 and pick.arm in self._armed:
                self._armed.remove(pick.arm)

    def count(self, name: str) -> None:
        """The fault was really seen by the client, or by the book."""
        self.counts[name] += 1

    def show(self, pick: Pick) -> None:
        self.use(pick)
        self.count(pick.name)


def _known(name: str) -> Fault:
    if name not in FAULTS:
        raise Unknown(f"no fault is called {name!r}; there are {', '.join(FAULTS)}")
    return FAULTS[name]


def _check_params(fault: Fault, given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name not in fault.params:
            raise Unknown(f"{fault.name} has no {name!r}; it has {', '.join(fault.params) or 'no parameters'}")
        if name in ("how", "headers") and value != "any" and value not in _HOWS[fault.name]:
            raise Unknown(f"{name} of {fault.name} is one of {_HOWS[fault.name]} or 'any'")
