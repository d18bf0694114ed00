"""Requests to Alpaca: each has a deadline, is sent once, waits for its like only, and gives no secret away."""

import asyncio
import base64
import json
import logging
import subprocess
import sys
import threading
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from alpaca_samples import order_json
from msgspec.structs import replace
from odd_server import http, odd_server, silence, trickle
from paper_samples import limit, make_group, make_order
from rigs import DEADLINE_S, FAST, AlpacaRig, connected

from desk_server.brokers import BrokerRejected, BrokerThrottled, BrokerUnknown
from desk_server.brokers.alpaca import account
from desk_server.brokers.alpaca.assets import LOOKUPS_PER_MINUTE_MAX
from desk_server.brokers.alpaca.base import is_live
from desk_server.brokers.alpaca.broker_api import AlpacaSubAccounts
from desk_server.brokers.alpaca.trading import AlpacaBroker
from desk_server.domain import OrderChange

SECRET = "s3cr3t-that-must-not-be-seen"
QUICK = replace(FAST, request_s=0.6, read_s=0.4, connect_s=0.4)


@asynccontextmanager
async def broker_at(answer, tuning=QUICK, **more):
    """A broker that is not connected: it sends what the test makes it send, and nothing else."""
    async with odd_server(answer) as server:
        broker = AlpacaBroker("the-key", SECRET, base_url=server.url, tuning=tuning, **more)
        try:
            yield broker, server
        finally:
            await broker.close()


def answered(method, path, headers, body) -> bytes:
    """As Alpaca answers a submit or a lookup of anything."""
    if method == "POST":
        sent = json.loads(body)
        return http(200, json.dumps(order_json(**{**sent, "status": "pending_new"})))
    return http(404, '{"code": 40410000, "message": "order not found for x"}')


async def test_a_request_is_sent_once_with_the_key():
    """Whatever is answered; nothing is sent again by itself."""
    for status in (429, 500, 502, 503, 504):
        async with broker_at(lambda *_, status=status: http(status)) as (broker, server):
            with pytest.raises(BrokerUnknown):
                await broker.submit(limit("buy", "50"))
            ((method, path, headers, _),) = server.seen
            assert (method, path) == ("POST", "/v2/orders")
            assert (headers["apca-api-key-id"], headers["apca-api-secret-key"]) == ("the-key", SECRET)


async def test_amounts_arrive_with_all_their_digits():
    """As strings: no float stands between the desk and the broker."""
    async with broker_at(answered) as (broker, server):
        await broker.submit(limit("buy", "0.30000000000000001", "0.1234567891", symbol="BTC/USD", tif="gtc"))
        sent = json.loads(server.seen[0][3])
    assert (sent["qty"], sent["limit_price"]) == ("0.1234567891", "0.30000000000000001")


async def test_a_redirect_is_not_followed():
    """An order must not end up somewhere else."""
    async with odd_server(answered) as elsewhere:
        redirected = lambda *_: http(307, Location=f"{elsewhere.url}/v2/orders")  # noqa: E731
        async with broker_at(redirected) as (broker, _):
            with pytest.raises(BrokerUnknown):
                await broker.submit(limit("buy", "50"))
        assert elsewhere.seen == []


@pytest.mark.parametrize("odd", [silence, trickle])
async def test_no_request_lasts_longer_than_its_deadline(odd):
    """Neither with a server that says nothing, nor with one that never stops; then the thread is free again."""
    stuck = True
    async with broker_at(lambda *asked: odd if stuck else answered(*asked)) as (broker, _):
        orders = [limit("buy", "50") for _ in range(QUICK.order_threads)]
        results = await asyncio.wait_for(
            asyncio.gather(*(broker.submit(order) for order in orders), return_exceptions=True), DEADLINE_S
        )
        assert {type(result) for result in results} == {BrokerUnknown}
        stuck = False
        done = await asyncio.gather(*(broker.submit(limit("buy", "50")) for _ in range(QUICK.order_threads)))
        assert len(done) == QUICK.order_threads


async def test_lookups_and_cancels_do_not_wait_for_orders():
    """When no order is answered, and more wait than can be sent, a lookup is."""
    stuck = lambda method, *rest: silence if method == "POST" else answered(method, *rest)  # noqa: E731
    async with broker_at(stuck, replace(QUICK, request_s=5.0, read_s=5.0)) as (broker, server):
        orders = [asyncio.ensure_future(broker.submit(limit("buy", "50"))) for _ in range(20)]
        await AlpacaRig.eventually(lambda: len(server.seen) == QUICK.order_threads)
        assert await broker.find(limit("buy", "50")) is None
        with pytest.raises(BrokerRejected):
            await broker.cancel(limit("buy", "50"))
        assert not any(order.done() for order in orders)
        for order in orders:
            order.cancel()


async def test_too_many_waiting_requests_are_refused_unsent():
    """The crowd that waits has a bound; who comes later may try again, as nothing was sent."""
    tuning = replace(QUICK, order_threads=1, waiting_max=2, request_s=3.0, read_s=3.0)
    async with broker_at(lambda *_: silence, tuning) as (broker, server):
        waiting = [asyncio.ensure_future(broker.submit(limit("buy", "50"))) for _ in range(3)]
        await AlpacaRig.eventually(lambda: len(server.seen) == 1)
        with pytest.raises(BrokerThrottled):
            await broker.submit(limit("buy", "50"))
        assert len(server.seen) == 1
        for one in waiting:
            one.cancel()


async def test_an_order_that_waited_is_not_sent_when_it_may_not_be_any_more():
    """A halt holds what is still on its way to the broker."""
    tuning = replace(QUICK, order_threads=1, request_s=2.0, read_s=1.0)
    async with broker_at(lambda *_: silence, tuning) as (broker, server):
        halted = []
        broker.may_send = lambda order: "halted" if halted else ""
        first, second = (asyncio.ensure_future(broker.submit(limit("buy", "50"))) for _ in range(2))
        await AlpacaRig.eventually(lambda: len(server.seen) == 1)
        halted.append(True)
        results = await asyncio.gather(first, second, return_exceptions=True)
        assert [type(result) for result in results] == [BrokerUnknown, BrokerThrottled]
        assert len(server.seen) == 1


async def test_who_is_fenced_off_changes_nothing_any_more():
    """Another desk may be at work: neither orders nor cancels go out, but looking is allowed."""
    async with broker_at(answered) as (broker, server):
        broker.fenced = lambda: "another server has the ledger"
        known = replace(limit("buy", "50"), broker_order_id="61e69015-8549-4bfd-b9c3-01e75843f47d")
        for ask in (
            broker.submit(limit("buy", "50")),
            broker.cancel(known),
            broker.replace(known, limit("buy", "51"), OrderChange(limit_price=Decimal(51))),
        ):
            with pytest.raises(BrokerThrottled):
                await ask
        assert server.seen == []
        assert await broker.find(known) is None


async def test_who_stood_still_between_decision_and_request_sends_nothing():
    """A process that was paused just before an order's bytes left asks once more, in the thread that sends them."""
    async with broker_at(answered) as (broker, server):
        loop_thread = threading.get_ident()
        broker.fenced = lambda: "" if threading.get_ident() == loop_thread else "another server has the ledger"
        with pytest.raises(BrokerThrottled):
            await broker.submit(limit("buy", "50"))
        assert server.seen == []


async def test_a_connection_that_was_closed_meanwhile_is_opened_anew():
    """A server that ends each connection without a word does not make requests fail."""
    async with broker_at(answered) as (broker, server):
        server.keeps_open = False
        for _ in range(5):
            assert await broker.find(limit("buy", "50")) is None
            await asyncio.sleep(0.02)


async def test_nobody_there_is_no_answer():
    """A refused connection proves nothing, and says so at once."""
    broker = AlpacaBroker("the-key", SECRET, base_url="http://127.0.0.1:1", tuning=QUICK)
    with pytest.raises(BrokerUnknown, match="did not answer"):
        await broker.submit(limit("buy", "50"))
    assert broker.problem() == "Alpaca has not answered yet"
    await broker.close()


async def test_what_is_not_done_ends_with_the_broker():
    """Closing ends what is under way, and leaves no thread behind."""
    async with broker_at(lambda *_: silence, replace(QUICK, request_s=30.0, read_s=30.0)) as (broker, server):
        under_way = asyncio.ensure_future(broker.submit(limit("buy", "50")))
        await AlpacaRig.eventually(lambda: len(server.seen) == 1)
        await asyncio.wait_for(broker.close(), DEADLINE_S)
        with pytest.raises(BrokerUnknown):
            await under_way
        with pytest.raises(BrokerThrottled):
            await broker.submit(limit("buy", "50"))
    mine = lambda: [one.name for one in threading.enumerate() if one.name.startswith("alpaca-orders")]  # noqa: E731
    await AlpacaRig.eventually(lambda: not mine(), mine)


async def test_a_netrc_does_not_replace_the_key(tmp_path, monkeypatch):
    """The library below would take a login for this host from there."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login mallory password guess\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    async with odd_server(answered) as server:
        broker = AlpacaSubAccounts("the-key", SECRET, accounts={"alice": "acc"}, base_url=server.url, tuning=QUICK)
        assert await broker.find(limit("buy", "50")) is None
        await broker.close()
    expected = "Basic " + base64.b64encode(f"the-key:{SECRET}".encode()).decode()
    assert [headers["authorization"] for _, _, headers, _ in server.seen] == [expected]


async def test_no_secret_is_raised_or_logged(caplog, capsys):
    """Whatever goes wrong, at the most talkative level of every library."""
    caplog.set_level(logging.DEBUG)
    said = []
    for answer in (lambda *_: silence, lambda *_: http(401, '{"message": "unauthorized."}'), lambda *_: b"garbage\r\n"):
        async with broker_at(answer, replace(QUICK, open_s=0.3)) as (broker, _):
            await asyncio.wait_for(broker.connect(None), DEADLINE_S)
            for ask in (broker.submit(limit("buy", "50")), broker.holdings(), broker.find(limit("buy", "50"))):
                with pytest.raises(BrokerUnknown) as error:
                    await ask
                said += [repr(error.value), str(error.value), repr(error.value.__cause__)]
            said += [broker.problem(), broker.stream_problem()]
    captured = capsys.readouterr()
    everything = "\n".join((caplog.text, captured.out, captured.err, *said))
    basic = base64.b64encode(f"the-key:{SECRET}".encode()).decode()
    assert "unauthorized" not in said and len(everything) > 100
    assert SECRET not in everything and basic not in everything


async def test_a_refused_key_is_a_problem_until_it_is_taken():
    """The message says what to check."""
    refused = True
    clock = {"timestamp": "2026-11-20T12:00:00Z", "is_open": True}
    clock |= {"next_open": "2026-11-23T14:30:00Z", "next_close": "2026-11-20T21:00:00Z"}
    unauthorized = http(401, '{"message": "unauthorized."}')
    async with broker_at(lambda *_: unauthorized if refused else http(200, json.dumps(clock))) as (broker, _):
        with pytest.raises(BrokerUnknown):
            await broker.market_clock()
        assert "refuses the key" in broker.problem()
        refused = False
        assert (await broker.market_clock()).is_open
        assert broker.problem() == ""


async def test_a_broker_that_falls_silent_is_a_problem():
    """So is one behind a page of HTML; and it is none any more when it is back."""
    async with connected(AlpacaRig(FAST)) as rig:
        for fault in ("503", "html_403"):
            assert rig.broker.problem() == ""
            rig.control.faults({fault: 1.0})
            await rig.eventually(lambda: "has not answered for" in rig.broker.problem(), rig.broker.problem)
            rig.control.heal()
            await rig.eventually(lambda: not rig.broker.problem(), rig.broker.problem)


async def test_a_blocked_account_is_a_problem():
    """It is noticed without an order, and so is that it is free again."""
    async with connected(AlpacaRig(FAST)) as rig:
        rig.control.account(blocked=True)
        await rig.eventually(lambda: "may not trade" in rig.broker.problem(), rig.broker.problem)
        assert "may not trade" in (await rig.broker.holdings())[0].problem
        rig.control.account(blocked=False)
        await rig.eventually(lambda: not rig.broker.problem(), rig.broker.problem)


async def test_the_rate_limit_is_read_not_assumed():
    """From the headers of any answer."""
    limits = {"X-RateLimit-Limit": "200", "X-RateLimit-Remaining": "77", "X-RateLimit-Reset": "1795176000"}
    async with broker_at(lambda *_: http(404, '{"code": 40410000, "message": "no"}', **limits)) as (broker, _):
        assert broker.rate is None
        await broker.find(limit("buy", "50"))
        assert (broker.rate.limit, broker.rate.remaining, broker.rate.reset) == (200, 77, 1795176000)


@pytest.mark.parametrize("overlap", [timedelta(milliseconds=1), timedelta(hours=1)])
async def test_lists_longer_than_a_page_are_whole(monkeypatch, overlap):
    """Every order and execution once, also where a page's edge falls between orders of one moment, and where what
    is asked for twice is more than a page."""
    monkeypatch.setattr(account, "_OVERLAP", overlap)
    monkeypatch.setattr(account, "ORDERS_PAGE", 4)
    monkeypatch.setattr(account, "ACTIVITIES_PAGE", 4)
    async with connected(AlpacaRig(FAST)) as rig:
        start = datetime.now(UTC)
        orders = [make_order("buy", "1") for _ in range(7)] + [limit("buy", "50") for _ in range(7)]
        await asyncio.gather(*(rig.submit(order) for order in orders))
        await rig.eventually(lambda: len(rig.fills()) == 7)
        listed = await rig.broker.orders(start)
        assert sorted(one.client_order_id for one in listed) == sorted(order.client_order_id for order in orders)
        assert [one.created_at for one in listed] == sorted(one.created_at for one in listed)
        recorded = await rig.broker.executions(start)
        assert len({one.execution_id for one in recorded}) == len(recorded) == 7


async def test_assets_cost_few_requests_whatever_is_asked_for():
    """The list is fetched once; thought-up symbols cannot use up the broker's patience."""
    async with connected(AlpacaRig(FAST)) as rig:
        before = rig.control.dump(posts=False)["requests"]["read"]
        assert all(
            [await rig.broker.asset(symbol) for symbol in ("AAPL", "MSFT", "TSLA", "BTC/USD") for _ in range(50)]
        )
        assert [await rig.broker.asset(symbol) for symbol in ("nope", "../orders", "?x=1", "A" * 40)] == [None] * 4
        refused = 0
        for number in range(100):
            try:
                assert await rig.broker.asset(f"X{number}") is None
                assert await rig.broker.asset("X0") is None
            except BrokerThrottled as no:
                assert 0 < no.retry_after_s <= 60
                refused += 1
        assert refused == 100 - LOOKUPS_PER_MINUTE_MAX
        checks = 40
        assert rig.control.dump(posts=False)["requests"]["read"] - before <= 2 + LOOKUPS_PER_MINUTE_MAX + checks


async def test_a_new_listing_is_found():
    """What is not in the list is asked for by name."""
    async with connected(AlpacaRig(FAST)) as rig:
        assert await rig.broker.asset("AAPL")
        await rig.market("12", "NEWCO")
        assert (await rig.broker.asset("NEWCO")).symbol == "NEWCO"


async def test_a_replacement_of_a_partly_filled_order_gets_the_rest():
    """`change.qty` is the new total: what has filled counts towards it, as at Alpaca."""
    async with connected(AlpacaRig(FAST)) as rig:
        rig.control.settings(fills="held")
        await rig.submit(old := limit("buy", "50", "10"))
        rig.control.fill(old.client_order_id, qty=4)
        await rig.until(old, "fill")
        new = limit("buy", "51", "8")
        ack = await rig.broker.replace(rig.known(old), new, OrderChange(qty=Decimal(12), limit_price=Decimal(51)))
        assert ack.qty == 8
        await rig.until(old, "replaced")
        (said,) = [event for event in rig.about(old) if event.what == "replaced"]
        assert (said.filled_qty, said.qty, said.replaced_by) == (4, 8, new.client_order_id)
        rig.control.fill(new.client_order_id)
        await rig.until(new, "fill")
        assert [(fill.qty, fill.filled_qty) for fill in rig.fills(new)] == [(8, 8)]


def without_legs(lookup):
    """A broker that answers a bracket without its legs, and `lookup` when asked for it again."""

    def answer(method, path, headers, body):
        if method == "GET":
            return lookup
        sent = json.loads(body)
        names = ("client_order_id", "symbol", "side", "type", "qty", "time_in_force", "order_class")
        taken = order_json(limit_price=None, **{name: sent[name] for name in names})
        return http(200, json.dumps(taken))

    return answer


async def test_legs_that_the_answer_leaves_out_are_asked_for():
    """They are told apart by their type, whatever stands first."""
    order, legs = make_group("bracket")
    parts = [order_json(id="s", type="stop", client_order_id="x"), order_json(id="p", client_order_id="y")]
    whole = order_json(type="market", order_class="bracket", client_order_id=order.client_order_id, legs=parts)
    async with broker_at(without_legs(http(200, json.dumps(whole)))) as (broker, server):
        ack = await broker.submit(order, legs)
        assert [leg.broker_order_id for leg in ack.legs] == ["p", "s"]
        assert [method for method, *_ in server.seen] == ["POST", "GET"]


@pytest.mark.parametrize(
    "lookup",
    [
        http(429, '{"code": 42910000, "message": "rate limit exceeded"}'),
        http(404, '{"code": 40410000, "message": "order not found for x"}'),
        http(503),
        http(200, "{}"),
    ],
)
async def test_an_order_that_was_taken_is_never_called_unsent(lookup):
    """A limit that is hit while its legs are asked for does not mean that the order was not looked at."""
    order, legs = make_group("bracket")
    async with broker_at(without_legs(lookup)) as (broker, _):
        with pytest.raises(BrokerUnknown):
            await broker.submit(order, legs)


async def test_a_wash_trade_names_nobodys_order():
    """The broker says whose order stands in the way; the user must not learn it."""
    async with connected(AlpacaRig(FAST)) as rig:
        await rig.submit(first := make_order("buy"))
        await rig.until(first, "fill")
        await rig.submit(theirs := limit("buy", "90"))
        with pytest.raises(BrokerRejected) as no:
            await rig.submit(make_order("sell", "1"))
        assert no.value.code == "40310000" and "wash trade" in no.value.message
        for secret in (theirs.client_order_id, rig.known(theirs).broker_order_id):
            assert secret not in str(no.value)


@pytest.mark.parametrize(
    ("url", "live"),
    [
        ("https://paper-api.alpaca.markets", False),
        ("https://broker-api.sandbox.alpaca.markets", False),
        ("http://127.0.0.1:4000", False),
        ("https://api.alpaca.markets", True),
        ("https://broker-api.alpaca.markets", True),
        ("https://API.ALPACA.MARKETS/", True),
        ("https://trade-proxy.example", True),
        ("https://paper-api.alpaca.markets.example", True),
    ],
)
def test_whatever_is_not_known_to_be_practice_is_live(url, live):
    """A proxy's name tells nothing of where the orders go."""
    assert is_live(url) is live


def test_the_sdk_is_imported_when_a_broker_is_constructed():
    """Who does not trade with Alpaca does not pay for it."""
    check = (
        "import sys\n"
        "import desk_server.brokers.alpaca.trading as trading, desk_server.brokers.alpaca.broker_api\n"
        "assert not {'alpaca', 'requests', 'pandas'} & set(sys.modules), 'too early'\n"
        "trading.AlpacaBroker('key', 'secret')\n"
        "assert 'alpaca' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", check], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


async def test_a_lane_is_not_used_up_by_callers_who_leave():
    """Cancelled waits give their turn back."""
    async with broker_at(answered, replace(QUICK, order_threads=1)) as (broker, _):
        for _ in range(10):
            one = asyncio.ensure_future(broker.submit(limit("buy", "50")))
            await asyncio.sleep(0)
            one.cancel()
        started = time.monotonic()
        assert (await broker.submit(limit("buy", "50"))).status == "pending_new"
        assert time.monotonic() - started < DEADLINE_S
