"""Alpaca's Broker API: every user has a sub-account of their own."""

from collections.abc import Callable, Mapping
from datetime import datetime

from desk_server.brokers import Capabilities
from desk_server.brokers.alpaca import Tuning
from desk_server.clock import Clock, SystemClock
from desk_server.domain import UserId

SANDBOX_URL = "https://broker-api.sandbox.alpaca.markets"


class AlpacaSubAccounts:
    """Broker and BrokerRecords (see brokers/__init__.py). Lives on one event loop.

    `accounts` maps users to their Alpaca account ids; an order of any other user is rejected before anything is
    sent. `base_url` without /v1. `events_since`: replay order updates from then on; by default from an hour ago.
    """

    def __init__(
        self,
        key: str,
        secret: str,
        *,
        accounts: Mapping[UserId, str],
        base_url: str = SANDBOX_URL,
        events_since: datetime | None = None,
        on_gap: Callable[[], None] | None = None,
        clock: Clock | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        self.accounts = dict(accounts)
        self.on_gap = on_gap
        self.tuning = tuning or Tuning()
        self.clock = clock or SystemClock()
        self.events_since = events_since
        self.capabilities = Capabilities(name="alpaca-broker", lookup_lag_s=self.tuning.lookup_lag_s)
