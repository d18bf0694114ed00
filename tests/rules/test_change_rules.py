"""What a replace may change, and when."""

from decimal import Decimal

import pytest
from rule_samples import ASSETS, IN_SESSION, make_request

from desk_server import rules
from desk_server.domain import Leg, Order, OrderChange, State, TimeInForce
from desk_server.errors import Code, DeskError


def order_of(text: str, **fields) -> Order:
    given = {"state": State.LIVE, "broker_status": "new", **fields}
    return Order(
        order_id="o1",
        client_order_id="d1.alice.s.o1",
        user="alice",
        strategy="s",
        deployment_id="",
        request=make_request(text),
        created_at=IN_SESSION,
        updated_at=IN_SESSION,
        **given,
    )


def change_of(**fields) -> OrderChange:
    numbers = {
        name: Decimal(value) for name, value in fields.items() if name in ("qty", "limit_price", "stop_price", "trail")
    }
    return OrderChange(**{**fields, **numbers})


def said_to(order: Order, change: OrderChange) -> DeskError:
    with pytest.raises(DeskError) as refused:
        rules.check_change(order, change, ASSETS[order.request.symbol], IN_SESSION)
    return refused.value


LIMIT = "type=limit limit_price=100 time_in_force=gtc"


@pytest.mark.parametrize(
    ("text", "change"),
    [
        (LIMIT, {"qty": "20"}),
        (LIMIT, {"limit_price": "99.99"}),
        (LIMIT, {"time_in_force": TimeInForce.DAY}),
        (LIMIT, {"qty": "1", "limit_price": "0.5", "request_id": "again"}),
        ("type=stop stop_price=10", {"stop_price": "11"}),
        ("type=stop_limit stop_price=10 limit_price=10", {"stop_price": "11", "limit_price": "12"}),
        ("type=trailing_stop trail_price=1", {"trail": "2.50"}),
        ("type=trailing_stop trail_percent=1", {"trail": "2.555"}),
        ("order_class=oco type=limit side=sell take_profit=110 stop_loss=90", {"limit_price": "120"}),
        ("type=limit limit_price=100 order_class=bracket take_profit=110 stop_loss=90", {"limit_price": "101"}),
        (
            "symbol=BTC/USD type=limit limit_price=60000 time_in_force=gtc qty=0.5",
            {"limit_price": "60001.123"},
        ),
    ],
)
def test_a_working_order_may_be_changed(text, change):
    """Quantity, prices, trail and time in force of a working order."""
    order = order_of(text)
    rules.check_change(order, change_of(**change), ASSETS[order.request.symbol], IN_SESSION)


@pytest.mark.parametrize(
    ("text", "change", "said"),
    [
        (LIMIT, {}, "nothing to change"),
        (LIMIT, {"request_id": "only-a-name"}, "nothing to change"),
        (LIMIT, {"qty": "1", "request_id": "\n"}, "request_id must be"),
        (LIMIT, {"qty": "0"}, "qty must be more than 0"),
        (LIMIT, {"qty": "1.5"}, "qty must be whole shares"),
        (LIMIT, {"qty": "NaN"}, "qty must be more than 0"),
        (LIMIT, {"stop_price": "5"}, "limit orders have no stop_price"),
        (LIMIT, {"trail": "5"}, "limit orders have no trail"),
        (LIMIT, {"limit_price": "0"}, "limit_price must be more than 0"),
        (LIMIT, {"limit_price": "99.999"}, "too many decimals"),
        ("type=market", {"limit_price": "5"}, "market orders have no limit_price"),
        ("type=stop stop_price=10", {"time_in_force": TimeInForce.IOC}, "stop orders cannot be ioc"),
        ("type=trailing_stop trail_percent=1", {"trail": "100"}, "trail_percent must be below 100"),
        (
            "type=limit limit_price=100 order_class=bracket take_profit=110 stop_loss=90",
            {"limit_price": "111"},
            "take_profit.limit_price 110 must be above",
        ),
        (
            "type=limit limit_price=100 order_class=bracket take_profit=110 stop_loss=90",
            {"qty": "5"},
            "only prices of a bracket, oco or oto order",
        ),
    ],
)
def test_a_change_that_makes_no_order_is_refused(text, change, said):
    """A changed order must be an order, by the same rules."""
    error = said_to(order_of(text), change_of(**change))
    assert error.code is Code.INVALID
    assert said in error.message


def test_the_new_total_must_exceed_what_has_filled():
    """qty is the new total."""
    order = order_of(LIMIT, filled_qty=Decimal(4))
    assert "more than the 4 already filled" in said_to(order, change_of(qty="4")).message
    rules.check_change(order, change_of(qty="5"), ASSETS["AAPL"], IN_SESSION)


def test_a_leg_keeps_its_quantity():
    """Legs share what their entry filled: only their prices change."""
    leg = order_of("type=limit side=sell limit_price=110", leg=Leg.TAKE_PROFIT, parent_id="o0")
    assert "only prices" in said_to(leg, change_of(qty="5")).message
    rules.check_change(leg, change_of(limit_price="111"), ASSETS["AAPL"], IN_SESSION)


@pytest.mark.parametrize(
    "fields",
    [
        {"broker_status": "accepted"},
        {"broker_status": "pending_new"},
        {"broker_status": "pending_replace"},
        {"cancel_requested": True},
        *({"state": state} for state in State if state is not State.LIVE),
    ],
)
def test_only_a_working_order_can_be_replaced(fields):
    """Pending and ended orders, held legs and orders in doubt cannot be replaced."""
    order = order_of(LIMIT, **fields)
    error = said_to(order, change_of(qty="5"))
    assert error.code is Code.NOT_REPLACEABLE
    assert error.order_id == "o1"


@pytest.mark.parametrize("text", ["notional=50", "qty=1.5 type=limit limit_price=10"])
def test_amounts_that_are_not_whole_shares_cannot_be_replaced(text):
    """Neither notional nor fractional equity orders."""
    assert said_to(order_of(text), change_of(time_in_force=TimeInForce.GTC)).code is Code.NOT_REPLACEABLE
