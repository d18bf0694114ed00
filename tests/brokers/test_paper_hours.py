"""When orders work, wait and expire: by the market's time, never by the wall clock's."""

from datetime import timedelta
from decimal import Decimal

import pytest
from paper_samples import NOON, Market, fills, limit, make_order, new_york, whats

from desk_server.brokers import What
from desk_server.sessions import AlwaysOpen


def D(text):
    return Decimal(str(text))


def test_an_order_given_at_night_waits_for_the_opening():
    """It is accepted, begins to work at 9:30, and fills at the day's first line."""
    market = Market(at=new_york("2026-11-18T21:00"))
    order = make_order("buy")
    assert market.send(order) == []
    assert market.status(order) == "accepted"
    assert market.line(101, at="2026-11-19T09:29:59") == []
    events = market.line(102, at="2026-11-19T09:30:00")
    assert whats(events) == ["released", "fill"]
    assert fills(events) == [(D(10), D(102))]


def test_an_order_never_fills_at_a_price_from_before_the_session():
    """At 9:30:01 yesterday's price is no price."""
    market = Market(at=new_york("2026-11-18T15:00"))
    market.line(100, symbol="MSFT", at="2026-11-19T09:30:00")
    order = make_order("buy")
    assert market.send(order) == []
    assert market.status(order) == "new"
    assert fills(market.line(103)) == [(D(10), D(103))]


def test_extended_hours_orders_trade_before_and_after_hours():
    """A limit order with extended_hours fills at 8:00 and at 18:00; without it, it waits."""
    market = Market(at=new_york("2026-11-19T08:00"))
    plain, extended = limit("buy", "100"), limit("buy", "100", extended_hours=True)
    market.send(plain)
    assert fills(market.send(extended)) == [(D(10), D(100))]
    assert market.status(plain) == "accepted"
    late = limit("buy", "90", extended_hours=True)
    market.send(late)
    market.line(95, at="2026-11-19T15:59")
    assert fills(market.line(89, at="2026-11-19T18:00")) == [(D(10), D(89))]


def test_crypto_trades_around_the_clock():
    """On a Sunday night as well."""
    market = Market(at=new_york("2026-11-22T03:00"))
    market.line(100, symbol="BTC/USD")
    assert fills(market.send(make_order("buy", "1", symbol="BTC/USD", tif="gtc"))) == [(D(1), D(100))]


def test_a_day_order_expires_at_the_close():
    """At the first line of any symbol after 16:00, dated 16:00."""
    market = Market()
    order = limit("buy", "50")
    market.send(order)
    assert market.line(100, at="2026-11-19T15:59:59") == []
    (ended,) = market.line(100, symbol="MSFT", at="2026-11-19T16:00:02")
    assert (ended.what, ended.at) == (What.EXPIRED, new_york("2026-11-19T16:00"))
    assert market.line(40, at="2026-11-20T10:00") == []


def test_a_day_order_with_extended_hours_lasts_until_eight_in_the_evening():
    """16:00 does not end it, 20:00 does."""
    market = Market()
    order = limit("buy", "50", extended_hours=True)
    market.send(order)
    assert market.line(100, at="2026-11-19T19:59:59") == []
    assert whats(market.line(100, at="2026-11-20T10:00")) == ["expired"]


def test_a_day_order_given_after_the_close_is_for_the_next_day():
    """Friday evening's order works on Monday and expires at Monday's close."""
    market = Market(at=new_york("2026-11-20T17:00"))
    order = limit("buy", "50")
    market.send(order)
    assert whats(market.line(100, at="2026-11-23T09:30")) == ["released"]
    assert whats(market.line(100, at="2026-11-23T16:00")) == ["expired"]


def test_a_half_day_closes_early():
    """The day after Thanksgiving ends at 13:00."""
    market = Market(at=new_york("2026-11-27T10:00"))
    order = limit("buy", "50")
    market.send(order)
    assert market.line(100, at="2026-11-27T12:59") == []
    assert whats(market.line(40, at="2026-11-27T13:00")) == ["expired"]


def test_a_gtc_order_lasts_ninety_days():
    """It outlives closes, and ends on the ninetieth day."""
    market = Market()
    order = limit("buy", "50", tif="gtc")
    market.send(order)
    assert market.line(100, at=NOON + timedelta(days=89, hours=23)) == []
    assert market.status(order) == "new"
    assert whats(market.line(100, at=NOON + timedelta(days=90))) == ["expired"]


def test_an_opening_order_fills_at_the_first_line_of_the_open():
    """opg waits for 9:30, whatever comes before."""
    market = Market(at=new_york("2026-11-19T08:00"))
    order = make_order("buy", tif="opg")
    assert market.send(order) == []
    assert market.status(order) == "accepted"
    assert market.line(90, at="2026-11-19T09:29:59") == []
    assert fills(market.line(101, at="2026-11-19T09:30:01")) == [(D(10), D(101))]


def test_an_opening_order_out_of_reach_expires_at_the_open():
    """Its first line decides, a second chance there is none."""
    market = Market(at=new_york("2026-11-19T08:00"))
    order = limit("buy", "90", tif="opg")
    market.send(order)
    assert whats(market.line(101, at="2026-11-19T09:30:01")) == ["expired"]


def test_an_opening_order_given_in_the_evening_is_for_the_next_day():
    """At 19:30 it is tomorrow's."""
    market = Market(at=new_york("2026-11-18T19:30"))
    order = make_order("buy", tif="opg")
    market.send(order)
    assert fills(market.line(101, at="2026-11-19T09:30:01")) == [(D(10), D(101))]


def test_a_closing_order_fills_at_the_last_line_before_the_close():
    """Nothing until 16:00; then the newest price of the day."""
    market = Market()
    order = make_order("sell", tif="cls")
    assert market.send(order) == []
    assert market.line(99, at="2026-11-19T15:59:58") == []
    (fill,) = market.line(105, at="2026-11-19T16:00:01")
    assert (fill.what, fill.price, fill.at) == (What.FILL, D(99), new_york("2026-11-19T16:00"))


def test_a_closing_order_without_a_price_of_the_day_expires():
    """Yesterday's price closes nothing; a limit out of reach expires as well."""
    market = Market(at=new_york("2026-11-18T15:00"))
    market.line(100, symbol="MSFT", at="2026-11-19T12:00")
    unpriced, out_of_reach = make_order("buy", tif="cls"), limit("buy", "50", tif="cls", symbol="MSFT")
    market.send(unpriced)
    market.send(out_of_reach)
    assert whats(market.line(100, at="2026-11-19T16:00")) == ["expired", "expired"]


def test_ioc_outside_of_hours_is_canceled():
    """It cannot fill at once, so it ends."""
    market = Market(at=new_york("2026-11-19T20:30"))
    assert whats(market.send(make_order("buy", tif="ioc"))) == ["canceled"]


def test_an_order_from_before_the_first_line_lives_in_the_markets_time():
    """On a tape of 2013 a day order given in 2026 is for the tape's day."""
    market = Market(opening_line=False)
    order = limit("buy", "50")
    market.send(order)
    market.line(100, at="2013-10-07T15:00")
    assert market.status(order) == "new"
    assert whats(market.line(100, at="2013-10-07T16:00")) == ["expired"]


def test_time_never_steps_back():
    """A line from earlier is a price, but not a time."""
    market = Market()
    market.line(100, at="2026-11-19T15:00")
    order = limit("buy", "90")
    market.send(order)
    (fill,) = market.line(90, at="2026-11-19T14:00")
    assert fill.at == new_york("2026-11-19T15:00")


@pytest.mark.parametrize("tif", ["day", "gtc"])
def test_a_market_that_never_closes_lets_everything_work(tif):
    """With that calendar equities trade on Sundays; day orders end at midnight UTC."""
    market = Market(at=new_york("2026-11-22T12:00"), calendar=AlwaysOpen())
    assert fills(market.send(make_order("buy", tif=tif))) == [(D(10), D(100))]
    market.send(limit("buy", "50", tif=tif))
    assert whats(market.line(100, at="2026-11-22T19:00")) == (["expired"] if tif == "day" else [])
