"""The Broker API: sub-accounts with books of their own, and events that can be replayed."""

import json
import threading
from collections.abc import Iterator

import pytest
import requests
from alpaca.broker.client import BrokerClient
from alpaca.broker.requests import (
    GetAccountActivitiesRequest,
    GetEventsRequest,
    LimitOrderRequest,
    MarketOrderRequest,
)
from alpaca.common.exceptions import APIError
from alpaca.trading.requests import GetOrdersRequest, ReplaceOrderRequest

from tests.alpaca.conftest import eventually


def market(name: str, qty: int = 1, side: str = "buy") -> MarketOrderRequest:
    return MarketOrderRequest(symbol="AAPL", qty=qty, side=side, time_in_force="day", client_order_id=name)


def filled(broker: BrokerClient, account: str, name: str) -> None:
    eventually(lambda: broker.get_order_for_account_by_client_id(account, name).status == "filled")


def heard(events: Iterator[str], count: int) -> list[dict]:
    return [json.loads(next(events)) for _ in range(count)]


def test_each_account_has_its_own_book(alpaca, broker, client):
    """Orders, positions and names of one are unknown to the others, and to the Trading API's account."""
    one, two = alpaca.accounts
    broker.submit_order_for_account(one, market("a", 3))
    broker.submit_order_for_account(two, market("a", 5))
    filled(broker, one, "a")
    filled(broker, two, "a")
    assert [p.qty for p in broker.get_all_positions_for_account(one)] == ["3"]
    assert broker.get_open_position_for_account(two, "AAPL").qty == "5"
    assert broker.get_trade_account_by_id(one).cash == "99430"
    assert client.get_all_positions() == []
    with pytest.raises(APIError):
        client.get_order_by_client_id("a")
    positions = broker.get_all_accounts_positions().positions
    assert {account: held[0].qty for account, held in positions.items()} == {one: "3", two: "5"}


def test_every_order_verb_works(alpaca, broker):
    """List, find, replace, cancel, cancel all, close."""
    account = alpaca.accounts[0]
    resting = LimitOrderRequest(
        symbol="AAPL", qty=2, side="buy", time_in_force="gtc", limit_price=100, client_order_id="a"
    )
    told = broker.submit_order_for_account(account, resting)
    eventually(lambda: broker.get_order_for_account_by_id(account, told.id).status == "new")
    new = broker.replace_order_for_account_by_id(account, told.id, ReplaceOrderRequest(qty=3, client_order_id="b"))
    eventually(lambda: broker.get_order_for_account_by_id(account, new.id).status == "new")
    broker.cancel_order_for_account_by_id(account, new.id)
    eventually(lambda: broker.get_orders_for_account(account) == [])
    every = broker.get_orders_for_account(account, GetOrdersRequest(status="all"))
    assert [(o.client_order_id, o.status) for o in every] == [("b", "canceled"), ("a", "replaced")]
    broker.submit_order_for_account(account, market("c"))
    filled(broker, account, "c")
    assert broker.cancel_orders_for_account(account) == []
    broker.close_all_positions_for_account(account, cancel_orders=True)
    eventually(lambda: broker.get_all_positions_for_account(account) == [])


def test_an_unknown_account_or_a_trading_key_is_refused(alpaca, broker):
    """404 and 401."""
    with pytest.raises(APIError) as caught:
        broker.get_trade_account_by_id("11111111-1111-4111-8111-111111111111")
    assert caught.value.status_code == 404
    with pytest.raises(APIError) as caught:
        BrokerClient("key", "secret", url_override=alpaca.url).get_trade_account_by_id(alpaca.accounts[0])
    assert caught.value.status_code == 401


def test_activities_of_all_accounts_are_paged_by_the_sdk(alpaca, broker):
    """Every fill once, over several pages, with its account."""
    for index in range(60):
        for account in alpaca.accounts:
            broker.submit_order_for_account(account, market(f"a{index}"))
    for account in alpaca.accounts:
        filled(broker, account, "a59")
    lines = broker.get_account_activities(GetAccountActivitiesRequest())
    assert len({line.id for line in lines}) == len(lines) == 120
    assert {str(line.account_id) for line in lines} == set(alpaca.accounts)
    only = broker.get_account_activities(GetAccountActivitiesRequest(account_id=alpaca.accounts[0]))
    assert len(only) == 60
    alpaca.control.activity("DIV", net_amount="0.5", account=alpaca.accounts[0])
    [dividend] = broker.get_account_activities(GetAccountActivitiesRequest(activity_types=["DIV"]))
    assert dividend.net_amount == 0.5


def test_events_are_replayed_from_an_id(alpaca, broker):
    """All accounts' updates, from that one on, then as they happen; ids rise."""
    one, two = alpaca.accounts
    broker.submit_order_for_account(one, market("a"))
    broker.submit_order_for_account(two, market("b"))
    filled(broker, two, "b")
    events = heard(broker.get_trade_events(GetEventsRequest(since_id=1)), 6)
    assert [event["event_id"] for event in events] == [1, 2, 3, 4, 5, 6]
    fills = {event["account_id"]: event for event in events if event["event"] == "fill"}
    assert (fills[one]["order"]["client_order_id"], fills[two]["order"]["client_order_id"]) == ("a", "b")
    assert fills[one]["execution_id"]
    later = broker.get_trade_events(GetEventsRequest(since_id=5))
    assert [event["event_id"] for event in heard(later, 2)] == [5, 6]
    broker.submit_order_for_account(one, market("c"))
    assert [(event["event_id"], event["event"]) for event in heard(later, 3)] == [
        (7, "pending_new"),
        (8, "new"),
        (9, "fill"),
    ]


def test_a_bounded_replay_ends(alpaca, broker):
    """until and until_id close the stream; until without since is refused."""
    broker.submit_order_for_account(alpaca.accounts[0], market("a"))
    filled(broker, alpaca.accounts[0], "a")
    assert len(list(broker.get_trade_events(GetEventsRequest(since_id=1, until_id=2)))) == 2
    assert len(list(broker.get_trade_events(GetEventsRequest(since="2026-01-01", until="2026-01-02")))) == 0
    url = f"{alpaca.url}/v1/events/trades"
    assert broker._session.get(url, params={"until_id": 3}, headers=broker._get_default_headers()).status_code == 422


def test_the_second_version_has_ulids(alpaca, broker):
    """/v2/events/trades: event_id sorts as the events came and can be resumed from."""
    broker.submit_order_for_account(alpaca.accounts[0], market("a"))
    filled(broker, alpaca.accounts[0], "a")

    def told(**query) -> list[dict]:
        response = broker._session.get(
            f"{alpaca.url}/v2/events/trades", params=query, headers=broker._get_default_headers(), timeout=10
        )
        return [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")]

    last = heard(broker.get_trade_events(GetEventsRequest(since_id=3)), 1)[0]["event_ulid"]
    events = told(since="2026-01-01", until_id=last)
    ids = [event["event_id"] for event in events]
    assert len(ids) == 3
    assert sorted(ids) == ids
    assert [event["event_id"] for event in told(since_id=ids[1], until_id=last)] == ids[1:]


def test_a_lost_connection_loses_no_event(alpaca, broker):
    """stream_disconnect strikes, and the replay tells what was not."""
    account = alpaca.accounts[0]
    alpaca.control.arm("stream_disconnect")
    seen: list[dict] = []

    def listen() -> None:
        try:
            for line in broker.get_trade_events(GetEventsRequest(since_id=1)):
                seen.append(json.loads(line))
        except requests.exceptions.RequestException:
            return

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    eventually(lambda: alpaca.control.dump()["connections"]["streams"])
    other = BrokerClient(alpaca.broker_key, alpaca.broker_secret, url_override=alpaca.url)
    other.submit_order_for_account(account, market("a"))
    thread.join(10)
    assert seen == []
    assert [event["event"] for event in heard(other.get_trade_events(GetEventsRequest(since_id=1)), 3)] == [
        "pending_new",
        "new",
        "fill",
    ]


def test_an_event_may_come_again_but_is_never_lost_or_late(alpaca, broker):
    """Of the streams' faults, losing and reordering are not for events that can be replayed."""
    for fault in ("stream_lost", "stream_reordered", "stream_tripled"):
        alpaca.control.arm(fault)
        other = BrokerClient(alpaca.broker_key, alpaca.broker_secret, url_override=alpaca.url)
        events = broker.get_trade_events()
        name = fault

        def submit_once_heard(other: BrokerClient = other, name: str = name) -> None:
            eventually(lambda: alpaca.control.dump()["connections"]["streams"])
            other.submit_order_for_account(alpaca.accounts[0], market(name))

        thread = threading.Thread(target=submit_once_heard)
        thread.start()
        told = [event["event"] for event in heard(events, 5 if fault == "stream_tripled" else 3)]
        thread.join()
        once = ["pending_new", "new", "fill"]
        assert told == (["pending_new"] * 2 + once if fault == "stream_tripled" else once)
        alpaca.control.heal()
        alpaca.control.disconnect()
