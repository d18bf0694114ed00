"""May this order go? Decided purely, on the book in memory: the same facts give the same verdict.

The checks stand in `CHECKS` in the order of their precedence; the first that objects decides.
"""

from collections.abc import Callable
from decimal import ROUND_UP, Decimal

from msgspec import Struct

from desk_server.domain import ZERO, OrderClass, OrderRequest, OrderType, Quote, Side
from desk_server.errors import Code

_CENT = Decimal("0.01")
_SIMPLE, _BUY = OrderClass.SIMPLE, Side.BUY


class Limits(Struct, frozen=True):
    """What the desk allows one user. Amounts in dollars, quantities in shares or coins."""

    qty_max: Decimal
    notional_usd_max: Decimal
    collar_percent: Decimal
    market_buffer_percent: Decimal
    quote_age_s_max: float
    open_orders_max: int
    allow_short: bool
    # What the broker takes on top of an order's value (1 bps = 1/100 %), and on top of each share.
    fee_bps: Decimal = ZERO
    crypto_fee_bps: Decimal = ZERO
    fee_per_share: Decimal = ZERO


class Facts(Struct, frozen=True, gc=False):
    """What a verdict rests on. Orders on their way to the ledger count as open already.

    On a replace, what the old order holds back is already given back in these figures.
    """

    limits: Limits
    quote: Quote | None
    now_s: float
    # The user's free cash, and shares that may still be sold (negative when short).
    buying_power: Decimal
    position: Decimal
    available: Decimal
    open_orders: int
    # Seconds until the user's next request is within the rate; 0 when it is.
    throttle_s: float
    halted: str
    problems: tuple[str, ...]
    # What the broker would still let the user's account spend, as far as it is known; of no order of the desk's own.
    account_cash: Decimal | None = None
    # An open order on the account that this one could trade against: its id where it is the user's own, "" where
    # it is somebody else's, None where there is none.
    meets: str | None = None
    # Whether the order is kept back while it meets somebody else's, instead of refused.
    may_wait: bool = False
    # Why orders that add risk are not taken now; those that reduce a position are.
    frozen: str = ""


class Approved(Struct, frozen=True, gc=False):
    """`reserved_cash`, in dollars, is held back until the order ends; `sold` are the shares that it may sell.

    `exit_cash` is what each of its legs holds back: exits that buy, of which only one executes in full.
    """

    reserved_cash: Decimal
    sold: Decimal = ZERO
    exit_cash: Decimal = ZERO
    # The desk keeps it back until it meets nobody's order any more.
    waits: bool = False


class Refused(Struct, frozen=True):
    code: Code
    message: str
    limit: str = ""
    observed: str = ""
    retry_after_s: float | None = None


Check = Callable[[OrderRequest, Facts], Refused | None]


def check(request: OrderRequest, facts: Facts) -> Approved | Refused:
    return _evidently_approved(request, facts) or check_in_full(request, facts)


def _evidently_approved(request: OrderRequest, facts: Facts) -> Approved | None:
    """The verdict on a plain limit order to which no check can object; None says nothing. Most orders are such."""
    price, qty, quote, limits = request.limit_price, request.qty, facts.quote, facts.limits
    if (
        price is None
        or qty is None
        or quote is None
        or request.notional is not None
        or facts.problems
        or facts.halted
        or facts.frozen
        or facts.meets is not None
        or facts.throttle_s > 0
        or facts.position < 0
        or facts.open_orders >= limits.open_orders_max
        or request.order_class is not _SIMPLE
        or "/" in request.symbol
        or facts.now_s - quote.received_s > limits.quote_age_s_max
    ):
        return None
    bid, ask, value = quote.bid, quote.ask, price * qty
    if quote.price <= 0 or (bid is not None and ask is not None and not 0 < bid <= ask):
        return None
    if qty > limits.qty_max or value > limits.notional_usd_max:
        return None
    if request.side is _BUY:
        market = ask or quote.price
        if price > market and (price - market) * 100 > limits.collar_percent * market:
            return None
        if limits.fee_bps or limits.fee_per_share:
            value += _fees(request, facts, value)
        if value > facts.buying_power or (facts.account_cash is not None and value > facts.account_cash):
            return None
        return Approved(value)
    market = bid or quote.price
    if price < market and (market - price) * 100 > limits.collar_percent * market:
        return None
    return Approved(ZERO, qty) if ZERO < facts.available >= qty else None


def check_in_full(request: OrderRequest, facts: Facts) -> Approved | Refused:
    """Every check, in the order of their precedence."""
    for rule in CHECKS:
        if refusal := rule(request, facts):
            return refusal
    sold = _quantity(request, facts) if request.side is Side.SELL else ZERO
    return Approved(
        reserved_cash=_cash_needed(request, facts),
        sold=sold,
        exit_cash=_exit_cash(request, facts),
        waits=facts.meets is not None,
    )


def _size(request: OrderRequest, facts: Facts) -> Refused | None:
    limits = facts.limits
    if request.qty is not None and request.qty > limits.qty_max:
        return Refused(
            Code.MAX_QTY,
            f"quantity {request.qty} is more than one order may have: send at most {limits.qty_max}",
            str(limits.qty_max),
            str(request.qty),
        )
    value = _value(request, facts)
    if value is not None and value > limits.notional_usd_max:
        return Refused(
            Code.MAX_NOTIONAL,
            f"the order is worth about ${value:.2f}, one order may be worth ${limits.notional_usd_max}: "
            "send a smaller one",
            str(limits.notional_usd_max),
            f"{value:.2f}",
        )
    return None


def _collar(request: OrderRequest, facts: Facts) -> Refused | None:
    """A limit on the bad side of the market by more than the collar is taken for a typing error."""
    if request.limit_price is None or facts.quote is None:
        return None
    market = _market_price(request.side, facts.quote)
    worse = request.limit_price - market if request.side is Side.BUY else market - request.limit_price
    if market <= 0 or worse * 100 <= facts.limits.collar_percent * market:
        return None  # a market at zero is the next check's
    worse_percent = worse / market * 100
    return Refused(
        Code.COLLAR,
        f"limit price {request.limit_price} is {worse_percent:.1f} % worse than the market ({market}): "
        f"at most {facts.limits.collar_percent} % is allowed; check the price",
        str(facts.limits.collar_percent),
        f"{worse_percent:.4f}",
    )


def _data_sanity(request: OrderRequest, facts: Facts) -> Refused | None:
    quote, age_s_max = facts.quote, facts.limits.quote_age_s_max
    if quote is None:
        return Refused(
            Code.STALE_DATA,
            f"no market data of {request.symbol} has come yet: try again when it has",
            retry_after_s=1,
        )
    age_s = facts.now_s - quote.received_s
    if age_s > age_s_max:
        return Refused(
            Code.STALE_DATA,
            f"the newest market data of {request.symbol} is too old: try again when the feed is back",
            f"{age_s_max:.0f}",
            f"{age_s:.0f}",
            retry_after_s=5,
        )
    if quote.price <= 0 or (quote.bid is not None and quote.ask is not None and not 0 < quote.bid <= quote.ask):
        return Refused(
            Code.STALE_DATA,
            f"the market data of {request.symbol} is crossed or zero: try again when it is sound",
            observed=f"bid {quote.bid}, ask {quote.ask}, price {quote.price}",
            retry_after_s=1,
        )
    return None


def _buying_power(request: OrderRequest, facts: Facts) -> Refused | None:
    needed = _cash_needed(request, facts) + _exit_cash(request, facts)
    if needed <= max(facts.buying_power, ZERO):
        return _account_cash(needed, facts)
    return Refused(
        Code.BUYING_POWER,
        f"the order needs about ${needed:.2f}, your buying power is ${facts.buying_power:.2f}: "
        "send a smaller order, or cancel open buy orders",
        f"{facts.buying_power:.2f}",
        f"{needed:.2f}",
    )


def _account_cash(needed: Decimal, facts: Facts) -> Refused | None:
    """What the account has is nobody's business but the administrator's: no figure of it is told."""
    if not needed or facts.account_cash is None or needed <= facts.account_cash:
        return None
    return Refused(
        Code.BUYING_POWER,
        f"the order needs about ${needed:.2f}, and the desk's account at the broker has less left than that, whatever "
        "your own buying power: send a smaller order, or tell the desk's administrator",
        observed=f"{needed:.2f}",
    )


def _ownership(request: OrderRequest, facts: Facts) -> Refused | None:
    """Nobody sells what is not theirs, and no order turns a position around through zero."""
    qty = _quantity(request, facts)
    if request.side is Side.BUY:
        if facts.position < 0 and qty > -facts.position:
            return Refused(
                Code.NOT_OWNED,
                f"you are short {-facts.position} {request.symbol}: one order cannot pass through zero; "
                "cover first, then buy",
                str(-facts.position),
                str(qty),
            )
        return None
    if qty <= facts.available:
        return None
    if facts.limits.allow_short and facts.position <= 0:
        return None
    return Refused(
        Code.NOT_OWNED,
        f"you can sell at most {max(facts.available, ZERO)} {request.symbol} (own {facts.position}, "
        f"the rest is held by open sell orders): send a smaller order, or cancel one",
        str(max(facts.available, ZERO)),
        str(qty),
    )


def _self_match(_: OrderRequest, facts: Facts) -> Refused | None:
    """Found here before the broker finds it. Of somebody else's order nothing is told but that it is there."""
    if facts.meets is None or (facts.may_wait and not facts.meets):
        return None
    if facts.meets:
        return Refused(
            Code.SELF_TRADE,
            f"it could trade against your own open order {facts.meets}, which the broker refuses: cancel that one "
            "first, or change the price",
        )
    return Refused(
        Code.SELF_TRADE,
        "it could trade against another open order on the desk's account, which the broker refuses: change the price, "
        "or try again later",
    )


def throttled(_: OrderRequest, facts: Facts) -> Refused | None:
    return too_fast(facts.throttle_s) if facts.throttle_s > 0 else None


def too_fast(wait_s: float) -> Refused:
    return Refused(
        Code.THROTTLED, f"too many requests in the last minute: wait {wait_s:.2f} s", retry_after_s=wait_s
    )


def _open_orders(_: OrderRequest, facts: Facts) -> Refused | None:
    most = facts.limits.open_orders_max
    if facts.open_orders < most:
        return None
    return Refused(
        Code.OPEN_LIMIT,
        f"you have {facts.open_orders} open orders, at most {most} are allowed: cancel some",
        str(most),
        str(facts.open_orders),
    )


def _halted(_: OrderRequest, facts: Facts) -> Refused | None:
    if not facts.halted:
        return None
    return Refused(Code.HALTED, f"trading is halted ({facts.halted}): ask the desk's administrator")


def _frozen(request: OrderRequest, facts: Facts) -> Refused | None:
    """While the books and the broker differ, only orders that make a position smaller are taken."""
    if not facts.frozen or _reduces(request, facts):
        return None
    return Refused(
        Code.NOT_READY,
        f"only orders that reduce a position are taken now: {facts.frozen}; try again later",
        retry_after_s=5,
    )


def _reduces(request: OrderRequest, facts: Facts) -> bool:
    """Ownership has been checked: what it sells (or covers) is there."""
    if request.order_class not in (OrderClass.SIMPLE, OrderClass.OCO):
        return False
    return facts.position > 0 if request.side is Side.SELL else facts.position < 0


def _ready(_: OrderRequest, facts: Facts) -> Refused | None:
    if not facts.problems:
        return None
    return Refused(Code.NOT_READY, f"the desk is not ready: {'; '.join(facts.problems)}", retry_after_s=1)


CHECKS: tuple[Check, ...] = (
    _size,
    _collar,
    _data_sanity,
    _buying_power,
    _ownership,
    _self_match,
    throttled,
    _open_orders,
    _halted,
    _frozen,
    _ready,
)


def _market_price(side: Side, quote: Quote) -> Decimal:
    """What a marketable order would pay or get now: ask or bid where known, else the last price."""
    side_price = quote.ask if side is Side.BUY else quote.bid
    return side_price or quote.price


def _worst_price(request: OrderRequest, facts: Facts) -> Decimal | None:
    """The price per share that the order may cost at the worst; None where nothing tells."""
    if request.order_class is OrderClass.OCO:
        return _worst_exit_price(request, facts)
    if request.limit_price is not None:
        return request.limit_price
    buffer = 1 + facts.limits.market_buffer_percent / 100
    market = _market_price(request.side, facts.quote) if facts.quote else None
    if request.stop_price is not None:
        # A stop that has been passed already buys at the market.
        return max(request.stop_price, market or ZERO) * buffer
    if market is None:
        return None
    if request.type is OrderType.TRAILING_STOP:
        trail = request.trail_price or market * (request.trail_percent or ZERO) / 100
        return (market + trail * request.side.sign) * buffer
    return market * buffer


def _worst_exit_price(request: OrderRequest, facts: Facts) -> Decimal:
    """The most that a share may cost to an exit of a bracket, OTO or OCO: its take-profit or its stop."""
    stop, dearest = request.stop_loss, request.take_profit or ZERO
    if stop is None:
        return dearest
    if stop.limit_price is not None:
        return max(dearest, stop.limit_price)
    return max(dearest, stop.stop_price * (1 + facts.limits.market_buffer_percent / 100))


def _value(request: OrderRequest, facts: Facts) -> Decimal | None:
    if request.notional is not None:
        return request.notional
    price = _worst_price(request, facts)
    return None if price is None or request.qty is None else abs(price * request.qty)


def _quantity(request: OrderRequest, facts: Facts) -> Decimal:
    if request.qty is not None:
        return request.qty
    if facts.quote is None:
        return ZERO
    # A sale for so many dollars takes the more shares the lower the price it meets.
    worse = 1 - facts.limits.market_buffer_percent / 100 * (request.side is Side.SELL)
    price = _market_price(request.side, facts.quote) * worse
    return (request.notional or ZERO) / price if price > 0 else ZERO


def _cash_needed(request: OrderRequest, facts: Facts) -> Decimal:
    """Cash to hold back: a buy's worst cost, also where it covers; for a short sale the same, as its margin."""
    if request.side is Side.SELL and not (facts.position <= 0 and facts.available <= 0):
        return ZERO
    value = _value(request, facts) or ZERO
    return value + _fees(request, facts, value)


def _fees(request: OrderRequest, facts: Facts, value: Decimal) -> Decimal:
    """What the broker will take for it, rounded up to the cent."""
    limits = facts.limits
    is_crypto = "/" in request.symbol
    bps = limits.crypto_fee_bps if is_crypto else limits.fee_bps
    per_share = ZERO if is_crypto else limits.fee_per_share
    if not bps and not per_share:
        return ZERO
    return (value * bps / 10_000 + _quantity(request, facts) * per_share).quantize(_CENT, ROUND_UP)


def _exit_cash(request: OrderRequest, facts: Facts) -> Decimal:
    """Cash to hold back for exits that buy: what the sale brings may be spent elsewhere when they do."""
    if request.side is Side.BUY or request.order_class not in (OrderClass.BRACKET, OrderClass.OTO):
        return ZERO
    return _worst_exit_price(request, facts) * (request.qty or ZERO)
