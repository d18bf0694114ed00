"""Account activities: fills and what is no trade, paged as Alpaca pages them."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from alpaca.common.exceptions import APIError

from tests.alpaca.conftest import eventually, market
from tests.alpaca.control_client import ControlError


def trade(client, truth, times: int) -> None:
    for _ in range(times):
        client.submit_order(market("F", 1))
    eventually(lambda: len(truth.account["executions"]) == times)


def test_a_fill_is_told_with_its_order(client, truth):
    """id of time and uuid, order_id, cum_qty, leaves_qty; and not the stream's execution_id unless so set."""
    trade(client, truth, 1)
    [line] = client.get("/account/activities/FILL")
    [done] = truth.account["executions"]
    at, _, uuid = line["id"].partition("::")
    assert (len(at), len(uuid)) == (17, 36)
    assert uuid != done["execution_id"]
    assert line["id"] == done["activity_id"]
    wanted = {"type": "fill", "price": "12", "qty": "1", "side": "buy", "symbol": "F", "cum_qty": "1"}
    assert {name: line[name] for name in wanted} == wanted
    assert (line["leaves_qty"], line["order_id"]) == ("0", done["order_id"])


def test_activity_ids_can_be_execution_ids(client, truth, alpaca, stream):
    """By a setting: Alpaca does not say which they are."""
    alpaca.control.settings(activity_ids="execution")
    client.submit_order(market("F", 1, name="a"))
    eventually(lambda: "fill" in stream.events("a"))
    [line] = client.get("/account/activities")
    assert line["id"].endswith(f"::{stream.updates[-1].execution_id}")


@pytest.mark.parametrize("direction", ["asc", "desc"])
def test_pages_follow_each_other_without_gap_or_overlap(client, truth, direction):
    """page_token is the last id of the page before."""
    trade(client, truth, 25)
    query = {"page_size": 10, "direction": direction}
    seen, token = [], None
    while page := client.get("/account/activities", {**query, **({"page_token": token} if token else {})}):
        seen += [line["id"] for line in page]
        token = page[-1]["id"]
    all_of_them = [line["id"] for line in truth.account["activities"]]
    assert seen == (all_of_them if direction == "asc" else all_of_them[::-1])


def test_a_page_is_100_at_most_but_a_day_is_whole(client, truth):
    """Without `date`, the default and greatest page; with it, all of the day."""
    trade(client, truth, 105)
    assert len(client.get("/account/activities")) == 100
    with pytest.raises(APIError, match="page_size"):
        client.get("/account/activities", {"page_size": 101})
    today = datetime.now(UTC).date()
    on_both_days = [client.get("/account/activities", {"date": str(today - timedelta(days=back))}) for back in (0, 1)]
    assert sum(map(len, on_both_days)) == 105


def test_activities_are_bounded_by_time_and_type(client, truth, alpaca):
    """after and until are exclusive; types by path or by query."""
    trade(client, truth, 3)
    alpaca.control.activity("DIV", net_amount="1.50", symbol="F", qty=0)
    first = truth.account["activities"][0]["transaction_time"]
    assert len(client.get("/account/activities", {"after": first})) == 3
    assert client.get("/account/activities", {"until": first}) == []
    assert len(client.get("/account/activities", {"activity_types": "DIV,FEE"})) == 1
    assert len(client.get("/account/activities/DIV")) == 1
    assert len(client.get("/account/activities/FILL")) == 3


def test_dividends_fees_and_splits_move_the_book(client, truth, alpaca):
    """Cash by net_amount, shares by qty; a split leaves the cost."""
    client.submit_order(market("AAPL", 10))
    eventually(lambda: truth.position("AAPL") == 10)
    cash = Decimal(truth.account["cash"])
    alpaca.control.activity("DIV", net_amount="2.40", symbol="AAPL", per_share_amount="0.24")
    alpaca.control.activity("FEE", net_amount="-0.02", description="TAF fee")
    alpaca.control.activity("SPLIT", symbol="AAPL", qty=10, description="2 for 1")
    alpaca.control.activity("JNLC", net_amount=1000)
    assert Decimal(truth.account["cash"]) == cash + Decimal("1002.38")
    assert truth.account["positions"]["AAPL"] == {"qty": "20", "avg_entry_price": "95"}
    types = [line["activity_type"] for line in client.get("/account/activities", {"direction": "asc"})]
    assert types == ["FILL", "DIV", "FEE", "SPLIT", "JNLC"]
    assert client.get("/account/activities/DIV")[0]["per_share_amount"] == "0.24"


def test_busts_and_corrections_by_hand(client, truth, alpaca, stream):
    """The stream names the execution that was; the list of fills tells only what holds."""
    client.submit_order(market("AAPL", 10, name="a"))
    client.submit_order(market("AAPL", 5, name="b"))
    eventually(lambda: len(truth.account["executions"]) == 2)
    first, second = truth.account["executions"]
    alpaca.control.bust(first["execution_id"])
    alpaca.control.correct(second["execution_id"], qty=4, price="189")
    assert truth.account["positions"]["AAPL"] == {"qty": "4", "avg_entry_price": "189"}
    assert Decimal(truth.account["cash"]) == 100_000 - 4 * 189
    [line] = client.get("/account/activities/FILL")
    assert (line["qty"], line["price"], line["cum_qty"]) == ("4", "189", "4")
    eventually(lambda: stream.events("a")[-1:] + stream.events("b")[-1:] == ["trade_bust", "trade_correct"])
    with pytest.raises(ControlError, match="already busted"):
        alpaca.control.bust(first["execution_id"])


def test_orders_by_hand_are_marked_in_the_dump_alone(client, truth, alpaca, stream):
    """The API shows an order like any other, with a name that somebody else chose."""
    told = alpaca.control.external("AAPL", "buy", 3)
    eventually(lambda: truth.position("AAPL") == 3)
    assert truth.account["orders"][0]["external"] is True
    assert str(client.get_order_by_client_id(told["client_order_id"]).id) == told["id"]
    eventually(lambda: stream.events(told["client_order_id"]) == ["pending_new", "new", "fill"])
    with pytest.raises(ControlError, match="insufficient qty"):
        alpaca.control.external("AAPL", "sell", 4)
    alpaca.control.external("AAPL", "sell", 4, force=True)
    eventually(lambda: truth.position("AAPL") == -1)
