"""The examples of docs/strategies.md do what they say."""

import re
import subprocess
from pathlib import Path

import pytest
from client_desk import answer, hang_up
from desk.v1 import books_pb2, market_pb2
from desk.v1 import orders_pb2 as pb

import desk_client

TEXT = (Path(__file__).parents[2] / "docs" / "strategies.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
LINES = '{"symbol": "AAPL", "price": 145.5, "seq": 1}\n{"symbol": "MSFT", "price": 400, "seq": 2}\n'


def follow_updates(connection, _):
    fill = pb.Fill(qty="1", price="145.50")
    message = pb.OrderUpdate(seq=1, event="fill", order=pb.Order(symbol="AAPL"), fill=fill).SerializeToString()
    head = "HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nConnection: close\r\n\r\n"
    connection.sendall(head.encode() + bytes([len(message)]) + message)
    connection.recv(1)


def pages(request):
    """What a desk with one order and one position answers."""
    order = pb.Order(order_id="order-1", status="new", filled_qty="0")
    replies = {
        "/v1/account": books_pb2.Account(buying_power="100000", equity="100000"),
        "/v1/positions": books_pb2.ListPositionsResponse(positions=[books_pb2.Position(symbol="AAPL", qty="3")]),
        "/v1/fills": pb.ListFillsResponse(fills=[pb.Fill(qty="1", price="145.50")]),
        "/v1/market/latest": market_pb2.GetLatestResponse(lines=[market_pb2.LatestLine(symbol="AAPL")]),
        "/v1/assets/AAPL": market_pb2.Asset(symbol="AAPL", fractionable=True),
        "/v1/clock": market_pb2.Clock(is_open=True, next_close="2026-11-27T18:00:00.000000Z"),
        "/v1/calendar": market_pb2.Calendar(days=[market_pb2.TradingDay(date="2026-11-27")]),
        "/v1/orders:cancel-all": pb.CancelAllResponse(),
    }
    if request.path in replies:
        return answer(200, replies[request.path])
    if request.method in ("PATCH", "DELETE"):
        return answer(200, pb.OrderResponse(status="success", order_id="order-1"))
    return answer(200, pb.ListOrdersResponse(orders=[order]) if request.path == "/v1/orders" else order)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_every_example_runs(desk, strategies, example):
    """With two market lines on standard input, and to its end."""
    usual = desk._reply_to

    def reply_to(request):
        if request.path == "/v1/updates":
            return follow_updates
        if (request.method, request.path) == ("POST", "/v1/orders"):
            return usual(request)
        return pages(request)

    desk._reply_to = reply_to
    process = strategies.start(example, via=(), stdin=subprocess.PIPE)
    _, err = process.communicate(LINES, timeout=20)
    assert (process.returncode, err) == (0, "")
    assert desk.requests


def test_a_lost_answer_is_resolved_as_the_example_shows(desk, strategies):
    """The second call has the first one's request id, so there is one order."""
    example = next(example for example in EXAMPLES if "OutcomeUnknown" in example)

    def place_and_hang_up(connection, request):
        desk._place(request.order)
        desk.replies.extend([hang_up] * 3 + [place_and_stall])
        hang_up(connection, request)

    def place_and_stall(connection, _):
        connection.recv(1)

    desk.replies.append(place_and_hang_up)
    process = strategies.start(example, via=())
    out, err = process.communicate(timeout=20)
    assert (out, err) == ("order-1\n", "")
    assert len({request.order.request_id for request in desk.seen("/v1/orders")}) == 1
    assert len(desk.seen("/v1/orders")) == 6


def test_everything_that_is_exported_is_described():
    """Each function and exception has its place in the guide, but for the classes of messages and settings."""
    elsewhere = {"Client", "Settings", "Token", "parse_url", "Line", "Fill", "Order", "OrderResponse", "OrderUpdate"}
    names = set(desk_client.__all__) - elsewhere
    assert [name for name in sorted(names) if not re.search(rf"\b{name}\b", TEXT)] == []
