"""Orders: the desk's as the JSON that Alpaca takes, Alpaca's as the protocol's structs. Pure.

Amounts are sent as strings, exactly (the SDK's own request classes would make floats of them). A status, type or
class that nobody has heard of does not make an order unreadable: such an order counts as open.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, TypeVar

from desk_server.brokers import Ack, BrokerOrder, BrokerUnknown, What
from desk_server.brokers.alpaca.fields import (
    Json,
    amount,
    mapping,
    needed_amount,
    needed_text,
    paired,
    plain,
    rows,
    side,
    symbol,
    text,
    when,
)
from desk_server.domain import (
    Leg,
    Order,
    OrderChange,
    OrderClass,
    OrderRequest,
    OrderType,
    StopLoss,
    TimeInForce,
)

# What became of an order that is over. Every other status is open: also `done_for_day`, `calculated`,
# `suspended` and `pending_cancel`, after which executions may still come.
ENDS = {
    "filled": What.FILL,
    "canceled": What.CANCELED,
    "expired": What.EXPIRED,
    "rejected": What.REJECTED,
    "replaced": What.REPLACED,
}
_Word = TypeVar("_Word", bound=StrEnum)


def sent(order: Order) -> dict[str, Any]:
    """The body of POST /orders."""
    request = order.request
    body: dict[str, Any] = {
        "client_order_id": order.client_order_id,
        "symbol": request.symbol,
        "side": request.side.value,
        "type": request.type.value,
        "time_in_force": request.time_in_force.value,
    }
    for name in ("qty", "notional", "limit_price", "stop_price", "trail_price", "trail_percent"):
        if (number := getattr(request, name)) is not None:
            body[name] = plain(number)
    if request.extended_hours:
        body["extended_hours"] = True
    if request.order_class is not OrderClass.SIMPLE:
        body |= _sent_exits(request)
    return body


def _sent_exits(request: OrderRequest) -> dict[str, Any]:
    out: dict[str, Any] = {"order_class": request.order_class.value}
    if request.take_profit is not None:
        out["take_profit"] = {"limit_price": plain(request.take_profit)}
    if stop := request.stop_loss:
        out["stop_loss"] = {"stop_price": plain(stop.stop_price)}
        if stop.limit_price is not None:
            out["stop_loss"]["limit_price"] = plain(stop.limit_price)
    return out


def sent_change(new: Order, change: OrderChange) -> dict[str, Any]:
    """The body of PATCH /orders/{id}: only what changes, and the new order's name.

    Alpaca's `qty` is the new total, what the old order has filled included: the same as `change.qty`.
    """
    body: dict[str, Any] = {"client_order_id": new.client_order_id}
    for name in ("qty", "limit_price", "stop_price", "trail"):
        if (number := getattr(change, name)) is not None:
            body[name] = plain(number)
    if change.time_in_force is not None:
        body["time_in_force"] = change.time_in_force.value
    return body


def echo_problem(json: Json, order: Order, *, qty: bool = True, named: bool = False) -> str:
    """How Alpaca's order differs from the one that was sent or asked for; "" where it is the same. Legs have
    names that Alpaca gave them, unless `named`."""
    request = order.request
    checks: list[tuple[str, object, object]] = [
        ("symbol", symbol(json), paired(request.symbol)),
        ("side", side(json), request.side),
    ]
    if named or not order.leg or order.replaces:
        checks.append(("client_order_id", text(json, "client_order_id"), order.client_order_id))
    if order.broker_order_id:
        checks.append(("id", text(json, "id"), order.broker_order_id))
    if qty:
        checks += [(name, amount(json, name), getattr(request, name)) for name in ("qty", "notional")]
        checks.append(("type", text(json, "type"), request.type.value))
    return ", ".join(f"{name} {got} for {wanted}" for name, got, wanted in checks if got != wanted)


def ack(json: Json, legs: Sequence[Order]) -> Ack | None:
    """None where the answer does not tell of every leg. Legs are known by their type, not by their place."""
    found = {leg_of(one): one for one in _legs(json)}
    told = [found[leg.leg] for leg in legs if leg.leg in found]
    if len(told) < len(legs):
        return None
    return _ack(json, tuple(_ack(leg) for leg in told))


def _ack(json: Json, legs: tuple[Ack, ...] = ()) -> Ack:
    return Ack(needed_text(json, "id"), needed_text(json, "status"), legs)


def replace_ack(json: Json) -> Ack:
    """`qty` is what the new order may still execute: Alpaca's quantity of it less what it shows as filled."""
    rest = needed_amount(json, "qty") - (amount(json, "filled_qty") or 0)
    return Ack(needed_text(json, "id"), needed_text(json, "status"), qty=rest)


def leg_of(json: Json) -> Leg:
    """Which exit of a group this leg is: the profit is taken by a limit, the loss stopped by a stop."""
    return Leg.TAKE_PROFIT if text(json, "type") == "limit" else Leg.STOP_LOSS


def shown(json: Json, account: str = "", parent_id: str = "") -> BrokerOrder:
    """Alpaca's order, its legs in the desk's order: take-profit, then stop-loss; replaced ones last."""
    broker_order_id, status = needed_text(json, "id"), needed_text(json, "status")
    end = ENDS.get(status)
    legs = sorted(_legs(json), key=lambda leg: (text(leg, "status") == "replaced", leg_of(leg) is Leg.STOP_LOSS))
    return BrokerOrder(
        client_order_id=text(json, "client_order_id"),
        broker_order_id=broker_order_id,
        status=status,
        symbol=symbol(json),
        side=side(json),
        qty=amount(json, "qty"),
        filled_qty=needed_amount(json, "filled_qty"),
        legs=tuple(shown(leg, account, broker_order_id) for leg in legs),
        is_open=end is None,
        end=end,
        filled_avg_price=amount(json, "filled_avg_price"),
        request=_request(json, is_leg=bool(parent_id)),
        created_at=when(json, "submitted_at") or when(json, "created_at"),
        updated_at=when(json, "updated_at"),
        replaces=text(json, "replaces"),
        replaced_by=text(json, "replaced_by"),
        parent_id=parent_id,
        account=account,
    )


def _legs(json: Json) -> list[Json]:
    legs = json.get("legs")
    return rows(legs) if legs else []


def _request(json: Json, *, is_leg: bool) -> OrderRequest | None:
    """The order as it was sent; None for a kind that the desk does not know (options, new order types)."""
    kind = _word(OrderType, text(json, "type") or text(json, "order_type"))
    tif = _word(TimeInForce, text(json, "time_in_force"))
    order_class = OrderClass.SIMPLE if is_leg else _word(OrderClass, text(json, "order_class") or "simple")
    if kind is None or tif is None or order_class is None or not symbol(json):
        return None
    notional = amount(json, "notional")
    qty = None if notional is not None else amount(json, "qty")
    if qty is None and notional is None:
        return None
    is_oco = order_class is OrderClass.OCO
    limit = amount(json, "limit_price")
    legs = {} if is_leg else {leg_of(leg): leg for leg in _legs(json) if text(leg, "status") != "replaced"}
    profit, stop = legs.get(Leg.TAKE_PROFIT), legs.get(Leg.STOP_LOSS)
    return OrderRequest(
        symbol=symbol(json),
        side=side(json),
        type=kind,
        time_in_force=tif,
        qty=qty,
        notional=notional,
        limit_price=limit,
        stop_price=None if kind is OrderType.TRAILING_STOP else amount(json, "stop_price"),
        trail_price=amount(json, "trail_price"),
        trail_percent=amount(json, "trail_percent"),
        extended_hours=json.get("extended_hours") is True,
        order_class=order_class,
        take_profit=limit if is_oco else (amount(profit, "limit_price") if profit else None),
        stop_loss=None if stop is None else _stop_loss(stop),
    )


def _stop_loss(leg: Json) -> StopLoss | None:
    stop = amount(leg, "stop_price")
    return None if stop is None else StopLoss(stop, amount(leg, "limit_price"))


def _word(words: type[_Word], written: str) -> _Word | None:
    try:
        return words(written)
    except ValueError:
        return None


def listed(json: Any, account: str) -> list[BrokerOrder]:
    """A page of orders. One that cannot be read fails the page (BrokerUnknown)."""
    return [shown(row, account) for row in rows(json)]


def order_in(json: Any) -> Json:
    """The one order of an answer. Raises BrokerUnknown where it is something else."""
    order = mapping(json)
    if not text(order, "id") or not text(order, "status"):
        raise BrokerUnknown("Alpaca's answer is no order")
    return order
