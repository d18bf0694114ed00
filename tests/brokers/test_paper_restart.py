"""After a restart of the desk the exchange knows what the ledger knows, and says what the ledger was not told."""

from decimal import Decimal

import pytest
from msgspec.structs import replace
from paper_samples import NOON, Market, fills, limit, make_group, make_order, new_york, whats

from desk_server.brokers import BrokerRejected
from desk_server.domain import State


def D(text):
    return Decimal(str(text))


def as_ledger(order, state: State, **fields):
    """The order as the ledger has it."""
    fields = {name: D(value) if name == "filled_qty" else value for name, value in fields.items()}
    return replace(order, state=state, **fields)


def restarted(*orders, **options) -> Market:
    market = Market(opening_line=False, **options)
    market.exchange.restore(orders)
    return market


def test_a_live_order_works_on_with_what_had_filled():
    """Four of ten had filled: six are left, and the execution ids are new ones."""
    order = limit("buy", "95")
    first_life = Market(size_limited=True)
    first_life.send(order)
    (before,) = first_life.line(95, 94, 95, sizes=(4, 4))
    market = restarted(as_ledger(order, State.LIVE, broker_status="new", filled_qty=4))
    assert market.exchange.positions() == {"AAPL": D(4)}
    events = market.line(95)
    assert fills(events) == [(D(6), D(95))]
    assert events[0].execution_id != before.execution_id
    assert events[0].broker_order_id == before.broker_order_id


def test_an_execution_that_was_not_written_down_gets_the_same_id_again():
    """So it can never be booked twice."""
    order = limit("buy", "95")
    first_life = Market()
    first_life.send(order)
    (lost,) = first_life.line(95)
    (again,) = restarted(as_ledger(order, State.LIVE, broker_status="new")).line(95)
    assert again.execution_id == lost.execution_id


@pytest.mark.parametrize("state", [State.SENDING, State.UNKNOWN, State.NOT_SENT, State.REFUSED, State.REJECTED])
def test_what_was_never_acknowledged_never_was_here(state):
    """It is not found, and may be sent under its name."""
    order = limit("buy", "95")
    market = restarted(as_ledger(order, state))
    assert market.exchange.find(order.client_order_id) is None
    market.line(100)
    market.send(order)
    assert market.status(order) == "new"


@pytest.mark.parametrize("state", [State.FILLED, State.CANCELED, State.EXPIRED, State.REPLACED, State.LIVE])
def test_every_name_ever_used_stays_taken(state):
    """Also of orders that are over."""
    order = limit("buy", "95")
    market = restarted(as_ledger(order, state))
    assert market.exchange.find(order.client_order_id) is not None
    with pytest.raises(BrokerRejected, match="client_order_id must be unique"):
        market.exchange.submit(order)


def test_positions_count_what_every_order_filled():
    """Cancelled and replaced ones as well."""
    market = restarted(
        as_ledger(make_order("buy"), State.FILLED, filled_qty=10),
        as_ledger(make_order("sell"), State.CANCELED, filled_qty=3),
        as_ledger(make_order("buy"), State.REPLACED, filled_qty=2),
        as_ledger(make_order("buy"), State.UNKNOWN),
    )
    assert market.exchange.positions() == {"AAPL": D(9)}


def test_a_day_order_of_yesterday_expires_with_the_first_line():
    """When the desk was down over the close."""
    order = limit("buy", "95", created_at=new_york("2026-11-18T12:00"))
    market = restarted(as_ledger(order, State.LIVE, broker_status="new"))
    assert whats(market.line(90, at=NOON)) == ["expired"]


def test_a_day_order_on_a_tape_that_runs_ahead_is_for_the_tapes_day():
    """Nor do they to a market whose days pass faster than the clock's."""
    order = limit("buy", "95", created_at=new_york("2026-11-19T11:00"))
    market = restarted(as_ledger(order, State.LIVE, broker_status="new"))
    assert fills(market.line(95, at="2026-11-23T10:00")) == [(D(10), D(95))]


def test_a_day_order_on_an_old_tape_is_for_the_tapes_day():
    """Dates of the wall clock mean nothing to a tape of 2013."""
    order = limit("buy", "95", created_at=NOON)
    market = restarted(as_ledger(order, State.LIVE, broker_status="new"))
    assert market.line(100, at="2013-10-07T10:00") == []
    assert fills(market.line(95)) == [(D(10), D(95))]


def test_a_waiting_order_still_waits():
    """Accepted at night, released at the opening."""
    order = limit("buy", "95", created_at=new_york("2026-11-18T20:30"))
    market = restarted(as_ledger(order, State.LIVE, broker_status="accepted"))
    assert market.line(90, at="2026-11-19T09:00") == []
    assert whats(market.line(90, at="2026-11-19T09:30")) == ["released", "fill"]


def test_an_ioc_that_was_cut_off_is_canceled():
    """Its rest cannot fill later."""
    order = limit("buy", "95", tif="ioc")
    market = restarted(as_ledger(order, State.LIVE, broker_status="new", filled_qty=4))
    assert whats(market.said) == ["canceled"]


def test_a_bracket_whose_entry_still_works_keeps_its_legs_held():
    """And releases them when it fills."""
    order, legs = make_group("bracket", entry="limit", limit_price="95")
    market = restarted(as_ledger(order, State.LIVE, broker_status="new"), *(as_ledger(leg, State.HELD) for leg in legs))
    assert market.said == []
    assert whats(market.line(95)) == ["fill", "released", "released"]


def test_legs_whose_release_was_lost_are_released_again():
    """The entry's fill was written down, what followed was not."""
    order, legs = make_group("bracket")
    market = restarted(as_ledger(order, State.FILLED, filled_qty=10), *(as_ledger(leg, State.HELD) for leg in legs))
    assert whats(market.said) == ["released", "released"]
    assert whats(market.line(110)) == ["fill", "canceled"]


def test_a_leg_whose_cancel_was_lost_is_canceled_again():
    """The other leg's fill was written down."""
    order, (profit, loss) = make_group("bracket")
    market = restarted(
        as_ledger(order, State.FILLED, filled_qty=10),
        as_ledger(profit, State.FILLED, filled_qty=10),
        as_ledger(loss, State.LIVE, broker_status="new"),
    )
    assert whats(market.said, loss) == ["canceled"]


@pytest.mark.parametrize("state", [State.CANCELED, State.EXPIRED])
def test_legs_of_an_entry_that_ended_end_with_it(state):
    """Cancelled with a cancelled entry, expired with an expired one."""
    order, legs = make_group("bracket", entry="limit", limit_price="95")
    market = restarted(as_ledger(order, state), *(as_ledger(leg, State.HELD) for leg in legs))
    assert whats(market.said) == [state.value] * 2


def test_exits_share_what_is_left_also_after_a_restart():
    """Three of ten were sold: the stop sells seven."""
    order, (profit, loss) = make_group("bracket")
    market = restarted(
        as_ledger(order, State.FILLED, filled_qty=10),
        as_ledger(profit, State.LIVE, broker_status="new", filled_qty=3),
        as_ledger(loss, State.LIVE, broker_status="new"),
    )
    events = market.line(90)
    assert fills(events) == [(D(7), D(90))]
    assert market.exchange.positions() == {}


def test_an_oco_is_restored_with_its_stop():
    """A stop that had not been released is."""
    order, (loss,) = make_group("oco", side="sell")
    market = restarted(as_ledger(order, State.LIVE, broker_status="new"), as_ledger(loss, State.HELD))
    assert whats(market.said) == ["released"]
    assert whats(market.line(110)) == ["fill", "canceled"]


def test_a_replaced_leg_is_restored_in_its_group():
    """The stop, its replacement and the take profit are one group."""
    order, (profit, loss) = make_group("bracket")
    new = make_order("sell", type="stop", stop_price="95", parent=order.order_id, leg="stop_loss")
    new = replace(new, replaces=loss.order_id)
    market = restarted(
        as_ledger(order, State.FILLED, filled_qty=10),
        as_ledger(profit, State.LIVE, broker_status="new"),
        as_ledger(loss, State.REPLACED, replaced_by=new.order_id),
        as_ledger(new, State.LIVE, broker_status="new"),
    )
    events = market.line(95)
    assert whats(events, new) == ["fill"]
    assert whats(events, profit) == ["canceled"]


def test_a_replaced_entry_is_restored_with_its_legs():
    """Its legs name the first entry, the second one releases them."""
    order, legs = make_group("bracket", entry="limit", limit_price="95")
    new = replace(limit("buy", "97"), replaces=order.order_id)
    market = restarted(
        as_ledger(order, State.REPLACED, replaced_by=new.order_id),
        as_ledger(new, State.LIVE, broker_status="new"),
        *(as_ledger(leg, State.HELD) for leg in legs),
    )
    assert whats(market.line(97)) == ["fill", "released", "released"]


def test_a_replaced_oco_keeps_its_new_price():
    """The price it was changed to, not the take profit it began with."""
    order, (loss,) = make_group("oco", side="sell")
    new = make_order("sell", type="limit", limit_price="105", order_class=order.request.order_class, take_profit="110")
    new = replace(new, replaces=order.order_id)
    market = restarted(
        as_ledger(order, State.REPLACED, replaced_by=new.order_id),
        as_ledger(new, State.LIVE, broker_status="new"),
        as_ledger(loss, State.LIVE, broker_status="new"),
    )
    assert whats(market.line(105)) == ["fill", "canceled"]


def test_exits_sell_no_more_than_their_entry_can_have_bought():
    """Four had filled before a replace and were not written down: the entry buys six, and so do its exits sell."""
    order, (profit, loss) = make_group("bracket", entry="limit", limit_price="95")
    new = replace(limit("buy", "97", "6"), replaces=order.order_id)
    market = restarted(
        as_ledger(order, State.REPLACED, replaced_by=new.order_id),
        as_ledger(new, State.LIVE, broker_status="new"),
        *(as_ledger(leg, State.HELD) for leg in (profit, loss)),
    )
    market.line(97)
    assert fills(market.line(110)) == [(D(6), D(110))]
    assert market.exchange.positions() == {}
