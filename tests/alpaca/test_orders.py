"""An order's life at the misbehaving Alpaca when nothing misbehaves, through the unmodified alpaca-py."""

import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from alpaca.common.exceptions import APIError
from alpaca.trading.requests import (
    ClosePositionRequest,
    GetOrderByIdRequest,
    GetOrdersRequest,
    MarketOrderRequest,
    ReplaceOrderRequest,
    StopLimitOrderRequest,
    StopOrderRequest,
    TrailingStopOrderRequest,
)

from tests.alpaca.conftest import eventually, limit, market

EVERY = GetOrdersRequest(status="all", direction="asc", limit=500)
BRACKET = {"order_class": "bracket", "take_profit": {"limit_price": 220}, "stop_loss": {"stop_price": 150}}


def status(truth, name):
    return truth.order(name)["status"]


def own(client, truth, symbol, qty):
    client.submit_order(market(symbol, qty))
    eventually(lambda: truth.position(symbol.replace("/", "")) > 0)


def test_a_market_order_fills_at_the_price(client, truth, stream):
    """pending_new, new, fill; money and position move."""
    told = client.submit_order(market("AAPL", 10, name="a"))
    assert (told.status, told.filled_qty) == ("pending_new", "0")
    eventually(lambda: stream.events("a") == ["pending_new", "new", "fill"])
    fill = stream.updates[-1]
    assert (fill.price, fill.qty, fill.position_qty, fill.order.filled_avg_price) == (190, 10, 10, "190")
    assert client.get_order_by_id(told.id).status == "filled"
    assert truth.account["cash"] == "98100"
    assert client.get_account().cash == "98100"
    [position] = client.get_all_positions()
    assert (position.qty, position.avg_entry_price, position.side) == ("10", "190", "long")


def test_a_resting_limit_fills_when_the_price_comes(client, truth, alpaca):
    """At its limit, not before."""
    client.submit_order(limit("AAPL", 3, 180, name="a"))
    eventually(lambda: status(truth, "a") == "new")
    alpaca.control.price(AAPL="180.01")
    assert status(truth, "a") == "new"
    alpaca.control.price(AAPL="179")
    assert truth.order("a")["filled_avg_price"] == "180"


def test_partial_fills_come_from_the_seed(client, truth, alpaca, stream):
    """Several executions, together the whole; cum_qty and leaves_qty add up."""
    alpaca.control.settings(partial=0.9, again_ms=[0, 1])
    client.submit_order(market("AAPL", 100, name="a"))
    eventually(lambda: status(truth, "a") == "filled")
    executions = truth.account["executions"]
    assert len(executions) > 1
    assert sum(Decimal(done["qty"]) for done in executions) == 100
    total = Decimal(0)
    for done, line in zip(executions, truth.account["activities"], strict=True):
        total += Decimal(done["qty"])
        assert Decimal(line["cum_qty"]) == total == 100 - Decimal(line["leaves_qty"])
    wanted = ["partial_fill"] * (len(executions) - 1) + ["fill"]
    eventually(lambda: stream.events("a")[2:] == wanted)


def test_a_price_that_walks_fills_what_rests(client, truth, alpaca):
    """Prices move by themselves, and meet orders on the way."""
    client.submit_order(limit("AAPL", 1, 189.9, name="a"))
    alpaca.control.walk(every_ms=1, step_bps=20)
    eventually(lambda: status(truth, "a") == "filled")
    alpaca.control.walk(every_ms=0)
    assert alpaca.control.price() == alpaca.control.price()


def test_held_fills_come_by_hand_only(client, truth, alpaca):
    """With fills held, /control/fill is the only market there is."""
    alpaca.control.settings(fills="held")
    client.submit_order(market("AAPL", 10, name="a"))
    eventually(lambda: status(truth, "a") == "new")
    alpaca.control.fill("a", qty=4, price="191")
    assert truth.order("a")["filled_qty"] == "4"
    alpaca.control.fill("a")
    assert (status(truth, "a"), truth.order("a")["filled_avg_price"]) == ("filled", "190.4")


def test_ioc_and_fok_do_not_rest(client, truth, alpaca):
    """What cannot trade on arrival is cancelled; a fok trades whole."""
    alpaca.control.settings(partial=1, again_ms=[10_000, 10_000])
    client.submit_order(limit("AAPL", 10, 100, name="far", tif="ioc"))
    client.submit_order(limit("AAPL", 10, 200, name="near", tif="ioc"))
    client.submit_order(limit("AAPL", 10, 200, name="whole", tif="fok"))
    eventually(lambda: status(truth, "whole") == "filled")
    assert (status(truth, "far"), truth.order("far")["filled_qty"]) == ("canceled", "0")
    assert status(truth, "near") == "canceled"
    assert 0 < int(truth.order("near")["filled_qty"]) < 10


def test_stops_trigger(client, truth, alpaca):
    """A stop becomes a market order, a stop-limit a limit order, when the price passes."""
    own(client, truth, "AAPL", 10)
    common = {"symbol": "AAPL", "side": "sell", "time_in_force": "gtc"}
    client.submit_order(StopOrderRequest(**common, qty=4, stop_price=180, client_order_id="stop"))
    client.submit_order(
        StopLimitOrderRequest(**common, qty=4, stop_price=180, limit_price=179, client_order_id="stop-limit")
    )
    client.submit_order(TrailingStopOrderRequest(**common, qty=2, trail_price=15, client_order_id="trail"))
    eventually(lambda: status(truth, "trail") == "new")
    alpaca.control.price(AAPL=195)
    assert truth.order("trail")["hwm"] == "195"
    assert truth.order("trail")["stop_price"] == "180"
    alpaca.control.price(AAPL=178)
    assert (status(truth, "stop"), truth.order("stop")["filled_avg_price"]) == ("filled", "178")
    assert (status(truth, "trail"), status(truth, "stop-limit")) == ("filled", "new")
    alpaca.control.price(AAPL="179.5")
    assert truth.order("stop-limit")["filled_avg_price"] == "179"


def test_a_notional_order_buys_for_so_much(client, truth):
    """qty stays null; what was filled is told."""
    told = client.submit_order(
        MarketOrderRequest(symbol="AAPL", notional=100, side="buy", time_in_force="day", client_order_id="a")
    )
    assert (told.qty, told.notional) == (None, "100")
    eventually(lambda: status(truth, "a") == "filled")
    assert truth.order("a")["filled_qty"] == "0.526315789"


def test_coins_cost_25_basis_points_of_what_is_received(client, truth, broker):
    """A purchase pays its fee in the coin, a sale in dollars; the position is called BTCUSD."""
    client.submit_order(market("BTC/USD", 1, name="a"))
    eventually(lambda: truth.position("BTCUSD") == Decimal("0.9975"))
    assert client.get_open_position("BTCUSD").qty == "0.9975"
    assert client.get_asset("BTC/USD").asset_class == "crypto"
    client.submit_order(market("BTC/USD", 0.9975, "sell"))
    eventually(lambda: truth.position("BTCUSD") == 0)
    sold = Decimal("0.9975") * 60_000
    assert Decimal(truth.account["cash"]) == 100_000 - 60_000 + sold - sold * Decimal("0.0025")
    fees = [line for line in truth.account["activities"] if line["activity_type"] == "CFEE"]
    assert [(line["symbol"], line["qty"], line["net_amount"]) for line in fees] == [
        ("BTCUSD", "-0.0025", "0"),
        ("USDUSD", "0", "-149.625"),
    ]


def test_a_short_is_sold_and_bought_back(client, truth):
    """Its quantity is negative, its side short; covering more than it is refused."""
    client.submit_order(market("AAPL", 5, "sell"))
    eventually(lambda: truth.position("AAPL") == -5)
    [position] = client.get_all_positions()
    assert (position.qty, position.side, position.cost_basis) == ("-5", "short", "-950")
    with pytest.raises(APIError, match="requested: 6, available: 5"):
        client.submit_order(market("AAPL", 6))
    client.submit_order(market("AAPL", 5))
    eventually(lambda: client.get_all_positions() == [])


def test_a_cancel_is_first_accepted_then_done(client, truth, alpaca, stream):
    """204, pending_cancel, canceled; a second cancel is refused, and so is one of a filled order."""
    alpaca.control.settings(cancel_ms=[50, 50])
    told = client.submit_order(limit("AAPL", 1, 1, name="a"))
    client.cancel_order_by_id(told.id)
    assert client.get_order_by_id(told.id).status == "pending_cancel"
    eventually(lambda: stream.events("a") == ["pending_new", "new", "pending_cancel", "canceled"])
    with pytest.raises(APIError) as caught:
        client.cancel_order_by_id(told.id)
    assert (caught.value.status_code, caught.value.code) == (422, 42210000)
    assert caught.value.message == 'order is already in "canceled" state'
    filled = client.submit_order(market("AAPL", 1, name="b"))
    eventually(lambda: status(truth, "b") == "filled")
    with pytest.raises(APIError, match='already in \\\\"filled\\\\" state'):
        client.cancel_order_by_id(filled.id)


def test_what_is_unknown_is_a_404(client):
    """Orders, positions and assets, each with Alpaca's code."""
    for look in (
        lambda: client.get_order_by_client_id("nobody"),
        lambda: client.get_order_by_id("11111111-1111-4111-8111-111111111111"),
        lambda: client.cancel_order_by_id("11111111-1111-4111-8111-111111111111"),
        lambda: client.get_open_position("AAPL"),
        lambda: client.get_open_position("NOPE"),
        lambda: client.get_asset("NOPE"),
    ):
        with pytest.raises(APIError) as caught:
            look()
        assert (caught.value.status_code, caught.value.code) == (404, 40410000)


def test_a_replacement_is_a_new_order(client, truth, alpaca, stream):
    """New id, `replaces` and `replaced_by`; its quantity is what the new total leaves after fills."""
    old = client.submit_order(limit("AAPL", 10, 100, name="old"))
    eventually(lambda: status(truth, "old") == "new")
    alpaca.control.fill("old", qty=4)
    change = ReplaceOrderRequest(qty=12, limit_price=101, client_order_id="new")
    new = client.replace_order_by_id(old.id, change)
    assert (str(new.replaces), new.qty, new.limit_price) == (str(old.id), "8", "101")
    eventually(lambda: status(truth, "old") == "replaced")
    assert truth.order("old")["replaced_by"] == str(new.id)
    eventually(lambda: stream.events("new") == ["pending_new", "new"])
    assert stream.events("old")[-2:] == ["pending_replace", "replaced"]
    with pytest.raises(APIError, match="cannot replace order in replaced status"):
        client.replace_order_by_id(old.id, ReplaceOrderRequest(qty=13))
    with pytest.raises(APIError, match="client_order_id must be unique"):
        client.replace_order_by_id(new.id, ReplaceOrderRequest(qty=13, client_order_id="old"))


def test_a_replacement_without_a_name_is_given_one(client):
    """So a caller who wants to find it again must send one."""
    old = client.submit_order(limit("AAPL", 10, 100, name="old"))
    eventually(lambda: client.get_order_by_id(old.id).status == "new")
    assert client.replace_order_by_id(old.id, ReplaceOrderRequest(qty=11)).client_order_id not in ("old", "", None)


@pytest.mark.parametrize("at_first", ["pending_new", "accepted"])
def test_an_order_that_is_not_yet_new_is_not_replaced(client, alpaca, at_first):
    """422/42210000 while the market has not got it."""
    alpaca.control.settings(work_ms=[60_000, 60_000], session="regular" if at_first == "pending_new" else "closed")
    told = client.submit_order(limit("AAPL", 10, 100))
    assert told.status == at_first
    with pytest.raises(APIError) as caught:
        client.replace_order_by_id(told.id, ReplaceOrderRequest(qty=11))
    assert (caught.value.status_code, caught.value.code) == (422, 42210000)


def test_orders_wait_for_the_market_to_open(client, truth, alpaca):
    """Accepted while it is closed; coins trade at all hours, extended orders before the bell."""
    alpaca.control.settings(session="closed")
    assert not client.get_clock().is_open
    assert client.submit_order(market("AAPL", 1, name="a")).status == "accepted"
    client.submit_order(limit("AAPL", 1, 200, name="early", tif="day", extended_hours=True))
    client.submit_order(market("BTC/USD", 0.01, name="coin"))
    eventually(lambda: status(truth, "coin") == "filled")
    alpaca.control.settings(session="pre")
    assert (status(truth, "a"), status(truth, "early")) == ("accepted", "filled")
    alpaca.control.settings(session="regular")
    assert status(truth, "a") == "filled"
    assert client.get_clock().is_open


def test_auction_orders_are_taken_at_their_hours(client, alpaca):
    """opg from 19:00 to 9:28, cls from 19:00 to 15:50, New York time."""
    for session, tif, taken in (
        ("closed", "opg", True),
        ("closed", "cls", True),
        ("pre", "opg", True),
        ("regular", "opg", False),
        ("regular", "cls", True),
        ("post", "opg", False),
        ("post", "cls", False),
    ):
        alpaca.control.settings(session=session)
        if taken:
            client.submit_order(market("AAPL", 1, tif=tif))
        else:
            with pytest.raises(APIError, match=f"{tif} orders are not accepted"):
                client.submit_order(market("AAPL", 1, tif=tif))


def test_any_update_can_be_sent_by_hand(client, truth, alpaca, stream):
    """Events that nothing here brings about: restated, done_for_day, suspended."""
    client.submit_order(limit("AAPL", 1, 1, name="a"))
    alpaca.control.tell("a", "restated")
    alpaca.control.tell("a", "suspended", status="suspended")
    eventually(lambda: stream.events("a")[2:] == ["restated", "suspended"])
    assert client.get_order_by_client_id("a").status == "suspended"


def test_a_day_order_expires(client, truth, alpaca, stream):
    """When the day is ended by hand; gtc stays."""
    client.submit_order(limit("AAPL", 1, 1, name="day", tif="day"))
    client.submit_order(limit("AAPL", 1, 1, name="gtc"))
    assert alpaca.control.expire() == [truth.order("day")["id"]]
    assert (status(truth, "day"), status(truth, "gtc")) == ("expired", "new")
    eventually(lambda: stream.events("day")[-1:] == ["expired"])


# Legs.


def test_bracket_legs_wait_for_the_whole_entry(client, truth, alpaca, stream):
    """Held until it is filled completely; then one exit's fill cancels the other."""
    told = client.submit_order(limit("AAPL", 10, 180, name="entry", **BRACKET))
    assert [(leg.type, leg.status, leg.side) for leg in told.legs] == [
        ("limit", "held", "sell"),
        ("stop", "held", "sell"),
    ]
    take, stop = (leg.client_order_id for leg in told.legs)
    alpaca.control.fill("entry", qty=9)
    assert (status(truth, take), status(truth, stop)) == ("held", "held")
    alpaca.control.fill("entry")
    assert (status(truth, take), status(truth, stop)) == ("new", "new")
    alpaca.control.price(AAPL=225)
    assert (status(truth, take), status(truth, stop)) == ("filled", "canceled")
    assert truth.position("AAPL") == 0
    eventually(lambda: stream.events(stop) == ["new", "canceled"])
    assert truth.order(take)["parent"] == str(told.id)


def test_exits_of_one_group_never_sell_more_than_there_is(client, truth, alpaca):
    """A partly filled take-profit leaves the stop only the rest."""
    told = client.submit_order(market("AAPL", 10, name="entry", tif="gtc", **BRACKET))
    take, stop = (leg.client_order_id for leg in told.legs)
    eventually(lambda: status(truth, take) == "new")
    alpaca.control.fill(take, qty=7)
    alpaca.control.price(AAPL=140)
    assert truth.position("AAPL") == 0
    assert (truth.order(stop)["filled_qty"], status(truth, take)) == ("3", "canceled")


def test_cancelling_an_entry_or_one_exit_cancels_the_rest(client, truth):
    """Of a bracket, before and after its entry filled."""
    told = client.submit_order(limit("AAPL", 10, 180, name="a", **BRACKET))
    client.cancel_order_by_id(told.id)
    eventually(lambda: {status(truth, leg.client_order_id) for leg in told.legs} == {"canceled"})
    told = client.submit_order(market("AAPL", 10, name="b", tif="gtc", **BRACKET))
    eventually(lambda: status(truth, told.legs[0].client_order_id) == "new")
    client.cancel_order_by_id(told.legs[0].id)
    eventually(lambda: {status(truth, leg.client_order_id) for leg in told.legs} == {"canceled"})
    assert status(truth, "b") == "filled"


def test_an_oco_is_two_exits(client, truth, alpaca):
    """The order itself takes the profit, its leg stops the loss; held once, not twice."""
    own(client, truth, "AAPL", 10)
    told = client.submit_order(
        limit("AAPL", 10, 220, side="sell", name="oco", order_class="oco", take_profit={"limit_price": 220},
              stop_loss={"stop_price": 170, "limit_price": 169})
    )  # fmt: skip
    [leg] = told.legs
    eventually(lambda: status(truth, leg.client_order_id) == "new")
    assert client.get_open_position("AAPL").qty_available == "0"
    alpaca.control.price(AAPL="169.5")
    assert (status(truth, leg.client_order_id), status(truth, "oco")) == ("filled", "canceled")
    assert truth.position("AAPL") == 0


def test_an_oto_has_one_leg(client, truth):
    """Which starts to work when the entry has filled."""
    told = client.submit_order(
        market("AAPL", 10, name="oto", tif="gtc", order_class="oto", stop_loss={"stop_price": 170})
    )
    [leg] = told.legs
    eventually(lambda: status(truth, leg.client_order_id) == "new")


def test_a_leg_can_be_replaced(client, truth, alpaca):
    """The new leg takes its place in the family."""
    told = client.submit_order(market("AAPL", 10, name="entry", tif="gtc", **BRACKET))
    take, stop = (leg.client_order_id for leg in told.legs)
    eventually(lambda: status(truth, take) == "new")
    client.replace_order_by_id(told.legs[0].id, ReplaceOrderRequest(limit_price=230, client_order_id="higher"))
    eventually(lambda: status(truth, "higher") == "new")
    nested = client.get_order_by_id(told.id, GetOrderByIdRequest(nested=True))
    assert {leg.client_order_id for leg in nested.legs} == {"higher", stop}
    alpaca.control.price(AAPL=231)
    assert (status(truth, "higher"), status(truth, stop)) == ("filled", "canceled")


# Lists.


def test_legs_are_listed_flat_or_nested(client, truth):
    """Flat as orders of their own; nested inside their parent, which stays in the open list while they are open."""
    told = client.submit_order(market("AAPL", 10, name="entry", tif="gtc", **BRACKET))
    eventually(lambda: status(truth, told.legs[0].client_order_id) == "new")
    assert len(client.get_orders(EVERY)) == 3
    assert [order.legs for order in client.get_orders(EVERY)] == [None] * 3
    [nested] = client.get_orders(GetOrdersRequest(status="open", nested=True))
    assert (nested.client_order_id, nested.status, len(nested.legs)) == ("entry", "filled", 2)
    assert len(client.get_orders()) == 2


def test_the_list_is_filtered_sorted_and_cut(client, truth):
    """Bounds are exclusive; newest first unless asked."""
    for index, symbol in enumerate(("AAPL", "MSFT", "BTC/USD", "AAPL")):
        price = 1 if symbol != "BTC/USD" else 100
        client.submit_order(limit(symbol, 1, price, name=str(index)))
        time.sleep(0.002)
    client.cancel_order_by_id(truth.order("3")["id"])
    eventually(lambda: status(truth, "3") == "canceled")

    def names(**query):
        return [order.client_order_id for order in client.get_orders(GetOrdersRequest(**query))]

    assert names() == ["2", "1", "0"]
    assert names(status="closed") == ["3"]
    assert names(status="all", direction="asc") == ["0", "1", "2", "3"]
    assert names(status="all", direction="asc", limit=2) == ["0", "1"]
    assert names(symbols=["AAPL", "BTC/USD"], status="all") == ["3", "2", "0"]
    assert names(side="sell") == []
    second = client.get_order_by_client_id("1").submitted_at
    assert names(status="all", after=second) == ["3", "2"]
    assert names(status="all", until=second) == ["0"]
    assert names(status="all", after=datetime.now(UTC) + timedelta(hours=1)) == []


def test_cancel_all_and_close_all(client, truth):
    """207 with one line each."""
    own(client, truth, "AAPL", 4)
    own(client, truth, "BTC/USD", 1)
    told = client.submit_order(limit("AAPL", 1, 300, side="sell"))
    [line] = client.cancel_orders()
    assert (line.id, line.status) == (told.id, 200)
    client.submit_order(limit("AAPL", 1, 300, side="sell"))
    lines = client.close_all_positions(cancel_orders=True)
    assert {(line.symbol, line.status) for line in lines} == {("AAPL", 200), ("BTCUSD", 200)}
    eventually(lambda: client.get_all_positions() == [])


def test_a_position_is_closed_in_part(client, truth):
    """By quantity or by percentage; closing what is held by orders says why not."""
    own(client, truth, "AAPL", 10)
    client.close_position("AAPL", ClosePositionRequest(qty="3"))
    eventually(lambda: truth.position("AAPL") == 7)
    client.submit_order(limit("AAPL", 7, 300, side="sell"))
    [line] = client.close_all_positions()
    assert (line.status, line.body.code) == (403, 40310000)


def test_the_account_and_the_calendar_parse(client):
    """What the SDK demands of them is there."""
    account = client.get_account()
    assert (account.status, account.currency, account.multiplier) == ("ACTIVE", "USD", "2")
    assert client.get_account_configurations().no_shorting is False
    assert client.get_portfolio_history().base_value == 100_000
    assert {asset.symbol for asset in client.get_all_assets()} >= {"AAPL", "BTC/USD"}
    assert len(client.get_calendar()) > 10
    clock = client.get_clock()
    assert clock.next_open > clock.next_close > clock.timestamp


def test_a_stop_leg_may_keep_the_status_held(client, truth, alpaca):
    """By a setting, as it is seen at times: it works all the same."""
    alpaca.control.settings(stop_leg="held")
    told = client.submit_order(market("AAPL", 10, name="entry", tif="gtc", **BRACKET))
    take, stop = (leg.client_order_id for leg in told.legs)
    eventually(lambda: status(truth, take) == "new")
    assert status(truth, stop) == "held"
    alpaca.control.price(AAPL=140)
    assert (status(truth, stop), status(truth, take)) == ("filled", "canceled")


def test_a_replacement_can_be_refused_after_it_was_accepted(alpaca, client, truth):
    """The old order works on, and can be cancelled; the new one is rejected and never trades."""
    old = client.submit_order(limit("AAPL", 5, 150, name="old"))
    eventually(lambda: status(truth, "old") == "new")
    alpaca.control.settings(work_ms=[300, 300])
    new = client.replace_order_by_id(old.id, ReplaceOrderRequest(limit_price=200, client_order_id="new"))
    assert client.get_order_by_id(old.id).status == "pending_replace"
    alpaca.control.reject("new")
    assert client.get_order_by_id(new.id).status == "rejected"
    time.sleep(0.4)
    again = client.get_order_by_id(old.id)
    assert (again.status, again.replaced_by) == ("new", None)
    client.cancel_order_by_id(old.id)
    eventually(lambda: status(truth, "old") == "canceled")
    assert client.get_all_positions() == []
