"""The quick look at a plain order never says anything else than all checks do."""

from datetime import UTC, datetime
from decimal import Decimal

from hypothesis import given, settings
from hypothesis import strategies as st

from desk_server import risk, rules
from desk_server.domain import (
    Asset,
    AssetClass,
    LineInHand,
    OrderClass,
    OrderRequest,
    OrderType,
    Quote,
    Side,
    StopLoss,
    Symbol,
    TimeInForce,
)
from desk_server.errors import DeskError

NOW = datetime(2026, 1, 2, 15, 0, tzinfo=UTC)
AMOUNTS = st.sampled_from(
    [Decimal(text) for text in ("0", "0.5", "0.99", "1", "1.00", "1.005", "9.99", "10", "10.5", "11", "100", "1e13")]
)
MAYBE = st.none() | AMOUNTS


@st.composite
def requests(draw) -> OrderRequest:
    """Mostly plain ones, with one thing or the other that is not."""
    rare = draw(st.integers(0, 5)) == 0
    kind = draw(st.sampled_from([OrderType.LIMIT] * 5 + list(OrderType)))
    return OrderRequest(
        symbol=draw(st.sampled_from([Symbol("AAPL")] * 3 + [Symbol("BTC/USD")])),
        side=draw(st.sampled_from(Side)),
        type=kind,
        time_in_force=draw(st.sampled_from([TimeInForce.DAY, TimeInForce.GTC] * 4 + list(TimeInForce))),
        qty=draw(AMOUNTS if not rare else MAYBE),
        notional=draw(MAYBE) if rare else None,
        limit_price=draw(MAYBE if rare or kind is OrderType.MARKET else AMOUNTS),
        stop_price=draw(MAYBE) if rare else None,
        trail_price=draw(MAYBE) if rare else None,
        trail_percent=draw(MAYBE) if rare else None,
        extended_hours=rare and draw(st.booleans()),
        order_class=draw(st.sampled_from(OrderClass)) if rare else OrderClass.SIMPLE,
        take_profit=draw(MAYBE) if rare else None,
        stop_loss=draw(st.none() | st.builds(StopLoss, AMOUNTS, MAYBE)) if rare else None,
        request_id=draw(st.sampled_from(["", "a", "x" * 64, "x" * 65, "é", "a\n"])),
        line=draw(st.sampled_from([rules.NO_LINE, LineInHand(), LineInHand(3, "0" * 16), LineInHand(3, "no")])),
        notes=draw(st.sampled_from([{}, {}, {}, {"why": "because"}, {"": "x"}])),
    )


ASSETS = st.builds(
    Asset,
    st.just("AAPL"),
    st.sampled_from([AssetClass.US_EQUITY] * 3 + [AssetClass.CRYPTO]),
    tradable=st.sampled_from([True, True, True, False]),
    fractionable=st.booleans(),
)


def refusal(request: OrderRequest, asset: Asset, *, in_full: bool) -> tuple[str, str] | None:
    try:
        if in_full:
            for rule in rules.SHAPE_CHECKS:
                rule(request)
            for rule in rules.ASSET_CHECKS:
                rule(request, asset, NOW)
        else:
            rules.check(request, asset, NOW)
    except DeskError as error:
        return error.code, error.message
    return None


@settings(max_examples=500, deadline=None)
@given(requests(), ASSETS)
def test_an_order_is_one_or_is_not_either_way(request, asset):
    """The same requests pass the rules, and the others are refused in the same words."""
    assert refusal(request, asset, in_full=False) == refusal(request, asset, in_full=True)


def most(value):
    """`value` three times out of four, and something else now and then."""
    return lambda other: st.sampled_from([value, value, value, other])


LIMITS = st.builds(
    risk.Limits,
    qty_max=most(Decimal(1000))(Decimal(10)),
    notional_usd_max=most(Decimal(10000))(Decimal(50)),
    collar_percent=most(Decimal(10))(Decimal("0.5")),
    market_buffer_percent=st.just(Decimal(2)),
    quote_age_s_max=st.just(60.0),
    open_orders_max=st.just(5),
    allow_short=st.booleans(),
    fee_bps=most(Decimal(0))(Decimal(3)),
    crypto_fee_bps=st.just(Decimal(25)),
    fee_per_share=most(Decimal(0))(Decimal("0.01")),
)
QUOTES = st.builds(
    Quote,
    symbol=st.just("AAPL"),
    price=most(Decimal(10))(Decimal(0)),
    bid=st.none() | AMOUNTS,
    ask=st.none() | AMOUNTS,
    at=st.just(NOW),
    seq=st.just(1),
    received_s=most(100.0)(0.0),
)
SIGNED = st.sampled_from([Decimal(n) for n in (-100, -1, 0, 1, 10, 100, 10**9)])
FACTS = st.builds(
    risk.Facts,
    limits=LIMITS,
    quote=st.none() | QUOTES | QUOTES | QUOTES,
    now_s=st.just(110.0),
    buying_power=SIGNED,
    position=SIGNED,
    available=SIGNED,
    open_orders=most(0)(5),
    throttle_s=most(0.0)(1.5),
    halted=most("")("the desk is halted"),
    problems=most(())(("the feed has failed",)),
    account_cash=st.none() | SIGNED,
    meets=st.sampled_from([None, None, None, "", "01JD"]),
    may_wait=st.booleans(),
    frozen=most("")("the books are being compared"),
)


@settings(max_examples=1500, deadline=None)
@given(requests(), FACTS)
def test_a_verdict_is_the_same_either_way(request, facts):
    """Approved with the same reservations, or refused for the same reason."""
    assert risk.check(request, facts) == risk.check_in_full(request, facts)


def test_a_plain_order_needs_the_quick_look_only():
    """Else the tests above would compare the checks with themselves."""
    request = OrderRequest(Symbol("AAPL"), Side.BUY, OrderType.LIMIT, qty=Decimal(1), limit_price=Decimal(10))
    facts = risk.Facts(
        limits=risk.Limits(Decimal(100), Decimal(10000), Decimal(10), Decimal(2), 60.0, 5, False),
        quote=Quote(Symbol("AAPL"), Decimal(10), None, None, NOW, 1, 100.0),
        now_s=110.0,
        buying_power=Decimal(100),
        position=Decimal(0),
        available=Decimal(0),
        open_orders=0,
        throttle_s=0.0,
        halted="",
        problems=(),
    )
    assert rules._is_evident(request, Asset(Symbol("AAPL"), AssetClass.US_EQUITY))
    assert risk._evidently_approved(request, facts) == risk.Approved(Decimal(10))
