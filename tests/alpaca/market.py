"""Prices, the assets they belong to, and at what price an order could trade now. Seeded walks, no clock of its own."""

import random
import uuid
from collections.abc import Iterable
from decimal import ROUND_HALF_EVEN, Decimal

from tests.alpaca.orders import Order
from tests.alpaca.rules import Asset

_START = {
    "AAPL": "190",
    "AMD": "160",
    "AMZN": "180",
    "F": "12",
    "FAKEPACA": "100",
    "GOOG": "170",
    "META": "500",
    "MSFT": "420",
    "NVDA": "900",
    "QQQ": "440",
    "SPY": "510",
    "TSLA": "175",
    "BTC/USD": "60000",
    "ETH/USD": "3000",
}
# Buy stops become stop-limits, so far above the stop (facts: Prices and sizes).
_STOP_ROOM = ((Decimal(50), Decimal("1.04")), (Decimal("Infinity"), Decimal("1.025")))


class Market:
    """One price per symbol: no spread, no size."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(f"market {seed}")
        self.assets: dict[str, Asset] = {}
        self.by_id: dict[str, Asset] = {}
        self.prices: dict[str, Decimal] = {}
        for symbol, price in _START.items():
            self.set(symbol, Decimal(price))

    def set(self, symbol: str, price: Decimal) -> None:
        if price <= 0:
            raise ValueError(f"the price of {symbol} must be above zero, not {price}")
        if symbol not in self.assets:
            crypto = "/" in symbol
            asset_id = str(uuid.uuid5(uuid.NAMESPACE_DNS, symbol))
            asset = Asset(asset_id, symbol, crypto, "CRYPTO" if crypto else "NASDAQ")
            self.assets[symbol] = self.by_id[asset_id] = asset
        self.prices[symbol] = price

    def asset(self, name: str) -> Asset | None:
        """By symbol, by position symbol (BTCUSD) or by asset id."""
        found = self.assets.get(name) or self.by_id.get(name)
        if found is None:
            found = next((a for a in self.assets.values() if a.crypto and a.position_symbol == name), None)
        return found

    def price(self, symbol: str) -> Decimal:
        found = self.prices.get(symbol)
        if found is None:
            asset = self.asset(symbol)
            found = self.prices[asset.symbol] if asset is not None else Decimal(1)
        return found

    def step(self, symbols: Iterable[str], bps: float) -> list[str]:
        """Each price walks once; returns those that changed."""
        moved = []
        for symbol in symbols:
            price = self.prices[symbol]
            factor = Decimal(1 + self._chance.gauss(0, bps / 10_000))
            new = max((price * factor).quantize(Decimal("0.01"), ROUND_HALF_EVEN), Decimal("0.01"))
            if new != price:
                self.prices[symbol] = new
                moved.append(symbol)
        return moved

    def portion(self, order: Order, rest: Decimal, partial: float) -> Decimal:
        """All of the rest or, so often, a random part of it: whole shares of whole shares, never nothing."""
        if partial <= 0 or self._chance.random() >= partial:
            return rest
        if rest % 1:
            return max((rest * self._chance.randint(1, 99) / 100).quantize(Decimal("1e-9")), Decimal("1e-9"))
        return Decimal(self._chance.randint(1, max(int(rest) - 1, 1)))


def tradable_at(order: Order, price: Decimal, *, arriving: bool) -> Decimal | None:
    """The price at which the order trades when the market is at `price`; None where it does not.

    A marketable order on arrival trades at the market, a resting limit at its limit. Stops trigger here, and
    trailing stops follow here.
    """
    if order.type == "trailing_stop":
        _trail(order, price)
    if order.type in ("stop", "stop_limit", "trailing_stop") and not order.triggered:
        stop = order.stop
        if stop is None or (price < stop if order.buy else price > stop):
            return None
        order.triggered = arriving = True
    limit = order.limit
    if order.type == "stop" and order.buy and order.stop is not None:
        limit = order.stop * next(room for below, room in _STOP_ROOM if order.stop < below)
    if limit is None:
        return price
    if price > limit if order.buy else price < limit:
        return None
    return price if arriving or order.type == "stop" else limit


def _trail(order: Order, price: Decimal) -> None:
    best = price if order.hwm is None else (min(order.hwm, price) if order.buy else max(order.hwm, price))
    order.hwm = best
    away = order.trail_price
    if away is None:
        away = best * (order.trail_percent or Decimal(0)) / 100
    order.stop = (best + away if order.buy else best - away).quantize(Decimal("0.01"))
