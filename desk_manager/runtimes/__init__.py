"""What a runtime must do. `docker` is the real one; `process` is for machines without an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from desk_manager.policy import Launch


class State(StrEnum):
    RUNNING = "running"
    # Crashed and about to be started again.
    RESTARTING = "restarting"
    # Crashed too often; stays down until somebody starts it again.
    QUARANTINED = "quarantined"
    # Came to its end by itself, with exit code 0.
    EXITED = "exited"
    # Taken down from outside, or not begun.
    STOPPED = "stopped"
    NOT_DEPLOYED = "not deployed"


@dataclass(frozen=True, slots=True)
class Instance:
    """A deployed strategy as the engine has it now."""

    strategy: str
    user_id: str
    deployment_id: str
    code_hash: str
    folder: Path
    state: State
    started_at: datetime | None
    finished_at: datetime | None
    # Since it was deployed.
    restarts: int
    # The restart after which the engine gives up, and what config.json asks for.
    restarts_max: int
    max_crashes: int
    window_s: int
    exit_code: int | None
    out_of_memory: bool
    memory_limit_bytes: int
    # The engine's own complaint, where there is one.
    complaint: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """What an instance uses: bytes now, CPU nanoseconds since it started."""

    memory_bytes: int
    cpu_ns: int


class Runtime(Protocol):
    """Runs strategies. Methods may be called from many threads, one thread per strategy.

    Every method raises NoEngine where the engine does not answer, ManagerError where it refuses.
    """

    name: str
    # False: say so, loudly, wherever a strategy is started or shown.
    sandboxed: bool

    def check(self) -> None:
        """Is everything there that a start needs?"""

    def notices(self) -> Sequence[str]:
        """What is weaker here than it should be, in words for people."""

    def instances(self) -> dict[str, Instance]:
        """Every strategy that is deployed from our run directory, by name."""

    def instance(self, strategy: str) -> Instance | None:
        """That one, if it is deployed from our run directory."""

    def ids(self, strategy: str) -> tuple[int, int]:
        """The uid and gid that this strategy runs as."""

    def start(self, launch: Launch) -> None:
        """Start it; there must be no instance of that name."""

    def stop(self, strategy: str, grace_s: float) -> None:
        """SIGTERM, after `grace_s` SIGKILL, then remove it. One that is not there is fine."""

    def usage(self, strategy: str) -> Usage | None:
        """None when it does not run."""

    def early_log(self, strategy: str) -> bytes:
        """What it said before it turned to its log file; at most 1 MiB."""

    def allow(self, instance: Instance, restarts_max: int, again: bool = False) -> None:
        """Let the engine restart it up to `restarts_max` times; `again` starts it when it is down."""

    def desk_file(self, path: Path) -> str | None:
        """The content of a file in the run directory that only a desk in a container may read."""
