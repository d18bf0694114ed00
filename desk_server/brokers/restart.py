"""What the ledger knows of orders, put back on the paper exchange: its memory is the desk's ledger."""

from collections.abc import Mapping

from desk_server.brokers.resting import Group, Resting
from desk_server.domain import ZERO, Leg, Order, OrderClass, OrderId, State

# What a ledger order is at the exchange; the states of orders that never reached it are missing.
STATUS_OF = {
    State.HELD: "held",
    State.LIVE: "new",
    State.FILLED: "filled",
    State.CANCELED: "canceled",
    State.EXPIRED: "expired",
    State.REPLACED: "replaced",
}


def was_here(order: Order) -> bool:
    """Whether the exchange had it; what is SENDING or UNKNOWN never was, and may be sent again."""
    return order.state in STATUS_OF


def restored(order: Order, *, crypto: bool) -> Resting:
    """The order as the ledger last saw it. A stop that has executed was reached; other stops start afresh."""
    resting = Resting(order, order.created_at, crypto=crypto)
    resting.filled = order.filled_qty
    resting.triggered = resting.triggered or bool(order.filled_qty)
    resting.status = STATUS_OF[order.state]
    if order.state is State.LIVE and order.filled_qty:
        resting.status = "partially_filled"
    elif order.state is State.LIVE and order.broker_status == "accepted":
        resting.status = "accepted"
    return resting


def regroup(known: Mapping[OrderId, Order], resting: Mapping[str, Resting]) -> list[Group]:
    """The groups with an open member, from the parents that legs name; replaced orders count what they executed."""
    families: dict[OrderId, list[Order]] = {}
    for order in known.values():
        if order.leg is not Leg.NONE and order.parent_id in known:
            families.setdefault(OrderId(order.parent_id), []).append(order)
    groups = []
    for parent_id, legs in families.items():
        mains = _replacements(known, known[parent_id])
        main = resting[mains[-1].client_order_id]
        replaced = {leg.replaces for leg in legs}
        current = [resting[leg.client_order_id] for leg in legs if leg.order_id not in replaced]
        main.legs = tuple(current)
        if not main.is_open and not any(leg.is_open for leg in current):
            continue
        oco = mains[0].request.order_class is OrderClass.OCO
        executed = sum((order.filled_qty for order in (*legs, *(mains if oco else ()))), ZERO)
        whole = sum((order.filled_qty for order in mains[:-1]), mains[-1].request.qty or ZERO)
        groups.append(Group(None if oco else main, (main, *current) if oco else current, whole - executed))
    return groups


def _replacements(known: Mapping[OrderId, Order], first: Order) -> list[Order]:
    """An order, what replaced it, what replaced that …"""
    line = [first]
    while (following := known.get(OrderId(line[-1].replaced_by))) is not None:
        line.append(following)
    return line
