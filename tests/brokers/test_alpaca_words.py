"""Alpaca's JSON and the protocol's words, on samples."""

import json
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from alpaca_samples import order_json, update
from paper_samples import limit, make_group

from desk_server.brokers import BrokerUnknown, What
from desk_server.brokers.alpaca import orders, records
from desk_server.brokers.alpaca.fields import amount, paired, when
from desk_server.brokers.alpaca.updates import REMEMBERED_MAX, Updates
from desk_server.domain import OrderChange, Symbol


def test_an_order_is_sent_with_all_its_digits():
    """Strings without exponents: nothing is rounded on the way."""
    sent = orders.sent(limit("buy", "0.30000000000000001", "1E-8", symbol="BTC/USD", tif="gtc"))
    assert sent["qty"] == "0.00000001"
    assert sent["limit_price"] == "0.30000000000000001"
    assert (sent["symbol"], sent["side"], sent["type"], sent["time_in_force"]) == ("BTC/USD", "buy", "limit", "gtc")
    assert "order_class" not in sent and "extended_hours" not in sent and "notional" not in sent
    assert json.loads(json.dumps(sent)) == sent


def test_exits_are_sent_with_their_order():
    """Brackets and OTOs nest them; an OCO's own price is its take-profit."""
    bracket = orders.sent(make_group("bracket", loss_limit="89.5")[0])
    assert bracket["take_profit"] == {"limit_price": "110"}
    assert bracket["stop_loss"] == {"stop_price": "90", "limit_price": "89.5"}
    oco = orders.sent(make_group("oco", side="sell")[0])
    assert (oco["order_class"], oco["type"], oco["take_profit"]) == ("oco", "limit", {"limit_price": "110"})
    assert "limit_price" not in oco


def test_a_change_always_has_a_name():
    """Alpaca would make one up, under which nobody could look for it."""
    new = limit("buy", "51")
    assert orders.sent_change(new, OrderChange(limit_price=Decimal(51))) == {
        "client_order_id": new.client_order_id,
        "limit_price": "51",
    }
    assert orders.sent_change(new, OrderChange(qty=Decimal(12), trail=Decimal("1.5")))["qty"] == "12"


def test_an_answer_about_another_order_is_noticed():
    """Name, symbol, side, type and quantity are those that were sent."""
    order = limit("buy", "50")
    same = order_json(client_order_id=order.client_order_id)
    assert orders.echo_problem(same, order) == ""
    for name, other in (
        ("client_order_id", "d1.bob.s.1"),
        ("symbol", "MSFT"),
        ("side", "sell"),
        ("qty", "11"),
        ("notional", "5"),
        ("type", "market"),
    ):
        assert name in orders.echo_problem({**same, name: other}, order)
    assert orders.echo_problem({**same, "qty": Decimal("10.0")}, order) == "", "numbers, not texts, are compared"


@pytest.mark.parametrize("status", ["held", "calculated", "done_for_day", "pending_cancel", "pending_gremlin"])
def test_an_order_has_not_ended_until_the_broker_says_so(status):
    """A status that nobody has heard of is open, and so are those after which more may come."""
    shown = orders.shown(order_json(status=status))
    assert shown.is_open and shown.end is None and shown.status == status


def test_kinds_of_orders_that_the_desk_does_not_know_are_shown_nevertheless():
    """Without a request: an option's leg, a new type."""
    for odd in ({"order_class": "mleg"}, {"type": "pegged"}, {"time_in_force": "gtx"}, {"qty": None}):
        shown = orders.shown(order_json(**odd))
        assert shown.request is None and shown.is_open


def test_nulls_and_numbers_are_read_as_they_are():
    """Amounts may be strings or numbers, most fields may be null."""
    shown = orders.shown(order_json(filled_qty=Decimal("3.5"), filled_avg_price="190.25", legs=None, replaced_by=None))
    assert (shown.filled_qty, shown.filled_avg_price, shown.legs, shown.replaced_by) == (
        Decimal("3.5"),
        Decimal("190.25"),
        (),
        "",
    )


@pytest.mark.parametrize("broken", [{"id": None}, {"status": None}, {"filled_qty": "many"}, {"side": None}])
def test_an_order_that_cannot_be_read_fails_its_list(broken):
    """Half a list would make orders disappear."""
    with pytest.raises(BrokerUnknown):
        orders.listed([order_json(), order_json(**broken)], "")


def test_a_list_that_is_none_is_no_empty_list():
    """An object in its place proves nothing."""
    for odd in ({}, None, "[]", [1]):
        with pytest.raises(BrokerUnknown):
            orders.listed(odd, "")


@pytest.mark.parametrize(
    ("written", "symbol"),
    [
        ("BTCUSD", "BTC/USD"),
        ("BTC/USD", "BTC/USD"),
        ("ETHBTC", "ETH/BTC"),
        ("USDTUSD", "USDT/USD"),
        ("ETHUSDT", "ETH/USDT"),
        ("DOGEUSDC", "DOGE/USDC"),
        ("AAPL", "AAPL"),
        ("BRK.B", "BRK.B"),
        ("PUSD", "PUSD"),
        ("GBTC", "GBTC"),
    ],
)
def test_pairs_get_their_slash_and_shares_stay_what_they_are(written, symbol):
    """Orders say BTC/USD, positions BTCUSD."""
    assert paired(written) == Symbol(symbol)


def test_a_share_whose_name_looks_like_a_pair_is_a_share():
    """A position tells its class."""
    row = {"symbol": "WXYUSD", "asset_class": "us_equity", "qty": "3", "side": "long", "avg_entry_price": "1"}
    assert records.holding(row).symbol == "WXYUSD"
    assert records.holding(row | {"asset_class": "crypto"}).symbol == "WXY/USD"


def test_a_short_position_is_negative_however_it_is_written():
    """Alpaca writes -10; nobody promises that it does."""
    for qty in ("-10", "10", 10):
        row = {"symbol": "AAPL", "qty": qty, "side": "short", "avg_entry_price": "190.1", "asset_class": "us_equity"}
        assert records.holding(row).qty == -10


def test_times_may_have_nanoseconds():
    """They are cut, not refused."""
    assert when({"at": "2026-11-20T12:00:00.123456789Z"}, "at") == datetime(2026, 11, 20, 12, 0, 0, 123456, UTC)
    assert when({"at": "2026-11-20T07:00:00-05:00"}, "at") == datetime(2026, 11, 20, 12, tzinfo=UTC)
    assert when({"at": "yesterday"}, "at") is None


@pytest.mark.parametrize("odd", [True, [], {}, "NaN", "Infinity", "12,5", "0x10"])
def test_what_is_no_amount_is_not_taken_for_one(odd):
    """Nor is it taken for none."""
    with pytest.raises(BrokerUnknown):
        amount({"qty": odd}, "qty")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({}, ""),
        ({"status": "ACCOUNT_CLOSED"}, "ACCOUNT_CLOSED"),
        ({"status": "SOMETHING_NEW"}, "SOMETHING_NEW"),
        ({"trading_blocked": True}, "trading_blocked"),
        ({"account_blocked": True}, "account_blocked"),
        ({"trade_suspended_by_user": True}, "trade_suspended_by_user"),
    ],
)
def test_an_account_that_may_not_trade_says_why(flags, says):
    """An unknown status may not."""
    problem = records.account_problem({"status": "ACTIVE", "trading_blocked": False, **flags})
    assert says in problem and bool(problem) is bool(says)


def test_activities_move_what_they_say():
    """A dividend's qty is what it was paid on; a coin's fee is taken in the coin; undone ones moved nothing."""
    dividend = {
        "id": "20261120000000000::a",
        "activity_type": "DIV",
        "date": "2026-11-20",
        "net_amount": "2.4",
        "symbol": "AAPL",
        "qty": "10",
        "per_share_amount": "0.24",
    }
    got = records.activity(dividend)
    assert (got.cash, got.qty, got.per_share, got.at) == (
        Decimal("2.4"),
        0,
        Decimal("0.24"),
        datetime(2026, 11, 20, tzinfo=UTC),
    )
    assert records.activity(dividend | {"status": "canceled"}) is None
    fee = {"id": "x::b", "activity_type": "CFEE", "date": "2026-11-20", "net_amount": "0", "symbol": "BTCUSD"}
    coin = records.activity(fee | {"qty": "-0.000025", "per_share_amount": "0.0025"})
    assert (coin.symbol, coin.qty, coin.cash, coin.per_share) == ("BTC/USD", Decimal("-0.000025"), 0, None)
    assert records.activity(fee | {"symbol": "USDUSD", "net_amount": "-1.5", "qty": "0"}).symbol == ""


def test_a_replaced_order_names_the_one_in_its_place():
    """By the name that the broker told of it before; "" where it has not."""
    old = order_json(id="old", client_order_id="d1.alice.s.1", status="replaced", replaced_by="new", filled_qty="3")
    new = order_json(id="new", client_order_id="d1.alice.s.2", status="pending_new", replaces="old", qty="7")
    known, unknown = Updates(), Updates()
    known.events(update("pending_new", new))
    (said,) = known.events(update("replaced", old))
    assert (said.what, said.client_order_id, said.broker_order_id) == (What.REPLACED, "d1.alice.s.1", "old")
    assert (said.replaced_by, said.new_broker_order_id, said.qty, said.filled_qty) == ("d1.alice.s.2", "new", 7, 3)
    (said,) = unknown.events(update("replaced", old))
    assert (said.replaced_by, said.new_broker_order_id, said.qty) == ("", "new", None)


def test_a_replacement_that_is_told_of_by_the_new_order_is_turned_round():
    """The event is the old order's in any case."""
    updates = Updates()
    updates.events(update("new", order_json(id="old", client_order_id="d1.alice.s.1")))
    new = order_json(id="new", client_order_id="d1.alice.s.2", status="new", replaces="old", qty="7")
    (said,) = updates.events(update("replaced", new))
    assert (said.client_order_id, said.broker_order_id) == ("d1.alice.s.1", "old")
    assert (said.replaced_by, said.new_broker_order_id, said.qty) == ("d1.alice.s.2", "new", 7)


def test_a_restatement_that_lowers_what_filled_takes_it_back():
    """How much, and the total that was there before, name what is taken back."""
    updates = Updates()
    updates.events(update("fill", order_json(filled_qty="10", status="filled"), qty="10", price="100"))
    said = updates.events(update("restated", order_json(filled_qty="4", status="new")))
    assert [(event.what, event.filled_qty, event.qty) for event in said] == [
        (What.BUSTED, 10, 6),
        (What.ACCEPTED, None, None),
    ]
    assert [event.what for event in updates.events(update("restated", order_json(filled_qty="4")))] == [What.ACCEPTED]


def test_an_event_nobody_has_heard_of_tells_the_orders_status():
    """It is neither lost nor taken for an end."""
    (said,) = Updates().events(update("gremlin", order_json(status="suspended")))
    assert (said.what, said.status) == (What.ACCEPTED, "suspended")
    assert Updates().events(update("gremlin", order_json(status="filled"))) == []


@pytest.mark.parametrize("broken", [{"qty": None}, {"price": None}, {"qty": "0"}, {"price": "x"}])
def test_an_execution_is_never_made_up(broken):
    """One that does not say how much, and for what, is left to the records."""
    whole = update("fill", order_json(filled_qty="10", status="filled"), qty="10", price="100")
    with pytest.raises(BrokerUnknown):
        Updates().events(whole | broken)


def test_a_later_rejection_has_a_reason():
    """Alpaca's where it gives one."""
    (said,) = Updates().events(update("rejected", order_json(status="rejected")))
    assert said.what is What.REJECTED and said.code and said.message
    (said,) = Updates().events(update("rejected", order_json(status="rejected"), reason="no shares to borrow"))
    assert said.message == "no shares to borrow"


def test_a_leg_that_works_is_released():
    """It has no name of the desk's; an order that has is acknowledged."""
    (said,) = Updates().events(update("new", order_json(client_order_id="7c9f", order_class="bracket")))
    assert said.what is What.RELEASED
    (said,) = Updates().events(update("new", order_json(client_order_id="d1.alice.s.1")))
    assert said.what is What.ACCEPTED
    assert Updates().events(update("held", order_json(client_order_id="7c9f", status="held"))) == []


def test_what_is_remembered_of_orders_is_bounded():
    """However long the desk runs."""
    updates = Updates()
    for number in range(REMEMBERED_MAX + 50):
        updates.events(update("new", order_json(id=str(number))))
    assert len(updates._names) == len(updates._filled) == REMEMBERED_MAX


def test_a_trading_day_in_both_ways_of_writing_hours():
    """09:30 and 0930."""
    for opens, closes in (("09:30", "13:00"), ("0930", "1300")):
        day = records.trading_day({"date": "2026-11-27", "open": opens, "close": closes})
        assert (day.open, day.close) == (
            datetime(2026, 11, 27, 14, 30, tzinfo=UTC),
            datetime(2026, 11, 27, 18, tzinfo=UTC),
        )
    with pytest.raises(BrokerUnknown):
        records.trading_day({"date": "2026-11-27", "open": "29:30", "close": "13:00"})
