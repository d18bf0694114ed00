"""A strategy's config.json: what it may say, checked before anything runs.

Every refusal names the key, the cause and the next step. Nothing is corrected silently.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from desk_manager import reserved
from desk_manager.errors import InvalidStrategy

STRATEGY_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
USER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
SYMBOL = re.compile(r"[A-Z0-9][A-Z0-9./_-]{0,31}")
SIZE = re.compile(r"([1-9][0-9]{0,11})([kmg]?)b?", re.IGNORECASE)
UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}

CONFIG_BYTES_MAX = 64 * 1024
SYMBOLS_MAX = 1000
MEMORY_BYTES_MIN, MEMORY_BYTES_MAX = 32 * 2**20, 8 * 2**30
CPUS_MIN, CPUS_MAX = 0.05, 16.0
PIDS_MIN, PIDS_MAX = 8, 1024


@dataclass(frozen=True, slots=True)
class Resources:
    """What the container may use at most."""

    memory_bytes: int = 256 * 2**20
    cpus: float = 0.5
    pids: int = 64


@dataclass(frozen=True, slots=True)
class Restart:
    """After a crash: start again, until `max_crashes` restarts within `window_s` seconds; then quarantine."""

    policy: str = "on-failure"
    max_crashes: int = 5
    window_s: int = 600

    @property
    def retries(self) -> int:
        return self.max_crashes if self.policy == "on-failure" else 0


@dataclass(frozen=True, slots=True)
class StrategyConfig:
    """A sound config.json, with defaults where it says nothing."""

    strategy: str
    user_id: str
    name: str = ""
    description: str = ""
    version: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    symbols: tuple[str, ...] = ()
    # "stream": sys.stdin reads the desk itself. "pipe": it is a real file descriptor, too.
    stdin: str = "stream"
    resources: Resources = Resources()
    restart: Restart = Restart()


def load(folder: Path, strategy: str = "") -> StrategyConfig:
    """The folder's config; without a config.json the strategy's name, which is the folder's, is the user.

    Raises InvalidStrategy.
    """
    strategy = strategy or folder.name
    check_name(strategy)
    path = folder / "config.json"
    raw = _read(path)
    if raw is None:
        return parse({}, strategy, path, has_file=False)
    try:
        content = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_twice, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidStrategy(f"{path} is not sound JSON: {error}", "correct it and try again") from None
    if not isinstance(content, dict):
        raise InvalidStrategy(f"{path} is not a JSON object", 'write it as {"user_id": "alice"}')
    return parse(content, strategy, path)


def check_name(strategy: str) -> None:
    """Raises InvalidStrategy unless this may be a strategy's name. First of all checks."""
    if not STRATEGY_NAME.fullmatch(strategy):
        raise InvalidStrategy(
            f"{strategy!r} cannot be a strategy's name",
            "rename the folder: 1 to 63 of a-z, 0-9, '-', '_', beginning with a letter or digit",
        )


def parse(content: Mapping[str, Any], strategy: str, path: Path, has_file: bool = True) -> StrategyConfig:
    """The config in `content`, read from `path`. Raises InvalidStrategy."""
    keys = _Keys(content, path, "")
    user_id = keys.text("user_id", strategy, 63)
    if not USER_ID.fullmatch(user_id):
        where = f"{path}: user_id is {user_id!r}" if has_file else f"the folder's name {user_id!r} is no user"
        raise InvalidStrategy(
            where,
            "set user_id in config.json to 1 to 32 letters, digits, '-' or '_', beginning with a letter or digit",
        )
    config = StrategyConfig(
        strategy=strategy,
        user_id=user_id,
        name=keys.text("name", "", 128),
        description=keys.text("description", "", 1024),
        version=keys.text("version", "", 64),
        env=_env(keys.table("env"), path),
        symbols=_symbols(keys.value("symbols", []), path),
        stdin=keys.one_of("stdin", "stream", ("stream", "pipe")),
        resources=_resources(_Keys(keys.table("resources"), path, "resources.")),
        restart=_restart(_Keys(keys.table("restart"), path, "restart.")),
    )
    keys.no_others()
    return config


def _resources(keys: _Keys) -> Resources:
    default = Resources()
    resources = Resources(
        memory_bytes=keys.size("memory", default.memory_bytes, MEMORY_BYTES_MIN, MEMORY_BYTES_MAX),
        cpus=keys.number("cpus", default.cpus, CPUS_MIN, CPUS_MAX),
        pids=keys.whole("pids", default.pids, PIDS_MIN, PIDS_MAX),
    )
    keys.no_others()
    return resources


def _restart(keys: _Keys) -> Restart:
    default = Restart()
    restart = Restart(
        policy=keys.one_of("policy", default.policy, ("on-failure", "no")),
        max_crashes=keys.whole("max_crashes", default.max_crashes, 1, 100),
        window_s=keys.whole("window_s", default.window_s, 10, 86_400),
    )
    keys.no_others()
    return restart


def _env(table: Mapping[str, Any], path: Path) -> dict[str, str]:
    if len(table) > 64:
        raise InvalidStrategy(f"{path}: env has {len(table)} entries", "use at most 64")
    for name, value in table.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", name):
            raise InvalidStrategy(f"{path}: env name {name!r}", "use letters, digits and '_', at most 64")
        if why := reserved.reason(name):
            raise InvalidStrategy(f"{path}: env.{name} is reserved: {why}", "choose another name, as MY_" + name)
        if not isinstance(value, str):
            raise InvalidStrategy(
                f"{path}: env.{name} is a {_kind(value)}", f"write it as a string: {json.dumps(str(value))}"
            )
        if len(value.encode()) > 4096 or "\0" in value:
            raise InvalidStrategy(f"{path}: env.{name} is too long or has a NUL", "use at most 4,096 bytes")
    return dict(table)


def _symbols(value: object, path: Path) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(symbol, str) for symbol in value):
        raise InvalidStrategy(f"{path}: symbols is no list of strings", 'write it as ["AAPL", "BTC/USD"]')
    for symbol in value:
        if not SYMBOL.fullmatch(symbol):
            raise InvalidStrategy(f"{path}: symbols has {symbol!r}", 'use upper case, as "AAPL" or "BTC/USD"')
    if len(value) > SYMBOLS_MAX:
        raise InvalidStrategy(
            f"{path}: symbols has {len(value)} entries", f"name at most {SYMBOLS_MAX:,}, or none to read all"
        )
    return tuple(dict.fromkeys(value))


class _Keys:
    """Typed reading of one JSON object that remembers which keys were known."""

    def __init__(self, content: Mapping[str, Any], path: Path, prefix: str) -> None:
        self.content, self.path, self.prefix = content, path, prefix
        self.known: list[str] = []

    def value(self, key: str, default: object) -> object:
        self.known.append(key)
        return self.content.get(key, default)

    def text(self, key: str, default: str, length_max: int) -> str:
        value = self.value(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, f"is a {_kind(value)}", f"write it as a string: {json.dumps(str(value))}")
        if len(value) > length_max or any(ord(letter) < 32 or ord(letter) == 127 for letter in value):
            raise self._wrong(key, "is too long or has control characters", f"at most {length_max} characters")
        return value

    def one_of(self, key: str, default: str, choices: tuple[str, ...]) -> str:
        value = self.value(key, default)
        if value not in choices:
            raise self._wrong(key, f"is {value!r}", "use one of: " + ", ".join(map(json.dumps, choices)))
        return str(value)

    def table(self, key: str) -> Mapping[str, Any]:
        value = self.value(key, {})
        if not isinstance(value, dict):
            raise self._wrong(key, f"is a {_kind(value)}", "write it as an object: {…}")
        return value

    def number(self, key: str, default: float, low: float, high: float) -> float:
        value = self.value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self._wrong(key, f"is {value!r}", f"use a number from {low:g} to {high:g}")
        return float(value)

    def whole(self, key: str, default: int, low: int, high: int) -> int:
        value = self.value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._wrong(key, f"is {value!r}", f"use a whole number from {low:,} to {high:,}")
        return value

    def size(self, key: str, default: int, low: int, high: int) -> int:
        value = self.value(key, default)
        match = SIZE.fullmatch(str(value)) if not isinstance(value, bool) else None
        count = int(match[1]) * UNITS[match[2].lower()] if match else -1
        if not low <= count <= high:
            limits = f'from "{low >> 20}m" to "{high >> 30}g"'
            raise self._wrong(key, f"is {value!r}", f'use a size {limits}, as "256m"')
        return count

    def no_others(self) -> None:
        for key in self.content:
            if key not in self.known:
                near = difflib.get_close_matches(key.lower(), self.known, 1, 0.5)
                meant = f"did you mean {self.prefix}{near[0]}? Otherwise remove it" if near else "remove it"
                raise self._wrong(key, "is not a known key", f"{meant}; known are: {', '.join(self.known)}")

    def _wrong(self, key: str, cause: str, next_step: str) -> InvalidStrategy:
        return InvalidStrategy(f"{self.path}: {self.prefix}{key} {cause}", next_step)


def _read(path: Path) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidStrategy(f"{path} cannot be read: {error.strerror}", "make it a plain readable file") from None
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InvalidStrategy(f"{path} is no regular file", "make it a plain file")
        raw = file.read(CONFIG_BYTES_MAX + 1)
    if len(raw) > CONFIG_BYTES_MAX:
        raise InvalidStrategy(f"{path} is larger than 64 KiB", "move data into other files of the folder")
    return raw


def _no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        twice = next(key for key, _ in pairs if [other for other, _ in pairs].count(key) > 1)
        raise ValueError(f"the key {twice!r} stands there twice")
    return content


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _kind(value: object) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")
