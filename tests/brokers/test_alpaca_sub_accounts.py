"""The Broker API: each user trades in an account of their own, and no update is lost while the stream is away."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from alpaca_samples import order_json, update
from msgspec.structs import replace
from odd_server import http, odd_server
from paper_samples import limit, make_order
from rigs import FAST, AlpacaRig, SubAccountRig, connected

from desk_server.brokers import BrokerRejected
from desk_server.brokers.alpaca.broker_api import AlpacaSubAccounts

eventually = AlpacaRig.eventually


@pytest.fixture
async def rig():
    async with connected(SubAccountRig(FAST)) as rig:
        yield rig


def of(user: str, order):
    return replace(order, user=user, client_order_id=order.client_order_id.replace("alice", user))


async def test_orders_go_to_their_users_account(rig):
    """What bob buys, bob has."""
    hers, his = make_order("buy", "3"), of("bob", make_order("buy", "5"))
    for order in (hers, his):
        await rig.submit(order)
        await rig.until(order, "fill")
    held = {next(iter(one.users)): one for one in await rig.broker.holdings()}
    assert {user: one.positions[0].qty for user, one in held.items()} == {"alice": 3, "bob": 5}
    assert {user: one.account for user, one in held.items()} == rig.accounts
    assert {event.client_order_id: event.account for event in rig.fills()} == {
        hers.client_order_id: rig.accounts["alice"],
        his.client_order_id: rig.accounts["bob"],
    }
    recorded = await rig.broker.executions(datetime.now(UTC) - timedelta(minutes=1))
    assert {one.qty: one.account for one in recorded} == {3: rig.accounts["alice"], 5: rig.accounts["bob"]}
    listed = await rig.broker.orders(datetime.now(UTC) - timedelta(minutes=1))
    assert [one.account for one in listed] == [rig.accounts["alice"], rig.accounts["bob"]]


async def test_a_user_without_an_account_is_told_so_before_anything_is_sent(rig):
    """Nothing of theirs is ever anywhere."""
    order = of("carol", make_order("buy"))
    with pytest.raises(BrokerRejected) as no:
        await rig.submit(order)
    assert no.value.code == "NO_ACCOUNT"
    assert "users.carol.alpaca_account_id" in no.value.message
    assert await rig.broker.find(order) is None
    assert rig.control.dump()["posts"] == []


async def test_one_users_order_is_not_found_in_anothers_account(rig):
    """Even by its id."""
    await rig.submit(order := limit("buy", "50"))
    assert await rig.broker.find(replace(rig.known(order), user="bob")) is None
    with pytest.raises(BrokerRejected):
        await rig.broker.cancel(replace(rig.known(order), user="bob"))
    assert (await rig.broker.find(order)).is_open


async def test_users_do_not_stand_in_each_others_way(rig):
    """Opposite orders of two accounts are no wash trade."""
    assert rig.broker.capabilities.wash_trades_refused is False
    await rig.submit(first := of("bob", make_order("buy")))
    await rig.until(first, "fill")
    await rig.submit(limit("buy", "90"))
    await rig.submit(sold := of("bob", make_order("sell", "4")))
    await rig.until(sold, "fill")


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_what_happens_while_the_stream_is_away_is_told_afterwards(rig, how):
    """It resumes where it was: nothing is missing, nothing doubled, and there is no gap to look after."""
    orders = [limit("buy", "50") for _ in range(5)]
    for order in orders:
        await rig.submit(order)
    rig.control.settings(fills="held")
    for order in orders:
        rig.control.disconnect(how)
        rig.control.fill(order.client_order_id)
    for order in orders:
        await rig.until(order, "fill")
    await rig.submit(last := limit("buy", "50"))
    rig.control.fill(last.client_order_id)
    await rig.until(last, "fill")
    assert [len(rig.fills(order)) for order in orders] == [1] * 5
    assert rig.gaps == 0


async def test_a_start_replays_what_the_desk_may_have_missed(rig):
    """From when it is told to; events of before are not told again."""
    await rig.submit(before := make_order("buy"))
    await rig.until(before, "fill")
    since = max(event.at for event in rig.events) + timedelta(milliseconds=1)
    await rig.submit(missed := make_order("buy"))
    await rig.until(missed, "fill")
    again = SubAccountRig(FAST)
    again.alpaca, again.control, again.gaps = rig.alpaca, rig.control, 0
    again.broker = again.make(events_since=since)
    await again.broker.connect(again.on_event)
    await again.until(missed, "fill")
    assert again.about(before) == []
    await again.broker.close()


async def test_a_mute_stream_is_opened_again_and_tells_everything(rig):
    """It said nothing after an order."""
    rig.control.arm("stream_silent")
    await rig.submit(order := make_order("buy"))
    await rig.until(order, "fill")
    assert len(rig.fills(order)) == 1


async def test_a_key_that_is_refused_is_a_problem():
    """Of trading as of the stream."""
    rig = SubAccountRig(FAST)
    async with rig.running():
        rig.broker = AlpacaSubAccounts(
            "broker-key", "wrong", accounts=rig.accounts, base_url=rig.alpaca.url, tuning=replace(FAST, open_s=0.3)
        )
        await rig.broker.connect(rig.on_event)
        await eventually(lambda: "refuses the key" in rig.broker.problem(), rig.broker.problem)
        await eventually(lambda: "refuses the key" in rig.broker.stream_problem(), rig.broker.stream_problem)
        await rig.broker.close()


class Events:
    """A source of server-sent events that a test writes itself."""

    def __init__(self, *sessions) -> None:
        self.sessions = list(sessions)
        self.asked = []

    def answer(self, method, path, headers, body):
        if "/events/" not in path:
            return http(404, "{}")
        self.asked.append(path)
        session = self.sessions.pop(0) if self.sessions else b""
        if isinstance(session, int):
            return http(session, "no")

        async def say(reader, writer) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n" + session)
            await writer.drain()
            if self.sessions:
                writer.close()
            await reader.read()

        return say


def event(event_id, account: str = "acc-1", **changes) -> bytes:
    return sse({**update("new", order_json(**changes)), "event_id": event_id, "account_id": account})


def sse(data) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


async def told_by(*sessions, until):
    """(events, gaps, what was asked for) of a broker that gets these sessions."""
    events, gaps, source = [], [], Events(*sessions)

    async def on_event(one) -> None:
        events.append(one)

    async with odd_server(source.answer) as server:
        broker = AlpacaSubAccounts(
            "key",
            "secret",
            accounts={"alice": "acc-1"},
            base_url=server.url,
            events_since=datetime(2026, 11, 20, tzinfo=UTC),
            on_gap=lambda: gaps.append(1),
            tuning=replace(FAST, open_s=0.2),
        )
        await broker.connect(on_event)
        await eventually(lambda: until(events, gaps), lambda: (events, source.asked))
        await broker.close()
    return [one.broker_order_id for one in events], len(gaps), source.asked


async def test_each_session_goes_on_after_the_last_event_that_was_delivered():
    """The one where a replay begins is told again, and known again."""
    told, gaps, asked = await told_by(
        event("01A", id="a") + event("01B", id="b"),
        event("01B", id="b") + event("01C", id="c"),
        until=lambda events, gaps: len(events) == 3,
    )
    assert told == ["a", "b", "c"]
    assert asked[:2] == ["/v2/events/trades?since=2026-11-20T00%3A00%3A00.000000Z", "/v2/events/trades?since_id=01B"]
    assert gaps == 0


async def test_events_are_read_however_they_are_cut():
    """Comments, fields nobody needs, data over several lines, carriage returns, other people's accounts."""
    pieces = json.dumps({**update("new", order_json(id="b")), "event_id": "2", "account_id": "acc-1"}, indent=1)
    several = "".join(f"data: {line}\r\n" for line in pieces.splitlines()).encode() + b"\r\n"
    told, gaps, _ = await told_by(
        b": hello\n\nevent: message\nretry: 5\n" + event("1", id="a") + several + event("3", account="other", id="x"),
        event("4", id="c"),
        until=lambda events, gaps: len(events) == 3,
    )
    assert (told, gaps) == (["a", "b", "c"], 0)


async def test_events_that_alpaca_left_out_are_a_gap():
    """It says so in a comment only."""
    told, gaps, _ = await told_by(
        event("1", id="a") + b": you are reading too slowly, dropped 10000 messages\n\n" + event("9", id="b"),
        until=lambda events, gaps: len(events) == 2,
    )
    assert (told, gaps) == (["a", "b"], 1)


async def test_an_event_that_was_cut_off_is_told_again():
    """What is not whole was not delivered."""
    told, _, asked = await told_by(
        event("1", id="a") + event("2", id="b")[:-40],
        event("1", id="a") + event("2", id="b"),
        until=lambda events, gaps: len(events) == 2,
    )
    assert told == ["a", "b"]
    assert asked[1].endswith("since_id=1")


async def test_an_event_that_is_no_json_is_a_gap_and_not_asked_for_again_and_again():
    """Those after it are delivered; odd characters inside of one end no line."""
    odd = json.dumps({**update("new", order_json(id="b")), "event_id": "2", "account_id": "acc-1", "x": "\u2028\x85"})
    odd_raw = json.dumps(json.loads(odd), ensure_ascii=False).encode()
    told, gaps, asked = await told_by(
        event("1", id="a") + b"data: {no json\n\n" + b"data: " + odd_raw + b"\n\n",
        until=lambda events, gaps: len(events) == 2,
    )
    assert (told, gaps, len(asked)) == (["a", "b"], 1, 1)


async def test_where_there_is_no_second_version_the_first_is_used():
    """With its numbers as ids."""
    told, _, asked = await told_by(
        404, event(41, id="a"), event(42, id="b"), until=lambda events, gaps: len(events) == 2
    )
    assert told == ["a", "b"]
    assert [path.partition("?")[0] for path in asked[:3]] == ["/v2/events/trades", *["/v1/events/trades"] * 2]
    assert asked[2].endswith("since_id=41")
