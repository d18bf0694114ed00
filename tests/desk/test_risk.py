"""The pre-trade checks: each refuses for its own reason, in the order of precedence."""

from datetime import UTC, datetime
from decimal import Decimal as D

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from desk_server import risk
from desk_server.domain import OrderClass, OrderRequest, OrderType, Quote, Side, StopLoss, Symbol
from desk_server.errors import Code

NOON = datetime(2026, 1, 5, 17, tzinfo=UTC)
QUOTE = Quote(Symbol("AAPL"), D("100"), D("99.95"), D("100.05"), NOON, 7, 50.0)
LIMITS = risk.Limits(
    qty_max=D(1000),
    notional_usd_max=D(50_000),
    collar_percent=D(10),
    market_buffer_percent=D(2),
    quote_age_s_max=60.0,
    open_orders_max=5,
    allow_short=False,
)
FACTS = risk.Facts(
    limits=LIMITS,
    quote=QUOTE,
    now_s=60.0,
    buying_power=D(20_000),
    position=D(10),
    available=D(10),
    open_orders=0,
    throttle_s=0.0,
    halted="",
    problems=(),
)
BUY = OrderRequest(symbol=Symbol("AAPL"), side=Side.BUY, qty=D(5))
SELL = OrderRequest(symbol=Symbol("AAPL"), side=Side.SELL, qty=D(5))


def limit(request: OrderRequest, price: str) -> OrderRequest:
    return replace(request, type=OrderType.LIMIT, limit_price=D(price))


def refusal(request: OrderRequest, **facts: object) -> risk.Refused:
    verdict = risk.check(request, replace(FACTS, **facts))
    assert isinstance(verdict, risk.Refused), verdict
    return verdict


def test_a_sound_order_is_approved_with_what_it_may_cost():
    """A market buy reserves the ask plus the buffer; a sell reserves shares, not cash."""
    assert risk.check(BUY, FACTS) == risk.Approved(reserved_cash=D("510.255"))
    assert risk.check(limit(BUY, "99"), FACTS) == risk.Approved(reserved_cash=D(495))
    assert risk.check(SELL, FACTS) == risk.Approved(reserved_cash=D(0), sold=D(5))
    notional = replace(BUY, qty=None, notional=D("250.50"))
    assert risk.check(notional, FACTS) == risk.Approved(reserved_cash=D("250.50"))


def test_fees_are_held_back_too():
    """What the broker takes on top is part of what an order may cost, rounded up to cents."""
    limits = replace(LIMITS, fee_bps=D(10), fee_per_share=D("0.003"), crypto_fee_bps=D(25))
    facts = replace(FACTS, limits=limits)
    assert risk.check(limit(BUY, "99"), facts) == risk.Approved(reserved_cash=D(495) + D("0.495") + D("0.015"))
    coin = replace(BUY, symbol=Symbol("BTC/USD"), type=OrderType.LIMIT, limit_price=D(99), qty=D("0.5"))
    assert risk.check(coin, facts) == risk.Approved(reserved_cash=D("49.5") + D("0.13"))
    assert refusal(limit(BUY, "99"), limits=limits, buying_power=D(495)).code is Code.BUYING_POWER
    assert risk.check(SELL, facts) == risk.Approved(reserved_cash=D(0), sold=D(5))


REFUSALS = [
    (replace(BUY, qty=D(1001)), {}, Code.MAX_QTY),
    (replace(BUY, qty=D(600)), {"buying_power": D(10**6)}, Code.MAX_NOTIONAL),
    (limit(BUY, "111"), {}, Code.COLLAR),
    (limit(SELL, "80"), {}, Code.COLLAR),
    (BUY, {"quote": None}, Code.STALE_DATA),
    (BUY, {"now_s": 120.0}, Code.STALE_DATA),
    (BUY, {"quote": replace(QUOTE, bid=D(101))}, Code.STALE_DATA),
    (BUY, {"quote": replace(QUOTE, received_s=float("-inf"))}, Code.STALE_DATA),
    (limit(BUY, "99"), {"buying_power": D("494.99")}, Code.BUYING_POWER),
    (BUY, {"buying_power": D(-1)}, Code.BUYING_POWER),
    (replace(SELL, qty=D("10.000000001")), {}, Code.NOT_OWNED),
    (SELL, {"available": D(4)}, Code.NOT_OWNED),
    (SELL, {"position": D(0), "available": D(0)}, Code.NOT_OWNED),
    (BUY, {"position": D(-3), "available": D(-3)}, Code.NOT_OWNED),
    (BUY, {"account_cash": D(500)}, Code.BUYING_POWER),
    (BUY, {"meets": ""}, Code.SELF_TRADE),
    (BUY, {"meets": "01J"}, Code.SELF_TRADE),
    (BUY, {"meets": "01J", "may_wait": True}, Code.SELF_TRADE),
    (BUY, {"throttle_s": 1.5}, Code.THROTTLED),
    (BUY, {"open_orders": 5}, Code.OPEN_LIMIT),
    (BUY, {"halted": "the desk is halted"}, Code.HALTED),
    (BUY, {"frozen": "AAPL differs"}, Code.NOT_READY),
    (replace(SELL, order_class=OrderClass.BRACKET), {"frozen": "AAPL differs"}, Code.NOT_READY),
    (BUY, {"problems": ("the broker is away",)}, Code.NOT_READY),
]


@pytest.mark.parametrize(("request_", "facts", "code"), REFUSALS, ids=lambda value: str(getattr(value, "value", "")))
def test_each_check_refuses_for_its_own_reason(request_, facts, code):
    """The code names the check, and the message says what to do."""
    refused = refusal(request_, **facts)
    assert refused.code is code
    assert len(refused.message) > 20


ALL_WRONG = {
    "open_orders": 5,
    "halted": "halted",
    "problems": ("away",),
    "meets": "",
    "frozen": "AAPL differs",
    "throttle_s": 1.0,
    "buying_power": D(0),
    "position": D(-1),
    "available": D(-1),
}
RICH = {"buying_power": D(1000)}
COVER = replace(BUY, qty=D(1))
PRECEDENCE = [
    (replace(limit(BUY, "150"), qty=D(2000)), {"now_s": 500.0}, Code.MAX_QTY),
    (replace(limit(BUY, "150"), qty=D(900)), {"now_s": 500.0}, Code.MAX_NOTIONAL),
    (limit(BUY, "150"), {"now_s": 500.0}, Code.COLLAR),
    (limit(BUY, "99"), {"now_s": 500.0}, Code.STALE_DATA),
    (BUY, {"position": D(0)}, Code.BUYING_POWER),
    (BUY, RICH, Code.NOT_OWNED),
    (COVER, RICH, Code.SELF_TRADE),
    (COVER, RICH | {"meets": None}, Code.THROTTLED),
    (COVER, RICH | {"meets": None, "throttle_s": 0.0}, Code.OPEN_LIMIT),
    (COVER, RICH | {"meets": None, "throttle_s": 0.0, "open_orders": 0}, Code.HALTED),
    (COVER, RICH | {"meets": None, "throttle_s": 0.0, "open_orders": 0, "halted": ""}, Code.NOT_READY),
]


@pytest.mark.parametrize(("request_", "facts", "code"), PRECEDENCE, ids=[str(row[2]) for row in PRECEDENCE])
def test_checks_decide_in_their_order(request_, facts, code):
    """With everything wrong, the first check of the list decides; mend that, and the next one does."""
    assert refusal(request_, **(ALL_WRONG | facts)).code is code


def test_an_order_that_may_wait_is_approved_to_wait():
    """Where it meets somebody else's order; and the checks behind still count."""
    waits = risk.check(BUY, replace(FACTS, meets="", may_wait=True))
    assert isinstance(waits, risk.Approved) and waits.waits
    assert refusal(BUY, meets="", may_wait=True, open_orders=5).code is Code.OPEN_LIMIT


def test_what_reduces_a_position_goes_while_a_symbol_is_frozen():
    """Selling what is owned, covering what is short, and an OCO of exits."""
    frozen = replace(FACTS, frozen="AAPL differs")
    assert isinstance(risk.check(SELL, frozen), risk.Approved)
    assert isinstance(risk.check(BUY, replace(frozen, position=D(-5), available=D(-5))), risk.Approved)
    oco = replace(SELL, type=OrderType.LIMIT, order_class=OrderClass.OCO, take_profit=D(110), stop_loss=StopLoss(D(90)))
    assert isinstance(risk.check(oco, frozen), risk.Approved)


def test_refusals_carry_the_limit_and_what_was_observed():
    """Programs can read what was hit without parsing the message."""
    refused = refusal(replace(BUY, qty=D(1001)))
    assert (refused.limit, refused.observed) == ("1000", "1001")


def test_transient_refusals_say_when_to_come_back():
    """Stale data, throttling and an unready desk carry a time to wait."""
    for facts in ({"quote": None}, {"throttle_s": 2.0}, {"problems": ("x",)}):
        assert refusal(BUY, **facts).retry_after_s


def test_short_sales_need_permission_and_margin():
    """With shorts allowed, a flat user may sell, reserving the value; a long user may not sell through zero."""
    may = replace(LIMITS, allow_short=True)
    flat = {"limits": may, "position": D(0), "available": D(0)}
    verdict = risk.check(SELL, replace(FACTS, **flat))
    assert isinstance(verdict, risk.Approved)
    assert verdict.reserved_cash == D(5) * D("99.95") * D("1.02")
    assert refusal(replace(SELL, qty=D(11)), limits=may).code is Code.NOT_OWNED
    assert refusal(SELL, **flat, buying_power=D(1)).code is Code.BUYING_POWER


amounts = st.decimals("0.000000001", "2000", places=9)


@given(
    side=st.sampled_from(Side),
    qty=amounts,
    price=st.decimals("0.01", "300", places=2),
    cash=st.decimals("-1000", "60000", places=2),
    position=st.decimals("-50", "50", places=3),
    held=st.decimals("0", "50", places=3),
)
def test_what_is_approved_is_covered(*, side, qty, price, cash, position, held):
    """No approved order costs more than the buying power, sells more than is free, or breaks a size limit."""
    request = OrderRequest(symbol=Symbol("AAPL"), side=side, qty=qty, type=OrderType.LIMIT, limit_price=price)
    available = position - held
    facts = replace(FACTS, buying_power=cash, position=position, available=available)
    verdict = risk.check(request, facts)
    if isinstance(verdict, risk.Refused):
        return
    assert qty <= LIMITS.qty_max
    assert qty * price <= LIMITS.notional_usd_max
    assert verdict.reserved_cash <= max(cash, D(0))
    if side is Side.SELL:
        assert qty <= available
        assert verdict.sold == qty
    elif position < 0:
        assert qty <= -position
    else:
        assert verdict.reserved_cash == qty * price


def test_a_stop_that_was_passed_already_is_paid_at_the_market():
    """A buy stop below the market buys at once: it reserves what that costs, not its stop price."""
    passed = replace(BUY, type=OrderType.STOP, stop_price=D(50))
    assert risk.check(passed, FACTS) == risk.Approved(reserved_cash=D(5) * D("100.05") * D("1.02"))


def test_a_sale_for_dollars_leaves_room_for_a_falling_price():
    """It sells the more shares the lower the price: what is owned must do for a price that is worse by the buffer."""
    sale = replace(SELL, qty=None, notional=D("980"))
    assert refusal(sale).code is Code.NOT_OWNED
    verdict = risk.check(replace(sale, notional=D("979")), FACTS)
    assert isinstance(verdict, risk.Approved)
    assert verdict.sold == D(979) / (D("99.95") * D("0.98"))


def test_covering_takes_cash_like_any_buy():
    """Several covers at once may add up to more than the short: each is paid for."""
    short = {"position": D(-5), "available": D(-5)}
    assert risk.check(BUY, replace(FACTS, **short)).reserved_cash == D("510.255")
    assert refusal(BUY, **short, buying_power=D(500)).code is Code.BUYING_POWER
