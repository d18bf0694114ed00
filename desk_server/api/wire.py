"""The contract's messages to the desk's words and back; and messages as JSON.

JSON bodies and protobuf bodies both become a message first (`strict.py`), so one set of checks serves both.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from functools import lru_cache
from typing import Any, TypeVar

import msgspec
from desk.v1 import market_pb2, orders_pb2

from desk_server import rules
from desk_server.api.strict import nearest, quoted
from desk_server.domain import (
    Asset,
    LineInHand,
    Order,
    OrderChange,
    OrderClass,
    OrderRequest,
    OrderType,
    Quote,
    Side,
    StopLoss,
    TimeInForce,
)
from desk_server.errors import Code, DeskError
from desk_server.positions import Fill
from desk_server.sessions import NEW_YORK, TradingDay
from desk_server.updates import Update

E = TypeVar("E", bound=StrEnum)

_NO_LINE = rules.NO_LINE


def order_request(m: orders_pb2.OrderRequest) -> OrderRequest:
    """Each field on its own; `rules.check` says which combinations are orders. Raises DeskError INVALID."""
    symbol = _symbol(m.symbol)
    side = _SIDES.get(m.side) or _word(Side, m.side, "side")
    return OrderRequest(
        symbol,
        side,
        _TYPES.get(m.order_type) or _word(OrderType, m.order_type, "order_type"),
        _TIMES.get(m.time_in_force) or _word(TimeInForce, m.time_in_force, "time_in_force"),
        _number(text, "qty") if (text := m.qty) else None,
        _number(text, "notional") if (text := m.notional) else None,
        _number(text, "limit_price") if (text := m.limit_price) else None,
        _number(text, "stop_price") if (text := m.stop_price) else None,
        _number(text, "trail_price") if (text := m.trail_price) else None,
        _number(text, "trail_percent") if (text := m.trail_percent) else None,
        m.extended_hours,
        _CLASSES.get(m.order_class) or _word(OrderClass, m.order_class, "order_class"),
        _required(m.take_profit.limit_price, "take_profit.limit_price") if m.HasField("take_profit") else None,
        _stop_loss(m.stop_loss) if m.HasField("stop_loss") else None,
        m.request_id,
        _line(m.line) if m.HasField("line") else _NO_LINE,
        dict(m.notes) if m.notes else {},
    )


def order_change(m: orders_pb2.ReplaceOrderRequest) -> OrderChange:
    """Raises DeskError INVALID."""
    return OrderChange(
        qty=_optional(m.qty, "qty"),
        time_in_force=_word(TimeInForce, m.time_in_force, "time_in_force") if m.time_in_force else None,
        limit_price=_optional(m.limit_price, "limit_price"),
        stop_price=_optional(m.stop_price, "stop_price"),
        trail=_optional(m.trail, "trail"),
        request_id=m.request_id,
    )


def answer(order: Order, legs: Iterable[Order] = ()) -> orders_pb2.OrderResponse:
    """The answer to an order that stands."""
    shown = _order_fields(order, legs)
    status = shown["status"]
    fields = {
        "status": "success",
        "order_id": order.order_id,
        "message": _ANSWERS.get(status, "the order is with the desk; its status says how it stands"),
        "symbol": shown["symbol"],
        "side": shown["side"],
        "filled_qty": shown["filled_qty"],
        "order_status": status,
        "order": shown,
    }
    if "qty" in shown:
        fields["qty"] = shown["qty"]
    if order.code:
        fields |= {"code": order.code, "limit": order.limit, "observed": order.observed}
    return orders_pb2.OrderResponse(**fields)


_ANSWERS = {
    "pending": "the order is written down and on its way to the broker",
    "unknown": "the broker has not answered; the desk keeps asking: do not send the order again",
    "filled": "the order is filled",
    "partially_filled": "the order is partly filled",
    "new": "the broker has the order",
    "accepted": "the broker has the order",
    "pending_cancel": "the cancel is with the broker; the outcome comes on the update stream",
    "canceled": "the order is cancelled",
    "replaced": "the order is replaced",
    "expired": "the order has expired",
}


def order_message(order: Order, legs: Iterable[Order] = ()) -> orders_pb2.Order:
    return orders_pb2.Order(**_order_fields(order, legs))


def _order_fields(order: Order, legs: Iterable[Order] = ()) -> dict[str, Any]:
    """What every order has, then what this one has: most have little of it, and what is absent costs nothing."""
    request = order.request
    created_at = time_text(order.created_at)
    fields: dict[str, Any] = {
        "order_id": order.order_id,
        "client_order_id": order.client_order_id,
        "broker_order_id": order.broker_order_id,
        "user_id": order.user,
        "strategy": order.strategy,
        "request_id": request.request_id,
        "symbol": request.symbol,
        "side": request.side._value_,
        "order_type": request.type._value_,
        "time_in_force": request.time_in_force._value_,
        "order_class": request.order_class._value_,
        "status": order.status,
        "filled_qty": decimal_text(order.filled_qty) if order.filled_qty else "0",
        "fees": decimal_text(order.fees) if order.fees else "0",
        "created_at": created_at,
        "updated_at": created_at if order.updated_at is order.created_at else time_text(order.updated_at),
    }
    if request.qty is not None:
        fields["qty"] = decimal_text(request.qty)
    if request.limit_price is not None:
        fields["limit_price"] = decimal_text(request.limit_price)
    if request.type not in _PLAIN or request.qty is None:
        for name in _AMOUNTS:
            if (amount := getattr(request, name)) is not None:
                fields[name] = decimal_text(amount)
    if order.message or order.code:
        fields["code"], fields["message"] = order.code, order.message
    if order.replaces or order.replaced_by:
        fields["replaces"], fields["replaced_by"] = order.replaces, order.replaced_by
    if order.parent_id:
        fields["parent_id"], fields["leg"] = order.parent_id, order.leg
    if order.filled_qty:
        fields["filled_avg_price"] = average_text(order.filled_avg_price)
    if request.extended_hours:
        fields["extended_hours"] = True
    if request.notes:
        fields["notes"] = request.notes
    if request.line is not _NO_LINE and request.line != _NO_LINE:
        line = request.line
        fields["line"] = {"seq": line.seq, "sha256": line.sha256, "fields_read": line.fields_read}
    if legs:
        fields["legs"] = [_order_fields(leg) for leg in legs]
    return fields


_PLAIN = (OrderType.LIMIT, OrderType.MARKET)
_AMOUNTS = ("notional", "stop_price", "trail_price", "trail_percent")


def fill_message(fill: Fill) -> orders_pb2.Fill:
    return orders_pb2.Fill(
        execution_id=fill.execution_id,
        order_id=fill.order_id,
        user_id=fill.user,
        strategy=fill.strategy,
        symbol=fill.symbol,
        side=fill.side.value,
        qty=decimal_text(fill.qty),
        price=decimal_text(fill.price),
        fee=decimal_text(fill.fee),
        at=time_text(fill.at),
        seq=fill.seq,
    )


def update_message(update: Update) -> orders_pb2.OrderUpdate:
    return orders_pb2.OrderUpdate(
        seq=update.seq,
        event=update.event,
        at=time_text(update.at),
        order=order_message(update.order),
        fill=fill_message(update.fill) if update.fill else None,
    )


def latest_message(quote: Quote) -> market_pb2.LatestLine:
    return market_pb2.LatestLine(
        symbol=quote.symbol,
        bid=decimal_text(quote.bid),
        ask=decimal_text(quote.ask),
        price=decimal_text(quote.price),
        at=time_text(quote.at),
        seq=quote.seq,
    )


def asset_message(asset: Asset) -> market_pb2.Asset:
    return market_pb2.Asset(
        symbol=asset.symbol,
        asset_class=asset.asset_class.value,
        tradable=asset.tradable,
        fractionable=asset.fractionable,
        shortable=asset.shortable,
    )


def trading_day_message(day: TradingDay) -> market_pb2.TradingDay:
    return market_pb2.TradingDay(
        date=day.open.astimezone(NEW_YORK).date().isoformat(),
        early=time_text(day.early),
        open=time_text(day.open),
        close=time_text(day.close),
        late=time_text(day.late),
    )


def decimal_text(value: Decimal | None) -> str:
    """Plain digits, no exponent, no trailing zeros behind the point; "" for None."""
    if not value:
        return "" if value is None else "0"
    text = str(value)
    if text.isdigit():
        return text
    if "E" in text:
        text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def average_text(value: Decimal | None) -> str:
    """A quotient (an average price, a value at market), rounded to 9 decimals as the contract promises."""
    return "" if value is None else decimal_text(round(value, 9))


def time_text(at: datetime | None) -> str:
    """RFC 3339 with microseconds and Z; "" for None."""
    if at is None:
        return ""
    if at.tzinfo is not UTC:
        at = at.astimezone(UTC)
    text: str = msgspec.to_builtins(at)
    return text if at.microsecond else text[:-1] + ".000000Z"


# Symbols and numbers come again: the newest are remembered. Errors are not.
_symbol = lru_cache(4096)(rules.symbol_of)
_number = lru_cache(16384)(rules.decimal_of)


def _optional(text: str, field: str) -> Decimal | None:
    return _number(text, field) if text else None


def _required(text: str, field: str) -> Decimal:
    if not text:
        raise DeskError(Code.INVALID, f"{field} is required here")
    return rules.decimal_of(text, field)


def _stop_loss(m: orders_pb2.StopLoss) -> StopLoss:
    return StopLoss(
        stop_price=_required(m.stop_price, "stop_loss.stop_price"),
        limit_price=_optional(m.limit_price, "stop_loss.limit_price"),
    )


def _line(m: orders_pb2.LineInHand) -> LineInHand:
    return LineInHand(seq=m.seq, sha256=m.sha256, fields_read=tuple(m.fields_read))


_WORDS: dict[type[StrEnum], dict[str, Any]] = {
    kind: {member.value: member for member in kind} for kind in (Side, OrderType, TimeInForce, OrderClass)
}
# What a field of an order may say, with what it means where it is left out.
_SIDES: dict[str, Side] = _WORDS[Side]
_TYPES: dict[str, OrderType] = {"": OrderType.MARKET, **_WORDS[OrderType]}
_TIMES: dict[str, TimeInForce] = {"": TimeInForce.DAY, **_WORDS[TimeInForce]}
_CLASSES: dict[str, OrderClass] = {"": OrderClass.SIMPLE, **_WORDS[OrderClass]}


def _word(kind: type[E], text: str, field: str) -> E:
    words = _WORDS[kind]
    member: E | None = words.get(text)
    if member is not None:
        return member
    known = ", ".join(words)
    if text:
        raise DeskError(Code.INVALID, f"{field} {quoted(text)} is none of {known}{nearest(text, words)}")
    raise DeskError(Code.INVALID, f"{field} is required: one of {known}")
