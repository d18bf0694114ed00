"""What Alpaca refuses before an order touches the book, with its codes and messages. Reads requests into Drafts."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import time
from decimal import Decimal, InvalidOperation
from typing import Any
from zoneinfo import ZoneInfo

from tests.alpaca.orders import ZERO

NEW_YORK = ZoneInfo("America/New_York")
_TYPES = ("market", "limit", "stop", "stop_limit", "trailing_stop")
_TIFS = ("day", "gtc", "opg", "cls", "ioc", "fok")
_CLASSES = ("", "simple", "bracket", "oco", "oto")
_PRICED = {"limit": ("limit",), "stop": ("stop",), "stop_limit": ("limit", "stop")}


class Refused(Exception):
    """An error answer: HTTP status, Alpaca's code, message and further fields."""

    def __init__(self, status: int, code: int | None, message: str, **more: Any) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.body: dict[str, Any] = {} if code is None else {"code": code}
        self.body["message"] = message
        self.body.update(more)


@dataclass(frozen=True, slots=True)
class Asset:
    id: str
    symbol: str
    crypto: bool
    exchange: str
    shortable: bool = True
    fractionable: bool = True
    tradable: bool = True

    @property
    def position_symbol(self) -> str:
        return self.symbol.replace("/", "")

    @property
    def asset_class(self) -> str:
        return "crypto" if self.crypto else "us_equity"

    def shown(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "id": self.id,
            "class": self.asset_class,
            "exchange": self.exchange,
            "symbol": self.symbol,
            "name": f"{self.symbol} Common Stock" if not self.crypto else self.symbol.replace("/", " / "),
            "status": "active",
            "tradable": self.tradable,
            "marginable": not self.crypto,
            "shortable": self.shortable and not self.crypto,
            "easy_to_borrow": self.shortable and not self.crypto,
            "fractionable": self.fractionable,
            "maintenance_margin_requirement": 100 if self.crypto else 30,
            "attributes": [],
        }
        if self.crypto:
            out |= {"min_order_size": "0.0001", "min_trade_increment": "0.000000001", "price_increment": "0.01"}
        return out


@dataclass(frozen=True, slots=True)
class Draft:
    """An order request that is well-formed. The book has not yet been asked."""

    asset: Asset
    side: str
    type: str
    tif: str
    qty: Decimal | None
    notional: Decimal | None
    limit: Decimal | None
    stop: Decimal | None
    trail_price: Decimal | None
    trail_percent: Decimal | None
    extended: bool
    order_class: str
    client_order_id: str | None
    take_profit: Decimal | None
    loss_stop: Decimal | None
    loss_limit: Decimal | None
    position_intent: str | None = None

    @property
    def fractional(self) -> bool:
        return self.notional is not None or (self.qty is not None and self.qty % 1 != 0)


def bad(message: str, code: int = 40010001, **more: Any) -> Refused:
    return Refused(422, code, message, **more)


def body_of(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw or b"{}", parse_float=Decimal)
    except (ValueError, RecursionError) as error:
        raise Refused(400, 40010000, "request body format is invalid") from error
    if not isinstance(body, dict):
        raise Refused(400, 40010000, "request body format is invalid")
    return body


def amount(body: Mapping[str, Any], name: str, *, decimals: int = 9) -> Decimal | None:
    """A number or a numeric string; None where absent."""
    value = body.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (int, str, Decimal)):
        raise bad(f"invalid {name}: {value!r}")
    try:
        number = Decimal(value)
    except InvalidOperation as error:
        raise bad(f"invalid {name}: {value!r}") from error
    if not number.is_finite():
        raise bad(f"invalid {name}: {value!r}")
    if -number.normalize().as_tuple().exponent > decimals:  # type: ignore[operator]
        raise bad(f"{name} increment must be >= 0.{'0' * (decimals - 1)}1")
    return number


def draft(body: Mapping[str, Any], assets: Mapping[str, Asset], at: time) -> Draft:
    """`at` is the time in New York. Raises Refused with the first thing that is wrong."""
    kind = _one_of(body, "type", _TYPES)
    side = _one_of(body, "side", ("buy", "sell"))
    tif = _one_of(body, "time_in_force", _TIFS)
    order_class = str(body.get("order_class") or "")
    if order_class not in _CLASSES:
        raise bad(f"invalid order_class: {order_class}")
    symbol = body.get("symbol")
    if not symbol:
        raise bad("symbol is required")
    asset = assets.get(str(symbol))
    if asset is None or not asset.tradable:
        raise bad(f'asset "{symbol}" not found', 42210000)
    client_order_id = body.get("client_order_id") or None
    if client_order_id is not None and (not isinstance(client_order_id, str) or len(client_order_id) > 128):
        raise bad("client_order_id must be no more than 128 characters")
    take_profit, stop_loss = body.get("take_profit") or {}, body.get("stop_loss") or {}
    limit = _price(body, "limit_price", asset)
    if order_class == "oco" and kind == "limit" and limit is None:
        limit = _price(take_profit, "limit_price", asset)
    drafted = Draft(
        asset=asset,
        side=side,
        type=kind,
        tif=tif,
        qty=amount(body, "qty"),
        notional=amount(body, "notional"),
        limit=limit,
        stop=_price(body, "stop_price", asset),
        trail_price=amount(body, "trail_price"),
        trail_percent=amount(body, "trail_percent"),
        extended=body.get("extended_hours") is True,
        order_class="" if order_class == "simple" else order_class,
        client_order_id=client_order_id,
        take_profit=_price(take_profit, "limit_price", asset, "take_profit.limit_price"),
        loss_stop=_price(stop_loss, "stop_price", asset, "stop_loss.stop_price"),
        loss_limit=_price(stop_loss, "limit_price", asset, "stop_loss.limit_price"),
        position_intent=body.get("position_intent"),
    )
    for check in (_sized, _priced, _timed, _crypto, _fractional, _classed):
        check(drafted, at)
    return drafted


def _one_of(body: Mapping[str, Any], name: str, allowed: tuple[str, ...]) -> str:
    value = body.get(name)
    if value not in allowed:
        raise bad(f"invalid {name}: {value}" if value else f"{name} is required")
    return str(value)


def _price(body: Mapping[str, Any], name: str, asset: Asset, called: str | None = None) -> Decimal | None:
    called = called or name
    price = amount(body, name, decimals=20)
    if price is None:
        return None
    if price <= 0:
        raise bad(f"{called} must be > 0")
    check_pennies(price, called, asset)
    return price


def check_pennies(price: Decimal, called: str, asset: Asset) -> None:
    places = 9 if asset.crypto else (2 if price >= 1 else 4)
    if -price.normalize().as_tuple().exponent > places:  # type: ignore[operator]
        message = f"invalid {called} {price}. sub-penny increment does not fulfill minimum pricing criteria"
        raise bad(message, 42210000)


def _sized(order: Draft, at: time) -> None:
    if (order.qty is None) == (order.notional is None):
        raise bad("only one of qty or notional is accepted" if order.qty is not None else "qty or notional is required")
    if order.qty is not None and order.qty <= 0:
        raise bad("qty must be > 0")
    if order.notional is not None and order.notional < 1:
        raise bad("notional amount must be >= 1.00")


def _priced(order: Draft, at: time) -> None:
    needed = _PRICED.get(order.type, ())
    for name, value in (("limit", order.limit), ("stop", order.stop)):
        if name in needed and value is None:
            raise bad(f"{order.type.replace('_', ' ')} orders require a {name} price")
        if name not in needed and value is not None:
            raise bad(f"{order.type.replace('_', ' ')} orders require no {name} price")
    trails = [value for value in (order.trail_price, order.trail_percent) if value is not None]
    if order.type == "trailing_stop":
        if len(trails) != 1 or trails[0] <= 0:
            raise bad("trailing stop orders require one of trail_price or trail_percent")
    elif trails:
        raise bad(f"{order.type} orders take no trail")


def _timed(order: Draft, at: time) -> None:
    if order.tif == "opg" and time(9, 28) <= at < time(19, 0):
        raise bad("opg orders are not accepted between 9:28am and 7:00pm ET", 42210000)
    if order.tif == "cls" and time(15, 50) <= at < time(19, 0):
        raise bad("cls orders are not accepted between 3:50pm and 7:00pm ET", 42210000)
    if order.asset.crypto:
        return
    if order.tif in ("ioc", "fok", "opg", "cls") and order.type not in ("market", "limit"):
        raise bad(f"invalid time_in_force {order.tif} for {order.type} orders", 42210000)
    if order.extended and (order.type != "limit" or order.tif not in ("day", "gtc")):
        raise bad("extended hours order must be DAY limit orders", 42210000)


def _crypto(order: Draft, at: time) -> None:
    if not order.asset.crypto:
        return
    if order.tif not in ("gtc", "ioc"):
        raise bad("invalid crypto time_in_force", 42210000)
    if order.type not in ("market", "limit", "stop_limit"):
        raise bad("invalid order type for crypto order", 42210000)
    if order.order_class or order.extended:
        raise bad("crypto orders not allowed for advanced order_class or extended hours", 42210000)


def _fractional(order: Draft, at: time) -> None:
    if not order.fractional or order.asset.crypto:
        return
    if order.tif != "day":
        raise bad("fractional orders must be DAY orders", 42210000)
    if order.order_class or order.type == "trailing_stop":
        raise bad("fractional orders must be simple orders", 42210000)
    if not order.asset.fractionable:
        raise bad(f'asset "{order.asset.symbol}" is not fractionable', 42210000)


def _classed(order: Draft, at: time) -> None:
    take, stop = order.take_profit, order.loss_stop
    if not order.order_class:
        if take is not None or stop is not None:
            raise bad("take_profit and stop_loss need an order_class", 42210000)
        return
    if order.tif not in ("day", "gtc") or order.extended:
        raise bad("complex orders must be DAY or GTC orders without extended hours", 42210000)
    if order.order_class == "bracket" and (take is None or stop is None):
        raise bad("bracket orders require take_profit.limit_price and stop_loss.stop_price")
    if order.order_class == "oco":
        if order.type != "limit":
            raise bad("oco orders must be limit orders", 42210000)
        if stop is None:
            raise bad("oco orders require stop_loss.stop_price")
    if order.order_class == "oto" and (take is None) == (stop is None):
        raise bad("oto orders require either take_profit or stop_loss")
    _legs_on_the_right_side(order)


def _legs_on_the_right_side(order: Draft) -> None:
    """A bracket's legs leave in the other direction; an OCO is itself the exit."""
    exit_sells = (order.side == "buy") if order.order_class != "oco" else (order.side == "sell")
    take = order.limit if order.order_class == "oco" else order.take_profit
    stop = order.loss_stop
    if take is not None and stop is not None and ((take <= stop) if exit_sells else (take >= stop)):
        raise bad("take_profit.limit_price must be on the profitable side of stop_loss.stop_price", 42210000)
    if order.loss_limit is not None and stop is not None:
        wrong = order.loss_limit > stop if exit_sells else order.loss_limit < stop
        if wrong:
            raise bad("stop_loss.limit_price must not be better than stop_loss.stop_price", 42210000)
    base = order.limit or ZERO
    if order.order_class == "bracket" and base and take is not None and stop is not None:
        wrong = not (stop < base < take) if exit_sells else not (take < base < stop)
        if wrong:
            raise bad("bracket legs must lie on both sides of the entry's limit_price", 42210000)
