"""Time, handed to whoever needs it, so that tests and backtests can hand out another."""

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    def now(self) -> datetime:
        """The time, aware, UTC."""
        ...

    def monotonic_s(self) -> float:
        """Seconds since some fixed moment; never steps back."""
        ...


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        return time.monotonic()
