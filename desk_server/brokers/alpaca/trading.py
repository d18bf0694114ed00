"""Alpaca's Trading API: one account, paper or live, that all users share."""

from collections.abc import Callable

from desk_server.brokers import Capabilities
from desk_server.brokers.alpaca import Tuning
from desk_server.clock import Clock, SystemClock

PAPER_URL = "https://paper-api.alpaca.markets"
_PRACTICE_HOSTS = ("paper-api.alpaca.markets",)


class AlpacaBroker:
    """Broker and BrokerRecords (see brokers/__init__.py). Lives on one event loop.

    `base_url` without /v2; any host but the paper host and loopback counts as live. `stream_url` is the whole
    websocket URL, by default made from `base_url`. `on_gap` is called whenever updates may have been missed (a
    stream was opened again): compare with the records then, nothing is replayed.
    """

    def __init__(
        self,
        key_id: str,
        secret_key: str,
        *,
        base_url: str = PAPER_URL,
        stream_url: str = "",
        on_gap: Callable[[], None] | None = None,
        clock: Clock | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        self.on_gap = on_gap
        self.tuning = tuning or Tuning()
        self.clock = clock or SystemClock()
        self.capabilities = Capabilities(
            name="alpaca", wash_trades_refused=True, lookup_lag_s=self.tuning.lookup_lag_s, live=False
        )

    def stream_problem(self) -> str:
        """Why updates do not come by stream; not a reason to refuse orders. "" when they do."""
        return "not connected yet"
