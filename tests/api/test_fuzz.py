"""Orders cut up at random: whatever comes in, the desk either understands it or refuses it by name."""

import json
import random

import pytest
from desk.v1 import orders_pb2 as pb

from desk_server.api import strict, wire
from desk_server.errors import Code, DeskError
from tests.api.running import post

GOOD = {
    "symbol": "AAPL",
    "qty": "1",
    "side": "buy",
    "order_class": "bracket",
    "take_profit": {"limit_price": "2"},
    "stop_loss": {"stop_price": 1.5},
    "line": {"seq": 5, "sha256": "0" * 16, "fields_read": ["price"]},
    "notes": {"why": "test"},
    "extended_hours": False,
}
AS_JSON = json.dumps(GOOD).encode()
AS_PROTOBUF = pb.OrderRequest(
    symbol="AAPL", qty="1", side="buy", take_profit=pb.TakeProfit(limit_price="2"), notes={"why": "test"}
).SerializeToString()
PIECES = [
    b"null",
    b"true",
    b"[",
    b"{",
    b'"',
    b"1e400",
    b"NaN",
    b"-Infinity",
    b",",
    b":",
    b"\xff",
    rb"\ud800",
    b"9" * 400,
]


def cut_up(source: bytes, chance: random.Random) -> bytes:
    data = bytearray(source)
    for _ in range(chance.randint(1, 6)):
        place, other = chance.randrange(len(data) + 1), chance.randrange(len(data) + 1)
        match chance.randrange(4):
            case 0 if data:
                data[min(place, len(data) - 1)] = chance.randrange(256)
            case 1:
                del data[place : place + chance.randint(1, 8)]
            case 2:
                data[place:place] = chance.choice(PIECES)
            case 3:
                data[other:other] = data[min(place, other) : max(place, other)]
    return bytes(data)


@pytest.mark.parametrize(
    ("source", "read"), [(AS_JSON, strict.message_of_json), (AS_PROTOBUF, strict.message_of_protobuf)]
)
def test_only_a_desk_error_comes_out(source, read):
    """20,000 damaged bodies of each kind, read and turned into the desk's words."""
    chance, understood, refused = random.Random(source), 0, set()
    for _ in range(20_000):
        try:
            wire.order_request(read(cut_up(source, chance), pb.OrderRequest))
            understood += 1
        except DeskError as error:
            refused.add(error.code)
    assert understood > 0
    assert refused == {Code.MALFORMED, Code.INVALID}


def test_a_damaged_request_never_breaks_the_desk(desk, alice):
    """Whole requests, headers and all, cut up: 2xx or 4xx or a closed connection, and the desk goes on."""
    chance = random.Random(7)
    whole = post("/v1/orders", AS_JSON, "Content-Type: application/json", token=alice)
    for _ in range(300):
        connection = desk.raw(cut_up(whole, chance) + b"\r\n\r\n")
        connection._socket.shutdown(1)
        line = connection.file.readline()
        assert line == b"" or 200 <= int(line[9:12]) < 500, line
        connection.close()
    with desk.http(alice) as client:
        assert client.get("/v1/account").status_code == 200
