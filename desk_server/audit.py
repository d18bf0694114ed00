"""One order's executions: the book's beside the broker's list. Pure.

Executions that are new are booked as they come, each at its place (settle.py). This is for what does not fit: an
execution taken back or corrected while nobody listened, or one whose place is taken by another.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal

from desk_server.brokers import BrokerEvent, BrokerOrder, Execution, What
from desk_server.domain import ZERO, Order
from desk_server.events import AnyEvent, Executed, ExecutionBusted, HouseExecuted
from desk_server.positions import MONEY, Fill
from desk_server.settle import bust, covered, is_known, place_name


def said(execution: Execution, account: str = "") -> BrokerEvent:
    """An execution of the broker's list as if the stream had told of it."""
    return BrokerEvent(
        what=What.FILL,
        client_order_id="",
        broker_order_id=execution.broker_order_id,
        at=execution.at,
        symbol=execution.symbol,
        side=execution.side,
        qty=execution.qty,
        price=execution.price,
        fee=execution.fee,
        filled_qty=execution.cum_qty,
        broker_execution_id=execution.execution_id,
        account=account,
    )


def does_not_fit(execution: Execution, booked: Sequence[Fill]) -> str:
    """Why this execution, which has been told, is not in the book as the broker lists it; "" when it is."""
    if is_known(said(execution), booked):
        return ""
    standing = [fill for fill in booked if not fill.is_busted]
    for fill in standing:
        if fill.cum_qty == execution.cum_qty and fill.qty == execution.qty:
            return "" if fill.price == execution.price else f"it is booked at {fill.price:f}"
    part = covered(said(execution), standing)
    if part == execution.qty and any(fill.cum_qty is None for fill in standing):
        return ""
    return f"{part:f} of its {execution.qty:f} shares are booked, under another execution"


def is_the_same(listed: Sequence[Execution], booked: Sequence[Fill]) -> bool:
    """Whether the broker's list and the book have the same trades, whatever they call them."""
    trades = sorted((one.qty, one.price) for one in listed)
    return trades == sorted((fill.qty, fill.price) for fill in booked if not fill.is_busted)


def standing_qty(booked: Iterable[Fill]) -> Decimal:
    """What was executed, by the book."""
    found = ZERO
    for fill in booked:
        found = found if fill.is_busted else MONEY.add(found, fill.qty)
    return found


def total(executions: Iterable[Execution]) -> Decimal:
    found = ZERO
    for execution in executions:
        found = MONEY.add(found, execution.qty)
    return found


def corrections(
    there: BrokerOrder,
    listed: Sequence[Execution],
    order: Order | None,
    booked: Sequence[Fill],
    *,
    account: str,
    now: datetime,
) -> list[AnyEvent]:
    """What makes the book's executions those of the broker's list; nothing unless the list is whole, which it is
    when it sums to what the broker says that the order has executed. `order` is None for a foreign one."""
    if total(listed) != there.filled_qty:
        return []
    missing = list(listed)
    extra = [fill for fill in booked if not fill.is_busted]
    for is_same in (_same_name, _same_place, _same_trade):
        for fill in list(extra):
            match = next((one for one in missing if is_same(fill, one)), None)
            if match is not None:
                extra.remove(fill)
                missing.remove(match)
    new: list[Executed | HouseExecuted] = []
    for execution in missing:
        name = place_name(said(execution), [*booked, *new])
        new.append(_executed(order, execution, name) if order else _house_executed(execution, name, account))
    return [*(_back(fill, now) for fill in extra), *new]


def _same_name(fill: Fill, execution: Execution) -> bool:
    return bool(execution.execution_id) and execution.execution_id in (fill.broker_execution_id, fill.execution_id)


def _same_place(fill: Fill, execution: Execution) -> bool:
    return fill.cum_qty == execution.cum_qty and _same_trade(fill, execution)


def _same_trade(fill: Fill, execution: Execution) -> bool:
    return (fill.qty, fill.price) == (execution.qty, execution.price)


def _back(fill: Fill, now: datetime) -> ExecutionBusted:
    taken = BrokerEvent(What.BUSTED, client_order_id="", broker_order_id="", at=now)
    return bust(fill, "the broker's records have it no more", taken)


def _executed(order: Order, execution: Execution, name: str) -> Executed:
    return Executed(
        at=execution.at,
        order_id=order.order_id,
        execution_id=name,
        qty=execution.qty,
        price=execution.price,
        fee=execution.fee,
        cum_qty=execution.cum_qty,
        broker_execution_id=execution.execution_id,
        user=order.user,
        symbol=order.request.symbol,
        side=order.request.side,
    )


def _house_executed(execution: Execution, name: str, account: str) -> HouseExecuted:
    return HouseExecuted(
        at=execution.at,
        symbol=execution.symbol,
        side=execution.side,
        execution_id=name,
        qty=execution.qty,
        price=execution.price,
        fee=execution.fee,
        broker_order_id=execution.broker_order_id,
        account=account,
        cum_qty=execution.cum_qty,
        broker_execution_id=execution.execution_id,
    )
