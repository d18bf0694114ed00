"""The desk's words: who asks, what an order is, what state it can be in. No I/O, no wire formats.

Money, prices and quantities are Decimal; times are aware UTC datetimes.
"""

import re
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import NewType

from msgspec import Struct

UserId = NewType("UserId", str)
OrderId = NewType("OrderId", str)
Symbol = NewType("Symbol", str)

# What belongs to nobody here is booked under this user; no person or strategy can be called so.
HOUSE = UserId("$house")
ZERO = Decimal(0)
USER_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
STRATEGY_PATTERN = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


def house_of(account: str) -> UserId:
    """The house book of a broker account; "" is the one account that everybody shares."""
    return UserId(f"{HOUSE}.{account}") if account else HOUSE


def is_house(user: UserId) -> bool:
    """No person is called so: see USER_PATTERN."""
    return user.startswith(HOUSE)


class Role(StrEnum):
    STRATEGY = "strategy"
    READ = "read"
    TRADE = "trade"
    ADMIN = "admin"


class Identity(Struct, frozen=True):
    """Who asks, as the credential proved it; never taken from the body of a request."""

    user: UserId
    role: Role
    strategy: str = "manual"
    deployment_id: str = ""
    token_id: str = ""

    @property
    def may_trade(self) -> bool:
        return self.role is not Role.READ

    @property
    def is_admin(self) -> bool:
        return self.role is Role.ADMIN

    def may_see(self, user: UserId) -> bool:
        return self.role is Role.ADMIN or self.user == user


class Side(StrEnum):
    BUY = "buy"
    SELL = "sell"

    @property
    def sign(self) -> int:
        return 1 if self is Side.BUY else -1


class OrderType(StrEnum):
    MARKET = "market"
    LIMIT = "limit"
    STOP = "stop"
    STOP_LIMIT = "stop_limit"
    TRAILING_STOP = "trailing_stop"


class TimeInForce(StrEnum):
    DAY = "day"
    GTC = "gtc"
    IOC = "ioc"
    FOK = "fok"
    OPG = "opg"
    CLS = "cls"


class OrderClass(StrEnum):
    SIMPLE = "simple"
    BRACKET = "bracket"
    OCO = "oco"
    OTO = "oto"


class Leg(StrEnum):
    NONE = ""
    TAKE_PROFIT = "take_profit"
    STOP_LOSS = "stop_loss"


class AssetClass(StrEnum):
    US_EQUITY = "us_equity"
    CRYPTO = "crypto"


class Asset(Struct, frozen=True):
    """What can be traded, as the broker lists it."""

    symbol: Symbol
    asset_class: AssetClass
    tradable: bool = True
    fractionable: bool = True
    shortable: bool = True


class LineInHand(Struct, frozen=True, omit_defaults=True):
    """The market line a strategy had read last when it sent an order."""

    seq: int = 0
    sha256: str = ""
    fields_read: tuple[str, ...] = ()


class StopLoss(Struct, frozen=True):
    stop_price: Decimal
    limit_price: Decimal | None = None


class OrderRequest(Struct, frozen=True, omit_defaults=True, gc=False):
    """What a caller wants. `rules.py` says which combinations are orders at all.

    Exactly one of `qty` (shares or coins) and `notional` (US dollars).
    """

    symbol: Symbol
    side: Side
    type: OrderType = OrderType.MARKET
    time_in_force: TimeInForce = TimeInForce.DAY
    qty: Decimal | None = None
    notional: Decimal | None = None
    limit_price: Decimal | None = None
    stop_price: Decimal | None = None
    trail_price: Decimal | None = None
    trail_percent: Decimal | None = None
    extended_hours: bool = False
    order_class: OrderClass = OrderClass.SIMPLE
    take_profit: Decimal | None = None
    stop_loss: StopLoss | None = None
    request_id: str = ""
    line: LineInHand = LineInHand()
    notes: dict[str, str] = {}


class OrderChange(Struct, frozen=True, omit_defaults=True):
    """What a replace changes; None stays as it is.

    `qty` is the new total, what has already filled included. `trail` is in the unit the order was placed with.
    """

    qty: Decimal | None = None
    time_in_force: TimeInForce | None = None
    limit_price: Decimal | None = None
    stop_price: Decimal | None = None
    trail: Decimal | None = None
    request_id: str = ""


class State(StrEnum):
    """Where an order stands between the desk and the broker.

    WAITING: the intent is durable, and the desk keeps it back until the broker would not refuse it.
    SENDING: the broker has not answered yet. UNKNOWN: its answer was lost. QUARANTINE: it was not found at the
    broker, is not to be sent any more, and may still be under way.
    HELD: a leg that the broker knows and keeps back until its entry has filled.
    """

    REFUSED = "refused"
    WAITING = "waiting"
    SENDING = "sending"
    UNKNOWN = "unknown"
    QUARANTINE = "quarantine"
    HELD = "held"
    LIVE = "live"
    FILLED = "filled"
    CANCELED = "canceled"
    EXPIRED = "expired"
    REPLACED = "replaced"
    REJECTED = "rejected"
    NOT_SENT = "not_sent"

    @property
    def is_open(self) -> bool:
        """True while the order may still execute, as far as the desk knows."""
        return self in OPEN_STATES


OPEN_STATES = frozenset({State.WAITING, State.SENDING, State.UNKNOWN, State.QUARANTINE, State.HELD, State.LIVE})


class Order(Struct, frozen=True, omit_defaults=True, gc=False):
    """An order as the book has it. Changed only by folding an event: see `book.py`.

    `qty` is what this order may execute itself: None for a notional order until it is filled. After a
    replace it is the new total minus what the replaced orders had filled.
    """

    order_id: OrderId
    client_order_id: str
    user: UserId
    strategy: str
    deployment_id: str
    request: OrderRequest
    created_at: datetime
    updated_at: datetime
    state: State = State.SENDING
    # The broker's own word for a LIVE order: "new", "accepted", "pending_cancel", …
    broker_status: str = ""
    broker_order_id: str = ""
    filled_qty: Decimal = ZERO
    # Sum of price x quantity over the executions, in dollars.
    filled_value: Decimal = ZERO
    fees: Decimal = ZERO
    # Cash held back for it while open, in dollars (buys).
    reserved_cash: Decimal = ZERO
    code: str = ""
    message: str = ""
    limit: str = ""
    observed: str = ""
    cancel_requested: bool = False
    replaces: str = ""
    # What was asked of the replaced order, on the one that replaces it.
    change: OrderChange | None = None
    replaced_by: str = ""
    parent_id: str = ""
    leg: Leg = Leg.NONE
    leg_ids: tuple[OrderId, ...] = ()
    # When it was due to be sent, for an order that had been kept back.
    due_at: datetime | None = None

    @property
    def qty(self) -> Decimal | None:
        return self.request.qty

    @property
    def remaining(self) -> Decimal | None:
        """What may still execute; None for a notional order whose quantity only its fills will tell."""
        return None if self.request.qty is None else self.request.qty - self.filled_qty

    @property
    def filled_avg_price(self) -> Decimal | None:
        return self.filled_value / self.filled_qty if self.filled_qty else None

    @property
    def status(self) -> str:
        """The word shown to people and programs (proto Order.status)."""
        if self.state is State.LIVE:
            if self.cancel_requested:
                return "pending_cancel"
            if self.filled_qty:
                return "partially_filled"
            return self.broker_status or "accepted"
        if self.state in (State.UNKNOWN, State.QUARANTINE):
            return "unknown"
        return "pending" if self.state in (State.WAITING, State.SENDING) else self.state.value


class Quote(Struct, frozen=True):
    """The newest market data of a symbol. `bid` and `ask` are None where nobody quoted.

    `received_s` is the desk's monotonic clock; `at` the market's own time.
    """

    symbol: Symbol
    price: Decimal
    bid: Decimal | None
    ask: Decimal | None
    at: datetime
    seq: int
    received_s: float
    # What the line was: "trade", "quote", "bar", …; sizes are None where none were quoted.
    kind: str = ""
    bid_size: Decimal | None = None
    ask_size: Decimal | None = None
