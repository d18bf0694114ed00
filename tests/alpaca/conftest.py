"""The misbehaving Alpaca, and the unmodified alpaca-py to drive it with."""

import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
from alpaca.broker.client import BrokerClient
from alpaca.trading.client import TradingClient
from alpaca.trading.requests import LimitOrderRequest, MarketOrderRequest
from alpaca.trading.stream import TradingStream

from tests.alpaca.server import Running, running_alpaca

PATIENCE_S = 15.0


def eventually(what: Callable[[], Any], wanted: Callable[[Any], bool] = bool) -> Any:
    """Poll until it is so; the last value in the failure."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        value = what()
        if wanted(value):
            return value
        assert time.monotonic() < deadline, f"it did not come to pass; last: {value!r}"
        time.sleep(0.005)


def market(symbol: str, qty: Any, side: str = "buy", name: str | None = None, **more: Any) -> MarketOrderRequest:
    tif = more.pop("tif", "gtc" if "/" in symbol else "day")
    return MarketOrderRequest(symbol=symbol, qty=qty, side=side, time_in_force=tif, client_order_id=name, **more)


def limit(
    symbol: str, qty: Any, price: float, *, side: str = "buy", name: str | None = None, **more: Any
) -> LimitOrderRequest:
    tif = more.pop("tif", "gtc")
    return LimitOrderRequest(
        symbol=symbol, qty=qty, side=side, time_in_force=tif, limit_price=price, client_order_id=name, **more
    )


class Listening:
    """alpaca-py's own stream in a thread; `updates` as they came."""

    def __init__(self, alpaca: Running) -> None:
        self.updates: list[Any] = []
        self._alpaca = alpaca
        others = self._streams()
        self._stream = TradingStream(alpaca.key, alpaca.secret, url_override=alpaca.stream_url)
        self._stream._reconnect_min_backoff = 0.01
        self._stream.subscribe_trade_updates(self._heard)
        self._thread = threading.Thread(target=self._stream.run, daemon=True)
        self._thread.start()
        self.wait_until_connected(others)

    async def _heard(self, update: Any) -> None:
        self.updates.append(update)

    def wait_until_connected(self, others: int = 0) -> None:
        eventually(lambda: self._streams() > others)

    def _streams(self) -> int:
        return self._alpaca.control.dump(posts=False)["connections"]["streams"]

    def events(self, name: str | None = None) -> list[str]:
        """What happened to the order of that client_order_id (or to all), in the order it was heard."""
        return [update.event for update in self.updates if name in (None, update.order.client_order_id)]

    def stop(self) -> None:
        self._stream.stop()


class Truth:
    """The broker's book as a checker sees it."""

    def __init__(self, alpaca: Running) -> None:
        self._alpaca = alpaca

    def dump(self) -> dict[str, Any]:
        return self._alpaca.control.dump()

    @property
    def account(self) -> dict[str, Any]:
        dump = self.dump()
        return dump["accounts"][dump["main"]]

    def order(self, name: str) -> dict[str, Any]:
        return next(order for order in self.account["orders"] if name in (order["client_order_id"], order["id"]))

    def names(self) -> list[str]:
        return [order["client_order_id"] for order in self.account["orders"]]

    def position(self, symbol: str) -> Decimal:
        return Decimal(self.account["positions"].get(symbol, {"qty": "0"})["qty"])

    def post(self, name: str) -> dict[str, Any]:
        return next(post for post in self.dump()["posts"] if post["client_order_id"] == name)


@pytest.fixture
def alpaca() -> Iterator[Running]:
    with running_alpaca(seed=7, accounts=2) as running:
        yield running


@pytest.fixture
def client(alpaca: Running) -> Iterator[TradingClient]:
    client = TradingClient(alpaca.key, alpaca.secret, url_override=alpaca.url)
    client._retry = 0
    yield client
    client._session.close()


@pytest.fixture
def broker(alpaca: Running) -> Iterator[BrokerClient]:
    broker = BrokerClient(alpaca.broker_key, alpaca.broker_secret, url_override=alpaca.url)
    broker._retry = 0
    yield broker
    broker._session.close()


@pytest.fixture
def stream(alpaca: Running) -> Iterator[Listening]:
    listening = Listening(alpaca)
    yield listening
    listening.stop()


@pytest.fixture
def truth(alpaca: Running) -> Truth:
    return Truth(alpaca)
