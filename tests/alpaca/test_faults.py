"""Every fault of the table, shown to the unmodified alpaca-py, is what it says. A fault without a proof fails."""

import asyncio
import functools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

import pytest
import requests
from alpaca.common.exceptions import APIError
from alpaca.trading.client import TradingClient
from alpaca.trading.requests import GetOrdersRequest
from pydantic import ValidationError

from tests.alpaca.conftest import Listening, Truth, eventually, limit, market
from tests.alpaca.control_client import Control, ControlError
from tests.alpaca.faults import FAULTS
from tests.alpaca.server import Running

# What no answer looks like to a client that gives up after this long.
TIMEOUT_S = 1.0


@dataclass
class Scene:
    alpaca: Running
    client: TradingClient
    truth: Truth
    control: Control

    def arm(self, fault: str, times: int = 1, **more) -> None:
        self.control.arm(fault, times, **more)

    def count(self, fault: str) -> int:
        return self.control.counts()[fault]

    def listen(self) -> Listening:
        return Listening(self.alpaca)

    def submit_unheard(self, name: str, error: type[Exception], **more) -> Exception:
        """A submit that ends in that error."""
        with pytest.raises(error) as caught:
            self.client.submit_order(market("AAPL", 1, name=name, **more))
        return caught.value

    def lives(self, name: str) -> bool:
        return name in self.truth.names()


@pytest.fixture
def scene(alpaca, client, truth) -> Scene:
    client._session.request = functools.partial(client._session.request, timeout=TIMEOUT_S)
    return Scene(alpaca, client, truth, alpaca.control)


PROOFS: dict[str, Callable[[Scene], None]] = {}


def proves(fault: str):
    def keep(proof: Callable[[Scene], None]) -> Callable[[Scene], None]:
        PROOFS[fault] = proof
        return proof

    return keep


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_what_it_says(fault, scene):
    """Armed once it is shown once, counted once, and gone."""
    PROOFS[fault](scene)
    assert scene.count(fault) >= 1
    others = {name for name, count in scene.control.counts().items() if count and name != fault}
    assert not others
    scene.control.heal()
    scene.client.submit_order(market("MSFT", 1, name="after"))
    eventually(lambda: scene.client.get_order_by_client_id("after").status == "filled")


def test_every_fault_is_proved():
    """The table and the proofs name the same faults."""
    assert PROOFS.keys() == FAULTS.keys()


# Not accepted.


@proves("reset")
def _reset(scene: Scene) -> None:
    scene.arm("reset")
    scene.submit_unheard("a", requests.exceptions.ConnectionError)
    assert not scene.lives("a")
    assert scene.truth.post("a")["answer"] == "reset"


@proves("half_open_tcp")
def _half_open_tcp(scene: Scene) -> None:
    scene.arm("half_open_tcp", on="submit")
    scene.submit_unheard("a", requests.exceptions.ReadTimeout)
    assert not scene.lives("a")
    stream = scene.listen()
    scene.arm("half_open_tcp", on="event")
    scene.client.submit_order(market("AAPL", 1, name="b"))
    eventually(lambda: scene.client.get_order_by_client_id("b").status == "filled")
    assert not stream.updates
    with pytest.raises(TimeoutError):
        _ping(stream, 0.3)
    scene.control.heal()
    eventually(lambda: _says_something(scene, stream))
    stream.stop()


@proves("503")
def _503(scene: Scene) -> None:
    scene.arm("503")
    assert scene.submit_unheard("a", APIError).status_code == 503
    assert not scene.lives("a")


@proves("429")
def _429(scene: Scene) -> None:
    for headers in (True, False):
        scene.arm("429", headers=headers)
        error = scene.submit_unheard(f"a{headers}", APIError)
        assert (error.status_code, error.code, error.message) == (429, 42910000, "rate limit exceeded")
        assert ("X-RateLimit-Reset" in error.response.headers) is headers
    assert not scene.truth.names()


@proves("html_403")
def _html_403(scene: Scene) -> None:
    scene.arm("html_403")
    error = scene.submit_unheard("a", APIError)
    assert error.status_code == 403
    assert error.response.text.startswith("<html>")
    with pytest.raises(json.JSONDecodeError):
        assert error.code
    assert not scene.lives("a")


@proves("lookup_503")
def _lookup_503(scene: Scene) -> None:
    scene.client.submit_order(market("AAPL", 1, name="a"))
    scene.arm("lookup_503", 2)
    for look in (lambda: scene.client.get_order_by_client_id("a"), scene.client.get_orders):
        with pytest.raises(APIError) as caught:
            look()
        assert caught.value.status_code == 503
    assert scene.client.get_order_by_client_id("a").client_order_id == "a"


@proves("late_landing")
def _late_landing(scene: Scene) -> None:
    for how, error in (("drop", requests.exceptions.ConnectionError), ("silence", requests.exceptions.ReadTimeout)):
        scene.arm("late_landing", how=how, delay_ms=TIMEOUT_S * 1000 + 100)
        scene.submit_unheard(how, error)
        with pytest.raises(APIError) as caught:
            scene.client.get_order_by_client_id(how)
        assert caught.value.status_code == 404
        eventually(lambda name=how: scene.lives(name))
        post = scene.truth.post(how)
        assert post["landed_at_ns"] > post["at_ns"]
        assert post["order_id"]
    resting = scene.client.submit_order(limit("AAPL", 1, 1, name="resting"))
    scene.arm("late_landing", on="cancel", how="drop", delay_ms=100)
    with pytest.raises(requests.exceptions.ConnectionError):
        scene.client.cancel_order_by_id(resting.id)
    assert scene.truth.order("resting")["status"] == "new"
    eventually(lambda: scene.truth.order("resting")["status"] == "canceled")


# Accepted, and badly answered.


@proves("accepted_then_dropped")
def _accepted_then_dropped(scene: Scene) -> None:
    scene.arm("accepted_then_dropped")
    scene.submit_unheard("a", requests.exceptions.ConnectionError)
    assert scene.lives("a")
    assert scene.truth.post("a")["answer"] == "dropped"
    resting = scene.client.submit_order(limit("AAPL", 1, 1, name="b"))
    scene.arm("accepted_then_dropped", on="cancel", client_order_id="b")
    with pytest.raises(requests.exceptions.ConnectionError):
        scene.client.cancel_order_by_id(resting.id)
    eventually(lambda: scene.truth.order("b")["status"] == "canceled")


@proves("accepted_then_504")
def _accepted_then_504(scene: Scene) -> None:
    scene.arm("accepted_then_504")
    assert scene.submit_unheard("a", APIError).status_code == 504
    assert scene.lives("a")


@proves("accepted_then_hang")
def _accepted_then_hang(scene: Scene) -> None:
    scene.arm("accepted_then_hang")
    scene.submit_unheard("a", requests.exceptions.ReadTimeout)
    assert scene.lives("a")


@proves("slow_success")
def _slow_success(scene: Scene) -> None:
    scene.arm("slow_success", delay_ms=200)
    started = time.monotonic()
    assert scene.client.submit_order(market("AAPL", 1, name="a")).client_order_id == "a"
    assert time.monotonic() - started >= 0.2
    assert scene.lives("a")


@proves("truncated_json")
def _truncated_json(scene: Scene) -> None:
    scene.arm("truncated_json", how="body")
    scene.submit_unheard("body", requests.exceptions.JSONDecodeError)
    scene.arm("truncated_json", how="wire")
    scene.submit_unheard("wire", requests.exceptions.RequestException)
    assert scene.truth.names() == ["body", "wire"]


@proves("byte_by_byte")
def _byte_by_byte(scene: Scene) -> None:
    scene.arm("byte_by_byte", gap_ms=0.1)
    told = scene.client.submit_order(market("AAPL", 1, name="a"))
    assert (told.client_order_id, str(told.id)) == ("a", scene.truth.order("a")["id"])


@proves("wrong_echo")
def _wrong_echo(scene: Scene) -> None:
    scene.arm("wrong_echo", 2)
    assert scene.client.submit_order(market("AAPL", 1, name="a")).client_order_id == "a", "there was no other yet"
    assert scene.client.submit_order(market("AAPL", 1, name="b")).client_order_id == "a"
    assert scene.client.get_order_by_client_id("b").client_order_id == "a"
    assert scene.truth.names() == ["a", "b"]


@proves("unknown_enum")
def _unknown_enum(scene: Scene) -> None:
    every = GetOrdersRequest(status="all")
    for name in "abc":
        scene.client.submit_order(market("AAPL", 1, name=name))
    scene.arm("unknown_enum")
    with pytest.raises(ValidationError, match="pending_settlement_review"):
        scene.client.get_orders(every)
    assert len(scene.client.get_orders(every)) == 3


# How the book behaves.


@proves("lookup_404_just_after_acceptance")
def _lookup_404(scene: Scene) -> None:
    scene.arm("lookup_404_just_after_acceptance", lag_ms=60_000)
    order = scene.client.submit_order(market("AAPL", 1, name="a"))
    for look in (lambda: scene.client.get_order_by_client_id("a"), lambda: scene.client.get_order_by_id(order.id)):
        with pytest.raises(APIError) as caught:
            look()
        assert (caught.value.status_code, caught.value.code) == (404, 40410000)
    assert scene.client.get_orders(GetOrdersRequest(status="all")) == []
    assert scene.lives("a")
    scene.arm("lookup_404_just_after_acceptance", lag_ms=100)
    scene.client.submit_order(market("AAPL", 1, name="b"))
    eventually(lambda: [o.client_order_id for o in scene.client.get_orders(GetOrdersRequest(status="all"))] == ["b"])
    scene.control.heal()
    assert scene.client.get_order_by_client_id("a").id == order.id


@proves("fill_before_ack")
def _fill_before_ack(scene: Scene) -> None:
    stream = scene.listen()
    heard_before = []
    scene.control.settings(work_ms=[5000, 5000])
    scene.client._session.hooks["response"].append(lambda *a, **k: heard_before.extend(stream.events("a")))
    scene.arm("fill_before_ack", delay_ms=500)
    assert scene.client.submit_order(market("AAPL", 1, name="a")).filled_qty == "1"
    assert "fill" in heard_before
    scene.client._session.hooks["response"].clear()
    assert eventually(lambda: stream.events("a"), lambda events: len(events) == 3) == ["pending_new", "new", "fill"]
    scene.control.settings(work_ms=[0, 0])
    stream.stop()


@proves("reject_later")
def _reject_later(scene: Scene) -> None:
    stream = scene.listen()
    scene.arm("reject_later")
    assert scene.client.submit_order(market("AAPL", 1, name="a")).status == "pending_new"
    eventually(lambda: stream.events("a")[-1:] == ["rejected"])
    assert scene.truth.order("a")["status"] == "rejected"
    assert scene.truth.account["executions"] == []
    stream.stop()


@proves("manual_external_order")
def _manual_external_order(scene: Scene) -> None:
    scene.arm("manual_external_order")
    scene.client.submit_order(market("AAPL", 5, name="a"))
    orders = eventually(lambda: scene.truth.account["orders"], lambda orders: len(orders) == 2)
    assert [(o["external"], o["symbol"]) for o in orders] == [(False, "AAPL"), (True, "AAPL")]
    assert orders[1]["client_order_id"] not in ("", None, "a")


@proves("fill_after_cancel")
def _fill_after_cancel(scene: Scene) -> None:
    for how in ("race", "late"):
        stream = scene.listen()
        resting = scene.client.submit_order(limit("AAPL", 1_000_000, 0.1, name=how))
        eventually(lambda name=how, stream=stream: len(stream.events(name)) == 2)
        scene.arm("fill_after_cancel", how=how)
        scene.client.cancel_order_by_id(resting.id)
        ended = eventually(
            lambda name=how: scene.truth.order(name),
            lambda order: order["status"] in ("filled", "canceled") and order["filled_qty"] != "0",
        )
        events = [event for _, event, _, _ in ended["history"]]
        if how == "late":
            assert (events[-2], ended["status"]) == ("canceled", "canceled")
            assert events[-1] in ("fill", "partial_fill")
        else:
            assert events[3] in ("fill", "partial_fill")
            assert events[4:] == ([] if ended["status"] == "filled" else ["canceled"])
        eventually(lambda name=how, stream=stream, events=events: stream.events(name) == events)
        stream.stop()


@proves("stuck_pending_cancel")
def _stuck_pending_cancel(scene: Scene) -> None:
    for name, lag_ms in (("short", 100), ("long", 60_000)):
        resting = scene.client.submit_order(limit("AAPL", 1, 1, name=name))
        scene.arm("stuck_pending_cancel", lag_ms=lag_ms)
        scene.client.cancel_order_by_id(resting.id)
        assert scene.client.get_order_by_id(resting.id).status == "pending_cancel"
        if name == "long":
            scene.client.cancel_order_by_id(resting.id)
            assert scene.client.get_order_by_id(resting.id).status == "pending_cancel"
            scene.control.heal()
        eventually(lambda name=name: scene.truth.order(name)["status"] == "canceled")


@proves("cancel_refused")
def _cancel_refused(scene: Scene) -> None:
    stream = scene.listen()
    resting = scene.client.submit_order(limit("AAPL", 1, 1, name="a"))
    scene.arm("cancel_refused")
    with pytest.raises(APIError) as caught:
        scene.client.cancel_order_by_id(resting.id)
    assert (caught.value.status_code, caught.value.code) == (422, 42210000)
    eventually(lambda: "order_cancel_rejected" in stream.events("a"))
    assert scene.client.get_order_by_id(resting.id).status == "new"
    scene.client.cancel_order_by_id(resting.id)
    eventually(lambda: scene.truth.order("a")["status"] == "canceled")
    stream.stop()


@proves("stale")
def _stale(scene: Scene) -> None:
    every = GetOrdersRequest(status="all")
    scene.client.submit_order(market("AAPL", 1, name="a"))
    eventually(lambda: scene.client.get_order_by_client_id("a").status == "filled")
    scene.arm("stale", on="positions", lag_ms=60_000)
    assert scene.client.get_all_positions() == []
    assert [p.qty for p in scene.client.get_all_positions()] == ["1"]
    resting = scene.client.submit_order(limit("AAPL", 4, 1, name="b"))
    time.sleep(0.8)
    scene.control.fill("b", 3)
    scene.arm("stale", on="list", lag_ms=750)
    then = {o.client_order_id: (o.status, o.filled_qty) for o in scene.client.get_orders(every)}
    now = {o.client_order_id: (o.status, o.filled_qty) for o in scene.client.get_orders(every)}
    assert then["b"] == ("new", "0")
    assert now["b"] == ("partially_filled", "3")
    scene.client.cancel_order_by_id(resting.id)


@proves("bust_and_correction")
def _bust_and_correction(scene: Scene) -> None:
    stream = scene.listen()
    cash = Decimal(scene.truth.account["cash"])
    scene.arm("bust_and_correction", how="bust", delay_ms=1)
    scene.client.submit_order(market("AAPL", 2, name="a"))
    eventually(lambda: stream.events("a")[-1:] == ["trade_bust"])
    busted = stream.updates[-1]
    assert scene.truth.position("AAPL") == 0
    assert Decimal(scene.truth.account["cash"]) == cash
    assert scene.truth.account["activities"] == []
    scene.arm("bust_and_correction", how="correct", delay_ms=1)
    scene.client.submit_order(market("AAPL", 2, name="b"))
    eventually(lambda: stream.events("b")[-1:] == ["trade_correct"])
    account = scene.truth.account
    first, _, corrected = account["executions"][-3:]
    assert (first["busted"], busted.order.filled_qty) == (True, "0")
    assert account["executions"][-2]["corrected_by"] == corrected["execution_id"]
    assert cash - Decimal(account["cash"]) == 2 * Decimal(corrected["price"]) == Decimal("380.02")
    assert [line["price"] for line in account["activities"]] == ["190.01"]
    stream.stop()


# Streams.


def _says_something(scene: Scene, stream: Listening) -> bool:
    """Place orders until one is heard of: the stream speaks again."""
    name = f"check-{time.monotonic_ns()}"
    scene.client.submit_order(market("F", 1, name=name))
    deadline = time.monotonic() + 0.3
    while time.monotonic() < deadline:
        if "fill" in stream.events(name):
            return True
        time.sleep(0.01)
    return False


def _ping(stream: Listening, timeout_s: float) -> None:
    """The server's pong to a websocket ping, or TimeoutError."""

    async def ping() -> None:
        pong = await stream._stream._ws.ping()
        await asyncio.wait_for(pong, timeout_s)

    asyncio.run_coroutine_threadsafe(ping(), stream._stream._loop).result()


def _story(scene: Scene, stream: Listening, name: str, count: int) -> list[str]:
    """One order's events once `count` of them were heard."""
    scene.client.submit_order(market("AAPL", 1, name=name))
    return eventually(lambda: stream.events(name), lambda events: len(events) >= count)


@proves("stream_lost")
def _stream_lost(scene: Scene) -> None:
    stream = scene.listen()
    scene.arm("stream_lost", client_order_id="a")
    assert _story(scene, stream, "a", 2) == ["new", "fill"]
    assert _story(scene, stream, "b", 3) == ["pending_new", "new", "fill"]
    stream.stop()


@proves("stream_tripled")
def _stream_tripled(scene: Scene) -> None:
    stream = scene.listen()
    scene.arm("stream_tripled", 3)
    events = _story(scene, stream, "a", 9)
    assert events == ["pending_new"] * 3 + ["new"] * 3 + ["fill"] * 3
    assert len({update.execution_id for update in stream.updates if update.event == "fill"}) == 1
    stream.stop()


@proves("stream_reordered")
def _stream_reordered(scene: Scene) -> None:
    stream = scene.listen()
    scene.arm("stream_reordered")
    assert _story(scene, stream, "a", 3) == ["new", "pending_new", "fill"]
    stream.stop()


@proves("stream_disconnect")
def _stream_disconnect(scene: Scene) -> None:
    stream = scene.listen()
    scene.client.submit_order(limit("AAPL", 1, 1, name="a"))
    eventually(lambda: len(stream.updates) == 2)
    scene.arm("stream_disconnect")
    scene.control.fill("a")
    eventually(lambda: scene.count("stream_disconnect"))
    stream.wait_until_connected()
    assert "fill" not in stream.events("a"), "nothing is replayed"
    assert _story(scene, stream, "b", 3) == ["pending_new", "new", "fill"]
    stream.stop()


@proves("stream_silent")
def _stream_silent(scene: Scene) -> None:
    stream = scene.listen()
    scene.arm("stream_silent")
    scene.client.submit_order(market("AAPL", 1, name="a"))
    eventually(lambda: scene.count("stream_silent") == 3)
    _ping(stream, 10)
    assert not stream.updates
    scene.control.heal()
    assert _story(scene, stream, "b", 3) == ["pending_new", "new", "fill"]
    assert not stream.events("a")
    stream.stop()


# At random.


def _draws(control: Control, client: TradingClient, seed: int) -> list[str]:
    """Which of 60 lookups were answered badly, from a seed."""
    control.faults({"503": 0.2, "429": 0.2}, seed=seed)
    out = []
    for _ in range(60):
        try:
            client.get_account()
            out.append("200")
        except APIError as error:
            out.append(str(error.status_code))
    return out


def test_faults_at_random_come_from_the_seed(scene):
    """The same seed shows the same faults to the same requests, and each is counted; another shows others."""
    first = _draws(scene.control, scene.client, 7)
    assert set(first) == {"200", "503", "429"}
    counts = scene.control.counts()
    assert (counts["503"], counts["429"]) == (first.count("503"), first.count("429"))
    assert _draws(scene.control, scene.client, 7) == first
    assert _draws(scene.control, scene.client, 8) != first


def test_an_unknown_fault_or_parameter_is_refused_with_a_sentence(scene):
    """Nothing is armed by mistake."""
    with pytest.raises(ControlError, match="no fault is called 'gremlin'; there are reset"):
        scene.control.arm("gremlin")
    with pytest.raises(ControlError, match="has no 'delay'; it has delay_ms"):
        scene.control.arm("slow_success", delay=3)
    with pytest.raises(ControlError, match="can be shown on submit, replace, cancel; not on 'list'"):
        scene.control.arm("late_landing", on="list")
    with pytest.raises(ControlError, match="no fault is called"):
        scene.control.faults({"gremlin": 1})


def test_an_armed_fault_can_be_aimed_at_one_order(scene):
    """By client_order_id, by prefix or by symbol; others pass."""
    scene.arm("503", client_order_id="b")
    scene.arm("503", prefix="d1.alice.")
    scene.arm("503", symbol="TSLA", on="submit")
    scene.client.submit_order(market("AAPL", 1, name="a"))
    assert scene.submit_unheard("b", APIError).status_code == 503
    assert scene.submit_unheard("d1.alice.x", APIError).status_code == 503
    with pytest.raises(APIError):
        scene.client.submit_order(market("TSLA", 1, name="c"))
    scene.client.submit_order(market("TSLA", 1, name="d"))
    assert scene.truth.names() == ["a", "d"]
