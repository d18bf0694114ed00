"""Assets, clock and calendar of a desk at Alpaca: the desk and a misbehaving Alpaca, each a process of its own."""

from collections.abc import Iterator
from datetime import date
from typing import Any

import httpx
import pytest

from desk_client import NotFound, Refused
from tests.e2e.alpaca_ground import Ground, grounds

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with grounds() as make:
        yield make()


@pytest.fixture
def http(ground: Ground) -> Iterator[httpx.Client]:
    ground.desk.user("alice")
    transport = httpx.HTTPTransport(uds=str(ground.desk.socket))
    headers = {"Authorization": f"Bearer {ground.desk.tokens['alice']}"}
    with httpx.Client(base_url="http://desk", transport=transport, headers=headers, timeout=20) as client:
        yield client


@pytest.fixture(autouse=True)
def healed(ground: Ground) -> Iterator[None]:
    yield
    ground.control.heal()
    ground.control.settings(session="regular")


def reads(ground: Ground) -> int:
    """Requests for assets, the clock, the calendar and the account that reached Alpaca."""
    return int(ground.control.dump(posts=False, history=False)["requests"]["read"])


def not_ready(answer: httpx.Response) -> dict[str, Any]:
    told: dict[str, Any] = answer.json()
    assert (answer.status_code, told["code"]) == (503, "NOT_READY"), answer.text
    assert int(answer.headers["retry-after"]) >= 1
    assert told["message"].endswith("ask again in a moment")
    return told


def test_assets_are_alpaca_s(ground: Ground) -> None:
    """A share, a coin, and a symbol that was listed a moment ago."""
    alice = ground.desk.user("alice")
    share, coin = alice.asset("AAPL"), alice.asset("BTC/USD")
    assert (share.symbol, share.asset_class, share.tradable, share.fractionable) == ("AAPL", "us_equity", True, True)
    assert (coin.symbol, coin.asset_class, coin.tradable) == ("BTC/USD", "crypto", True)
    ground.control.price(NEWCO=10)
    assert alice.asset("NEWCO").symbol == "NEWCO"


def test_what_alpaca_does_not_list_is_not_found(ground: Ground) -> None:
    """404; and what cannot be a symbol is refused here, without asking."""
    alice = ground.desk.user("alice")
    with pytest.raises(NotFound, match="does not list NOSUCH"):
        alice.asset("NOSUCH")
    with pytest.raises(Refused, match="BTC/USD") as caught:
        alice.asset("btc-usd")
    assert (caught.value.code, caught.value.status) == ("INVALID", 422)


def test_the_calendar_is_alpaca_s(ground: Ground) -> None:
    """Thanksgiving is no day of it, the day after is a short one; a holiday at the turn of the year is none."""
    alice = ground.desk.user("alice")
    days = alice.calendar(date(2026, 11, 25), "2026-11-29")
    assert [(day.date, day.open[11:16], day.close[11:16]) for day in days] == [
        ("2026-11-25", "14:30", "21:00"),
        ("2026-11-27", "14:30", "18:00"),
    ]
    assert [day.date for day in alice.calendar("2026-12-31", "2027-01-04")] == ["2026-12-31", "2027-01-04"]
    with pytest.raises(Refused, match="give the earlier day as start"):
        alice.calendar("2026-11-29", "2026-11-25")


def test_the_clock_is_alpaca_s(ground: Ground) -> None:
    """Open, and within seconds of its close, closed."""
    alice, desk = ground.desk.user("alice"), ground.desk
    desk.until(lambda: alice.clock().is_open, "the market is open")
    ground.control.settings(session="closed")
    desk.until(lambda: not alice.clock().is_open, "the market is closed")
    told = alice.clock()
    assert told.at < told.next_open
    assert told.at < told.next_close


def test_asking_often_costs_alpaca_little(ground: Ground) -> None:
    """Hundreds of questions are a handful of requests: the account's limit is for orders."""
    alice = ground.desk.user("alice")
    before = reads(ground)
    for _ in range(200):
        alice.clock()
        alice.asset("AAPL")
        alice.calendar("2026-11-25", "2026-11-29")
    # The clock every 5 s, the account every 15 s.
    assert reads(ground) - before < 30


def test_a_broker_that_does_not_answer_is_not_ready(ground: Ground, http: httpx.Client) -> None:
    """503 with what it did not tell and when to ask again, whatever is wrong; afterwards all is told."""
    for year, fault in enumerate(("503", "html_403", "truncated_json", "reset", "429"), 2001):
        ground.control.faults({fault: 1.0})
        calendar, asset = f"/v1/calendar?start={year}-01-02&end={year}-01-05", f"/v1/assets/NO{year}"
        assert "does not tell now when the market trades" in not_ready(http.get(calendar))["message"], fault
        assert f"whether it lists NO{year}" in not_ready(http.get(asset))["message"], fault
        ground.control.heal()
        assert http.get(calendar).json()["days"], fault
        assert http.get(asset).status_code == 404, fault


def test_an_old_clock_is_not_told(ground: Ground, http: httpx.Client) -> None:
    """Seconds after Alpaca fell silent the clock is 503; with Alpaca it is back."""
    ground.control.faults({"503": 1.0})
    ground.desk.until(lambda: http.get("/v1/clock").status_code == 503, "the old clock is not told any more")
    assert "whether the market is open" in not_ready(http.get("/v1/clock"))["message"]
    ground.control.heal()
    assert http.get("/v1/clock").status_code == 200


def test_a_client_without_time_is_told_so(ground: Ground) -> None:
    """`Refused` with NOT_READY where the answer did not come within the timeout; with more time it is waited for."""
    alice = ground.desk.user("alice")
    ground.control.faults({"503": 1.0})
    with pytest.raises(Refused, match="when the market trades") as caught:
        alice.calendar("1999-01-04", "1999-01-08", timeout=1)
    assert caught.value.code == "NOT_READY"
    ground.control.heal()
    ground.control.arm("503", on="read")
    assert alice.calendar("1999-01-04", "1999-01-08", timeout=20)


def test_thought_up_symbols_are_throttled_not_denied(ground: Ground, http: httpx.Client) -> None:
    """Beyond so many unknown symbols a minute it is 503 and not 404, with the seconds to wait."""
    before, answers = reads(ground), []
    for number in range(30):
        answers.append(http.get(f"/v1/assets/QQ{number}"))
    assert {answer.status_code for answer in answers} == {404, 503}
    throttled = [answer for answer in answers if answer.status_code == 503]
    assert all("whether it lists QQ" in not_ready(answer)["message"] for answer in throttled)
    assert all(1 <= int(answer.headers["retry-after"]) <= 60 for answer in throttled)
    assert reads(ground) - before < 30
    # What is listed is told all the same.
    assert http.get("/v1/assets/BTC/USD").json()["symbol"] == "BTC/USD"
