"""What can go wrong, as values a person can act on: who, why, and what to do next."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What the command tells scripts."""

    OK = 0
    FAILED = 1
    INVALID = 2
    NO_DESK = 3
    NO_ENGINE = 4


class ManagerError(Exception):
    """Something did not work. `cause` says what, `next_step` what to do about it."""

    exit_code = ExitCode.FAILED

    def __init__(self, cause: str, next_step: str, strategy: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.next_step = next_step
        self.strategy = strategy

    def __str__(self) -> str:
        # A folder may have any name; what is printed may not.
        sound = self.strategy.isprintable() and self.strategy.isascii()
        who = f"{self.strategy if sound else ascii(self.strategy)}: " if self.strategy else ""
        return f"{who}{self.cause}\n    Next: {self.next_step}"


class UsageError(ManagerError):
    """The command line asks for something that is not there or cannot be done."""

    exit_code = ExitCode.INVALID


class InvalidStrategy(ManagerError):
    """A folder, or its config.json, that will not be run as it is."""

    exit_code = ExitCode.INVALID


class DeskUnreachable(ManagerError):
    """No desk answers, or it does not take our admin token."""

    exit_code = ExitCode.NO_DESK


class NoEngine(ManagerError):
    """No container engine, or none that we may use."""

    exit_code = ExitCode.NO_ENGINE
