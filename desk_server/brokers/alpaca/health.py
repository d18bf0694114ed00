"""Whether orders can be sent to Alpaca now: what its answers, and the account itself, have shown."""

from desk_server.brokers.alpaca.answers import KEY_REFUSED
from desk_server.clock import Clock


class Health:
    """Told of every answer; asked by `problem`. No I/O."""

    def __init__(self, clock: Clock, stale_s: float) -> None:
        self._clock = clock
        self._stale_s = stale_s
        self._answered_s: float | None = None
        self._is_key_refused = False
        # Why the account itself cannot trade; "" when it can.
        self.account_problem = ""

    def answered(self) -> None:
        """The broker answered, and took the key."""
        self._answered_s = self._clock.monotonic_s()
        self._is_key_refused = False

    def key_refused(self) -> None:
        self._is_key_refused = True

    def problem(self) -> str:
        """Why orders cannot be sent now; "" when all is well."""
        if self._is_key_refused:
            return KEY_REFUSED
        if self._answered_s is None:
            return "Alpaca has not answered yet"
        silence_s = self._clock.monotonic_s() - self._answered_s
        if silence_s > self._stale_s:
            return f"Alpaca has not answered for {silence_s:.0f} s"
        return self.account_problem
