"""Orders made out of requests: named, dated, with their legs; and whether two requests are the same one."""

from datetime import datetime
from decimal import Decimal

from msgspec.structs import replace as changed

from desk_server import rules
from desk_server.domain import (
    ZERO,
    Identity,
    Leg,
    LineInHand,
    Order,
    OrderChange,
    OrderClass,
    OrderId,
    OrderRequest,
    OrderType,
    Role,
    Side,
    State,
)
from desk_server.errors import Code, DeskError
from desk_server.holds import Hold
from desk_server.ids import new_ulid
from desk_server.risk import Approved

KEPT_BACK = "kept back by the desk: it could trade against another open order on the account; sent when it cannot"
_NOTHING = Approved(reserved_cash=ZERO)
# How the reason begins for which a halted order was not sent; the ledger has it, so it stays as it is.
_HALTED = "trading was halted: "


def draw_up(
    who: Identity, request: OrderRequest, now: datetime, approved: Approved = _NOTHING
) -> tuple[Order, tuple[Order, ...]]:
    """The order and its legs, named and dated, as they will stand in the ledger."""
    order = _new_order(who, request, now, reserved_cash=approved.reserved_cash)
    if approved.waits:
        return changed(order, state=State.WAITING, message=KEPT_BACK), ()
    if request.order_class is OrderClass.SIMPLE:
        return order, ()
    legs = tuple(
        _new_order(who, leg_request, now, order.order_id, leg, reserved_cash=approved.exit_cash)
        for leg, leg_request in _leg_requests(request)
    )
    return changed(order, leg_ids=tuple(leg.order_id for leg in legs)), legs


def draw_up_replacement(old: Order, change: OrderChange, now: datetime, approved: Approved = _NOTHING) -> Order:
    """The order that shall take the place of `old`; whoever asked, it stays its owner's."""
    request = changed_request(old, change)
    owner = Identity(old.user, Role.STRATEGY, old.strategy, old.deployment_id)
    new = _new_order(owner, request, now, old.parent_id, old.leg)
    return changed(new, replaces=old.order_id, change=change, reserved_cash=approved.reserved_cash)


def _new_order(
    who: Identity,
    request: OrderRequest,
    now: datetime,
    parent_id: str = "",
    leg: Leg = Leg.NONE,
    *,
    reserved_cash: Decimal = ZERO,
) -> Order:
    ulid = new_ulid()
    return Order(
        order_id=OrderId(ulid),
        client_order_id=f"d1.{who.user}.{who.strategy}.{ulid}",
        user=who.user,
        strategy=who.strategy,
        deployment_id=who.deployment_id,
        request=request,
        created_at=now,
        updated_at=now,
        reserved_cash=reserved_cash,
        parent_id=parent_id,
        leg=leg,
    )


def hold_for(order: Order, approved: Approved) -> Hold:
    cash = approved.reserved_cash + approved.exit_cash
    return Hold(order.order_id, order.user, order.request.symbol, cash, approved.sold, order)


def hold_for_replacement(old: Order, new: Order, approved: Approved) -> Hold:
    """What `new` needs over `old`: all that a replace has to hold back."""
    cash = max(approved.reserved_cash - old.reserved_cash, ZERO)
    sold = max(approved.sold - (old.remaining or ZERO), ZERO)
    return Hold(new.order_id, new.user, new.request.symbol, cash, sold, new)


def _leg_requests(request: OrderRequest) -> list[tuple[Leg, OrderRequest]]:
    """The exit orders that a bracket, OTO or OCO brings along. An OCO is its take-profit; its leg the stop."""
    is_exit = request.order_class is OrderClass.OCO
    side = request.side if is_exit else (Side.SELL if request.side is Side.BUY else Side.BUY)
    legs = []
    if request.take_profit is not None and not is_exit:
        legs.append((Leg.TAKE_PROFIT, _exit(request, side, OrderType.LIMIT, limit_price=request.take_profit)))
    if stop := request.stop_loss:
        kind = OrderType.STOP if stop.limit_price is None else OrderType.STOP_LIMIT
        legs.append(
            (Leg.STOP_LOSS, _exit(request, side, kind, stop_price=stop.stop_price, limit_price=stop.limit_price))
        )
    return legs


def _exit(
    entry: OrderRequest, side: Side, kind: OrderType, limit_price: Decimal | None, stop_price: Decimal | None = None
) -> OrderRequest:
    return OrderRequest(
        symbol=entry.symbol,
        side=side,
        type=kind,
        time_in_force=entry.time_in_force,
        qty=entry.qty,
        limit_price=limit_price,
        stop_price=stop_price,
        line=entry.line,
    )


def changed_request(old: Order, change: OrderChange) -> OrderRequest:
    """What the replacement asks for: of the new total, what has not filled yet; nothing where more has filled."""
    request = rules.changed(old.request, change)
    rest = old.remaining if change.qty is None else max(change.qty - old.filled_qty, ZERO)
    return changed(request, qty=rest, request_id=change.request_id)


def require_same(earlier: Order, request: OrderRequest) -> None:
    """Raises DeskError KEY_REUSED when a request id seen before now says something else."""
    if _content(earlier.request) != _content(request) or earlier.replaces:
        raise _key_reused(request.request_id, earlier)


def require_same_change(earlier: Order, order_id: str, change: OrderChange) -> None:
    """Raises DeskError KEY_REUSED when a request id seen before now changes something else."""
    if earlier.replaces != order_id or earlier.change != change:
        raise _key_reused(change.request_id, earlier)


def _content(request: OrderRequest) -> OrderRequest:
    """What makes two requests the same order: all but what the caller noted beside it."""
    return changed(request, line=LineInHand(), notes={})


def answer(order: Order) -> Order:
    """The order, or the error that its refusal or rejection stands for: the first time and every time after."""
    match order.state:
        case State.REFUSED:
            raise DeskError(
                Code(order.code),
                order.message,
                limit=order.limit,
                observed=order.observed,
                # Of a replacement that was refused there is only the order that stands.
                order_id=order.replaces or order.order_id,
            )
        case State.REJECTED if order.replaces:
            raise DeskError(
                Code.NOT_REPLACEABLE,
                f"it was not replaced, the old order stands: {order.message}",
                order_id=order.replaces,
            )
        case State.REJECTED:
            raise DeskError(
                Code.REJECTED, f"the broker rejected it ({order.code}): {order.message}", order_id=order.order_id
            )
        case State.NOT_SENT if not order.cancel_requested:
            code = Code.HALTED if order.message.startswith(_HALTED) else Code.NOT_SENT
            raise DeskError(code, f"the order was never sent: {order.message}", order_id=order.order_id)
        case _:
            return order


def not_sent_reason(order: Order, stopped: str) -> str:
    """Why an order that the broker does not have is not sent (any more), for people."""
    if order.cancel_requested:
        return "canceled before the broker had it"
    return _HALTED + stopped if stopped else "the broker did not have it in time"


def _key_reused(request_id: str, earlier: Order) -> DeskError:
    return DeskError(
        Code.KEY_REUSED,
        f"request id {request_id!r} was used for another order before: use a new id for a new order",
        order_id=earlier.order_id,
    )
