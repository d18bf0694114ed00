"""What runs and how it is: derived from the engine and the desk at this moment, remembered nowhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from desk_manager import folders, logs
from desk_manager.admin import Deployment, DeskAdmin
from desk_manager.errors import InvalidStrategy, ManagerError
from desk_manager.runtimes import Instance, Runtime, State, Usage
from desk_manager.settings import Settings

PARALLEL = 8


@dataclass(frozen=True, slots=True)
class Row:
    """One strategy in `status`. What is not known is None."""

    strategy: str
    user: str
    state: State
    uptime_s: float | None = None
    restarts: int = 0
    exit_code: int | None = None
    last_error: str = ""
    lines_read: int | None = None
    last_line_age_s: float | None = None
    orders: int | None = None
    fills: int | None = None
    connected: bool | None = None
    memory_bytes: int | None = None
    memory_limit_bytes: int | None = None
    # Of one CPU, since the sample before or, at first, since it started.
    cpu_percent: float | None = None
    deployment_id: str = ""
    code_hash: str = ""
    sandboxed: bool = True

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Deployments:
    """The desk's list of deployments, asked for at most every `keep_s` seconds by however many threads."""

    def __init__(self, desk: DeskAdmin, keep_s: float = 0.25) -> None:
        self._desk = desk
        self._keep_s = keep_s
        self._lock = threading.Lock()
        self._until = 0.0
        self._known: Mapping[str, Deployment] = {}

    def heard(self, deployment_id: str) -> bool:
        """Has the strategy spoken to the desk?"""
        with self._lock:
            if time.monotonic() >= self._until:
                self._known = {one["deployment_id"]: one for one in self._desk.deployments()}
                self._until = time.monotonic() + self._keep_s
            one = self._known.get(deployment_id, {})
        return bool(one.get("connected") or one.get("heartbeat_at"))


class Board:
    """Makes the rows of `status`; keeps the last CPU sample between two looks."""

    def __init__(self, settings: Settings, runtime: Runtime, desk: DeskAdmin) -> None:
        self._settings = settings
        self._runtime = runtime
        self._desk = desk
        self._samples: dict[str, tuple[float, int]] = {}

    def rows(self, only: Iterable[str] = ()) -> tuple[list[Row], str]:
        """Every strategy that is deployed or could be, by name; and why the desk's columns are empty, if so."""
        deployments: dict[str, Deployment] = {}
        trouble = ""
        try:
            deployments = {one["deployment_id"]: one for one in self._desk.deployments()}
        except ManagerError as error:
            trouble = str(error)
        instances = self._runtime.instances()
        wanted = frozenset(only)

        def row(instance: Instance) -> Row:
            return self._row(instance, deployments.get(instance.deployment_id))

        with ThreadPoolExecutor(PARALLEL) as pool:
            rows = list(pool.map(row, instances.values()))
        if self._settings.strategies_dir.is_dir():
            rows += [
                _idle(path) for path in folders.everything(self._settings.strategies_dir) if path.name not in instances
            ]
        chosen = [row for row in rows if not wanted or row.strategy in wanted]
        return sorted(chosen, key=lambda row: row.strategy), trouble

    def _row(self, instance: Instance, deployment: Deployment | None) -> Row:
        running = instance.state is State.RUNNING
        usage = self._runtime.usage(instance.strategy) if running else None
        logs.rotate(self._settings.log_file(instance.strategy))
        desk = deployment or {}
        return Row(
            strategy=instance.strategy,
            user=instance.user_id,
            state=instance.state,
            uptime_s=seconds_up(instance) if running else None,
            restarts=instance.restarts,
            exit_code=instance.exit_code,
            last_error=last_error(instance, self._settings, self._runtime),
            lines_read=int(desk.get("lines_read") or 0) if deployment else None,
            last_line_age_s=_age(desk.get("last_line_at")),
            orders=int(desk.get("orders") or 0) if deployment else None,
            fills=int(desk.get("fills") or 0) if deployment else None,
            connected=bool(desk.get("connected")) if deployment else None,
            memory_bytes=usage.memory_bytes if usage else None,
            memory_limit_bytes=instance.memory_limit_bytes,
            cpu_percent=self._cpu(instance, usage) if usage else None,
            deployment_id=instance.deployment_id,
            code_hash=instance.code_hash,
            sandboxed=self._runtime.sandboxed,
        )

    def _cpu(self, instance: Instance, usage: Usage) -> float | None:
        now = time.monotonic()
        before = self._samples.get(instance.deployment_id, (now - max(seconds_up(instance), 0.001), 0))
        self._samples[instance.deployment_id] = (now, usage.cpu_ns)
        if usage.cpu_ns < before[1] or now <= before[0]:
            return None
        return round((usage.cpu_ns - before[1]) / 1e7 / (now - before[0]), 1)


def seconds_up(instance: Instance) -> float:
    """How long it has run since it last started: until now, or until it ended."""
    if instance.started_at is None:
        return 0.0
    running = instance.state is State.RUNNING or instance.finished_at is None
    end = datetime.now(UTC) if running else instance.finished_at
    assert end is not None
    return max(0.0, (end - instance.started_at).total_seconds())


def last_error(instance: Instance, settings: Settings, runtime: Runtime) -> str:
    """The engine's complaint, or the last line of the last traceback."""
    if instance.complaint:
        return instance.complaint[: logs.ERROR_LENGTH_MAX]
    if instance.out_of_memory:
        return f"out of memory: it may use {instance.memory_limit_bytes >> 20} MiB (config.json: resources.memory)"
    failed = instance.exit_code not in (None, 0)
    said = logs.last_error(logs.tail(settings.log_file(instance.strategy), logs.ERROR_BYTES), failed)
    if said or not failed:
        return said
    return logs.last_error(runtime.early_log(instance.strategy), True)


def _idle(path: Path) -> Row:
    try:
        return Row(path.name, folders.load(path).user_id, State.NOT_DEPLOYED)
    except InvalidStrategy as error:
        return Row(path.name, "", State.NOT_DEPLOYED, last_error=f"invalid: {error.cause}")


def _age(at: object) -> float | None:
    if not isinstance(at, str) or not at:
        return None
    try:
        return round(max(0.0, (datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds()), 1)
    except (ValueError, TypeError):
        return None
