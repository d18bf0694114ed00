"""What a broker is to the desk. Implementations: `paper.py` (embedded), `alpaca/` (Trading API and Broker API).

All pass tests/brokers/test_broker_conformance.py.

Words as in Alpaca's API, for which the protocol was made; see docs/brokers.md for the differences.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Protocol

from msgspec import Struct

from desk_server.domain import ZERO, Asset, Order, OrderChange, OrderRequest, Side, Symbol, UserId
from desk_server.sessions import TradingDay


class BrokerRejected(Exception):
    """A definitive no: the order (or cancel, or replace) does not exist and never will."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class BrokerHasIt(BrokerRejected):
    """The client_order_id is taken: an earlier request under it arrived, whatever was thought of it. Look it up."""


class BrokerUnknown(Exception):
    """No answer, or none that proves anything: ask again under the client_order_id."""


class BrokerThrottled(Exception):
    """The broker refused to look at the request at all; it may be sent again after `retry_after_s`."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"retry after {retry_after_s} s")
        self.retry_after_s = retry_after_s


class Ack(Struct, frozen=True, gc=False):
    """The broker has the order. `legs` in the order they were sent in; `qty` set on a replace (what remains)."""

    broker_order_id: str
    status: str
    legs: tuple["Ack", ...] = ()
    qty: Decimal | None = None


class What(StrEnum):
    """What a broker event says. A leg or a waiting order that starts to work is RELEASED."""

    ACCEPTED = "accepted"
    RELEASED = "released"
    FILL = "fill"
    CANCELED = "canceled"
    EXPIRED = "expired"
    REJECTED = "rejected"
    REPLACED = "replaced"
    BUSTED = "busted"
    CANCEL_REJECTED = "cancel_rejected"
    REPLACE_REJECTED = "replace_rejected"


class BrokerEvent(Struct, frozen=True, gc=False):
    """Something happened to an order at the broker.

    `execution_id`, `qty`, `price` and `fee` (dollars) are set on FILL only: this execution's, not totals.
    `filled_qty` is the order's total with this event, where the broker tells: on FILL it places the execution
    within the order, so that it is known again whoever reports it (`execution_id` may then be ""); on an end it
    tells whether executions are still to come. `broker_execution_id` is the broker's own name of the execution;
    on BUSTED it (or `filled_qty`) names the one that is taken back.
    On REPLACED the ids are the old order's, `replaced_by` is the new client_order_id ("" where the broker does
    not tell it), `new_broker_order_id` its id and `qty` its quantity. `code` and `message` are set on the
    rejections. `account` is the broker's account where users have accounts of their own, else "".
    An order that has another client_order_id than its sender's (a bracket's leg) is known by `broker_order_id`.
    """

    what: What
    client_order_id: str
    broker_order_id: str
    at: datetime
    symbol: Symbol = Symbol("")
    side: Side = Side.BUY
    execution_id: str = ""
    qty: Decimal | None = None
    price: Decimal | None = None
    fee: Decimal = ZERO
    status: str = ""
    replaced_by: str = ""
    new_broker_order_id: str = ""
    code: str = ""
    message: str = ""
    filled_qty: Decimal | None = None
    broker_execution_id: str = ""
    account: str = ""


class BrokerOrder(Struct, frozen=True):
    """An order as the broker has it now: for what became of a request, and for comparing books.

    `status` is the broker's word, `is_open` what the adapter makes of it, `end` CANCELED, EXPIRED, REJECTED,
    REPLACED or FILL for an order that is over. `request` is the order as it was sent, as far as the broker
    tells (its `request_id` is ""); None for kinds of orders that the desk does not know. `replaces` and
    `replaced_by` are broker order ids. `legs` have the parent's `broker_order_id` in `parent_id`.
    """

    client_order_id: str
    broker_order_id: str
    status: str
    symbol: Symbol
    side: Side
    qty: Decimal | None
    filled_qty: Decimal
    legs: tuple["BrokerOrder", ...] = ()
    is_open: bool = True
    end: What | None = None
    filled_avg_price: Decimal | None = None
    request: OrderRequest | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    replaces: str = ""
    replaced_by: str = ""
    parent_id: str = ""
    message: str = ""
    account: str = ""


class Execution(Struct, frozen=True):
    """An execution as the broker's list of activities has it. `cum_qty` is the order's total with it."""

    broker_order_id: str
    symbol: Symbol
    side: Side
    qty: Decimal
    price: Decimal
    at: datetime
    cum_qty: Decimal | None = None
    execution_id: str = ""
    fee: Decimal = ZERO
    account: str = ""


class Activity(Struct, frozen=True):
    """What moved money or shares besides trading. `kind` is the broker's word (DIV, FEE, CFEE, SPLIT, JNLC …).

    `cash` in dollars and `qty` in shares are signed: what the account got. `per_share` where told (dividends).
    """

    activity_id: str
    kind: str
    at: datetime
    cash: Decimal = ZERO
    symbol: Symbol = Symbol("")
    qty: Decimal = ZERO
    per_share: Decimal | None = None
    broker_order_id: str = ""
    description: str = ""
    account: str = ""


class Holding(Struct, frozen=True):
    """What the broker's account has of one symbol; `qty` is signed, `price` its average entry price."""

    symbol: Symbol
    qty: Decimal
    price: Decimal = ZERO


class Holdings(Struct, frozen=True):
    """One account at the broker. `users` are those whose account it is; None: everybody's, and the house's.

    `cash` (settled or not) and `buying_power` in dollars. `problem` says why it cannot trade, else "".
    """

    account: str
    users: frozenset[UserId] | None
    cash: Decimal | None
    buying_power: Decimal | None
    positions: tuple[Holding, ...]
    problem: str = ""


class MarketClock(Struct, frozen=True):
    at: datetime
    is_open: bool
    next_open: datetime
    next_close: datetime


class Capabilities(Struct, frozen=True):
    """What the desk must know before it promises anything.

    `lookup_lag_s`: for how long a request that was given up may still arrive, so that `find` proves nothing.
    `resend_s`: an order found missing is sent again when it was asked for no longer ago than that.
    `wash_trades_refused`: it refuses orders that could trade against another open order of the same account.
    """

    name: str
    live: bool = False
    resend_s: float = 60.0
    wash_trades_refused: bool = False
    fractional: bool = True
    short: bool = True
    brackets: bool = True
    extended_hours: bool = True
    lookup_lag_s: float = 0.0


class Broker(Protocol):
    capabilities: Capabilities

    async def connect(self, on_event: Callable[[BrokerEvent], Awaitable[None]]) -> None:
        """Start to deliver events, in the broker's order, one at a time: the next when `on_event` has returned.

        Events may be lost, doubled or late where the broker has records of its own to compare with.
        """
        ...

    def problem(self) -> str:
        """Why orders cannot be sent now; "" when all is well."""
        ...

    async def submit(self, order: Order, legs: Sequence[Order] = ()) -> Ack:
        """Send it once under `order.client_order_id`. Raises BrokerRejected, BrokerUnknown, BrokerThrottled."""
        ...

    async def cancel(self, order: Order) -> None:
        """Ask for a cancel; the outcome comes as an event. Raises as submit."""
        ...

    async def replace(self, order: Order, new: Order, change: OrderChange) -> Ack:
        """Put `new` in the place of `order`. Raises as submit. `change.qty` is the new total."""
        ...

    async def find(self, order: Order) -> BrokerOrder | None:
        """What the broker has of this order, by its broker_order_id or client_order_id; None when it says that
        there is nothing. Raises BrokerUnknown, BrokerThrottled."""
        ...

    async def asset(self, symbol: Symbol) -> Asset | None:
        """None when the broker does not know the symbol. Raises BrokerUnknown, BrokerThrottled."""
        ...

    async def holdings(self) -> Sequence[Holdings]:
        """What each account at the broker has now."""
        ...

    async def market_clock(self) -> MarketClock: ...

    async def calendar(self, start: date, end: date) -> Sequence[TradingDay]:
        """The trading days from `start` to `end` (New York dates), both included, ascending."""
        ...

    async def close(self) -> None: ...


class BrokerRecords(Protocol):
    """What a broker with a memory of its own tells, for comparing books (`reconcile.py`). All methods raise
    BrokerUnknown and BrokerThrottled; an answer is whole or none."""

    async def orders(self, since: datetime) -> Sequence[BrokerOrder]:
        """Every order that is open now, and every one submitted at or after `since`, ascending by submission;
        legs inside their parent's `legs` only. A page that cannot be read in full fails the whole call."""
        ...

    async def executions(self, since: datetime) -> Sequence[Execution]:
        """Every execution at or after `since`, of whoever's orders, ascending."""
        ...

    async def activities(self, since: datetime) -> Sequence[Activity]:
        """Everything else that moved money or shares at or after `since`, ascending."""
        ...
