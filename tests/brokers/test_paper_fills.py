"""At what price, how much, and when the paper exchange fills."""

from decimal import Decimal
from uuid import UUID, uuid5

import pytest
from paper_samples import Market, fills, limit, make_order, whats

from desk_server.brokers.resting import _NAMESPACE, stable_id


def D(text):
    return Decimal(str(text))


@pytest.mark.parametrize(
    ("quote", "buys_at", "sells_at"),
    [
        ((100, 99.9, 100.1), "100.1", "99.9"),
        ((100, None, None), "100", "100"),
        ((100, 99.9, None), "100", "99.9"),
        ((100, None, 100.1), "100.1", "100"),
        ((100, 0, 0), "100", "100"),
        ((100, 100.2, 100.1), "100", "100"),  # crossed
        ((100, 100.1, 100.1), "100.1", "100.1"),  # locked
    ],
)
def test_market_orders_buy_at_the_ask_and_sell_at_the_bid(quote, buys_at, sells_at):
    """Against the quote where it is known and sound, else at the last price."""
    market = Market()
    market.line(*quote)
    assert fills(market.send(make_order("buy"))) == [(D(10), D(buys_at))]
    assert fills(market.send(make_order("sell"))) == [(D(10), D(sells_at))]


def test_a_limit_waits_until_the_market_reaches_it():
    """A buy limit below the ask rests, and fills when the ask comes down to it."""
    market = Market()
    market.line(100, 99.9, 100.1)
    order = limit("buy", "99.50")
    assert market.send(order) == []
    assert market.line(99.7, 99.6, 99.8) == []
    assert fills(market.line(99.5, 99.4, 99.5)) == [(D(10), D("99.5"))]
    assert market.status(order) == "filled"


def test_a_limit_gets_the_better_price():
    """A marketable limit pays the market, not its limit."""
    market = Market()
    market.line(100, 99.9, 100.1)
    assert fills(market.send(limit("buy", "105"))) == [(D(10), D("100.1"))]
    assert fills(market.send(limit("sell", "95"))) == [(D(10), D("99.9"))]


def test_a_line_of_another_symbol_fills_nothing():
    """Orders meet the lines of their own symbol."""
    market = Market()
    market.line(100)
    market.send(limit("buy", "90"))
    assert market.line(80, symbol="MSFT") == []


@pytest.mark.parametrize(
    ("side", "before", "reached"),
    [("buy", (104.9, 104.8, 104.99), (105, 104.9, 105)), ("sell", (96, 95.01, 96), (95, 95, 96))],
)
def test_a_stop_triggers_at_its_price_and_fills_at_the_market(side, before, reached):
    """A buy stop by the ask, a sell stop by the bid; then it is a market order."""
    market = Market()
    order = make_order(side, type="stop", stop_price="105" if side == "buy" else "95")
    assert market.send(order) == []
    assert market.line(*before) == []
    assert fills(market.line(*reached)) == [(D(10), D(105 if side == "buy" else 95))]


def test_a_stop_fills_where_the_market_gapped_to():
    """A stop is no promise of its price."""
    market = Market()
    market.send(make_order("sell", type="stop", stop_price="95"))
    assert fills(market.line(90, 89.9, 90.1)) == [(D(10), D("89.9"))]


def test_a_stop_limit_becomes_a_limit_and_stays_one():
    """Once triggered it fills at its limit or better, also when the market has come back."""
    market = Market()
    order = make_order("buy", type="stop_limit", stop_price="105", limit_price="105.50")
    market.send(order)
    assert market.line(104) == []
    assert market.line(107) == []
    assert market.line(106) == []
    assert fills(market.line(103)) == [(D(10), D(103))]


def test_a_trailing_stop_follows_the_high_and_sells_below_it():
    """Two dollars below the highest bid seen; the trail never comes back."""
    market = Market()
    market.send(make_order("sell", type="trailing_stop", trail_price="2"))
    for price in (99, 101, 104, 102.5, 103):
        assert market.line(price) == []
    assert fills(market.line(102)) == [(D(10), D(102))]


def test_a_trailing_stop_follows_the_low_and_buys_above_it():
    """Ten percent above the lowest ask seen."""
    market = Market()
    market.send(make_order("buy", type="trailing_stop", trail_percent="10"))
    for price in (90, 80, 87.9):
        assert market.line(price) == []
    assert fills(market.line(88)) == [(D(10), D(88))]


@pytest.mark.parametrize(("side", "price"), [("buy", "100.2013"), ("sell", "99.7988")])
def test_slippage_makes_market_orders_worse(side, price):
    """Twenty basis points, rounded to a tick against the order."""
    market = Market(slippage_bps=20)
    market.line("100.0012" if side == "buy" else "99.9988")
    assert fills(market.send(make_order(side))) == [(D(10), D(price))]


def test_slippage_leaves_limits_alone():
    """A limit's price is a promise."""
    market = Market(slippage_bps=20)
    assert fills(market.send(limit("buy", "100"))) == [(D(10), D(100))]


def test_slippage_never_gives_shares_away_for_nothing():
    """The lowest price is one tick."""
    market = Market(slippage_bps=100_000)
    assert fills(market.send(make_order("sell"))) == [(D(10), D("0.0001"))]


@pytest.mark.parametrize(
    ("model", "order", "fee"),
    [
        ({}, {}, "0"),
        ({"fee_per_share": "0.005"}, {}, "0.05"),
        ({"fee_bps": "10"}, {}, "1"),
        ({"fee_per_share": "0.005", "fee_bps": "10"}, {}, "1.05"),
        ({"crypto_fee_bps": "25"}, {"symbol": "BTC/USD", "tif": "gtc", "qty": "0.5"}, "0.125"),
        ({"crypto_fee_bps": "0", "fee_per_share": "1"}, {"symbol": "BTC/USD", "tif": "gtc"}, "0"),
    ],
)
def test_fees_follow_the_settings(model, order, fee):
    """Per share and on the value of equities; on the value of crypto."""
    market = Market(**model)
    market.line(100, symbol="BTC/USD")
    (fill,) = market.send(make_order(**order))
    assert fill.fee == D(fee)


def test_a_notional_order_buys_what_the_money_pays_for():
    """Down to nine decimals at the fill's price, in one execution, whatever the chance of partial fills."""
    market = Market(partial_percent=100)
    market.line(3, 2.9, 3)
    order = make_order("buy", notional="10")
    assert fills(market.send(order)) == [(D("3.333333333"), D(3))]
    assert market.status(order) == "filled"


def test_partial_fills_are_random_parts_of_whole_shares():
    """With certainty of partials, each line fills at least one share, and whole shares only, until all is filled."""
    market = Market(partial_percent=100, seed=7)
    order = limit("buy", "100", qty="100")
    parts = fills(market.send(order))
    while market.status(order) != "filled":
        parts += fills(market.line(100))
    assert len(parts) > 2
    assert all(qty >= 1 and qty % 1 == 0 for qty, _ in parts)
    assert sum(qty for qty, _ in parts) == 100


def test_partial_fills_of_fractions_come_to_the_exact_quantity():
    """Nine decimals, no more, and nothing left over."""
    market = Market(partial_percent=60, seed=3)
    order = limit("buy", "100", qty="1.123456789")
    market.send(order)
    for _ in range(200):
        if market.status(order) == "filled":
            break
        market.line(100)
    assert market.status(order) == "filled"
    assert sum(qty for qty, _ in fills(market.said)) == D("1.123456789")


def test_a_triggered_stop_goes_on_after_a_partial_fill():
    """The rest of a triggered stop fills on later lines, wherever the price has gone."""
    market = Market(partial_percent=100, seed=2)
    order = make_order("sell", "50", type="stop", stop_price="95")
    market.send(order)
    market.line(95)
    assert market.status(order) == "partially_filled"
    for _ in range(100):
        market.line(99)
    assert market.status(order) == "filled"


def play(seed: int) -> list:
    market = Market(partial_percent=50, seed=seed)
    for number in range(30):
        market.send(limit("buy", 100, qty="20", name=f"o{number}"))
        market.line(100)
    return market.said


def test_the_same_seed_gives_the_same_fills():
    """Two runs of one seed say the same, event by event; another seed says something else."""
    assert play(5) == play(5)
    assert fills(play(5)) != fills(play(6))


def test_size_limited_fills_take_no_more_than_is_quoted():
    """Orders of one line share the quoted size, first come first served; the next quote brings a new one."""
    market = Market(size_limited=True)
    first, second = limit("buy", "101", qty="70"), limit("buy", "101", qty="70")
    market.line(100, 99, 101, sizes=(50, 100))
    assert fills(market.send(first)) == [(D(70), D(101))]
    assert fills(market.send(second)) == [(D(30), D(101))]
    assert fills(market.line(100, 99, 101, sizes=(50, 100), kind="trade")) == []
    assert fills(market.line(100, 99, 101, sizes=(50, 100))) == [(D(40), D(101))]


def test_size_limited_whole_shares_stay_whole():
    """Of 10.7 quoted, ten are filled."""
    market = Market(size_limited=True)
    market.line(100, 99, 101, sizes=("5", "10.7"))
    assert fills(market.send(limit("buy", "101", qty="70"))) == [(D(10), D(101))]


def test_without_a_quoted_size_nothing_is_limited():
    """A line without sizes fills any quantity."""
    market = Market(size_limited=True)
    assert fills(market.send(make_order("buy", "5000"))) == [(D(5000), D(100))]


def test_ioc_fills_what_it_can_and_cancels_the_rest():
    """At once, or not at all."""
    market = Market(size_limited=True)
    market.line(100, 99, 101, sizes=(50, 4))
    order = limit("buy", "101", tif="ioc")
    assert whats(market.send(order)) == ["fill", "canceled"]
    assert market.filled(order) == 4
    far = limit("buy", "50", tif="ioc")
    assert whats(market.send(far)) == ["canceled"]


def test_fok_fills_all_or_nothing():
    """Never in part, not even by chance."""
    market = Market(size_limited=True, partial_percent=100)
    market.line(100, 99, 101, sizes=(50, 9))
    assert whats(market.send(make_order("buy", "10", tif="fok"))) == ["canceled"]
    assert fills(market.send(make_order("buy", "9", tif="fok"))) == [(D(9), D(101))]


def test_a_line_without_a_price_changes_nothing():
    """Zero and negative prices are no prices."""
    market = Market()
    market.send(limit("buy", "50"))
    assert market.line(0) == market.line(-1) == []


def test_ids_are_uuids_that_never_repeat():
    """Executions and orders have UUIDs made of the order's name: the same in every run, all different."""
    assert stable_id("a name") == str(uuid5(UUID(bytes=_NAMESPACE), "a name"))
    ids = [event.execution_id for event in play(5) if event.execution_id]
    assert len(ids) == len(set(ids)) > 30
    assert all(UUID(one).version == 5 for one in ids)


def test_positions_are_the_sum_of_executions():
    """Signed, per symbol, zero ones left out."""
    market = Market()
    market.line(100, symbol="BTC/USD")
    market.send(make_order("buy", "10"))
    market.send(make_order("sell", "4"))
    market.send(make_order("sell", "2", symbol="BTC/USD", tif="gtc"))
    assert market.exchange.positions() == {"AAPL": D(6), "BTC/USD": D(-2)}
    market.send(make_order("sell", "6"))
    assert market.exchange.positions() == {"BTC/USD": D(-2)}
