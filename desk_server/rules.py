"""Which requests are orders at all. Decided on the request, the asset and the time; nothing is ever altered.

The rules are Alpaca's, refused here with words that say what to do (docs/orders.md has them as a table). They
stand in `CHECKS` in the order of their precedence: the first that objects decides. May *this user* send it *now*
is another question: see risk.py.
"""

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import NoReturn

from msgspec.structs import replace

from desk_server import sessions
from desk_server.domain import (
    Asset,
    AssetClass,
    Leg,
    LineInHand,
    Order,
    OrderChange,
    OrderClass,
    OrderRequest,
    OrderType,
    Side,
    State,
    Symbol,
    TimeInForce,
)
from desk_server.errors import Code, DeskError

NUMBER_MAX = Decimal(10) ** 12
DECIMALS_MAX = 9
NOTIONAL_MIN = Decimal(1)
NOTES_MAX, NOTE_KEY_BYTES_MAX, NOTE_BYTES_MAX = 16, 64, 512
FIELDS_READ_MAX = 64
REQUEST_ID_MAX = 64

ALL_DAY = frozenset({TimeInForce.DAY, TimeInForce.GTC})
TIMES_EQUITY: dict[OrderType, frozenset[TimeInForce]] = {
    OrderType.MARKET: frozenset(TimeInForce),
    OrderType.LIMIT: frozenset(TimeInForce),
    OrderType.STOP: ALL_DAY,
    OrderType.STOP_LIMIT: ALL_DAY,
    OrderType.TRAILING_STOP: ALL_DAY,
}
TIMES_CRYPTO: dict[OrderType, frozenset[TimeInForce]] = {
    OrderType.MARKET: frozenset({TimeInForce.GTC, TimeInForce.IOC}),
    OrderType.LIMIT: frozenset({TimeInForce.GTC, TimeInForce.IOC}),
    OrderType.STOP_LIMIT: frozenset({TimeInForce.GTC}),
}
PRICES: dict[OrderType, tuple[bool, bool]] = {
    # type: (has a limit price, has a stop price)
    OrderType.MARKET: (False, False),
    OrderType.LIMIT: (True, False),
    OrderType.STOP: (False, True),
    OrderType.STOP_LIMIT: (True, True),
    OrderType.TRAILING_STOP: (False, False),
}

_CENT, _SUB_PENNY, _NANO, _ONE = Decimal("0.01"), Decimal("0.0001"), Decimal("1e-9"), Decimal(1)
_NUMBER = re.compile(r"[0-9]{1,18}(?:\.[0-9]{1,9})?")
_SYMBOL = re.compile(r"[A-Z][A-Z0-9.]{0,9}(?:/[A-Z]{3,5})?")
_LINE_HASH = re.compile(r"(?:[0-9a-f]{16})?")
NO_LINE = LineInHand()
# Looked at for every order: as names of this module they are found quickest.
_SIMPLE, _EQUITY = OrderClass.SIMPLE, AssetClass.US_EQUITY
_LIMIT, _MARKET, _DAY, _GTC = OrderType.LIMIT, OrderType.MARKET, TimeInForce.DAY, TimeInForce.GTC
_UNREPLACEABLE = frozenset({"accepted", "pending_new", "pending_cancel", "pending_replace"})


def check(request: OrderRequest, asset: Asset | None, now: datetime) -> None:
    """Raises DeskError (INVALID, or CLOSED outside an auction's hours) where `request` is not an order.

    `asset` is what the broker lists under the symbol, None where it lists nothing.
    """
    if asset is not None and _is_evident(request, asset):
        return
    check_request_shape(request)
    if asset is None:
        _refuse(f'symbol "{_short(request.symbol)}" is not known here: check its spelling (AAPL, BTC/USD)')
    plain = not request.extended_hours and request.time_in_force in ALL_DAY
    for rule in PLAIN_ASSET_CHECKS if plain else ASSET_CHECKS:
        rule(request, asset, now)


def _is_evident(request: OrderRequest, asset: Asset) -> bool:
    """Whether no check can object: most orders are for whole shares, at the market or at a limit of whole cents.
    False says nothing."""
    qty, price, times = request.qty, request.limit_price, request.time_in_force
    if (
        qty is None
        or request.notional is not None
        or request.order_class is not _SIMPLE
        or request.stop_price is not None
        or request.trail_price is not None
        or request.trail_percent is not None
        or request.take_profit is not None
        or request.stop_loss is not None
        or request.extended_hours
        or request.notes
        or not (times is _DAY or times is _GTC)
        or asset.asset_class is not _EQUITY
        or not asset.tradable
    ):
        return False
    if request.type is _LIMIT:
        if price is None or not price.is_finite() or not _ONE <= price <= NUMBER_MAX or price % _CENT:
            return False
    elif request.type is not _MARKET or price is not None:
        return False
    request_id = request.request_id
    if len(request_id) > REQUEST_ID_MAX or not (request_id.isascii() and request_id.isprintable()):
        return False
    if not qty.is_finite() or not _ONE <= qty <= NUMBER_MAX or qty % _ONE:
        return False
    if request.line is not NO_LINE:
        _line_in_hand(request)
    return True


def check_request_shape(request: OrderRequest) -> None:
    """The part of `check` for which no asset need be known."""
    plain = (
        request.order_class is OrderClass.SIMPLE
        and request.take_profit is None
        and request.stop_loss is None
        and not request.notes
        and request.line == NO_LINE
    )
    for rule in PLAIN_SHAPE_CHECKS if plain else SHAPE_CHECKS:
        rule(request)


def check_change(order: Order, change: OrderChange, asset: Asset | None, now: datetime) -> None:
    """Raises DeskError (INVALID, CLOSED, NOT_REPLACEABLE) where `change` cannot be made to `order`."""
    _labelled(change.request_id)
    if change == OrderChange(request_id=change.request_id):
        _refuse("nothing to change: give qty, time_in_force, limit_price, stop_price or trail")
    _replaceable(order, asset)
    _change_fits(order, change)
    check(changed(order.request, change), asset, now)


def changed(request: OrderRequest, change: OrderChange) -> OrderRequest:
    """`request` with the change made; `qty` is then the new total."""
    take_profit = request.take_profit
    if request.order_class is OrderClass.OCO and change.limit_price is not None:
        take_profit = change.limit_price
    by_price = request.trail_price is not None
    return replace(
        request,
        qty=request.qty if change.qty is None else change.qty,
        time_in_force=change.time_in_force or request.time_in_force,
        limit_price=request.limit_price if change.limit_price is None else change.limit_price,
        stop_price=request.stop_price if change.stop_price is None else change.stop_price,
        trail_price=change.trail if by_price and change.trail is not None else request.trail_price,
        trail_percent=change.trail if not by_price and change.trail is not None else request.trail_percent,
        take_profit=take_profit,
    )


def decimal_of(text: str, field: str) -> Decimal:
    """The number that `text` writes plainly: digits, at most 18, and at most 9 decimals.

    Raises DeskError INVALID, naming the field, for signs, exponents, spaces, NaN and any other notation.
    """
    if _NUMBER.fullmatch(text) is None:
        _refuse(
            f'{field} must be a plain decimal number such as "12.5" (no sign or exponent, at most 18 digits and '
            f'{DECIMALS_MAX} decimals), not "{_short(text)}"'
        )
    return Decimal(text)


def symbol_of(text: str) -> Symbol:
    """Raises DeskError INVALID where `text` cannot be a symbol."""
    if _SYMBOL.fullmatch(text) is None:
        if text.isascii() and _SYMBOL.fullmatch(text.upper()):
            _refuse(f'symbol "{text}" is not upper case: did you mean "{text.upper()}"?')
        _refuse(f'symbol must be like "AAPL", "BRK.B" or "BTC/USD", not "{_short(text)}"')
    return Symbol(text)


# The request alone


def _request_id(request: OrderRequest) -> None:
    _labelled(request.request_id)


def _labelled(request_id: str) -> None:
    if len(request_id) > REQUEST_ID_MAX or not (request_id.isascii() and request_id.isprintable()):
        _refuse("request_id must be 1 to 64 printable ASCII characters: a UUID or a ULID will do")


def _notes(request: OrderRequest) -> None:
    if len(request.notes) > NOTES_MAX:
        _refuse(f"notes has {len(request.notes)} entries: at most {NOTES_MAX} are kept")
    for key, value in request.notes.items():
        if not 0 < len(key.encode()) <= NOTE_KEY_BYTES_MAX:
            _refuse(f'notes: the key "{_short(key)}" must have 1 to {NOTE_KEY_BYTES_MAX} bytes')
        if len(value.encode()) > NOTE_BYTES_MAX:
            _refuse(f'notes: the value of "{_short(key)}" must have at most {NOTE_BYTES_MAX} bytes')


def _line_in_hand(request: OrderRequest) -> None:
    line = request.line
    if not 0 <= line.seq < 2**63:
        _refuse("line.seq must be the seq of a market line, or 0 for none")
    if _LINE_HASH.fullmatch(line.sha256) is None:
        _refuse("line.sha256 must be the first 16 hex digits (lower case) of the line's SHA-256, or empty")
    if len(line.fields_read) > FIELDS_READ_MAX:
        _refuse(f"line.fields_read has {len(line.fields_read)} names: at most {FIELDS_READ_MAX} are kept")


def _amount(request: OrderRequest) -> None:
    if request.qty is None and request.notional is None:
        _refuse("give qty (shares or coins) or notional (dollars)")
    if request.qty is not None and request.notional is not None:
        _refuse("only one of qty and notional is accepted: leave the other out")
    _positive(request.qty, "qty")
    _positive(request.notional, "notional")


def _notional(request: OrderRequest) -> None:
    notional = request.notional
    if notional is None:
        return
    if notional < NOTIONAL_MIN:
        _refuse(f"notional must be at least {NOTIONAL_MIN}.00 dollars, not {notional}")
    if notional % _CENT:
        _refuse(f"notional must be whole cents, not {notional}: at most 2 decimals")
    if request.type is not OrderType.MARKET:
        _refuse(f"notional works with market orders only, not {request.type}: give qty")


def _prices(request: OrderRequest) -> None:
    has_limit, has_stop = PRICES[request.type]
    oco = request.order_class is OrderClass.OCO
    _wanted(request.limit_price, has_limit, "limit_price", request.type, optional=oco)
    _wanted(request.stop_price, has_stop, "stop_price", request.type)


def _trail(request: OrderRequest) -> None:
    price, percent = request.trail_price, request.trail_percent
    if request.type is not OrderType.TRAILING_STOP:
        if price is not None or percent is not None:
            _refuse(f"trail_price and trail_percent belong to trailing_stop orders, not {request.type}: leave them out")
        return
    if (price is None) == (percent is None):
        _refuse("a trailing_stop order needs exactly one of trail_price (dollars) and trail_percent")
    _positive(price, "trail_price")
    _positive(percent, "trail_percent")
    if percent is not None and percent >= 100:
        _refuse(f"trail_percent must be below 100, not {percent}")


def _class(request: OrderRequest) -> None:
    """Which legs and which entries each order class has."""
    kind, take_profit, stop_loss = request.order_class, request.take_profit, request.stop_loss
    match kind:
        case OrderClass.SIMPLE:
            if take_profit is not None or stop_loss is not None:
                _refuse('take_profit and stop_loss need order_class "bracket", "oco" or "oto"')
            return
        case OrderClass.BRACKET | OrderClass.OCO if take_profit is None or stop_loss is None:
            _refuse(f"{kind} orders need both take_profit.limit_price and stop_loss.stop_price")
        case OrderClass.OTO if (take_profit is None) == (stop_loss is None):
            _refuse('oto orders need exactly one of take_profit and stop_loss: for both, use order_class "bracket"')
    entries = (OrderType.LIMIT,) if kind is OrderClass.OCO else (OrderType.MARKET, OrderType.LIMIT)
    if request.type not in entries:
        _refuse(f"{kind} orders must be of type {' or '.join(entries)}, not {request.type}")
    if request.time_in_force not in ALL_DAY:
        _refuse(f"{kind} orders must be day or gtc, not {request.time_in_force}")
    if request.extended_hours:
        _refuse(f"{kind} orders trade in regular hours only: leave extended_hours out")
    if request.notional is not None:
        _refuse(f"{kind} orders need qty in whole shares, not notional")


def _legs(request: OrderRequest) -> None:
    """Take profit on the good side, stop loss on the bad side, a cent away from a known entry price (as Alpaca)."""
    if request.order_class is OrderClass.SIMPLE:
        return
    oco = request.order_class is OrderClass.OCO
    exit_sells = (request.side is Side.SELL) is oco
    sign = 1 if exit_sells else -1
    above, below = ("above", "below") if exit_sells else ("below", "above")
    target, loss = request.take_profit, request.stop_loss
    _positive(target, "take_profit.limit_price")
    if loss is not None:
        _positive(loss.stop_price, "stop_loss.stop_price")
        _positive(loss.limit_price, "stop_loss.limit_price")
        if loss.limit_price is not None and (loss.stop_price - loss.limit_price) * sign < 0:
            _refuse(f"stop_loss.limit_price {loss.limit_price} must not be {above} stop_loss.stop_price here")
    if target is not None and loss is not None and (target - loss.stop_price) * sign <= 0:
        _refuse(f"take_profit.limit_price {target} must be {above} stop_loss.stop_price {loss.stop_price} here")
    entry = request.limit_price
    if entry is None:
        return
    if oco:
        if entry != target:
            _refuse("the limit price of an oco order is its take_profit.limit_price: leave limit_price out")
        return
    if target is not None and (target - entry) * sign < _CENT:
        _refuse(f"take_profit.limit_price {target} must be {above} limit_price {entry} by at least 0.01")
    if loss is not None and (entry - loss.stop_price) * sign < _CENT:
        _refuse(f"stop_loss.stop_price {loss.stop_price} must be {below} limit_price {entry} by at least 0.01")


# The request and the asset


def _tradable(request: OrderRequest, asset: Asset, _: datetime) -> None:
    if not asset.tradable:
        _refuse(f"{asset.symbol} cannot be traded at this broker")
    if asset.asset_class is AssetClass.CRYPTO and request.order_class is not OrderClass.SIMPLE:
        _refuse(f"crypto has no {request.order_class} orders: send simple ones")


def _time_in_force(request: OrderRequest, asset: Asset, _: datetime) -> None:
    crypto = asset.asset_class is AssetClass.CRYPTO
    times = (TIMES_CRYPTO if crypto else TIMES_EQUITY).get(request.type)
    if times is None:
        _refuse(f"crypto has no {request.type} orders: use market, limit or stop_limit")
    if request.time_in_force not in times:
        allowed = ", ".join(tif for tif in TimeInForce if tif in times)
        what = f"crypto {request.type}" if crypto else str(request.type)
        _refuse(f"{what} orders cannot be {request.time_in_force}: use {allowed}")


def _fractional(request: OrderRequest, asset: Asset, _: datetime) -> None:
    if asset.asset_class is AssetClass.CRYPTO or not is_fractional(request):
        return
    if not asset.fractionable:
        _refuse(f"{asset.symbol} trades in whole shares only: give a whole qty")
    if request.type is OrderType.TRAILING_STOP or request.order_class is not OrderClass.SIMPLE:
        kind = request.type if request.order_class is OrderClass.SIMPLE else request.order_class
        _refuse(f"{kind} orders need whole shares: give a whole qty")
    if request.time_in_force is not TimeInForce.DAY:
        _refuse(f"fractional orders must be day orders, not {request.time_in_force}: give a whole qty, or use day")


def _extended_hours(request: OrderRequest, asset: Asset, _: datetime) -> None:
    if not request.extended_hours:
        return
    if asset.asset_class is AssetClass.CRYPTO:
        _refuse("crypto trades around the clock: leave extended_hours out")
    if request.type is not OrderType.LIMIT or request.time_in_force not in ALL_DAY:
        _refuse("extended_hours needs a limit order with time_in_force day or gtc")


def _increments(request: OrderRequest, asset: Asset, _: datetime) -> None:
    if asset.asset_class is AssetClass.CRYPTO:
        return
    _whole_cents(request.limit_price, "limit_price")
    _whole_cents(request.stop_price, "stop_price")
    _whole_cents(request.trail_price, "trail_price")
    _whole_cents(request.take_profit, "take_profit.limit_price")
    if request.stop_loss is not None:
        _whole_cents(request.stop_loss.stop_price, "stop_loss.stop_price")
        _whole_cents(request.stop_loss.limit_price, "stop_loss.limit_price")


def _auction(request: OrderRequest, _: Asset, now: datetime) -> None:
    """Orders for an auction are taken up to shortly before it, and from 19:00 on for the next."""
    if request.time_in_force not in (TimeInForce.OPG, TimeInForce.CLS):
        return
    here = now.astimezone(sessions.NEW_YORK)
    hours = sessions.trading_day(here.date())
    if hours is None:
        return
    if request.time_in_force is TimeInForce.OPG:
        last = hours.open - timedelta(minutes=2)
    else:
        last = hours.close - timedelta(minutes=10)
    evening = here.replace(hour=19, minute=0, second=0, microsecond=0)
    if last <= now < evening:
        raise DeskError(
            Code.CLOSED,
            f"{request.time_in_force} orders are taken until {last.astimezone(sessions.NEW_YORK):%H:%M} and from "
            f"19:00 New York time (it is {here:%H:%M}): send it then, or use day",
        )


ShapeCheck = Callable[[OrderRequest], None]
AssetCheck = Callable[[OrderRequest, Asset, datetime], None]

SHAPE_CHECKS: tuple[ShapeCheck, ...] = (
    _request_id,
    _notes,
    _line_in_hand,
    _amount,
    _notional,
    _prices,
    _trail,
    _class,
    _legs,
)
ASSET_CHECKS: tuple[AssetCheck, ...] = (
    _tradable,
    _time_in_force,
    _fractional,
    _extended_hours,
    _increments,
    _auction,
)
CHECKS = SHAPE_CHECKS + ASSET_CHECKS
# Most orders have no legs, notes, line in hand, late trading or auction: there these checks have nothing to look at.
PLAIN_SHAPE_CHECKS = tuple(rule for rule in SHAPE_CHECKS if rule not in (_notes, _line_in_hand, _class, _legs))
PLAIN_ASSET_CHECKS = tuple(rule for rule in ASSET_CHECKS if rule not in (_extended_hours, _auction))


# A change


def _replaceable(order: Order, asset: Asset | None) -> None:
    if order.state is not State.LIVE or order.status in _UNREPLACEABLE:
        raise DeskError(
            Code.NOT_REPLACEABLE,
            f"the order is {order.status}, and cannot be replaced now: "
            + ("wait until it is new, or cancel it" if order.state.is_open else "send a new one"),
            order_id=order.order_id,
        )
    if order.request.notional is not None:
        raise DeskError(
            Code.NOT_REPLACEABLE,
            "a notional order cannot be replaced: cancel it and send a new one",
            order_id=order.order_id,
        )
    if is_fractional(order.request) and asset is not None and asset.asset_class is AssetClass.US_EQUITY:
        raise DeskError(
            Code.NOT_REPLACEABLE,
            "an order for a fraction of a share cannot be replaced: cancel it and send a new one",
            order_id=order.order_id,
        )


def _change_fits(order: Order, change: OrderChange) -> None:
    request = order.request
    has_limit, has_stop = PRICES[request.type]
    if change.limit_price is not None and not has_limit:
        _refuse(f"{request.type} orders have no limit_price: leave it out")
    if change.stop_price is not None and not has_stop:
        _refuse(f"{request.type} orders have no stop_price: leave it out")
    if change.trail is not None and request.type is not OrderType.TRAILING_STOP:
        _refuse(f"{request.type} orders have no trail: leave it out")
    if change.qty is not None:
        _positive(change.qty, "qty")
        if change.qty % _ONE:
            _refuse(f"qty must be whole shares in a replace, not {change.qty}")
        if change.qty <= order.filled_qty:
            _refuse(f"qty is the new total and must be more than the {order.filled_qty} already filled")
    grouped = request.order_class is not OrderClass.SIMPLE or order.leg is not Leg.NONE
    if grouped and (change.qty is not None or change.time_in_force is not None):
        _refuse("only prices of a bracket, oco or oto order can be replaced: cancel it and send a new one")


# Words and numbers


def is_fractional(request: OrderRequest) -> bool:
    return request.qty is None or bool(request.qty % _ONE)


def _positive(value: Decimal | None, field: str) -> None:
    if value is None:
        return
    if not value.is_finite() or value <= 0:
        _refuse(f"{field} must be more than 0, not {value}")
    if value > NUMBER_MAX:
        _refuse(f"{field} is out of all bounds: at most {NUMBER_MAX:f}")
    if value % _NANO:
        _refuse(f"{field} must have at most {DECIMALS_MAX} decimals")


def _wanted(price: Decimal | None, has_it: bool, field: str, kind: OrderType, *, optional: bool = False) -> None:
    if price is None:
        if has_it and not optional:
            _refuse(f"{kind} orders require {field}")
        return
    if not has_it:
        _refuse(f"{kind} orders have no {field}: leave it out, or choose another order_type")
    _positive(price, field)


def _whole_cents(price: Decimal | None, field: str) -> None:
    if price is None:
        return
    step, decimals = (_CENT, 2) if price >= 1 else (_SUB_PENNY, 4)
    if price % step:
        _refuse(
            f"{field} {price} has too many decimals (sub-penny): "
            f"prices {'from $1 on' if decimals == 2 else 'below $1'} have at most {decimals}"
        )


def _short(text: str) -> str:
    shown = text if len(text) <= 32 else text[:32] + "…"
    return shown.encode("unicode_escape").decode() if not shown.isprintable() else shown


def _refuse(message: str) -> NoReturn:
    raise DeskError(Code.INVALID, message)
