"""What an event moves, as a journal entry that sums to zero per asset: double-entry bookkeeping. Pure, exact.

The event alone says it: `positions.py` and these postings are two ways to the same cash and shares.
"""

from collections.abc import Callable, Mapping
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Any

import msgspec
from msgspec import Struct

from desk_server.domain import Order, OrderId, Side, Symbol, house_of
from desk_server.events import (
    ActivityPosted,
    AnyEvent,
    Executed,
    ExecutionBusted,
    HouseAdjusted,
    HouseExecuted,
    OrderIntended,
    OrderRecovered,
    ReplaceIntended,
    UserOpened,
)

# The other sides of what users and the house have.
CAPITAL = "desk:capital"  # allotments
FEES = "desk:fees"  # fees of executions
MARKET = "market"  # who sold and bought the shares
ACTIVITIES = "desk:activities"  # dividends, splits, fees of the account, transfers
UNEXPLAINED = "desk:unexplained"  # differences to the broker
USD = "USD"

# As positions.MONEY: wide enough that no sum or product of the desk's numbers is rounded.
_EXACT = Context(prec=80, rounding=ROUND_HALF_EVEN)


class Posting(Struct, frozen=True, gc=False):
    """One side of a journal entry. `asset` is "USD" or a symbol; `account` a user's, or one of those above."""

    account: str
    asset: str
    amount: Decimal


def postings(event: AnyEvent) -> tuple[Posting, ...]:
    """The event as a journal entry; empty for what moves nothing. No amount is zero.

    Raises ValueError for an execution that does not name its user (see `named`).
    """
    entry_of = _ENTRIES.get(type(event))
    return () if entry_of is None else tuple([posting for posting in entry_of(event) if posting.amount])


def named(event: AnyEvent, orders: Mapping[OrderId, Order]) -> AnyEvent:
    """An execution of a desk before 2026-11-20, which named its order only, with user, symbol and side; any other
    event as it is. `orders` are those of `intended`. Raises ValueError where its order is not among them."""
    if type(event) is not Executed or event.user:
        return event
    order = orders.get(event.order_id)
    if order is None:
        raise ValueError(f"execution {event.execution_id} is of order {event.order_id}, which nobody intended")
    return msgspec.structs.replace(event, user=order.user, symbol=order.request.symbol, side=order.request.side)


def intended(event: AnyEvent) -> tuple[Order, ...]:
    """The orders that an event brings into being, legs too."""
    match event:
        case OrderIntended() | OrderRecovered():
            return (event.order, *event.legs)
        case ReplaceIntended():
            return (event.order,)
        case _:
            return ()


def sums(entry: tuple[Posting, ...]) -> dict[str, Decimal]:
    """Per asset; all zero for a sound entry."""
    found: dict[str, Decimal] = {}
    for posting in entry:
        found[posting.asset] = _EXACT.add(found.get(posting.asset, Decimal(0)), posting.amount)
    return found


def _opened(event: UserOpened) -> tuple[Posting, ...]:
    return _moved(CAPITAL, event.user, USD, event.allotment)


def _executed(event: Executed) -> tuple[Posting, ...]:
    if not event.user:
        raise ValueError(f"execution {event.execution_id} does not say whose it is")
    return _traded(event.user, event.symbol, event.side, event)


def _house_executed(event: HouseExecuted) -> tuple[Posting, ...]:
    return _traded(house_of(event.account), event.symbol, event.side, event)


def _busted(event: ExecutionBusted) -> tuple[Posting, ...]:
    traded = _traded(event.user, event.symbol, event.side, event)
    return tuple(Posting(one.account, one.asset, _EXACT.minus(one.amount)) for one in traded)


def _activity(event: ActivityPosted) -> tuple[Posting, ...]:
    return tuple(
        posting
        for share in event.shares
        for posting in (
            *_moved(ACTIVITIES, share.user, USD, share.cash),
            *_moved(ACTIVITIES, share.user, event.symbol, share.qty),
        )
    )


def _adjusted(event: HouseAdjusted) -> tuple[Posting, ...]:
    return (
        *_moved(UNEXPLAINED, house_of(event.account), USD, event.cash),
        *_moved(UNEXPLAINED, house_of(event.account), event.symbol, event.qty),
    )


def _traded(
    user: str, symbol: Symbol, side: Side, event: Executed | HouseExecuted | ExecutionBusted
) -> tuple[Posting, ...]:
    change = event.qty if side is Side.BUY else event.qty.copy_negate()
    value = _EXACT.multiply(change, event.price)
    return (
        Posting(user, USD, _EXACT.minus(_EXACT.add(value, event.fee))),
        Posting(MARKET, USD, value),
        Posting(FEES, USD, event.fee),
        Posting(user, symbol, change),
        Posting(MARKET, symbol, _EXACT.minus(change)),
    )


def _moved(source: str, target: str, asset: str, amount: Decimal) -> tuple[Posting, ...]:
    return (Posting(target, asset, amount), Posting(source, asset, _EXACT.minus(amount)))


_ENTRIES: dict[type, Callable[[Any], tuple[Posting, ...]]] = {
    UserOpened: _opened,
    Executed: _executed,
    ExecutionBusted: _busted,
    HouseExecuted: _house_executed,
    ActivityPosted: _activity,
    HouseAdjusted: _adjusted,
}
