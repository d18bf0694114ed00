"""The broker's words put into the desk's: which event of the ledger a broker event becomes. Pure."""

from desk_server.brokers import BrokerEvent, What
from desk_server.domain import ZERO, Order, OrderId, State
from desk_server.events import (
    AnyEvent,
    CancelRejected,
    Executed,
    HouseExecuted,
    OrderAccepted,
    OrderEnded,
    OrderRejected,
    OrderReleased,
    OrderReplaced,
    ReplaceRejected,
)

# What the broker's word brings to life: where the desk knows of nothing, or had given the order up.
_MAY_BE_ACCEPTED = frozenset({State.SENDING, State.UNKNOWN, State.QUARANTINE, State.REJECTED, State.NOT_SENT})


def event_of(said: BrokerEvent, order: Order | None, replacement: Order | None) -> AnyEvent | None:
    """None where the broker said nothing new.

    `order` is the book's order of that name, `replacement` the one named in `said.replaced_by`. An execution
    of an order that is nobody's goes to the house.
    """
    if order is None:
        return _house(said) if said.what is What.FILL else None
    order_id = order.order_id
    match said.what:
        case What.FILL:
            return Executed(
                at=said.at,
                order_id=order_id,
                execution_id=said.execution_id,
                qty=said.qty or ZERO,
                price=said.price or ZERO,
                fee=said.fee,
                cum_qty=said.filled_qty,
                broker_execution_id=said.broker_execution_id,
                user=order.user,
                symbol=order.request.symbol,
                side=order.request.side,
            )
        case What.BUSTED:
            return None
        case What.ACCEPTED if order.state in _MAY_BE_ACCEPTED:
            return OrderAccepted(
                at=said.at, order_id=order_id, broker_order_id=said.broker_order_id, status=said.status or "accepted"
            )
        case What.ACCEPTED | What.RELEASED:
            status = said.status or "new"
            same = order.state is State.LIVE and order.broker_status == status
            return (
                None if same or not order.state.is_open else OrderReleased(at=said.at, order_id=order_id, status=status)
            )
        case What.CANCELED:
            return OrderEnded(at=said.at, order_id=order_id, state=State.CANCELED, reason=said.message)
        case What.EXPIRED:
            return OrderEnded(at=said.at, order_id=order_id, state=State.EXPIRED, reason=said.message)
        case What.REJECTED:
            return OrderRejected(at=said.at, order_id=order_id, code=said.code, message=said.message)
        case What.CANCEL_REJECTED if order.cancel_requested:
            return None  # no proof that it lives: the desk asks again until it is over
        case What.CANCEL_REJECTED:
            return CancelRejected(at=said.at, order_id=order_id, message=said.message)
        case What.REPLACED:
            return _replaced(said, order_id, replacement)
        case What.REPLACE_REJECTED:
            return _replace_rejected(said, order_id, replacement)


def _house(said: BrokerEvent) -> HouseExecuted:
    return HouseExecuted(
        at=said.at,
        symbol=said.symbol,
        side=said.side,
        execution_id=said.execution_id,
        qty=said.qty or ZERO,
        price=said.price or ZERO,
        fee=said.fee,
        broker_order_id=said.broker_order_id,
    )


def _replaced(said: BrokerEvent, order_id: OrderId, new: Order | None) -> OrderReplaced | None:
    if new is None or new.broker_order_id:
        return None
    return OrderReplaced(
        at=said.at,
        order_id=order_id,
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
