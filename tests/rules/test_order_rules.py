"""Every rule of an order, one row each: what is sent, and what the desk says to it."""

from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise

import pytest
from rule_samples import ASSETS, IN_SESSION, make_request

from desk_server import rules
from desk_server.domain import LineInHand, OrderType, TimeInForce
from desk_server.errors import Code, DeskError

BRACKET = "order_class=bracket take_profit=110 stop_loss=90"
OCO = "order_class=oco type=limit side=sell take_profit=110 stop_loss=90"

ORDERS = (
    "type=market",
    "type=market side=sell",
    "type=market qty=0.5",
    "type=market qty=0.000000001",
    "type=market notional=1.00",
    "type=market notional=123.45",
    "type=limit limit_price=145.50",
    "type=limit limit_price=145.500",
    "type=limit limit_price=0.9999",
    "type=limit limit_price=10 qty=1.5",
    "type=stop stop_price=10 qty=1.5",
    "type=stop_limit stop_price=10 limit_price=11 qty=1.5",
    "type=limit limit_price=10 extended_hours=true",
    "type=limit limit_price=10 extended_hours=true time_in_force=gtc",
    "type=limit limit_price=10 extended_hours=true qty=0.5",
    "type=trailing_stop trail_price=1.5",
    "type=trailing_stop trail_percent=99.9 time_in_force=gtc side=sell",
    f"type=market {BRACKET}",
    f"type=limit limit_price=100 time_in_force=gtc {BRACKET}",
    f"type=limit limit_price=100 {BRACKET} stop_loss_limit=89",
    f"type=limit limit_price=100 {BRACKET} stop_loss_limit=90",
    "type=limit side=sell limit_price=100 order_class=bracket take_profit=90 stop_loss=110 stop_loss_limit=111",
    "type=limit limit_price=100 order_class=bracket take_profit=100.01 stop_loss=99.99",
    "type=market order_class=oto take_profit=110",
    "type=limit limit_price=100 order_class=oto stop_loss=90",
    OCO,
    f"{OCO} limit_price=110",
    f"{OCO} stop_loss_limit=89.50 time_in_force=gtc",
    "order_class=oco type=limit side=buy take_profit=90 stop_loss=110",
    "symbol=BTC/USD type=market time_in_force=gtc qty=0.00012",
    "symbol=BTC/USD type=market time_in_force=ioc notional=25",
    "symbol=BTC/USD type=limit limit_price=61234.123456789 time_in_force=ioc",
    "symbol=BTC/USD type=stop_limit stop_price=61234.5 limit_price=61000.123 time_in_force=gtc",
    "symbol=WHOLE qty=3",
    "qty=1000000000000",
)

REFUSALS = (
    # amounts
    ("qty=", "give qty (shares or coins) or notional"),
    ("qty=1 notional=5", "only one of qty and notional"),
    ("qty=0", "qty must be more than 0"),
    ("qty=-1", "qty must be more than 0"),
    ("qty=NaN", "qty must be more than 0"),
    ("qty=Infinity", "qty must be more than 0"),
    ("qty=1e30", "qty is out of all bounds"),
    ("qty=1000000000001", "qty is out of all bounds"),
    ("qty=0.0000000001", "qty must have at most 9 decimals"),
    ("notional=0", "notional must be more than 0"),
    ("notional=0.99", "notional must be at least 1.00 dollars"),
    ("notional=1.001", "notional must be whole cents"),
    ("notional=50 type=limit limit_price=10", "notional works with market orders only"),
    # prices
    ("type=limit", "limit orders require limit_price"),
    ("type=stop_limit stop_price=10", "stop_limit orders require limit_price"),
    ("type=stop_limit limit_price=10", "stop_limit orders require stop_price"),
    ("type=stop", "stop orders require stop_price"),
    ("type=market limit_price=10", "market orders have no limit_price"),
    ("type=market stop_price=10", "market orders have no stop_price"),
    ("type=limit limit_price=10 stop_price=9", "limit orders have no stop_price"),
    ("type=stop stop_price=10 limit_price=9", "stop orders have no limit_price"),
    ("type=trailing_stop trail_price=1 limit_price=9", "trailing_stop orders have no limit_price"),
    ("type=trailing_stop trail_price=1 stop_price=9", "trailing_stop orders have no stop_price"),
    ("type=limit limit_price=0", "limit_price must be more than 0"),
    ("type=limit limit_price=-1", "limit_price must be more than 0"),
    ("type=limit limit_price=NaN", "limit_price must be more than 0"),
    ("type=limit limit_price=1e13", "limit_price is out of all bounds"),
    ("type=limit limit_price=100.001", "limit_price 100.001 has too many decimals (sub-penny)"),
    ("type=limit limit_price=1.0001", "limit_price 1.0001 has too many decimals"),
    ("type=limit limit_price=0.99999", "limit_price 0.99999 has too many decimals"),
    ("type=stop stop_price=10.005", "stop_price 10.005 has too many decimals"),
    (
        "symbol=BTC/USD type=limit limit_price=1.0000000001 time_in_force=gtc",
        "limit_price must have at most 9 decimals",
    ),
    # trailing stops
    ("type=trailing_stop", "exactly one of trail_price (dollars) and trail_percent"),
    ("type=trailing_stop trail_price=1 trail_percent=1", "exactly one of trail_price"),
    ("type=trailing_stop trail_price=0", "trail_price must be more than 0"),
    ("type=trailing_stop trail_percent=100", "trail_percent must be below 100"),
    ("type=trailing_stop trail_price=1.001", "trail_price 1.001 has too many decimals"),
    ("type=market trail_price=1", "belong to trailing_stop orders"),
    ("type=limit limit_price=5 trail_percent=1", "belong to trailing_stop orders"),
    # type and time in force
    ("type=stop stop_price=10 time_in_force=ioc", "stop orders cannot be ioc: use day, gtc"),
    ("type=stop_limit stop_price=10 limit_price=10 time_in_force=fok", "stop_limit orders cannot be fok"),
    ("type=trailing_stop trail_price=1 time_in_force=opg", "trailing_stop orders cannot be opg"),
    ("type=trailing_stop trail_price=1 time_in_force=cls", "trailing_stop orders cannot be cls"),
    # fractions of a share
    ("qty=0.5 time_in_force=gtc", "fractional orders must be day orders, not gtc"),
    ("qty=0.5 time_in_force=ioc", "fractional orders must be day orders, not ioc"),
    ("qty=0.5 time_in_force=opg", "fractional orders must be day orders, not opg"),
    ("notional=50 time_in_force=gtc", "fractional orders must be day orders, not gtc"),
    ("qty=0.5 type=trailing_stop trail_price=1", "trailing_stop orders need whole shares"),
    (f"qty=0.5 {BRACKET}", "bracket orders need whole shares"),
    ("symbol=WHOLE qty=0.5", "WHOLE trades in whole shares only"),
    ("symbol=WHOLE notional=50", "WHOLE trades in whole shares only"),
    # extended hours
    ("extended_hours=true", "extended_hours needs a limit order"),
    ("extended_hours=true type=stop stop_price=10", "extended_hours needs a limit order"),
    ("extended_hours=true type=limit limit_price=10 time_in_force=ioc", "with time_in_force day or gtc"),
    ("extended_hours=true type=limit limit_price=10 time_in_force=cls", "with time_in_force day or gtc"),
    (
        "extended_hours=true type=limit limit_price=10 time_in_force=gtc symbol=BTC/USD",
        "crypto trades around the clock",
    ),
    # crypto
    ("symbol=BTC/USD", "crypto market orders cannot be day: use gtc, ioc"),
    ("symbol=BTC/USD time_in_force=fok", "crypto market orders cannot be fok"),
    ("symbol=BTC/USD type=stop_limit stop_price=10 limit_price=10 time_in_force=ioc", "cannot be ioc: use gtc"),
    ("symbol=BTC/USD type=stop stop_price=10 time_in_force=gtc", "crypto has no stop orders"),
    ("symbol=BTC/USD type=trailing_stop trail_price=10 time_in_force=gtc", "crypto has no trailing_stop orders"),
    (f"symbol=BTC/USD time_in_force=gtc {BRACKET}", "crypto has no bracket orders"),
    # classes and legs
    ("take_profit=110", 'need order_class "bracket", "oco" or "oto"'),
    ("stop_loss=90", 'need order_class "bracket", "oco" or "oto"'),
    ("order_class=bracket take_profit=110", "bracket orders need both"),
    ("order_class=bracket stop_loss=90", "bracket orders need both"),
    ("order_class=bracket", "bracket orders need both"),
    ("order_class=oco type=limit side=sell take_profit=110", "oco orders need both"),
    ("order_class=oto", "oto orders need exactly one"),
    ("order_class=oto take_profit=110 stop_loss=90", "oto orders need exactly one"),
    (f"type=stop stop_price=100 {BRACKET}", "bracket orders must be of type market or limit, not stop"),
    (f"type=trailing_stop trail_price=1 {BRACKET}", "bracket orders must be of type market or limit"),
    ("order_class=oco side=sell take_profit=110 stop_loss=90", "oco orders must be of type limit, not market"),
    (f"{BRACKET} time_in_force=ioc", "bracket orders must be day or gtc, not ioc"),
    (f"{BRACKET} time_in_force=opg", "bracket orders must be day or gtc, not opg"),
    (f"{BRACKET} type=limit limit_price=100 extended_hours=true", "bracket orders trade in regular hours only"),
    (f"{BRACKET} notional=100", "bracket orders need qty in whole shares, not notional"),
    ("order_class=bracket take_profit=90 stop_loss=110", "take_profit.limit_price 90 must be above"),
    ("order_class=bracket take_profit=90 stop_loss=90", "must be above stop_loss.stop_price 90"),
    ("side=sell order_class=bracket take_profit=110 stop_loss=90", "take_profit.limit_price 110 must be below"),
    (
        f"{BRACKET} type=limit limit_price=110",
        "take_profit.limit_price 110 must be above limit_price 110 by at least 0.01",
    ),
    (f"{BRACKET} type=limit limit_price=90", "stop_loss.stop_price 90 must be below limit_price 90"),
    ("order_class=oto type=limit limit_price=100 stop_loss=101", "stop_loss.stop_price 101 must be below"),
    ("order_class=oto type=limit limit_price=100 take_profit=99", "take_profit.limit_price 99 must be above"),
    (f"{BRACKET} stop_loss_limit=91", "stop_loss.limit_price 91 must not be above stop_loss.stop_price here"),
    (f"{OCO} limit_price=109", "leave limit_price out"),
    ("order_class=oco type=limit side=buy take_profit=110 stop_loss=90", "must be below stop_loss.stop_price"),
    ("order_class=bracket take_profit=0 stop_loss=90", "take_profit.limit_price must be more than 0"),
    ("order_class=bracket take_profit=110 stop_loss=0", "stop_loss.stop_price must be more than 0"),
    ("order_class=bracket take_profit=110.001 stop_loss=90", "take_profit.limit_price 110.001 has too many decimals"),
    ("order_class=bracket take_profit=110 stop_loss=90.001", "stop_loss.stop_price 90.001 has too many decimals"),
    (f"{BRACKET} stop_loss_limit=89.999", "stop_loss.limit_price 89.999 has too many decimals"),
    # assets
    ("symbol=NONE", 'symbol "NONE" is not known here'),
    ("symbol=STUCK", "STUCK cannot be traded"),
)


def said_to(request, at=IN_SESSION) -> DeskError:
    with pytest.raises(DeskError) as refused:
        rules.check(request, ASSETS.get(request.symbol), at)
    return refused.value


@pytest.mark.parametrize("text", ORDERS)
def test_an_order_is_let_through_and_not_altered(text):
    """What is an order at the broker passes, and nothing about it is changed."""
    request, same = make_request(text), make_request(text)
    rules.check(request, ASSETS[request.symbol], IN_SESSION)
    assert request == same


@pytest.mark.parametrize(("text", "said"), REFUSALS)
def test_what_is_no_order_is_refused_with_words(text, said):
    """What is not an order is refused as INVALID, and the message says why."""
    error = said_to(make_request(text))
    assert error.code is Code.INVALID
    assert said in error.message


@pytest.mark.parametrize("kind", list(OrderType))
@pytest.mark.parametrize("tif", list(TimeInForce))
@pytest.mark.parametrize("symbol", ["AAPL", "BTC/USD"])
def test_type_and_time_in_force_combine_as_at_the_broker(symbol, kind, tif):
    """All 60 combinations: market and limit take everything, stops day and gtc, crypto gtc and ioc."""
    prices = {
        OrderType.MARKET: "",
        OrderType.LIMIT: "limit_price=10",
        OrderType.STOP: "stop_price=10",
        OrderType.STOP_LIMIT: "stop_price=10 limit_price=10",
        OrderType.TRAILING_STOP: "trail_price=1",
    }
    at_night = datetime(2026, 11, 20, 1, 0, tzinfo=UTC)
    request = make_request(f"symbol={symbol} type={kind} time_in_force={tif} {prices[kind]}")
    if symbol == "AAPL":
        allowed = kind in ("market", "limit") or tif in ("day", "gtc")
    else:
        allowed = (kind in ("market", "limit") and tif in ("gtc", "ioc")) or (kind == "stop_limit" and tif == "gtc")
    if allowed:
        rules.check(request, ASSETS[symbol], at_night)
    else:
        assert said_to(request, at_night).code is Code.INVALID


@pytest.mark.parametrize(
    ("tif", "at", "taken"),
    [
        ("opg", "2026-11-19T14:27:59", True),
        ("opg", "2026-11-19T14:28:00", False),
        ("opg", "2026-11-19T23:59:59", False),
        ("opg", "2026-11-20T00:00:00", True),
        ("opg", "2026-11-21T16:00:00", True),  # a Saturday
        ("opg", "2026-11-26T16:00:00", True),  # Thanksgiving
        ("cls", "2026-11-19T20:49:59", True),
        ("cls", "2026-11-19T20:50:00", False),
        ("cls", "2026-11-19T23:59:59", False),
        ("cls", "2026-11-20T00:00:00", True),
        ("cls", "2026-11-27T17:49:59", True),  # closes at 13:00
        ("cls", "2026-11-27T17:50:00", False),
        ("opg", "2026-07-15T13:27:59", True),  # summer time
        ("opg", "2026-07-15T13:28:00", False),
    ],
)
def test_auction_orders_are_taken_until_shortly_before_the_auction(tif, at, taken):
    """opg until 9:28, cls until ten minutes before the close, both again from 19:00 New York time."""
    request = make_request(f"time_in_force={tif}")
    moment = datetime.fromisoformat(at).replace(tzinfo=UTC)
    if taken:
        rules.check(request, ASSETS["AAPL"], moment)
    else:
        error = said_to(request, moment)
        assert error.code is Code.CLOSED
        assert "19:00 New York time" in error.message


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"request_id": "x" * 65}, "request_id must be 1 to 64"),
        ({"request_id": "tab\there"}, "request_id must be 1 to 64"),
        ({"request_id": "naïve"}, "request_id must be 1 to 64"),
        ({"request_id": "line\n"}, "request_id must be 1 to 64"),
        ({"notes": {f"k{i}": "v" for i in range(17)}}, "at most 16"),
        ({"notes": {"": "v"}}, "must have 1 to 64 bytes"),
        ({"notes": {"k" * 65: "v"}}, "must have 1 to 64 bytes"),
        ({"notes": {"é" * 33: "v"}}, "must have 1 to 64 bytes"),
        ({"notes": {"k": "v" * 513}}, "must have at most 512 bytes"),
        ({"notes": {"k": "é" * 257}}, "must have at most 512 bytes"),
        ({"line": LineInHand(seq=-1)}, "line.seq"),
        ({"line": LineInHand(seq=2**63)}, "line.seq"),
        ({"line": LineInHand(sha256="ABCDEF0123456789")}, "line.sha256"),
        ({"line": LineInHand(sha256="abc")}, "line.sha256"),
        ({"line": LineInHand(fields_read=("f",) * 65)}, "line.fields_read"),
    ],
)
def test_what_is_noted_beside_an_order_has_bounds(fields, said):
    """Request ids, notes and the line in hand are bounded."""
    error = said_to(make_request(**fields))
    assert error.code is Code.INVALID
    assert said in error.message


def test_what_is_noted_beside_an_order_may_fill_its_bounds():
    """64 characters of id, 16 notes of 64 + 512 bytes, 64 fields read."""
    line = LineInHand(seq=2**63 - 1, sha256="0123456789abcdef", fields_read=("f",) * 64)
    notes = {f"{i:064}": "v" * 512 for i in range(16)}
    rules.check(make_request(request_id="~ " * 32, notes=notes, line=line), ASSETS["AAPL"], IN_SESSION)


SPOILED = {
    "_request_id": {"request_id": "é"},
    "_notes": {"notes": {"": ""}},
    "_line_in_hand": {"line": LineInHand(seq=-1)},
    "_amount": {"qty": Decimal(0), "notional": None},
    "_notional": {"qty": None, "notional": Decimal("0.5")},
    "_prices": {"type": "market", "limit_price": "5"},
    "_trail": {"type": "trailing_stop", "limit_price": None},
    "_class": {"order_class": "simple", "take_profit": "5"},
    "_legs": {"order_class": "oto", "take_profit": "0", "type": "market", "limit_price": None},
    "_tradable": {"symbol": "STUCK"},
    "_time_in_force": {"type": "stop", "stop_price": "5", "limit_price": None, "time_in_force": "ioc"},
    "_fractional": {"qty": "0.5", "time_in_force": "gtc"},
    "_extended_hours": {"extended_hours": True, "time_in_force": "ioc"},
    "_increments": {"type": "limit", "limit_price": "5.001"},
    "_auction": {"time_in_force": "opg"},
}


def spoil(*names):
    fields = {}
    for name in reversed(names):
        fields.update(SPOILED[name])
    return make_request(**{key: "" if value is None else value for key, value in fields.items()})


def test_every_rule_has_its_example():
    """The table above names every check."""
    assert [check.__name__ for check in rules.CHECKS] == list(SPOILED)


@pytest.mark.parametrize(("first", "second"), list(pairwise(SPOILED)))
def test_rules_are_checked_in_their_order(first, second):
    """Of two broken rules that stand side by side, the earlier one is named, as if it were the only one."""
    assert said_to(spoil(first, second)).message == said_to(spoil(first)).message
    assert said_to(spoil(second)).message != said_to(spoil(first)).message


def test_the_shape_of_a_request_is_checked_without_an_asset():
    """check_request_shape refuses what no asset could make right."""
    rules.check_request_shape(make_request("symbol=ANY time_in_force=fok"))
    with pytest.raises(DeskError, match="limit orders require"):
        rules.check_request_shape(make_request("symbol=ANY type=limit"))


def test_the_checks_left_out_for_plain_orders_never_object_to_one():
    """Whatever is wrong with an order, the short lists of checks for plain ones find it as the whole lists do."""
    for name in SPOILED:
        request = spoil(name)
        for asset in ASSETS.values():
            every = [*((check, (request,)) for check in rules.SHAPE_CHECKS)]
            every += [(check, (request, asset, IN_SESSION)) for check in rules.ASSET_CHECKS]
            in_full = next((said for check, given in every if (said := objection(check, *given))), None)
            assert objection(rules.check, request, asset, IN_SESSION) == in_full, name


def objection(check, *given) -> str | None:
    try:
        check(*given)
    except DeskError as error:
        return str(error)
    return None
