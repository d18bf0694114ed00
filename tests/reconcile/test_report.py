"""The report as the desk's doors tell it."""

from decimal import Decimal as D

from desk_server.api.reconciliation import FOREIGN_MAX, reconciliation_message
from desk_server.domain import Side, Symbol
from tests.desk.conftest import ALICE
from tests.reconcile.ground import GRACE_S, request


async def test_it_tells_what_differs_and_what_is_nobodys(ground):
    """Differences with both sides, house books, foreign orders, and the counts."""
    await ground.desk.place(ALICE, request())
    foreign = await ground.broker.external(Side.BUY, "3")
    ground.broker.held[Symbol("SPY")] = D(2)
    await ground.look(3, every_s=GRACE_S)
    told = reconciliation_message(ground.reconciler.report(), ground.book)
    (difference,) = told.differences
    assert (difference.kind, difference.symbol, difference.ours, difference.theirs) == ("position", "SPY", "0", "2")
    assert difference.counts
    assert difference.since.endswith("Z")
    (house,) = told.houses
    assert (house.name, house.cash) == ("$house", "49700")
    assert [(one.symbol, one.qty) for one in house.holdings] == [("AAPL", "3")]
    (order,) = told.foreign_orders
    assert (order.broker_order_id, order.side, order.qty) == (foreign, "buy", "3")
    assert (told.passes, told.foreign_orders_seen, told.failures) == (4, 1, 0)
    assert told.problem == ""


async def test_of_many_foreign_orders_it_tells_the_newest(ground):
    """And how many there are."""
    for _ in range(FOREIGN_MAX + 5):
        newest = await ground.broker.external(Side.BUY, "1")
    await ground.look()
    told = reconciliation_message(ground.reconciler.report(), ground.book)
    assert (len(told.foreign_orders), told.foreign_orders_seen) == (FOREIGN_MAX, FOREIGN_MAX + 5)
    assert told.foreign_orders[0].broker_order_id == newest
