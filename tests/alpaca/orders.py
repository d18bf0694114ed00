"""An order and an execution as the broker keeps them, and as its API shows them."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

ZERO = Decimal(0)
NANO = Decimal("1e-9")

TERMINAL = frozenset(("filled", "canceled", "expired", "replaced", "rejected"))


def text(amount: Decimal | None) -> str | None:
    """Alpaca's amounts are strings without exponents."""
    if amount is None:
        return None
    written = format(amount, "f")
    return written.rstrip("0").rstrip(".") if "." in written else written


def stamp(at_ns: int | None) -> str | None:
    """RFC 3339, UTC, microseconds."""
    if at_ns is None:
        return None
    return datetime.fromtimestamp(at_ns // 1000 / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass(slots=True, eq=False)
class Order:
    """Mutable: it is the broker's own record. `legs` of a parent; `group` names exits of which one fills."""

    id: str
    client_order_id: str
    symbol: str
    asset_id: str
    asset_class: str
    side: str
    type: str
    tif: str
    submitted_ns: int
    seq: int
    qty: Decimal | None = None
    notional: Decimal | None = None
    limit: Decimal | None = None
    stop: Decimal | None = None
    trail_price: Decimal | None = None
    trail_percent: Decimal | None = None
    extended: bool = False
    order_class: str = ""
    position_intent: str | None = None
    status: str = "pending_new"
    updated_ns: int = 0
    filled_ns: int | None = None
    canceled_ns: int | None = None
    expired_ns: int | None = None
    failed_ns: int | None = None
    replaced_ns: int | None = None
    replaces: str | None = None
    replaced_by: str | None = None
    hwm: Decimal | None = None
    triggered: bool = False
    filled: Decimal = ZERO
    filled_cost: Decimal = ZERO
    target: Decimal | None = None
    parent: "Order | None" = None
    legs: "list[Order]" = field(default_factory=list)
    group: str = ""
    external: bool = False
    visible_ns: int = 0
    retrying: bool = False
    # The market will not have it (a fault).
    doomed: bool = False
    # [at_ns, event, status, filled, average] each time something happened.
    history: list[tuple[int, str, str, Decimal, Decimal | None]] = field(default_factory=list)

    @property
    def is_open(self) -> bool:
        return self.status not in TERMINAL

    @property
    def buy(self) -> bool:
        return self.side == "buy"

    @property
    def crypto(self) -> bool:
        return self.asset_class == "crypto"

    @property
    def wanted(self) -> Decimal:
        """The quantity in shares or coins; of a notional order, zero until its first look at the market."""
        return self.qty if self.qty is not None else (self.target or ZERO)

    @property
    def rest(self) -> Decimal:
        return self.wanted - self.filled

    @property
    def average(self) -> Decimal | None:
        return (self.filled_cost / self.filled).quantize(Decimal("1e-6")) if self.filled else None


def shown(order: Order, *, nested: bool = False, as_of_ns: int | None = None) -> dict[str, Any]:
    """The order as the API shows it; `as_of_ns` as it was then."""
    status, filled, average = order.status, order.filled, order.average
    if as_of_ns is not None:
        status, filled, average = "pending_new", ZERO, None
        for at, _, then_status, then_filled, then_average in order.history:
            if at > as_of_ns:
                break
            status, filled, average = then_status, then_filled, then_average
    submitted = stamp(order.submitted_ns)
    legs = [shown(leg, as_of_ns=as_of_ns) for leg in order.legs] if nested and order.legs else None
    return {
        "id": order.id,
        "client_order_id": order.client_order_id,
        "created_at": submitted,
        "updated_at": stamp(order.updated_ns or order.submitted_ns),
        "submitted_at": submitted,
        "filled_at": stamp(order.filled_ns) if status == "filled" else None,
        "expired_at": stamp(order.expired_ns),
        "canceled_at": stamp(order.canceled_ns) if status == "canceled" else None,
        "failed_at": stamp(order.failed_ns),
        "replaced_at": stamp(order.replaced_ns),
        "replaced_by": order.replaced_by,
        "replaces": order.replaces,
        "asset_id": order.asset_id,
        "symbol": order.symbol,
        "asset_class": order.asset_class,
        "notional": text(order.notional),
        "qty": text(order.qty),
        "filled_qty": text(filled),
        "filled_avg_price": text(average),
        "order_class": order.order_class,
        "order_type": order.type,
        "type": order.type,
        "side": order.side,
        "position_intent": order.position_intent,
        "time_in_force": order.tif,
        "limit_price": text(order.limit),
        "stop_price": text(order.stop),
        "status": status,
        "extended_hours": order.extended,
        "legs": legs,
        "trail_percent": text(order.trail_percent),
        "trail_price": text(order.trail_price),
        "hwm": text(order.hwm),
        "subtag": None,
        "source": None,
    }


@dataclass(slots=True, eq=False)
class Execution:
    """One fill. `fee` in dollars or, of a crypto purchase, in the coin (`fee_asset`)."""

    id: str
    activity_id: str
    order: Order
    qty: Decimal
    price: Decimal
    at_ns: int
    cum: Decimal
    leaves: Decimal
    type: str
    fee: Decimal = ZERO
    fee_asset: str = "USD"
    busted: bool = False
    corrects: str | None = None
    corrected_by: str | None = None

    def activity(self) -> dict[str, Any]:
        order = self.order
        return {
            "id": self.activity_id,
            "activity_type": "FILL",
            "transaction_time": stamp(self.at_ns),
            "type": self.type,
            "price": text(self.price),
            "qty": text(self.qty),
            "side": order.side,
            "symbol": order.symbol,
            "leaves_qty": text(self.leaves),
            "order_id": order.id,
            "cum_qty": text(self.cum),
            "order_status": "filled" if self.type == "fill" else "partially_filled",
        }

    def dumped(self) -> dict[str, Any]:
        return {
            "execution_id": self.id,
            "activity_id": self.activity_id,
            "order_id": self.order.id,
            "client_order_id": self.order.client_order_id,
            "symbol": self.order.symbol,
            "side": self.order.side,
            "qty": text(self.qty),
            "price": text(self.price),
            "fee": text(self.fee),
            "fee_asset": self.fee_asset,
            "at": stamp(self.at_ns),
            "cum_qty": text(self.cum),
            "busted": self.busted,
            "corrects": self.corrects,
            "corrected_by": self.corrected_by,
        }
