"""The broker's words put into the desk's: which event of the ledger a broker event becomes. Pure.

An execution is known by its place in the order, the part (filled_qty - qty, filled_qty] of its executed quantity,
and by the broker's name for it, whoever reports it: the stream, a poll, or both, in any order.
"""

from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Protocol

from msgspec import Struct

from desk_server.brokers import BrokerEvent, What
from desk_server.domain import ZERO, Order, OrderId, State, UserId
from desk_server.events import (
    AnyEvent,
    CancelRejected,
    Executed,
    ExecutionBusted,
    HouseExecuted,
    OrderAccepted,
    OrderEnded,
    OrderRejected,
    OrderReleased,
    OrderReplaced,
    ReplaceRejected,
)
from desk_server.positions import MONEY, Fill

# What the broker's word brings to life: where the desk knows of nothing, or had given the order up.
_MAY_BE_ACCEPTED = frozenset({State.SENDING, State.UNKNOWN, State.QUARANTINE, State.REJECTED, State.NOT_SENT})
_ENDS = {
    What.CANCELED: State.CANCELED,
    What.EXPIRED: State.EXPIRED,
    What.REPLACED: State.REPLACED,
    What.FILL: State.FILLED,
}
# An execution like one that was taken back is that one, told late, unless it happened so much later.
_SAME_MOMENT = timedelta(seconds=1)


class Booked(Protocol):
    """An execution that is in the book, or about to be: positions.Fill, events.Executed, events.HouseExecuted."""

    @property
    def execution_id(self) -> str: ...
    @property
    def qty(self) -> Decimal: ...
    @property
    def cum_qty(self) -> Decimal | None: ...
    @property
    def broker_execution_id(self) -> str: ...


class Unsettled(Struct, frozen=True):
    """What cannot be booked as it was said: the broker's records must be asked. `reason` tells why."""

    said: BrokerEvent
    reason: str


def event_of(
    said: BrokerEvent, order: Order | None, replacement: Order | None, booked: Sequence[Booked] = ()
) -> AnyEvent | Unsettled | None:
    """None where the broker said nothing new.

    `order` is the book's order of that name (None: it is nobody's here, and its executions are the house's),
    `replacement` the one that takes its place, `booked` the order's executions, those taken back included.
    """
    if said.what is What.FILL and said.qty:
        return _executed(said, order, booked)
    if said.what is What.BUSTED:
        return _busted(said, order, booked)
    if order is None:
        return None
    if said.what in _ENDS:
        return _ended(said, order, replacement, booked)
    order_id = order.order_id
    match said.what:
        case What.ACCEPTED if order.state in _MAY_BE_ACCEPTED:
            return OrderAccepted(
                at=said.at, order_id=order_id, broker_order_id=said.broker_order_id, status=said.status or "accepted"
            )
        case What.ACCEPTED | What.RELEASED:
            status = said.status or "new"
            same = order.state is State.LIVE and order.broker_status == status
            reopened = said.what is What.RELEASED and _was_filled(order)
            return (
                OrderReleased(at=said.at, order_id=order_id, status=status)
                if (order.state.is_open or reopened) and not same
                else None
            )
        case What.REJECTED:
            return OrderRejected(at=said.at, order_id=order_id, code=said.code, message=said.message)
        case What.CANCEL_REJECTED if order.cancel_requested:
            return None  # no proof that it lives: the desk asks again until it is over
        case What.CANCEL_REJECTED:
            return CancelRejected(at=said.at, order_id=order_id, message=said.message)
        case What.REPLACE_REJECTED:
            return _replace_rejected(said, order_id, replacement)
    return None


def is_known(said: BrokerEvent, booked: Sequence[Booked]) -> bool:
    """Whether this execution was booked (or was, and the broker took it back), by its names."""
    names = {said.execution_id, said.broker_execution_id} - {""}
    return any(one.execution_id in names or one.broker_execution_id in names for one in booked)


def covered(said: BrokerEvent, booked: Sequence[Booked]) -> Decimal:
    """How much of this execution's place is booked already: 0, all of its qty, or something between."""
    qty, high = said.qty or ZERO, said.filled_qty
    if high is None:
        return ZERO
    low, total, unplaced = MONEY.subtract(high, qty), ZERO, ZERO
    for one in booked:
        if _is_busted(one):
            continue
        if one.cum_qty is None:
            unplaced = MONEY.add(unplaced, one.qty)
        else:
            shared = MONEY.subtract(min(high, one.cum_qty), max(low, MONEY.subtract(one.cum_qty, one.qty)))
            total = MONEY.add(total, max(ZERO, shared))
    # Executions whose place nobody told are taken to be the first ones.
    return MONEY.add(total, max(ZERO, min(unplaced - low, qty)))


def _executed(
    said: BrokerEvent, order: Order | None, booked: Sequence[Booked]
) -> Executed | HouseExecuted | Unsettled | None:
    qty = said.qty or ZERO
    if is_known(said, booked) or _was_taken_back(said, booked):
        return None
    part = covered(said, booked)
    if part >= qty:
        return None
    if part:
        return Unsettled(said, f"{part:f} of {qty:f} shares of the execution are booked already, under another one")
    execution_id = said.execution_id or place_name(said, booked)
    if order is None:
        return HouseExecuted(
            at=said.at,
            symbol=said.symbol,
            side=said.side,
            execution_id=execution_id,
            qty=qty,
            price=said.price or ZERO,
            fee=said.fee,
            broker_order_id=said.broker_order_id,
            account=said.account,
            cum_qty=said.filled_qty,
            broker_execution_id=said.broker_execution_id,
        )
    return Executed(
        at=said.at,
        order_id=order.order_id,
        execution_id=execution_id,
        qty=qty,
        price=said.price or ZERO,
        fee=said.fee,
        cum_qty=said.filled_qty,
        broker_execution_id=said.broker_execution_id,
        user=order.user,
        symbol=order.request.symbol,
        side=order.request.side,
    )


def place_name(said: BrokerEvent, booked: Sequence[Booked]) -> str:
    """The ledger's name of an execution without one: its place, and how often that was taken back before."""
    place = said.broker_execution_id if said.filled_qty is None else f"{said.filled_qty.normalize():f}"
    name = f"{said.broker_order_id}:{place}"
    taken = {one.execution_id for one in booked}
    again = 0
    while (name if not again else f"{name}#{again}") in taken:
        again += 1
    return name if not again else f"{name}#{again}"


def _was_taken_back(said: BrokerEvent, booked: Sequence[Booked]) -> bool:
    """Whether it is one that was taken back since, told late under another name."""
    for one in booked:
        if isinstance(one, Fill) and one.is_busted and one.cum_qty == said.filled_qty and one.qty == said.qty:
            is_other = bool(said.broker_execution_id) and said.at - one.at > _SAME_MOMENT
            if one.price == said.price and not is_other:
                return True
    return False


def _busted(said: BrokerEvent, order: Order | None, booked: Sequence[Booked]) -> ExecutionBusted | Unsettled | None:
    found = [one for one in booked if isinstance(one, Fill) and _is_meant(one, said)]
    standing = [one for one in found if not one.is_busted]
    if not standing:
        return (
            None if found else Unsettled(said, "the broker took back an execution that is not booked under that name")
        )
    return bust(standing[-1], said.message, said)


def bust(fill: Fill, reason: str, said: BrokerEvent) -> ExecutionBusted:
    return ExecutionBusted(
        at=said.at,
        order_id=fill.order_id,
        execution_id=fill.execution_id,
        user=UserId(fill.user),
        symbol=fill.symbol,
        side=fill.side,
        qty=fill.qty,
        price=fill.price,
        fee=fill.fee,
        reason=reason,
    )


def _is_meant(one: Fill, said: BrokerEvent) -> bool:
    if name := said.broker_execution_id or said.execution_id:
        return name in (one.broker_execution_id, one.execution_id)
    return said.filled_qty is not None and one.cum_qty == said.filled_qty and said.qty in (None, one.qty)


def _ended(
    said: BrokerEvent, order: Order, replacement: Order | None, booked: Sequence[Booked]
) -> AnyEvent | Unsettled | None:
    """An end counts when the quantities agree: executions that are still to come bring it."""
    if said.filled_qty is not None and said.filled_qty > (total := filled(order, booked)):
        return Unsettled(said, f"it has executed {said.filled_qty:f} at the broker, of which {total:f} are booked")
    if said.what is What.REPLACED:
        return _replaced(said, order, replacement)
    if said.what is What.FILL and not order.state.is_open:
        return None
    return OrderEnded(at=said.at, order_id=order.order_id, state=_ENDS[said.what], reason=said.message)


def filled(order: Order, booked: Sequence[Booked]) -> Decimal:
    """What the order has executed with those of `booked` that are not folded yet."""
    total = order.filled_qty
    for one in booked:
        if isinstance(one, Executed):
            total = MONEY.add(total, one.qty)
    return total


def _replaced(said: BrokerEvent, order: Order, new: Order | None) -> OrderReplaced | Unsettled | None:
    if new is None:
        return (
            Unsettled(said, "it was replaced by an order that the desk does not know") if order.state.is_open else None
        )
    if new.broker_order_id and not order.state.is_open:
        return None
    return OrderReplaced(
        at=said.at,
        order_id=order.order_id,
        new_order_id=new.order_id,
        broker_order_id=said.new_broker_order_id,
        qty=said.qty,
    )


def _replace_rejected(said: BrokerEvent, order_id: OrderId, new: Order | None) -> ReplaceRejected | None:
    if new is None or new.state not in (State.SENDING, State.UNKNOWN, State.QUARANTINE):
        return None
    return ReplaceRejected(
        at=said.at, order_id=order_id, new_order_id=new.order_id, code=said.code, message=said.message
    )


def _was_filled(order: Order) -> bool:
    """It was filled, and then the broker took an execution back."""
    return order.state is State.FILLED and order.qty is not None and order.filled_qty < order.qty


def _is_busted(one: Booked) -> bool:
    return isinstance(one, Fill) and one.is_busted
