"""The websocket of order updates: opened, watched, opened again; and trading goes on without it."""

import asyncio
import json
from contextlib import asynccontextmanager
from http import HTTPStatus

import pytest
from alpaca_samples import order_json, update
from msgspec.structs import replace
from paper_samples import limit, make_order, whats
from rigs import FAST, AlpacaRig, connected
from websockets.asyncio.server import serve

from desk_server.brokers import What
from desk_server.brokers.alpaca.stream import TradeStream, stream_url_of
from desk_server.brokers.alpaca.updates import Updates
from desk_server.clock import SystemClock

AUTHORIZED = {"stream": "authorization", "data": {"status": "authorized", "action": "authenticate"}}
LISTENING = {"stream": "listening", "data": {"streams": ["trade_updates"]}}
eventually = AlpacaRig.eventually


class Told:
    """What a stream under test has delivered, and its gaps."""

    def __init__(self) -> None:
        self.events, self.gaps, self.visits, self.said = [], 0, 0, []

    async def deliver(self, event) -> None:
        await self.on_event(event)

    async def on_event(self, event) -> None:
        self.events.append(event)

    def gap(self) -> None:
        self.gaps += 1


@asynccontextmanager
async def streaming(talk, tuning=FAST, process_request=None):
    """A TradeStream on a server that does what `talk(socket, told)` says with each connection."""
    told = Told()

    async def handle(socket) -> None:
        told.visits += 1
        await talk(socket, told)

    async with serve(handle, "127.0.0.1", 0, process_request=process_request) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/stream"
        stream = TradeStream(
            url, "key", "secret", updates=Updates(), tuning=tuning, clock=SystemClock(), on_gap=told.gap
        )
        task = asyncio.create_task(stream.run(told.deliver))
        try:
            yield stream, told
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def introduce(socket, told) -> None:
    """The broker's part of the opening, in binary frames as on paper."""
    told.said.append(json.loads(await socket.recv()))
    await socket.send(json.dumps(AUTHORIZED).encode())
    told.said.append(json.loads(await socket.recv()))
    await socket.send(json.dumps(LISTENING).encode())


def frame(event: str, **changes) -> str:
    return json.dumps({"stream": "trade_updates", "data": update(event, order_json(**changes))})


async def test_it_says_who_it_is_and_listens():
    """In the two messages of the protocol; text and binary frames are read alike."""

    async def talk(socket, told) -> None:
        await introduce(socket, told)
        await socket.send(frame("new", id="a"))
        await socket.send(frame("new", id="b").encode())
        await socket.wait_closed()

    async with streaming(talk) as (stream, told):
        await eventually(lambda: len(told.events) == 2)
        assert [event.broker_order_id for event in told.events] == ["a", "b"]
        assert told.said == [
            {"action": "authenticate", "data": {"key_id": "key", "secret_key": "secret"}},
            {"action": "listen", "data": {"streams": ["trade_updates"]}},
        ]
        assert (stream.problem, told.gaps, told.visits) == ("", 1, 1)


async def test_an_update_that_cannot_be_read_is_a_gap_and_no_more():
    """The next is delivered, and the records are asked for what this one said."""

    async def talk(socket, told) -> None:
        await introduce(socket, told)
        await socket.send(frame("fill", id="a", filled_qty="10"))
        await socket.send(json.dumps({"stream": "trade_updates", "data": {"event": "new", "order": {"id": "x"}}}))
        await socket.send(json.dumps({"stream": "gremlins", "data": None}))
        await socket.send(frame("gremlin", id="b", status="suspended"))
        await socket.wait_closed()

    async with streaming(talk) as (_, told):
        await eventually(lambda: told.events)
        assert [(event.what, event.broker_order_id) for event in told.events] == [(What.ACCEPTED, "b")]
        assert (told.gaps, told.visits) == (3, 1)


async def test_a_frame_that_is_no_json_ends_the_session():
    """What follows it cannot be trusted; a new session can."""

    async def talk(socket, told) -> None:
        await introduce(socket, told)
        await socket.send(b'{"stream": "trade_upd' if told.visits == 1 else frame("new"))
        await socket.wait_closed()

    async with streaming(talk) as (_, told):
        await eventually(lambda: told.events)
        assert (told.visits, told.gaps) == (2, 2)


async def test_a_refused_key_is_said_and_not_asked_with_again_and_again():
    """Once per `refused_s`, however short the other waits are."""

    async def talk(socket, told) -> None:
        await socket.recv()
        await socket.send('{"stream": "authorization", "data": {"status": "unauthorized", "action": "authenticate"}}')
        await socket.close()

    async with streaming(talk, replace(FAST, refused_s=600.0, backoff_s=0.001)) as (stream, told):
        await eventually(lambda: "refuses the key" in stream.problem)
        await asyncio.sleep(0.2)
        assert (told.visits, told.gaps) == (1, 0)


@pytest.mark.parametrize(
    ("status", "says"), [(401, "refuses the key"), (406, "no further connection"), (429, "no further connection")]
)
async def test_a_refused_connection_is_said_and_not_asked_for_again_and_again(status, says):
    """Too many connections, or no key: the words say what to do."""
    asked = []

    def refuse(connection, request):
        asked.append(request.path)
        return connection.respond(HTTPStatus(status), "no\n")

    async with streaming(None, replace(FAST, refused_s=600.0, backoff_s=0.001), refuse) as (stream, _):
        await eventually(lambda: says in stream.problem, lambda: stream.problem)
        await asyncio.sleep(0.2)
        assert asked == ["/stream"]


async def test_a_stream_that_ends_at_once_is_opened_again_ever_more_slowly():
    """Growing waits, not a storm."""

    async def talk(socket, told) -> None:
        await introduce(socket, told)

    async with streaming(talk, replace(FAST, backoff_s=0.02, backoff_max_s=60.0)) as (_, told):
        await eventually(lambda: told.visits >= 3)
        seen = told.visits
        await asyncio.sleep(0.6)
        assert told.visits <= seen + 5


async def test_a_server_that_never_answers_the_login_is_left():
    """Half an opening is none."""

    async def talk(socket, told) -> None:
        await socket.recv()
        if told.visits > 1:
            await socket.send(json.dumps(AUTHORIZED))
            await socket.recv()
            await socket.send(json.dumps(LISTENING))
        await socket.wait_closed()

    async with streaming(talk, replace(FAST, open_s=0.2)) as (stream, told):
        await eventually(lambda: not stream.problem, lambda: stream.problem)
        assert told.visits == 2


async def test_what_the_desk_fails_to_take_is_not_lost_silently():
    """The session ends, the next opens with a gap."""

    async def talk(socket, told) -> None:
        await introduce(socket, told)
        await socket.send(frame("new"))
        await socket.wait_closed()

    async with streaming(talk) as (stream, told):
        taken = told.on_event

        async def fails_once(event) -> None:
            told.on_event = taken
            raise RuntimeError("the desk's own mistake")

        told.on_event = fails_once
        await eventually(lambda: told.events)
        assert (told.visits, told.gaps, stream.problem) == (2, 2, "")


async def test_who_doubts_the_stream_gets_a_new_one():
    """The records know of something that it never said."""

    async def talk(socket, told) -> None:
        await introduce(socket, told)
        await socket.wait_closed()

    async with streaming(talk) as (stream, told):
        await eventually(lambda: told.gaps == 1)
        stream.doubt("an execution was not told")
        await eventually(lambda: told.gaps == 2)


@pytest.mark.parametrize(
    ("rest", "stream"),
    [
        ("https://paper-api.alpaca.markets", "wss://paper-api.alpaca.markets/stream"),
        ("https://api.alpaca.markets/", "wss://api.alpaca.markets/stream"),
        ("http://127.0.0.1:4000", "ws://127.0.0.1:4000/stream"),
    ],
)
def test_the_streams_address_stands_beside_that_of_rest(rest, stream):
    """Where none is given."""
    assert stream_url_of(rest) == stream


async def test_trading_goes_on_without_the_stream():
    """It is no reason to refuse orders; the records tell what happened."""
    rig = AlpacaRig(FAST)
    async with rig.running():
        rig.broker = rig.make(stream_url="ws://127.0.0.1:1/stream", tuning=replace(FAST, open_s=0.2))
        await rig.broker.connect(rig.on_event)
        try:
            await rig.submit(order := make_order("buy"))
            assert rig.broker.problem() == "" and "do not" not in rig.broker.problem()
            assert "stream" in rig.broker.stream_problem()
            assert (await rig.broker.find(order)).end is What.FILL
            assert rig.events == []
        finally:
            await rig.broker.close()


async def test_the_stream_goes_on_without_answers():
    """While REST is down, what happens is still told."""
    async with connected(AlpacaRig(FAST)) as rig:
        await rig.submit(order := limit("buy", "50"))
        rig.control.faults({"503": 1.0})
        rig.control.fill(order.client_order_id)
        await rig.until(order, "fill")
        assert rig.broker.stream_problem() == ""


async def test_each_reset_is_a_gap_and_the_stream_comes_back():
    """Cut by either end, gently or not."""
    async with connected(AlpacaRig(FAST)) as rig:
        for how in ("close", "reset"):
            gaps = rig.gaps
            rig.control.disconnect(how)
            await rig.eventually(lambda gaps=gaps: rig.gaps > gaps)
            await rig.submit(order := make_order("buy"))
            await rig.until(order, "fill")
        assert whats(rig.events).count("fill") == 2


async def test_connecting_twice_is_a_mistake():
    """Events would come twice."""
    async with connected(AlpacaRig(FAST)) as rig:
        with pytest.raises(RuntimeError):
            await rig.broker.connect(rig.on_event)
