"""Assets, clock and calendar of the paper exchange, over HTTP, gRPC and the socket."""

import gzip
import json

import grpc
import pytest
from desk.v1 import market_pb2

from desk_server.errors import Code
from tests.api.running import RunningDesk, wait_until

PROTOBUF = {"Accept": "application/x-protobuf"}
# The Friday after Thanksgiving: New York closes at 13:00, three hours sooner than usual.
SHORT_DAY = {
    "date": "2026-11-27",
    "early": "2026-11-27T09:00:00.000000Z",
    "open": "2026-11-27T14:30:00.000000Z",
    "close": "2026-11-27T18:00:00.000000Z",
    "late": "2026-11-27T22:00:00.000000Z",
}


@pytest.fixture(scope="module")
def client(desk):
    with desk.http(desk.token("mia", role="read")) as client:
        yield client


def refusal(answer) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


@pytest.mark.parametrize("path", ["BTC/USD", "BTC%2FUSD", "BTC%2fUSD"])
def test_a_symbol_with_a_slash_stands_in_the_path(desk, alice, path):
    """As it is or escaped, on both doors, byte for byte as it was written."""
    request = f"GET /v1/assets/{path} HTTP/1.1\r\nHost: desk\r\nAuthorization: Bearer {alice}\r\n\r\n"
    connection = desk.raw(request.encode())
    answer = connection.answer()
    connection.close()
    assert answer.status == 200, answer.body
    told = answer.json()
    assert (told["symbol"], told["asset_class"], told["tradable"]) == ("BTC/USD", "crypto", True)
    with desk.over_socket(alice) as client:
        assert client.get(f"/v1/assets/{path}").json() == told


def test_an_asset_says_what_may_be_done_with_it(desk, client):
    """As JSON and as protobuf, with what the exchange lists."""
    told = client.get("/v1/assets/AAPL").json()
    listed = desk.call(desk.desk.broker.asset("AAPL"))
    assert told == {
        "symbol": "AAPL",
        "asset_class": "us_equity",
        "tradable": listed.tradable,
        "fractionable": listed.fractionable,
        "shortable": listed.shortable,
    }
    answer = client.get("/v1/assets/AAPL", headers=PROTOBUF)
    assert market_pb2.Asset.FromString(answer.content) == market_pb2.Asset(**told)


def test_a_symbol_nobody_lists_is_not_found(client):
    """404, for a share and for a coin."""
    for symbol in ("ZZZZ", "DOGE/USD"):
        answer = client.get(f"/v1/assets/{symbol}")
        assert refusal(answer) == (404, "NOT_FOUND")
        assert symbol in answer.json()["message"]


@pytest.mark.parametrize(
    "symbol",
    ["aapl", "", "AAPL/", "/AAPL", "A/B/C", "..%2Fadmin", "%F0%9F%90%88", "A" * 300, "AAPL%00", "%27--", "%FF"],
)
def test_what_cannot_be_a_symbol_is_invalid(desk, alice, symbol):
    """422 with how a symbol looks, never 404 or 500."""
    connection = desk.raw(
        f"GET /v1/assets/{symbol} HTTP/1.1\r\nHost: desk\r\nAuthorization: Bearer {alice}\r\n\r\n".encode()
    )
    answer = connection.answer()
    connection.close()
    assert (answer.status, answer.json()["code"]) == (422, "INVALID"), answer.body
    assert "AAPL" in answer.json()["message"]


def test_a_small_letter_is_told(client):
    """The message has the symbol that was meant."""
    assert 'did you mean "AAPL"?' in client.get("/v1/assets/aapl").json()["message"]


def test_the_calendar_knows_a_holiday_and_a_short_day(client):
    """Thanksgiving is no day of it, the day after ends at 13:00 in New York, a weekend is none."""
    days = client.get("/v1/calendar?start=2026-11-23&end=2026-11-29").json()["days"]
    assert [day["date"] for day in days] == ["2026-11-23", "2026-11-24", "2026-11-25", "2026-11-27"]
    assert days[-1] == SHORT_DAY
    assert {day["close"][11:16] for day in days[:-1]} == {"21:00"}


def test_both_days_are_included(client):
    """One day is asked for with itself twice; a holiday alone answers no days."""
    assert client.get("/v1/calendar?start=2026-11-27&end=2026-11-27").json() == {"days": [SHORT_DAY]}
    assert client.get("/v1/calendar?start=2026-11-26&end=2026-11-26").json() == {"days": []}


def test_summer_time_moves_the_opening(client):
    """Hours are New York's: an hour sooner in UTC from the second Sunday of March."""
    days = client.get("/v1/calendar?start=2026-03-06&end=2026-03-09").json()["days"]
    assert [(day["date"], day["open"][11:16]) for day in days] == [("2026-03-06", "14:30"), ("2026-03-09", "13:30")]


def test_a_year_in_one_question(client):
    """366 days may be asked for, of a leap year too, and at both ends of what is known."""
    for year, last in ((2028, "2028-12-31"), (2027, "2028-01-01"), (1970, "1970-12-31"), (2099, "2099-12-31")):
        answer = client.get("/v1/calendar", params={"start": f"{year}-01-01", "end": last})
        assert answer.status_code == 200, answer.text
        days = [day["date"] for day in answer.json()["days"]]
        assert 249 < len(days) < 256
        assert days == sorted(days)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ({}, "start is required"),
        ({"start": "2026-11-23"}, "end is required"),
        ({"start": "", "end": "2026-11-23"}, "start is required"),
        ({"start": "2026-13-01", "end": "2026-11-23"}, "start must be a New York date"),
        ({"start": "2026-02-29", "end": "2026-03-01"}, "start must be a New York date"),
        ({"start": "20261123", "end": "2026-11-27"}, "start must be a New York date"),
        ({"start": "2026-W48-1", "end": "2026-11-27"}, "start must be a New York date"),
        ({"start": "2026-11-23", "end": "2026-11-27T00:00:00Z"}, "end must be a New York date"),
        ({"start": "٢٠٢٦-١١-٢٣", "end": "2026-11-27"}, "start must be a New York date"),
        ({"start": "2026-11-23\n", "end": "2026-11-27"}, "start must be a New York date"),
        ({"start": "0001-01-01", "end": "0001-01-02"}, "start must lie between 1970-01-01 and 2099-12-31"),
        ({"start": "9999-12-30", "end": "9999-12-31"}, "start must lie between"),
        ({"start": "2099-12-31", "end": "2100-01-01"}, "end must lie between"),
        ({"start": "2026-11-27", "end": "2026-11-23"}, "give the earlier day as start"),
        ({"start": "2026-01-01", "end": "2027-01-02"}, "at most 366"),
        ({"start": "2026-11-23", "end": "2026-11-27", "symbol": "AAPL"}, "symbol"),
    ],
)
def test_a_calendar_that_cannot_be_is_invalid(client, query, says):
    """422, and the message names the parameter and what it should be."""
    answer = client.get("/v1/calendar", params=query)
    assert refusal(answer) == (422, "INVALID")
    assert says in answer.json()["message"]


def test_too_long_a_range_names_the_limit(client):
    """`limit` and `observed` are days."""
    told = client.get("/v1/calendar?start=2026-01-01&end=2027-01-02").json()
    assert (told["limit"], told["observed"]) == ("366", "367")


def test_who_has_no_token_is_told_nothing(desk):
    """401 on each of the three."""
    with desk.http() as client:
        for path in ("/v1/assets/AAPL", "/v1/assets/BTC/USD", "/v1/clock", "/v1/calendar"):
            assert refusal(client.get(path)) == (401, "UNAUTHENTICATED")


def test_the_same_over_grpc(desk, alice):
    """Answers and errors."""
    with desk.grpc(alice) as stubs:
        call = {"metadata": stubs.metadata, "timeout": 5}
        market = stubs.market
        assert market.GetAsset(market_pb2.GetAssetRequest(symbol="BTC/USD"), **call).asset_class == "crypto"
        assert market.GetClock(market_pb2.GetClockRequest(), **call).next_open
        days = market.GetCalendar(market_pb2.GetCalendarRequest(start="2026-11-26", end="2026-11-28"), **call).days
        assert [day.close for day in days] == [SHORT_DAY["close"]]
        for method, request, status, code in [
            (market.GetAsset, market_pb2.GetAssetRequest(symbol="ZZZZ"), grpc.StatusCode.NOT_FOUND, Code.NOT_FOUND),
            (market.GetAsset, market_pb2.GetAssetRequest(), grpc.StatusCode.INVALID_ARGUMENT, Code.INVALID),
            (market.GetCalendar, market_pb2.GetCalendarRequest(), grpc.StatusCode.INVALID_ARGUMENT, Code.INVALID),
        ]:
            with pytest.raises(grpc.RpcError) as caught:
                method(request, **call)
            assert caught.value.code() is status
            assert dict(caught.value.trailing_metadata())["desk-code"] == code.value


@pytest.mark.parametrize(
    ("at", "is_open", "next_open", "next_close"),
    [
        ("2013-06-05T15:00:00", True, "2013-06-06T13:30:00", "2013-06-05T20:00:00"),
        ("2026-11-26T15:00:00", False, "2026-11-27T14:30:00", "2026-11-27T18:00:00"),
        ("2026-11-27T17:59:59", True, "2026-11-30T14:30:00", "2026-11-27T18:00:00"),
        ("2026-11-27T18:00:00", False, "2026-11-30T14:30:00", "2026-11-30T21:00:00"),
    ],
    ids=["a day of 2013", "a holiday", "a short day", "after a short day"],
)
def test_the_clock_is_the_tape_s(tmp_path, at, is_open, next_open, next_close):
    """In 2013, on a holiday, and before and after a short day's close."""
    tape = tmp_path / "tape.jsonl.gz"
    line = {"symbol": "AAPL", "price": 100.5, "type": "trade", "timestamp": f"{at}Z"}
    tape.write_bytes(gzip.compress(json.dumps(line).encode() + b"\n"))
    desk = RunningDesk(tmp_path / "run", feed="replay", replay_file=tape, replay_loop=False, replay_speed=0)
    try:
        with desk.http(desk.token()) as client:
            told = wait_until(
                lambda: (got := client.get("/v1/clock").json())["at"].startswith(at) and got, "the tape's time"
            )
    finally:
        desk.stop()
    assert told == {
        "at": f"{at}.000000Z",
        "is_open": is_open,
        "next_open": f"{next_open}.000000Z",
        "next_close": f"{next_close}.000000Z",
    }


def test_an_asset_before_the_first_line_is_not_denied(tmp_path):
    """The exchange lists what lines have come of: without any the desk is not ready, which is no 404."""
    desk = RunningDesk(tmp_path / "run", feed="none")
    try:
        with desk.http(desk.token()) as client:
            answer = client.get("/v1/assets/AAPL")
            assert refusal(answer) == (503, "NOT_READY")
            assert int(answer.headers["retry-after"]) >= 1
            assert refusal(client.get("/v1/assets/aapl")) == (422, "INVALID")
    finally:
        desk.stop()
