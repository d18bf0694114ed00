"""Time that passes only when nothing else is left to do: an event loop whose clock jumps to the next timer.

There are no sockets and no threads on it, so a run is the same every time, and an hour takes as long as its work.
"""

import asyncio
import selectors
from datetime import UTC, datetime, timedelta
from typing import Any

_TURN_S = 1e-6


class _Selector(selectors.SelectSelector):
    """Would wait: lets the time pass instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("nothing is left to do, and nothing will ever happen: a deadlock")
        # A turn of the loop takes some time, too: who waits for less than a float can add does not wait for ever.
        self.now_s += max(timeout, _TURN_S)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._virtual.now_s


class VirtualClock:
    """The loop's time for the desk, with a time of day that can be set forward and back."""

    def __init__(self, loop: VirtualLoop, start: datetime = datetime(2026, 1, 5, 15, tzinfo=UTC)) -> None:
        self._loop = loop
        self._start = start
        self.offset = timedelta()

    def now(self) -> datetime:
        return self._start + self.offset + timedelta(seconds=self._loop.time())

    def true_now(self) -> datetime:
        """Without the steps: the broker's clock."""
        return self._start + timedelta(seconds=self._loop.time())

    def monotonic_s(self) -> float:
        return self._loop.time()
