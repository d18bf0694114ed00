"""What the broker tests share: orders, market lines, and an exchange that answers them."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count

from msgspec.structs import replace

from desk_server.brokers import BrokerEvent, What
from desk_server.brokers.fills import FillModel
from desk_server.brokers.matching import PaperExchange
from desk_server.domain import (
    Asset,
    AssetClass,
    Leg,
    Order,
    OrderClass,
    OrderRequest,
    OrderType,
    Quote,
    Side,
    StopLoss,
    TimeInForce,
)
from desk_server.sessions import NEW_YORK, NYSE

ASSETS = (
    Asset("AAPL", AssetClass.US_EQUITY),
    Asset("MSFT", AssetClass.US_EQUITY),
    Asset("STUCK", AssetClass.US_EQUITY, tradable=False),
    Asset("BTC/USD", AssetClass.CRYPTO),
)
_numbers = count(1)


def new_york(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=NEW_YORK).astimezone(UTC)


NOON = new_york("2026-11-19T12:00")


class FixedClock:
    """A clock that shows what it is told."""

    def __init__(self, at: datetime = NOON) -> None:
        self.at = at

    def now(self) -> datetime:
        return self.at

    def monotonic_s(self) -> float:
        return self.at.timestamp()


def number(value) -> Decimal | None:
    return None if value is None else Decimal(str(value))


def make_order(
    side: str = "buy",
    qty="10",
    *,
    symbol: str = "AAPL",
    type: str = "market",
    tif: str = "day",
    name: str = "",
    parent: str = "",
    leg: str = "",
    created_at: datetime = NOON,
    **fields,
) -> Order:
    """An order as the desk sends it; numbers may be given as text."""
    for field in ("notional", "limit_price", "stop_price", "trail_price", "trail_percent", "take_profit"):
        if field in fields:
            fields[field] = number(fields[field])
    name = name or f"{next(_numbers):04}"
    request = OrderRequest(
        symbol=symbol,
        side=Side(side),
        type=OrderType(type),
        time_in_force=TimeInForce(tif),
        qty=None if "notional" in fields else number(qty),
        **fields,
    )
    return Order(
        order_id=name,
        client_order_id=f"d1.alice.s.{name}",
        user="alice",
        strategy="s",
        deployment_id="",
        request=request,
        created_at=created_at,
        updated_at=created_at,
        parent_id=parent,
        leg=Leg(leg),
    )


def limit(side: str, price, qty="10", **fields) -> Order:
    return make_order(side, qty, type="limit", limit_price=price, **fields)


def make_group(kind: str, *, entry="market", qty="10", side="buy", profit="110", loss="90", loss_limit=None, **fields):
    """An entry with its legs, as the desk draws them up: (order, legs)."""
    out = "sell" if side == "buy" else "buy"
    order_class = OrderClass(kind)
    shared = {"take_profit": profit} if profit is not None else {}
    if loss is not None:
        shared["stop_loss"] = StopLoss(number(loss), number(loss_limit))
    main = make_order(side, qty, type="limit" if kind == "oco" else entry, order_class=order_class, **shared, **fields)
    tif = {"tif": fields["tif"]} if "tif" in fields else {}
    exits = side if kind == "oco" else out
    legs = []
    if profit is not None and kind != "oco":
        legs.append(limit(exits, profit, qty, parent=main.order_id, leg="take_profit", **tif))
    if loss is not None:
        stop = {"stop_price": loss, "parent": main.order_id, "leg": "stop_loss", **tif}
        kinds = {"type": "stop"} if loss_limit is None else {"type": "stop_limit", "limit_price": loss_limit}
        legs.append(make_order(exits, qty, **kinds, **stop))
    return replace(main, leg_ids=tuple(leg.order_id for leg in legs)), tuple(legs)


def line(
    price, bid=None, ask=None, *, at: datetime = NOON, symbol: str = "AAPL", kind: str = "quote", sizes=(None, None)
) -> Quote:
    return Quote(
        symbol=symbol,
        price=number(price),
        bid=number(bid),
        ask=number(ask),
        at=at,
        seq=1,
        received_s=0.0,
        kind=kind,
        bid_size=number(sizes[0]),
        ask_size=number(sizes[1]),
    )


class Market:
    """A paper exchange under test: `line` lets time pass by a second, `said` is what has come out so far."""

    def __init__(
        self, *, seed: int = 1, at: datetime = NOON, calendar=NYSE, opening_line: bool = True, **model
    ) -> None:
        decimals = {name: number(value) for name, value in model.items() if name.endswith(("bps", "share"))}
        self.clock = FixedClock(at)
        self.exchange = PaperExchange(
            ASSETS, model=FillModel(**{**model, **decimals}), seed=seed, calendar=calendar, clock=self.clock
        )
        self.at = at
        if opening_line:
            self.line(100, at=at)

    def line(self, price, bid=None, ask=None, *, at: datetime | str | None = None, **fields) -> list[BrokerEvent]:
        """Hand it a line; what happened because of it."""
        if isinstance(at, str):
            at = new_york(at)
        self.at = at or self.at + timedelta(seconds=1)
        before = len(self.exchange.outbox)
        self.exchange.on_quote(line(price, bid, ask, at=self.at, **fields))
        return list(self.exchange.outbox)[before:]

    def send(self, order: Order, legs=()) -> list[BrokerEvent]:
        """Submit it; what happened at once."""
        before = len(self.exchange.outbox)
        self.exchange.submit(order, legs)
        return list(self.exchange.outbox)[before:]

    def status(self, order: Order) -> str:
        return self.exchange.find(order.client_order_id).status

    def filled(self, order: Order) -> Decimal:
        return self.exchange.find(order.client_order_id).filled_qty

    @property
    def said(self) -> list[BrokerEvent]:
        return list(self.exchange.outbox)


def fills(events: list[BrokerEvent]) -> list[tuple[Decimal, Decimal]]:
    """(quantity, price) of each execution."""
    return [(event.qty, event.price) for event in events if event.what is What.FILL]


def whats(events: list[BrokerEvent], order: Order | None = None) -> list[str]:
    return [str(event.what) for event in events if order is None or event.client_order_id == order.client_order_id]
