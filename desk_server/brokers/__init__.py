"""What a broker is to the desk. Implementations: `paper.py` (embedded). All pass tests/brokers/conformance.

Words as in Alpaca's API, for which the protocol was made; see docs/brokers.md for the differences.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Protocol

from msgspec import Struct

from desk_server.domain import ZERO, Asset, Order, OrderChange, Side, Symbol


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
    CANCEL_REJECTED = "cancel_rejected"
    REPLACE_REJECTED = "replace_rejected"


class BrokerEvent(Struct, frozen=True, gc=False):
    """Something happened to an order at the broker.

    `execution_id`, `qty`, `price` and `fee` (dollars) are set on FILL only: this execution's, not totals.
    On REPLACED the ids are the old order's, `replaced_by` is the new client_order_id, `new_broker_order_id`
    its id and `qty` its quantity. `code` and `message` are set on the rejections.
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


class BrokerOrder(Struct, frozen=True):
    """An order as the broker has it now: for looking up what became of an unanswered request."""

    client_order_id: str
    broker_order_id: str
    status: str
    symbol: Symbol
    side: Side
    qty: Decimal | None
    filled_qty: Decimal
    legs: tuple[Ack, ...] = ()


class Capabilities(Struct, frozen=True):
    """What the desk must know before it promises anything.

    `lookup_lag_s`: for how long a request that was given up may still arrive, so that `find` proves nothing.
    """

    name: str
    live: bool = False
    fractional: bool = True
    short: bool = True
    brackets: bool = True
    extended_hours: bool = True
    lookup_lag_s: float = 0.0


class Broker(Protocol):
    capabilities: Capabilities

    async def connect(self, on_event: Callable[[BrokerEvent], Awaitable[None]]) -> None:
        """Start to deliver events, in the broker's order, one at a time: the next when `on_event` has returned."""
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

    async def find(self, client_order_id: str) -> BrokerOrder | None:
        """What the broker has under this id; None when it says that there is nothing."""
        ...

    async def asset(self, symbol: Symbol) -> Asset | None:
        """None when the broker does not know the symbol."""
        ...

    async def positions(self) -> dict[Symbol, Decimal]:
        """The whole account's, signed."""
        ...

    async def close(self) -> None: ...
