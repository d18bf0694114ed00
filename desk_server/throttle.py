"""How fast one user may go: a token bucket each, refilled evenly over a minute."""

from desk_server.clock import Clock
from desk_server.domain import UserId


class Throttle:
    """`per_minute` requests a minute, all of which may come at once after a quiet minute."""

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self._most = float(per_minute)
        self._per_s = per_minute / 60
        self._clock = clock
        self._buckets: dict[UserId, tuple[float, float]] = {}

    def take(self, user: UserId) -> float:
        """Take one request out; 0 when it may go, else the seconds until one may (and none is taken)."""
        now_s = self._clock.monotonic_s()
        left, then_s = self._buckets.get(user, (self._most, now_s))
        left = min(self._most, left + (now_s - then_s) * self._per_s)
        wait_s = 0.0 if left >= 1 else (1 - left) / self._per_s
        self._buckets[user] = (left if wait_s else left - 1, now_s)
        return wait_s
