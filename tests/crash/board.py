"""A page of memory that the harness and all desks of an epoch share: what is armed, how far the clock is off, who is
ready, how often each kill point was hit. It is a file, so that it outlives who is killed."""

import mmap
import struct
from pathlib import Path

# Where a desk can be made to kill itself. "in" is between a transaction's statements and its COMMIT.
POINTS = (
    "before_intent_commit",
    "in_intent_commit",
    "after_intent_commit",
    "before_post",
    "after_post",
    "before_ack_commit",
    "in_ack_commit",
    "after_ack_commit",
    "before_fill_commit",
    "in_fill_commit",
    "after_fill_commit",
    "mid_migration",
)
_SIZE = 4096
_ARMED, _COUNTDOWN, _READY, _CLOCK, _HITS = 0, 8, 16, 24, 64


class Board:
    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(_SIZE))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _SIZE)

    def _get(self, at: int) -> int:
        return int(struct.unpack_from("q", self._memory, at)[0])

    def _set(self, at: int, value: int) -> None:
        struct.pack_into("q", self._memory, at, value)

    def arm(self, point: str, times: int) -> None:
        """The `times`-th arrival at the point is the end of who arrives."""
        self._set(_COUNTDOWN, times)
        self._set(_ARMED, POINTS.index(point) + 1)

    def disarm(self) -> None:
        self._set(_ARMED, 0)

    def arrive(self, point: str) -> bool:
        """Whether this is where to die; counted then."""
        number = POINTS.index(point)
        if self._get(_ARMED) != number + 1:
            return False
        left = self._get(_COUNTDOWN) - 1
        self._set(_COUNTDOWN, left)
        if left > 0:
            return False
        self._set(_ARMED, 0)
        self._set(_HITS + 8 * number, self._get(_HITS + 8 * number) + 1)
        return True

    @property
    def hits(self) -> dict[str, int]:
        return {point: self._get(_HITS + 8 * number) for number, point in enumerate(POINTS)}

    @property
    def ready(self) -> int:
        """The number of the desk that was ready last."""
        return self._get(_READY)

    @ready.setter
    def ready(self, child: int) -> None:
        self._set(_READY, child)

    @property
    def clock_s(self) -> float:
        """How many seconds the desks' wall clock is off."""
        return self._get(_CLOCK) / 1000

    @clock_s.setter
    def clock_s(self, seconds: float) -> None:
        self._set(_CLOCK, int(seconds * 1000))
