"""Trade updates as broker events. Of an order's state only what the update proves; no I/O.

An update is {event, order, timestamp, [execution_id], [price, qty]}; `order` is as in the REST API. An event
nobody has heard of is told as the order's status, as that is what it shows.
"""

from collections import OrderedDict
from datetime import datetime
from decimal import Decimal

from msgspec.structs import replace as changed

from desk_server.brokers import BrokerEvent, BrokerUnknown, What
from desk_server.brokers.alpaca.fields import (
    Json,
    amount,
    mapping,
    needed_amount,
    needed_text,
    needed_when,
    side,
    symbol,
    text,
    when,
)
from desk_server.brokers.alpaca.orders import ENDS
from desk_server.domain import ZERO

# Orders whose names and totals are remembered.
REMEMBERED_MAX = 20_000
# The desk's own names of orders begin so. An order that has another is a leg, or somebody else's.
_OURS = "d1."
_FILLS = frozenset({"fill", "partial_fill"})
_ENDS = {"canceled": What.CANCELED, "expired": What.EXPIRED, "rejected": What.REJECTED}
_REFUSALS = {"order_cancel_rejected": What.CANCEL_REJECTED, "order_replace_rejected": What.REPLACE_REJECTED}
# Of these, what happened has an update of its own.
_TOLD_ELSEWHERE = frozenset({*ENDS, "partially_filled", "held"})


class Updates:
    """Reads the updates of a stream. Remembers orders' names and totals, boundedly: a help, not a need."""

    def __init__(self) -> None:
        self._names: OrderedDict[str, tuple[str, Decimal | None]] = OrderedDict()
        self._filled: OrderedDict[str, Decimal] = OrderedDict()

    def remember(self, broker_order_id: str, client_order_id: str, qty: Decimal | None) -> None:
        """The broker's word that this order has this name and quantity."""
        self._names[broker_order_id] = (client_order_id, qty)
        self._names.move_to_end(broker_order_id)
        if len(self._names) > REMEMBERED_MAX:
            self._names.popitem(last=False)

    def events(self, data: Json, account: str = "") -> list[BrokerEvent]:
        """What the update says, in order. Raises BrokerUnknown where it cannot be read."""
        event, order = needed_text(data, "event"), mapping(data.get("order"))
        at = when(data, "timestamp") or when(data, "at") or needed_when(order, "updated_at")
        self.remember(needed_text(order, "id"), text(order, "client_order_id"), amount(order, "qty"))
        said = self._said(event, data, order, at)
        taken_back = self._taken_back(order)
        if taken_back and event == "restated":
            before, qty = taken_back
            said.insert(0, changed(_event(What.BUSTED, order, at), filled_qty=before, qty=qty))
        return [changed(one, account=account) for one in said] if account else said

    def _taken_back(self, order: Json) -> tuple[Decimal, Decimal] | None:
        """(what the order had filled before, how much of it is gone), where it now has filled less."""
        order_id, filled = needed_text(order, "id"), amount(order, "filled_qty") or ZERO
        before = self._filled.get(order_id, ZERO)
        self._filled[order_id] = filled
        self._filled.move_to_end(order_id)
        if len(self._filled) > REMEMBERED_MAX:
            self._filled.popitem(last=False)
        return (before, before - filled) if filled < before else None

    def _said(self, event: str, data: Json, order: Json, at: datetime) -> list[BrokerEvent]:
        if event in _FILLS:
            return [_fill(data, order, at)]
        if event == "trade_bust":
            return [_bust(data, order, at)]
        if event == "trade_correct":
            return [_bust(data, order, at), _fill(data, order, at)]
        if event == "replaced":
            return [self._replaced(order, at)]
        if event in _REFUSALS:
            return [self._refused(_REFUSALS[event], data, order, at)]
        if event in _ENDS:
            return [_ended(_ENDS[event], data, order, at)]
        return _works(order, at)

    def _replaced(self, order: Json, at: datetime) -> BrokerEvent:
        """The update tells of the old order, which names the new one's id; should it be of the new, it is turned
        round. The new one's name is given where the broker has told it already."""
        said = _event(What.REPLACED, order, at)
        if text(order, "status") == "replaced" or not text(order, "replaces"):
            new_id = text(order, "replaced_by")
            said = changed(said, filled_qty=amount(order, "filled_qty"))
        else:
            new_id, old_id = said.broker_order_id, text(order, "replaces")
            old_name, _ = self._names.get(old_id, ("", None))
            said = changed(said, client_order_id=old_name, broker_order_id=old_id)
        new_name, qty = self._names.get(new_id, ("", None))
        return changed(said, replaced_by=new_name, new_broker_order_id=new_id, qty=qty)

    def _refused(self, what: What, data: Json, order: Json, at: datetime) -> BrokerEvent:
        new_id = text(order, "replaced_by")
        new_name, _ = self._names.get(new_id, ("", None))
        return changed(
            _event(what, order, at),
            replaced_by=new_name,
            new_broker_order_id=new_id,
            code="REFUSED",
            message=text(data, "reason") or "the broker refused it later",
        )


def _fill(data: Json, order: Json, at: datetime) -> BrokerEvent:
    qty, price = needed_amount(data, "qty"), needed_amount(data, "price")
    if qty <= 0 or price <= 0:
        raise BrokerUnknown("an execution of nothing, or for nothing")
    return changed(
        _event(What.FILL, order, at),
        qty=qty,
        price=price,
        filled_qty=amount(order, "filled_qty"),
        broker_execution_id=text(data, "execution_id"),
    )


def _bust(data: Json, order: Json, at: datetime) -> BrokerEvent:
    """Which execution is taken back, `previous_execution_id` tells; `execution_id` is the bust's own."""
    busted = text(data, "previous_execution_id") or text(data, "execution_id")
    reason = text(data, "reason") or "taken back by the broker"
    return changed(_event(What.BUSTED, order, at), broker_execution_id=busted, message=reason)


def _ended(what: What, data: Json, order: Json, at: datetime) -> BrokerEvent:
    said = changed(_event(what, order, at), filled_qty=amount(order, "filled_qty"), message=text(data, "reason"))
    if what is not What.REJECTED:
        return said
    return changed(said, code="REJECTED", message=said.message or "the broker rejected it after it had been accepted")


def _works(order: Json, at: datetime) -> list[BrokerEvent]:
    """Any other update: the order is there, in that status."""
    status = needed_text(order, "status")
    if status in _TOLD_ELSEWHERE:
        return []
    is_leg = status == "new" and not text(order, "client_order_id").startswith(_OURS)
    return [_event(What.RELEASED if is_leg else What.ACCEPTED, order, at)]


def _event(what: What, order: Json, at: datetime) -> BrokerEvent:
    return BrokerEvent(
        what=what,
        client_order_id=text(order, "client_order_id"),
        broker_order_id=needed_text(order, "id"),
        at=at,
        symbol=symbol(order),
        side=side(order),
        status=text(order, "status"),
    )
