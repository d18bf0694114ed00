"""What executions and open orders do to cash, positions and reservations, in round numbers."""

from decimal import Decimal, localcontext

import pytest
from book_story import Story, dollars

from desk_server import events
from desk_server.domain import HOUSE, OrderChange, Side


@pytest.fixture
def story() -> Story:
    return Story().open("alice", 10_000)


def money(story: Story, user: str = "alice") -> tuple[Decimal, Decimal, Decimal]:
    account = story.book.accounts[user]
    return account.cash, account.realized_pl, account.fees


def holding(story: Story, user: str = "alice", symbol: str = "AAPL") -> tuple[Decimal, Decimal, Decimal]:
    position = story.book.position(user, symbol)
    return position.qty, position.avg_entry_price, position.realized_pl


def sell_at(story: Story, qty: object, price: object, fee: object = 0) -> None:
    story.fill(story.sell(qty), qty, price, fee)


def test_buying_twice_averages_the_price(story: Story):
    """Cost adds up; selling part realises against the average and leaves it as it is."""
    story.bought(10, 100)
    story.bought(30, 120)
    assert holding(story) == (40, 115, 0)
    sell_at(story, 10, 125)
    assert holding(story) == (30, 115, 100)
    assert money(story) == (10_000 - 1000 - 3600 + 1250, 100, 0)


def test_a_short_raises_cash_and_realises_when_bought_back(story: Story):
    """Negative quantity, positive average price; a lower price is a profit."""
    sell_at(story, 10, 100)
    assert holding(story) == (-10, 100, 0)
    assert money(story) == (11_000, 0, 0)
    story.bought(4, 90)
    assert holding(story) == (-6, 100, 40)
    assert money(story) == (10_640, 40, 0)


@pytest.mark.parametrize("first, sign", [(Side.BUY, 1), (Side.SELL, -1)])
def test_one_execution_may_go_through_zero(story: Story, first: Side, sign: int):
    """The closing part realises, the rest opens at the new price."""
    second = Side.SELL if first is Side.BUY else Side.BUY
    story.fill(story.intend(story.new_order(first, 10)), 10, 100)
    story.fill(story.intend(story.new_order(second, 25)), 25, 110)
    assert holding(story) == (-15 * sign, 110, 100 * sign)
    assert money(story)[0] == 10_000 - 1000 * sign + 2750 * sign


def test_closing_a_position_to_zero_keeps_what_it_earned(story: Story):
    """Flat: no average price, not listed among the holdings, realised profit and fees kept."""
    story.bought(3, "33.33")
    sell_at(story, 3, "33.34", fee="0.05")
    assert holding(story) == (0, 0, Decimal("0.03"))
    assert story.book.position("alice", "AAPL").cost == 0
    assert story.book.positions_of("alice") == []
    assert money(story) == (Decimal("9999.98"), Decimal("0.03"), Decimal("0.05"))


def test_fees_cost_cash_and_nothing_else(story: Story):
    """Average price and realised profit are before fees, which are counted apart."""
    order_id = story.buy(10)
    story.fill(order_id, 10, 100, fee="1.25")
    assert money(story) == (Decimal("8998.75"), 0, Decimal("1.25"))
    assert holding(story) == (10, 100, 0)
    assert story.book.position("alice", "AAPL").fees == story.order(order_id).fees == Decimal("1.25")


def test_a_third_of_a_cost_loses_no_digit(story: Story):
    """Where an average price has no end, cash, cost and realised profit still add up exactly."""
    story.bought(3, "100.01")
    story.bought(4, "99.99")
    for price in ("101.337", "98.3", "100.001"):
        sell_at(story, "1.00000001", price)
    account, position = story.book.accounts["alice"], story.book.position("alice", "AAPL")
    with localcontext(prec=100):
        assert account.cash == account.allotment + account.realized_pl - account.fees - position.cost


def test_the_callers_decimal_context_does_not_matter(story: Story):
    """A thread with three digits books the same as one with 28."""
    with localcontext(prec=3):
        story.bought("1.23456789", "1234.56789")
        sell_at(story, "0.5", "1234.5")
    assert story.book.position("alice", "AAPL").qty == Decimal("0.73456789")
    assert repr(story.rebuilt().accounts) == repr(story.book.accounts)


def test_a_buy_reserves_cash_until_it_is_filled_or_over(story: Story):
    """The reservation shrinks with what is left, rounded up to cents, and buying power with it."""
    order_id = story.buy(3, reserved=100)
    assert story.book.buying_power("alice") == 9900
    story.fill(order_id, 1, 30)
    assert story.book.reserved_cash("alice") == Decimal("66.67")
    assert story.book.buying_power("alice") == Decimal("9903.33")
    story.fill(order_id, 1, 30)
    assert story.book.reserved_cash("alice") == Decimal("33.34")
    other = story.buy(300, reserved=1)
    story.fill(other, 299, "0.01")
    assert story.order(other).reserved_cash == Decimal("0.01")
    story.end(other)
    story.end(order_id)
    assert story.book.reserved_cash("alice") == 0
    assert story.book.buying_power("nobody") == 0


def test_a_sell_reserves_shares(story: Story):
    """What open sells may still take is not available to another one."""
    story.bought(10, 100)
    order_id = story.sell(6)
    assert (story.book.reserved_qty("alice", "AAPL"), story.book.available_qty("alice", "AAPL")) == (6, 4)
    story.fill(order_id, 2, 100)
    assert (story.book.reserved_qty("alice", "AAPL"), story.book.available_qty("alice", "AAPL")) == (4, 4)
    story.end(order_id)
    assert (story.book.reserved_qty("alice", "AAPL"), story.book.available_qty("alice", "AAPL")) == (0, 8)


def test_a_sale_for_dollars_reserves_all_shares(story: Story):
    """Nobody knows how many it will take, so none is left for another order until it is over."""
    story.bought(10, 100)
    order_id = story.sell(None, notional=100)
    assert story.book.reserved_qty("alice", "AAPL") == 10
    story.end(order_id)
    assert story.book.reserved_qty("alice", "AAPL") == 0


def test_a_shorts_buying_back_is_reserved_on_its_own_side(story: Story):
    """Available is what no closing order holds, negative for a short."""
    sell_at(story, 10, 100)
    story.buy(4, reserved=400)
    assert story.book.open_qty("alice", "AAPL", Side.BUY) == 4
    assert story.book.available_qty("alice", "AAPL") == -6
    assert story.book.reserved_qty("alice", "AAPL") == 0


def test_a_brackets_exits_reserve_once_and_only_what_was_bought(story: Story):
    """While the entry fills, its legs hold the shares it got; afterwards both legs share them."""
    entry, profit, stop = story.bracket(10, reserved=1000)
    story.accept(entry)
    assert story.book.reserved_qty("alice", "AAPL") == 0
    story.fill(entry, 4, 100)
    assert (story.book.reserved_qty("alice", "AAPL"), story.book.reserved_cash("alice")) == (4, 600)
    story.fill(entry, 6, 100)
    assert (story.book.reserved_qty("alice", "AAPL"), story.book.reserved_cash("alice")) == (10, 0)
    story.fill(profit, 3, 110)
    assert (story.book.reserved_qty("alice", "AAPL"), story.book.available_qty("alice", "AAPL")) == (7, 0)
    story.fill(profit, 7, 110)
    assert story.book.reserved_qty("alice", "AAPL") == 0
    story.end(stop)
    assert story.book.reserved_qty("alice", "AAPL") == 0


def test_an_entry_that_fills_late_still_covers_its_exits(story: Story):
    """A fill after the entry's cancel is reserved for the legs that are still open."""
    entry, profit, stop = story.bracket(10)
    story.accept(entry)
    story.fill(entry, 4, 100)
    story.end(entry)
    story.fill(entry, 1, 100)
    assert story.book.reserved_qty("alice", "AAPL") == 5
    story.end(profit)
    story.end(stop)
    assert story.book.reserved_qty("alice", "AAPL") == 0


@pytest.mark.parametrize("side", [Side.SELL, Side.BUY])
def test_the_two_orders_of_an_oco_reserve_once(story: Story, side: Side):
    """Shares or cash: the larger of the two, less whatever either has filled."""
    story.bought(10, 100)
    profit, stop = story.oco(side, 10, reserved=1000)
    assert story.book.open_qty("alice", "AAPL", side) == 10
    assert story.book.reserved_cash("alice") == 1000
    story.fill(profit, 4, 100)
    assert story.book.open_qty("alice", "AAPL", side) == 6
    assert story.book.reserved_cash("alice") == 600
    story.end(profit)
    assert story.book.open_qty("alice", "AAPL", side) == 6
    assert story.book.reserved_cash("alice") == 600
    story.fill(stop, 6, 100)
    assert story.book.open_qty("alice", "AAPL", side) == 0
    assert story.book.reserved_cash("alice") == 0


def test_a_rejected_brackets_reservation_comes_back_once(story: Story):
    """When the broker proves that a rejected bracket lives, its exits share one reservation again."""
    entry, _, _ = story.bracket(10, reserved=1000)
    story.happen(events.OrderRejected, order_id=entry, code="X", message="no")
    assert story.book.reserved_cash("alice") == 0
    story.accept(entry)
    assert story.book.reserved_cash("alice") == 1000
    story.fill(entry, 10, 100)
    assert story.book.reserved_qty("alice", "AAPL") == 10


def test_a_pending_replace_reserves_the_larger_of_both(story: Story):
    """Never both; after it, what the new one needs; after a refusal, what the old one did."""
    for new_qty, while_pending in ((20, 2000), (5, 1000)):
        old = story.buy(10, reserved=1000)
        story.accept(old)
        new = story.replace(old, new_qty, reserved=new_qty * 100)
        assert story.book.reserved_cash("alice") == while_pending
        assert story.book.open_qty("alice", "AAPL", Side.BUY) == max(10, new_qty)
        story.replaced(old, new, new_qty)
        assert story.book.reserved_cash("alice") == new_qty * 100
        assert story.book.open_qty("alice", "AAPL", Side.BUY) == new_qty
        story.end(new)
        assert story.book.reserved_cash("alice") == 0


def test_fills_while_a_replace_is_pending_shrink_both(story: Story):
    """What the old order fills is no longer to come, whichever of the two will be the one."""
    story.bought(20, 100)
    old = story.sell(10)
    story.accept(old)
    new = story.replace(old, 15)
    story.fill(old, 4, 100)
    assert story.book.reserved_qty("alice", "AAPL") == 11
    story.replaced(old, new, 11)
    assert story.book.reserved_qty("alice", "AAPL") == 11
    assert story.book.available_qty("alice", "AAPL") == 5


def test_the_broker_may_say_another_quantity_than_the_desk_thought(story: Story):
    """What it says counts, for the quantity and in proportion for the cash."""
    old = story.buy(10, reserved=1000)
    story.accept(old)
    new = story.replace(old, 10, reserved=1000)
    story.replaced(old, new, 12)
    assert story.book.open_qty("alice", "AAPL", Side.BUY) == 12
    assert story.book.reserved_cash("alice") == 1200


def test_cash_for_fills_told_after_a_replace_stays_reserved(story: Story):
    """The reservation is that of all that may still be executed, by either order, and shrinks with each fill."""
    old = story.buy(10, reserved=1000)
    story.accept(old)
    new = story.replace(old, 10, reserved=1000)
    story.replaced(old, new, 7)
    assert story.book.reserved_cash("alice") == 1000
    story.fill(old, 3, 100)
    assert story.book.reserved_cash("alice") == 700
    assert story.order(new).reserved_cash == 700


def test_fills_told_after_a_replace_stay_reserved_until_then(story: Story):
    """The broker's smaller quantity means that the old order filled more: those shares are not free."""
    story.bought(20, 100)
    old = story.sell(10)
    story.accept(old)
    new = story.replace(old, 10)
    story.replaced(old, new, 7)
    assert story.book.reserved_qty("alice", "AAPL") == 10
    story.fill(old, 3, 100)
    assert story.book.reserved_qty("alice", "AAPL") == 7
    story.fill(new, 7, 100)
    assert (story.book.reserved_qty("alice", "AAPL"), story.book.position("alice", "AAPL").qty) == (0, 10)


def test_a_replaced_leg_shares_its_groups_reservation(story: Story):
    """Replacing the take-profit of a bracket reserves nothing twice."""
    entry, profit, _ = story.bracket(10)
    story.accept(entry)
    story.fill(entry, 10, 100)
    story.fill(profit, 2, 110)
    new = story.replace(profit, 8)
    assert story.book.reserved_qty("alice", "AAPL") == 8
    story.replaced(profit, new, 8)
    story.fill(new, 1, 110)
    assert story.book.reserved_qty("alice", "AAPL") == 7


@pytest.mark.parametrize("side", [Side.SELL, Side.BUY])
def test_a_replaced_order_of_an_oco_reserves_what_the_other_has_left(story: Story, side: Side):
    """What the stop has filled is no longer there for the replaced take-profit: neither shares nor cash."""
    story.bought(10, 100)
    profit, stop = story.oco(side, 10, reserved=1000)
    story.fill(stop, 4, 100)
    new = story.replace(profit, 10, reserved=1000)
    for _ in range(2):
        assert story.book.open_qty("alice", "AAPL", side) == 6
        assert story.book.reserved_cash("alice") == 600
        story.replaced(profit, new, 10)


@pytest.mark.parametrize("asked", [None, 10])
def test_a_fill_that_overtakes_a_replace_is_not_reserved_again(story: Story, asked: int | None):
    """The replacement was drawn up for ten; six of them had filled when it was written down."""
    old = story.buy(10, reserved=1000)
    story.accept(old)
    story.fill(old, 6, 100)
    change = OrderChange(limit_price=dollars(100), qty=None if asked is None else dollars(asked))
    new = story.replace(old, 10, reserved=1000, change=change)
    assert story.book.reserved_cash("alice") == 400
    story.replaced(old, new, 4)
    assert story.book.reserved_cash("alice") == 400
    story.fill(new, 4, 100)
    assert story.book.reserved_cash("alice") == 0


def test_what_is_nobodys_goes_to_the_house(story: Story):
    """With cash and position of its own, and in the totals that must equal the broker's."""
    story.bought(10, 100)
    change = story.happen(
        events.HouseExecuted,
        symbol="AAPL",
        side=Side.SELL,
        execution_id="x1",
        qty=Decimal(4),
        price=Decimal(100),
    )
    assert change == ()
    assert story.book.accounts[HOUSE].cash == 400
    assert story.book.position(HOUSE, "AAPL").qty == -4
    assert story.book.totals() == {"AAPL": 6}
    assert story.book.fills_of(HOUSE)[0][0].execution_id == "x1"
    assert story.book.fills_of("alice", symbol="AAPL")[0][0].qty == 10


def test_positions_are_valued_at_the_newest_price_or_at_cost(story: Story):
    """Equity is cash and market value; a symbol without a price counts at its cost."""
    story.bought(10, 100)
    story.fill(story.buy(1, symbol="BTC/USD"), 1, 500)
    prices = {"AAPL": Decimal(110)}
    assert story.book.market_value("alice", prices.get) == 1600
    assert story.book.unrealized_pl("alice", prices.get) == 100
    assert story.book.equity("alice", prices.get) == 10_100


def test_a_second_opening_of_an_account_changes_nothing(story: Story):
    """Two first requests may race; only one allotment is given."""
    story.bought(10, 100)
    story.open("alice", 5)
    assert money(story)[0] == 9000
