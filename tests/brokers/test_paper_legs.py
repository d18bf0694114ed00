"""Brackets, OTOs and OCOs: legs wait for their entry, and share what it filled."""

from decimal import Decimal

import pytest
from paper_samples import Market, fills, make_group, make_order, whats

from desk_server.brokers import BrokerRejected
from desk_server.domain import OrderChange


def D(text):
    return Decimal(str(text))


def test_legs_are_held_until_the_entry_has_filled_completely():
    """A partly filled entry releases nothing."""
    market = Market(size_limited=True)
    market.line(100, 99, 101, sizes=(100, 4))
    order, legs = make_group("bracket")
    ack = market.exchange.submit(order, legs)
    assert [leg.status for leg in ack.legs] == ["held", "held"]
    assert [market.status(leg) for leg in legs] == ["held", "held"]
    assert market.filled(order) == 4
    events = market.line(100, 99, 101, sizes=(100, 100))
    assert whats(events) == ["fill", "released", "released"]
    assert [market.status(leg) for leg in legs] == ["new", "new"]


@pytest.mark.parametrize(("price", "winner"), [(110, 0), (90, 1)])
def test_one_exit_filled_cancels_the_other(price, winner):
    """Take profit above, stop loss below; never both."""
    market = Market()
    order, legs = make_group("bracket")
    market.send(order, legs)
    events = market.line(price)
    assert whats(events, legs[winner]) == ["fill"]
    assert whats(events, legs[1 - winner]) == ["canceled"]
    assert market.exchange.positions() == {}


def test_a_bracket_for_a_short_sale_is_the_mirror_image():
    """Take profit below, stop loss above."""
    market = Market()
    order, legs = make_group("bracket", side="sell", profit="90", loss="110")
    market.send(order, legs)
    assert fills(market.line(111)) == [(D(10), D(111))]
    assert market.exchange.positions() == {}


def test_exits_together_never_exceed_the_position():
    """Take profit fills in part, then the stop takes only what is left; both end."""
    market = Market(size_limited=True)
    order, (profit, loss) = make_group("bracket")
    market.send(order, (profit, loss))
    market.line(110, 110, 110.1, sizes=(3, 3))
    assert market.status(profit) == "partially_filled"
    events = market.line(89, 89, 89.1, sizes=(100, 100))
    assert fills(events) == [(D(7), D(89))]
    assert [market.status(leg) for leg in (profit, loss)] == ["canceled", "canceled"]
    assert market.exchange.positions() == {}


@pytest.mark.parametrize("which", [0, 1, 2])
def test_cancelling_one_cancels_all(which):
    """Before the entry fills, by the entry or by any leg."""
    market = Market()
    order, legs = make_group("bracket", entry="limit", limit_price="95")
    market.send(order, legs)
    market.exchange.cancel((order, *legs)[which])
    assert sorted(whats(market.said)) == ["canceled"] * 3


def test_cancelling_a_leg_of_a_filled_entry_cancels_the_other_leg():
    """The position stays, without exits."""
    market = Market()
    order, legs = make_group("bracket")
    market.send(order, legs)
    market.exchange.cancel(legs[1])
    assert [market.status(one) for one in (order, *legs)] == ["filled", "canceled", "canceled"]
    assert market.exchange.positions() == {"AAPL": D(10)}


def test_an_expired_entry_takes_its_legs_with_it():
    """At the close of an unfilled day bracket."""
    market = Market()
    order, legs = make_group("bracket", entry="limit", limit_price="95")
    market.send(order, legs)
    assert whats(market.line(100, at="2026-11-19T16:00")) == ["expired"] * 3


def test_day_legs_expire_at_the_close_and_gtc_legs_do_not():
    """Legs last as long as their order says."""
    for tif, at_close in (("day", ["expired", "expired"]), ("gtc", [])):
        market = Market()
        market.send(*make_group("bracket", tif=tif))
        assert whats(market.line(100, at="2026-11-19T16:00")) == at_close


def test_legs_do_not_meet_the_line_that_filled_their_entry():
    """The entry's line may lie beyond a leg's price; the leg begins with the next line."""
    market = Market()
    order, legs = make_group("bracket", entry="limit", limit_price="101", profit="110", loss="100.50")
    assert whats(market.send(order, legs)) == ["fill", "released", "released"]
    assert whats(market.line(100)) == ["fill", "canceled"]


def test_a_stop_loss_with_a_limit_is_a_stop_limit():
    """Triggered by the gap, it waits at its limit."""
    market = Market()
    order, legs = make_group("bracket", loss_limit="89")
    market.send(order, legs)
    assert market.line(88) == []
    assert whats(market.line(89)) == ["fill", "canceled"]


@pytest.mark.parametrize(("fields", "price"), [({"profit": None}, 90), ({"loss": None}, 110)])
def test_an_oto_has_one_leg(fields, price):
    """Either exit alone."""
    market = Market()
    order, legs = make_group("oto", **fields)
    assert len(legs) == 1
    assert whats(market.send(order, legs)) == ["fill", "released"]
    assert whats(market.line(price)) == ["fill"]


def test_an_oco_works_from_the_start_and_one_side_ends_the_other():
    """The order itself takes the profit, its leg stops the loss."""
    for price, first in ((110, 0), (90, 1)):
        market = Market()
        market.send(make_order("buy"))
        order, legs = make_group("oco", side="sell")
        assert whats(market.send(order, legs)) == ["released"]
        events = market.line(price)
        assert whats(events, (order, *legs)[first]) == ["fill"]
        assert whats(events, (order, *legs)[1 - first]) == ["canceled"]
        assert market.exchange.positions() == {}


def test_an_oco_filled_at_once_never_starts_its_stop():
    """A take profit that is marketable already leaves nothing to stop."""
    market = Market()
    market.line(120)
    order, legs = make_group("oco", side="sell")
    assert whats(market.send(order, legs)) == ["fill", "canceled"]


def test_an_oco_given_at_night_waits_with_both_sides():
    """Both begin at the opening."""
    market = Market()
    market.line(100, at="2026-11-19T22:00")
    order, legs = make_group("oco", side="sell")
    market.send(order, legs)
    assert [market.status(one) for one in (order, *legs)] == ["accepted", "accepted"]
    assert whats(market.line(100, at="2026-11-20T09:30")) == ["released", "released"]


def replace(market: Market, old, **change):
    new = make_order("buy")
    ack = market.exchange.replace(old, new, OrderChange(**{name: D(value) for name, value in change.items()}))
    return new, ack


def test_a_replaced_leg_stays_in_its_group():
    """A new take profit still cancels the stop."""
    market = Market()
    order, (profit, loss) = make_group("bracket")
    market.send(order, (profit, loss))
    new, ack = replace(market, profit, limit_price="105")
    assert (ack.status, ack.qty) == ("new", D(10))
    events = market.line(105)
    assert whats(events, new) == ["fill"]
    assert whats(events, loss) == ["canceled"]


def test_a_replaced_entry_still_releases_its_legs():
    """Legs belong to whatever took their entry's place."""
    market = Market()
    order, legs = make_group("bracket", entry="limit", limit_price="95")
    market.send(order, legs)
    new, ack = replace(market, order, limit_price="100")
    assert [leg.status for leg in ack.legs] == ["held", "held"]
    assert whats(market.said, new) == ["fill"]
    assert [market.status(leg) for leg in legs] == ["new", "new"]


def test_held_legs_and_quantities_of_groups_cannot_be_replaced():
    """Only prices, and only of what works."""
    market = Market()
    order, legs = make_group("bracket", entry="limit", limit_price="95")
    market.send(order, legs)
    with pytest.raises(BrokerRejected, match='in "held" state'):
        replace(market, legs[0], limit_price="120")
    with pytest.raises(BrokerRejected, match="simple orders only"):
        replace(market, order, qty="5")
