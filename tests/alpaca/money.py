"""One account's money: cash, positions, what open orders hold, and the checks that need them."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import ROUND_DOWN, Decimal
from typing import Any

from tests.alpaca.orders import NANO, ZERO, Execution, Order, text
from tests.alpaca.rules import Asset, Draft, Refused, bad

CRYPTO_FEE = Decimal("0.0025")
CRYPTO_MINIMUM = Decimal(10)
_EXEMPT = frozenset(("bracket", "oco", "oto"))


@dataclass(frozen=True, slots=True)
class Holding:
    """Signed quantity, what it cost (positive), and since when it is so."""

    qty: Decimal
    cost: Decimal

    @property
    def average(self) -> Decimal:
        return abs(self.cost / self.qty) if self.qty else ZERO


NOTHING = Holding(ZERO, ZERO)


class Money:
    """Cash and positions move only by executions (and back by busts) and by non-trade activities."""

    def __init__(self, cash: Decimal, price_of: Callable[[str], Decimal]) -> None:
        self.cash = cash
        self.last_equity = cash
        self.multiplier = Decimal(2)
        self.shorting = True
        self.blocked = False
        # By position symbol.
        self.holdings: dict[str, Holding] = {}
        self.past: dict[str, list[tuple[int, Holding]]] = defaultdict(list)
        self.assets: dict[str, Asset] = {}
        # By order symbol, then order id.
        self.open: dict[str, dict[str, Order]] = defaultdict(dict)
        self._price_of = price_of
        # What open purchases may cost, and each one's share of it.
        self.reserved = ZERO
        self._shares: dict[str, Decimal] = {}

    def held(self, asset: Asset) -> Holding:
        return self.holdings.get(asset.position_symbol, NOTHING)

    def apply(self, asset: Asset, done: Execution) -> None:
        """Move the money of an execution; its fee is worked out here."""
        if asset.crypto and done.order.buy:
            done.fee, done.fee_asset = (done.qty * CRYPTO_FEE).quantize(NANO), asset.symbol.split("/")[0]
        elif asset.crypto:
            done.fee = (done.qty * done.price * CRYPTO_FEE).quantize(NANO)
        self._move(asset, done, 1)

    def undo(self, asset: Asset, done: Execution) -> None:
        self._move(asset, done, -1)

    def _move(self, asset: Asset, done: Execution, way: int) -> None:
        signed = way * (done.qty if done.order.buy else -done.qty)
        self.cash -= signed * done.price
        if done.fee_asset == "USD":
            self.cash -= way * done.fee
            self.add(asset, signed, done.price, done.at_ns)
        else:
            self.add(asset, signed - way * done.fee, done.price, done.at_ns)

    def add(self, asset: Asset, signed: Decimal, price: Decimal, at_ns: int) -> None:
        """Average cost; a reduction takes cost out in proportion, and what crosses zero starts anew."""
        was = self.held(asset)
        now = was.qty + signed
        if was.qty == 0 or (was.qty > 0) == (signed > 0):
            cost = was.cost + abs(signed) * price
        elif now == 0:
            cost = ZERO
        elif (now > 0) == (was.qty > 0):
            cost = was.cost * (now / was.qty)
        else:
            cost = abs(now) * price
        self._set(asset, Holding(now, cost), at_ns)

    def adjust(self, asset: Asset, signed: Decimal, at_ns: int) -> None:
        """Shares that come or go without money (a split, a transfer): the cost stays."""
        was = self.held(asset)
        self._set(asset, replace(was, qty=was.qty + signed), at_ns)

    def _set(self, asset: Asset, holding: Holding, at_ns: int) -> None:
        symbol = asset.position_symbol
        self.assets[symbol] = asset
        self.past[symbol].append((at_ns, holding))
        if holding.qty:
            self.holdings[symbol] = holding
        else:
            self.holdings.pop(symbol, None)

    def as_of(self, at_ns: int) -> dict[str, Holding]:
        """The holdings as they were: positions read behind their time."""
        out = {}
        for symbol, steps in self.past.items():
            then = NOTHING
            for at, holding in steps:
                if at > at_ns:
                    break
                then = holding
            if then.qty:
                out[symbol] = then
        return out

    def held_for_orders(self, symbol: str, side: str) -> Decimal:
        """What open orders of that side could still trade; exits of one group count once."""
        groups: dict[str, Decimal] = {}
        for order in self.open[symbol].values():
            waits = order.status == "held" and order.parent is not None and order.parent.is_open
            if order.side == side and not waits and order.status != "pending_replace":
                key = order.group or order.id
                groups[key] = max(groups.get(key, ZERO), order.rest)
        return sum(groups.values(), ZERO)

    def exposure(self) -> Decimal:
        return sum((abs(h.qty) * self._price_of(s) for s, h in self.holdings.items()), ZERO)

    def equity(self) -> Decimal:
        return self.cash + sum((h.qty * self._price_of(s) for s, h in self.holdings.items()), ZERO)

    def note(self, order: Order) -> None:
        """Reserve what an open purchase may still cost; to be told whenever something happened to it."""
        counts = order.buy and order.is_open and order.parent is None and order.status != "pending_replace"
        share = self.cost_of(order) if counts else ZERO
        self.reserved += share - self._shares.pop(order.id, ZERO)
        if share:
            self._shares[order.id] = share

    def cost_of(self, order: Order) -> Decimal:
        if order.notional is not None and order.target is None:
            return order.notional
        return order.rest * (order.limit or order.stop or self._price_of(order.symbol))

    def buying_power(self) -> Decimal:
        power = self.multiplier * self.equity() - self.exposure() - self.reserved
        return max(power, ZERO).quantize(Decimal("0.01"), ROUND_DOWN)

    def cash_for_crypto(self) -> Decimal:
        return max(self.cash - self.reserved, ZERO).quantize(Decimal("0.01"), ROUND_DOWN)

    def check(self, wanted: Draft, price: Decimal) -> None:
        """Raises Refused where the account cannot have this order."""
        if self.blocked:
            raise Refused(403, 40310000, "account is restricted to liquidation only")
        self._check_wash(wanted)
        asset, reference = wanted.asset, wanted.limit or wanted.stop or price
        cost = wanted.notional if wanted.notional is not None else (wanted.qty or ZERO) * reference
        if asset.crypto and cost < CRYPTO_MINIMUM:
            raise Refused(403, 40310000, f"cost basis must be >= minimal amount of order {CRYPTO_MINIMUM}")
        holding = self.held(asset)
        qty = wanted.qty if wanted.qty is not None else (cost / price).quantize(NANO, ROUND_DOWN)
        closing = holding.qty > 0 if wanted.side == "sell" else holding.qty < 0
        if closing:
            self._check_available(asset, wanted.side, abs(holding.qty), qty)
        elif wanted.order_class == "oco":
            raise bad("oco orders must be exit orders", 42210000)
        elif wanted.side == "sell":
            self._check_short(wanted, qty, cost)
        else:
            self._check_power(asset, cost)

    def _check_available(self, asset: Asset, side: str, existing: Decimal, qty: Decimal) -> None:
        holds = self.held_for_orders(asset.symbol, side)
        available = existing - holds
        if qty > available:
            message = f"insufficient qty available for order (requested: {text(qty)}, available: {text(available)})"
            related = [o.id for o in self.open[asset.symbol].values() if o.side == side]
            raise Refused(
                403,
                40310000,
                message,
                available=text(available),
                existing_qty=text(existing),
                held_for_orders=text(holds),
                related_orders=related,
                symbol=asset.symbol,
            )

    def _check_short(self, wanted: Draft, qty: Decimal, cost: Decimal) -> None:
        asset = wanted.asset
        if asset.crypto:
            self._check_available(asset, "sell", ZERO, qty)
        if not self.shorting:
            raise Refused(403, 40310000, "account is not allowed to short")
        if not asset.shortable:
            raise bad(f'asset "{asset.symbol}" cannot be sold short', 42210000)
        if wanted.fractional:
            raise bad("fractional orders cannot be sold short", 42210000)
        self._check_power(asset, cost)

    def _check_power(self, asset: Asset, cost: Decimal) -> None:
        power = self.cash_for_crypto() if asset.crypto else self.buying_power()
        if cost > power:
            raise Refused(403, 40310000, "insufficient buying power", buying_power=text(power), cost_basis=text(cost))

    def _check_wash(self, wanted: Draft) -> None:
        if wanted.order_class in _EXEMPT or wanted.type == "trailing_stop":
            return
        for other in self.open[wanted.asset.symbol].values():
            if other.side == wanted.side or _is_exempt(other):
                continue
            if not _would_cross(wanted, other):
                continue
            at_market = "market" in (wanted.type, other.type) or "stop" in (wanted.type, other.type)
            raise Refused(
                403,
                40310000,
                "potential wash trade detected. use complex orders",
                existing_order_id=other.id,
                reject_reason=f"opposite side {'market/stop' if at_market else 'limit'} order exists",
            )


def _is_exempt(order: Order) -> bool:
    return order.order_class in _EXEMPT or order.parent is not None or order.type == "trailing_stop"


def _would_cross(wanted: Draft, other: Order) -> bool:
    if wanted.limit is None or other.limit is None:
        return True
    buy, sell = (wanted.limit, other.limit) if wanted.side == "buy" else (other.limit, wanted.limit)
    return buy >= sell


def position_shown(
    asset: Asset, holding: Holding, price: Decimal, free: Decimal, exchange: str | None = None
) -> dict[str, Any]:
    """A position as the API shows it. `qty` of a short is negative."""
    value = holding.qty * price
    cost = holding.cost if holding.qty > 0 else -holding.cost
    gain = value - cost
    percent = gain / abs(cost) if cost else ZERO
    return {
        "asset_id": asset.id,
        "symbol": asset.position_symbol,
        "exchange": exchange or asset.exchange,
        "asset_class": asset.asset_class,
        "asset_marginable": not asset.crypto,
        "avg_entry_price": text(holding.average.quantize(NANO)),
        "qty": text(holding.qty),
        "side": "long" if holding.qty > 0 else "short",
        "market_value": text(value),
        "cost_basis": text(cost.quantize(NANO)),
        "unrealized_pl": text(gain.quantize(NANO)),
        "unrealized_plpc": text(percent.quantize(NANO)),
        "unrealized_intraday_pl": text(gain.quantize(NANO)),
        "unrealized_intraday_plpc": text(percent.quantize(NANO)),
        "current_price": text(price),
        "lastday_price": text(price),
        "change_today": "0",
        "qty_available": text(free),
    }
