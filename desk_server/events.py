"""What happened, in the past tense: the only thing the ledger stores and the book folds.

An event carries all that is needed to fold it again after a restart, bit for bit. Fields are only ever
added, with defaults, so that an old ledger can be read for ever.
"""

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec
from msgspec import Struct

from desk_server.domain import ZERO, Order, OrderId, Role, Side, State, Symbol, UserId


class Event(Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True, gc=False):
    at: datetime


class UserOpened(Event, frozen=True):
    """A user was first seen and got an allotment, in dollars."""

    user: UserId
    allotment: Decimal


class TokenIssued(Event, frozen=True):
    """`sha256` (hex) is all the desk keeps of the secret."""

    token_id: str
    sha256: str
    role: Role
    user: UserId
    strategy: str = ""
    deployment_id: str = ""
    label: str = ""


class TokenRevoked(Event, frozen=True):
    token_id: str


class DeploymentCreated(Event, frozen=True):
    deployment_id: str
    user: UserId
    strategy: str
    code_hash: str
    name: str = ""
    description: str = ""
    version: str = ""
    symbols: tuple[str, ...] = ()


class DeploymentRevoked(Event, frozen=True):
    deployment_id: str


class OrderRefused(Event, frozen=True):
    """The desk said no; recorded so that the same request gets the same answer for ever."""

    order: Order


class OrderIntended(Event, frozen=True):
    """The desk is about to send this order, with these legs; or keeps it back, where its state is WAITING.
    Durable before the broker is called."""

    order: Order
    legs: tuple[Order, ...] = ()


class SendIntended(Event, frozen=True):
    """The desk is about to send an order that it kept back (WAITING). Durable before the broker is called.

    `reserved_cash`, in dollars, is what it may cost now.
    """

    order_id: OrderId
    reserved_cash: Decimal = ZERO


class OrderAccepted(Event, frozen=True):
    """The broker has it. `leg_broker_ids` stand in the order of the intent's legs."""

    order_id: OrderId
    broker_order_id: str
    status: str = "accepted"
    leg_broker_ids: tuple[str, ...] = ()


class OrderRejected(Event, frozen=True):
    """A definitive no from the broker; its legs end with it."""

    order_id: OrderId
    code: str
    message: str


class OrderUnknown(Event, frozen=True):
    """The broker's answer did not come, or was no answer."""

    order_id: OrderId
    reason: str


class OrderQuarantined(Event, frozen=True):
    """Not found at the broker, and not to be sent again; it may still be under way, so all it needs stays reserved."""

    order_id: OrderId
    reason: str


class OrderRecovered(Event, frozen=True):
    """An order under one of this desk's names which the broker has and this ledger does not: the ledger was lost
    or is older than the order. It is booked to the user that its name tells, and works on.

    `order` and `legs` are as the broker has them (LIVE or HELD, nothing filled): executions and ends follow.
    """

    order: Order
    legs: tuple[Order, ...] = ()


class OrderNotSent(Event, frozen=True):
    """It was proved that the broker never got it."""

    order_id: OrderId
    reason: str


class OrderReleased(Event, frozen=True):
    """A held leg, or an order waiting for its time, is now working at the broker."""

    order_id: OrderId
    status: str = "new"


class Executed(Event, frozen=True):
    """An execution: `qty` shares at `price`, `fee` in dollars. Applied exactly once per `execution_id`.

    `cum_qty` is what the order had executed at the broker with this one: (cum_qty - qty, cum_qty] is this
    execution's part of the order, whoever reports it. `broker_execution_id` is the broker's own name, where it
    gave one. `user`, `symbol` and `side` are the order's, so that the event alone says what is posted; events
    of the first ledgers do not have them.
    """

    order_id: OrderId
    execution_id: str
    qty: Decimal
    price: Decimal
    fee: Decimal = ZERO
    cum_qty: Decimal | None = None
    broker_execution_id: str = ""
    user: UserId = UserId("")
    symbol: Symbol = Symbol("")
    side: Side = Side.BUY


class ExecutionBusted(Event, frozen=True):
    """The broker took an execution back: it is booked the other way round, exactly once per `execution_id`.

    A correction is this and a new Executed. All fields but `reason` are those of the execution;
    `order_id` is "" and `user` the house's where it was the house's.
    """

    order_id: OrderId
    execution_id: str
    user: UserId
    symbol: Symbol
    side: Side
    qty: Decimal
    price: Decimal
    fee: Decimal = ZERO
    reason: str = ""


class OrderEnded(Event, frozen=True):
    """CANCELED or EXPIRED at the broker, with no more executions to come."""

    order_id: OrderId
    state: State
    reason: str = ""


class CancelRequested(Event, frozen=True):
    order_id: OrderId
    by: str


class CancelRejected(Event, frozen=True):
    """The broker did not cancel it. Not a proof that it lives."""

    order_id: OrderId
    message: str


class ReplaceIntended(Event, frozen=True):
    """`order` is the new order, durable before the broker is asked to put it in `order_id`'s place."""

    order_id: OrderId
    order: Order


class OrderReplaced(Event, frozen=True):
    """Done: the new order works with quantity `qty` (the new total minus what had filled)."""

    order_id: OrderId
    new_order_id: OrderId
    broker_order_id: str
    qty: Decimal | None = None
    status: str = "new"


class ReplaceRejected(Event, frozen=True):
    """The old order stands; the new one never was."""

    order_id: OrderId
    new_order_id: OrderId
    code: str
    message: str


class HouseExecuted(Event, frozen=True):
    """An execution on the account that no order of this desk explains: the house book's, with an alarm."""

    symbol: Symbol
    side: Side
    execution_id: str
    qty: Decimal
    price: Decimal
    fee: Decimal = ZERO
    broker_order_id: str = ""
    # Where users have broker accounts of their own: whose it happened in. Each has a house book of its own.
    account: str = ""
    cum_qty: Decimal | None = None
    broker_execution_id: str = ""


class ForeignOrderSeen(Event, frozen=True):
    """An order on the account that no order of this desk explains. It is never taken over; its executions are
    the house's. `client_order_id` is as its sender named it."""

    broker_order_id: str
    client_order_id: str
    symbol: Symbol
    side: Side
    qty: Decimal | None = None
    account: str = ""


class Share(Struct, frozen=True):
    """A user's part of an activity: dollars and shares, each signed."""

    user: UserId
    cash: Decimal = ZERO
    qty: Decimal = ZERO


class ActivityPosted(Event, frozen=True):
    """Something besides trading moved money or shares: a dividend, a fee, a split, a transfer.

    `kind` is the broker's word (DIV, FEE, CFEE, SPLIT …). `shares` sum to what the broker moved, to the last
    digit. Applied exactly once per `activity_id`.
    """

    activity_id: str
    kind: str
    shares: tuple[Share, ...]
    symbol: Symbol = Symbol("")
    description: str = ""
    account: str = ""


class HouseAdjusted(Event, frozen=True):
    """A difference to the broker which nothing explained within its lag: the house's, with an alarm.

    `qty` (of `symbol`, at `price`) or `cash` in dollars, signed: what the broker has more than the books. An
    opening balance is one of these, too (`opening`; one for each account says, with its cash, that it is known).
    No fill is made up for it.
    """

    reason: str
    symbol: Symbol = Symbol("")
    qty: Decimal = ZERO
    price: Decimal = ZERO
    cash: Decimal = ZERO
    account: str = ""
    opening: bool = False


class HaltSet(Event, frozen=True):
    """Trading stopped (or allowed again) for `scope`: "desk", "user", "strategy" or "symbol"."""

    scope: str
    name: str
    halted: bool
    reason: str
    by: str


AnyEvent = (
    UserOpened
    | TokenIssued
    | TokenRevoked
    | DeploymentCreated
    | DeploymentRevoked
    | OrderRefused
    | OrderIntended
    | SendIntended
    | OrderAccepted
    | OrderRejected
    | OrderUnknown
    | OrderQuarantined
    | OrderRecovered
    | OrderNotSent
    | OrderReleased
    | Executed
    | ExecutionBusted
    | OrderEnded
    | CancelRequested
    | CancelRejected
    | ReplaceIntended
    | OrderReplaced
    | ReplaceRejected
    | HouseExecuted
    | ForeignOrderSeen
    | ActivityPosted
    | HouseAdjusted
    | HaltSet
)

_encoder = msgspec.json.Encoder(decimal_format="string")
_decoder = msgspec.json.Decoder(AnyEvent)


def encode(event: AnyEvent) -> bytes:
    return _encoder.encode(event)


def decode(body: bytes) -> AnyEvent:
    """Raises msgspec.ValidationError for what is not an event of this desk."""
    event: AnyEvent = _decoder.decode(body)
    return event


def dedupe_key(event: AnyEvent) -> str | None:
    """What the database must hold at most once: an execution, a user's request id, a client order id."""
    key_of = _DEDUPE_KEYS.get(type(event))
    return None if key_of is None else key_of(event)


def can_be_asked_again(event: AnyEvent) -> bool:
    """True for what the broker would say again after a power cut, when the intent alone was left.

    Such an event is stored before anybody is told of it, like every other, and so survives the death of the
    process; its sync to the disk may come with the next commit.
    """
    return type(event) is OrderAccepted or type(event) is OrderReleased


def subject(event: AnyEvent) -> str:
    """The order the event is about; "" for events about users, tokens and halts."""
    if type(event) is OrderRefused or type(event) is OrderIntended or type(event) is OrderRecovered:
        return event.order.order_id
    return getattr(event, "order_id", "")


def owner(event: AnyEvent) -> str:
    """The user that the event names, itself or as its order's; "" where it names none."""
    if isinstance(event, OrderIntended | OrderRefused | ReplaceIntended | OrderRecovered):
        return event.order.user
    return getattr(event, "user", "")


def _key_of_execution(event: Executed | HouseExecuted) -> str:
    return f"execution:{event.execution_id}"


def _key_of_bust(event: ExecutionBusted) -> str:
    return f"bust:{event.execution_id}"


def _key_of_activity(event: ActivityPosted) -> str:
    return f"activity:{event.activity_id}"


def _key_of_foreign(event: ForeignOrderSeen) -> str:
    return f"foreign:{event.broker_order_id}"


def _key_of_recovered(event: OrderRecovered) -> str:
    return f"order:{event.order.client_order_id}"


def _key_of_order(event: OrderIntended | OrderRefused | ReplaceIntended) -> str:
    order = event.order
    if order.request.request_id:
        return f"request:{order.user}:{order.request.request_id}"
    return f"order:{order.client_order_id}"


def _key_of_user(event: UserOpened) -> str:
    return f"user:{event.user}"


_DEDUPE_KEYS: dict[type, Callable[[Any], str]] = {
    UserOpened: _key_of_user,
    Executed: _key_of_execution,
    HouseExecuted: _key_of_execution,
    ExecutionBusted: _key_of_bust,
    ActivityPosted: _key_of_activity,
    ForeignOrderSeen: _key_of_foreign,
    OrderRecovered: _key_of_recovered,
    OrderIntended: _key_of_order,
    OrderRefused: _key_of_order,
    ReplaceIntended: _key_of_order,
}
