"""What the rule tests share: assets, and a valid order to spoil."""

from datetime import UTC, datetime
from decimal import Decimal

from desk_server.domain import (
    Asset,
    AssetClass,
    OrderClass,
    OrderRequest,
    OrderType,
    Side,
    StopLoss,
    TimeInForce,
)

# A Thursday: New York's market is open from 14:30 to 21:00 UTC.
IN_SESSION = datetime(2026, 11, 19, 16, 0, tzinfo=UTC)
ASSETS = {
    "AAPL": Asset("AAPL", AssetClass.US_EQUITY),
    "WHOLE": Asset("WHOLE", AssetClass.US_EQUITY, fractionable=False),
    "STUCK": Asset("STUCK", AssetClass.US_EQUITY, tradable=False),
    "BTC/USD": Asset("BTC/USD", AssetClass.CRYPTO),
}
NUMBERS = ("qty", "notional", "limit_price", "stop_price", "trail_price", "trail_percent", "take_profit")


def make_request(text: str = "", **fields) -> OrderRequest:
    """An order from words such as "type=limit limit_price=10"; buys 10 AAPL unless they say otherwise."""
    given = {**dict(word.split("=", 1) for word in text.split()), **fields}
    if "order_type" in given:
        given["type"] = given.pop("order_type")
    given.setdefault("symbol", "AAPL")
    given.setdefault("side", "buy")
    if "notional" not in given:
        given.setdefault("qty", "10")
    given = {name: value for name, value in given.items() if value != ""}
    for name in NUMBERS:
        if isinstance(given.get(name), str):
            given[name] = Decimal(given[name])
    stop, limit = given.pop("stop_loss", None), given.pop("stop_loss_limit", None)
    if stop is not None:
        given["stop_loss"] = StopLoss(Decimal(stop), None if limit is None else Decimal(limit))
    if "extended_hours" in given:
        given["extended_hours"] = given["extended_hours"] in (True, "true")
    for name, kind in (("side", Side), ("type", OrderType), ("time_in_force", TimeInForce)):
        if name in given:
            given[name] = kind(given[name])
    if "order_class" in given:
        given["order_class"] = OrderClass(given["order_class"])
    return OrderRequest(**given)
