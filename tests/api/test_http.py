"""Every route, used as a caller would; and one user's things are nobody else's."""

import gzip
import re
import uuid
from decimal import Decimal

import pytest
from desk.v1 import admin_pb2, books_pb2, market_pb2, orders_pb2

from desk_server.api.routes import ROUTES
from tests.api.running import RunningDesk, wait_until

PROTOBUF = {"Content-Type": "application/x-protobuf", "Accept": "application/x-protobuf"}
RESTING = {
    "symbol": "AAPL",
    "qty": "2",
    "side": "buy",
    "order_type": "limit",
    "limit_price": "1.00",
    "time_in_force": "gtc",
}


def place(client, **changes) -> dict:
    answer = client.post("/v1/orders", json={**RESTING, **changes})
    assert answer.status_code == 201, answer.text
    return answer.json()["order"]


def test_an_order_from_the_first_word_to_the_fill(desk):
    """Placed, filled by the paper exchange, and found in orders, fills, positions and the account."""
    with desk.http(desk.token("erin")) as client:
        order = place(client, order_type="market", limit_price="", time_in_force="day", notes={"why": "test"})
        order_id = order["order_id"]
        assert order["client_order_id"] == f"d1.erin.manual.{order_id}"
        assert order["notes"] == {"why": "test"}
        filled = wait_until(
            lambda: (got := client.get(f"/v1/orders/{order_id}").json())["status"] == "filled" and got, "the fill"
        )
        assert filled["filled_qty"] == "2"
        fills = client.get("/v1/fills", params={"order_id": order_id}).json()["fills"]
        assert sum(Decimal(fill["qty"]) for fill in fills) == 2
        (position,) = client.get("/v1/positions").json()["positions"]
        assert (position["symbol"], position["qty"], position["avg_entry_price"]) == (
            "AAPL",
            "2",
            filled["filled_avg_price"],
        )
        account = client.get("/v1/account").json()
        spent = Decimal(filled["filled_avg_price"]) * 2 + Decimal(account["fees"])
        assert Decimal(account["cash"]) == Decimal(100000) - spent


def test_numbers_may_be_strings_or_numbers(desk):
    """A JSON number is taken digit by digit, an exponent included, never through a float."""
    with desk.http(desk.token("frank")) as client:
        body = b'{"symbol": "BTC/USD", "qty": 2e-1, "side": "buy", "order_type": "limit", "limit_price": 1000.10'
        body += b', "time_in_force": "gtc"}'
        answer = client.post("/v1/orders", content=body, headers={"Content-Type": "application/json"})
        order = answer.json()["order"]
        assert (order["qty"], order["limit_price"]) == ("0.2", "1000.1")


def test_replace_and_cancel(desk):
    """A replace answers with the new order, a cancel with the cancelled one; twice is the same as once."""
    with desk.http(desk.token("grace")) as client:
        old = place(client)
        answer = client.patch(f"/v1/orders/{old['order_id']}", json={"qty": "3", "limit_price": "1.01"})
        assert answer.status_code == 200, answer.text
        new = answer.json()["order"]
        assert (new["qty"], new["limit_price"], new["replaces"]) == ("3", "1.01", old["order_id"])
        assert client.get(f"/v1/orders/{old['order_id']}").json()["replaced_by"] == new["order_id"]
        gone = client.patch(f"/v1/orders/{old['order_id']}", json={"qty": "4"})
        assert (gone.status_code, gone.json()["code"]) == (409, "NOT_REPLACEABLE")
        first = client.delete(f"/v1/orders/{new['order_id']}")
        assert first.status_code == 200
        wait_until(lambda: client.get(f"/v1/orders/{new['order_id']}").json()["status"] == "canceled", "the cancel")
        again = client.delete(f"/v1/orders/{new['order_id']}")
        assert (again.status_code, again.json()["order_status"]) == (200, "canceled")


def test_a_filled_order_cannot_be_cancelled(desk):
    """409 NOT_CANCELABLE."""
    with desk.http(desk.token("heidi")) as client:
        order = place(client, order_type="market", limit_price="", time_in_force="day")
        wait_until(lambda: client.get(f"/v1/orders/{order['order_id']}").json()["status"] == "filled", "the fill")
        answer = client.delete(f"/v1/orders/{order['order_id']}")
        assert (answer.status_code, answer.json()["code"]) == (409, "NOT_CANCELABLE")


def test_cancel_all(desk):
    """All open orders of the caller, or only those of some symbols; nobody else's."""
    with desk.http(desk.token("ivan")) as ivan, desk.http(desk.token("judy")) as judy:
        kept = place(judy)
        apple, microsoft = place(ivan), place(ivan, symbol="MSFT")
        results = ivan.post("/v1/orders:cancel-all", json={"symbols": ["MSFT"]}).json()["results"]
        assert [result["order_id"] for result in results] == [microsoft["order_id"]]
        results = ivan.post("/v1/orders:cancel-all").json()["results"]
        assert apple["order_id"] in [result["order_id"] for result in results]
        wait_until(lambda: not ivan.get("/v1/orders?status=open").json()["orders"], "the cancels")
        assert judy.get(f"/v1/orders/{kept['order_id']}").json()["status"] in ("new", "accepted")


def test_lists_are_paged_and_filtered(desk):
    """Newest first, in pages, by status, symbol, side, time and strategy."""
    with desk.http(desk.token("kim")) as client:
        placed = [place(client, symbol=("AAPL", "MSFT")[n % 2])["order_id"] for n in range(7)]
        seen, token = [], ""
        while True:
            page = client.get("/v1/orders", params={"limit": 3, "page_token": token}).json()
            seen += [order["order_id"] for order in page["orders"]]
            token = page["next_page_token"]
            if not token:
                break
        assert seen == placed[::-1]
        apples = client.get("/v1/orders?symbols=AAPL&status=open&side=buy&strategy=manual").json()["orders"]
        assert [order["order_id"] for order in apples] == placed[::-1][::2]
        for nothing in (
            "status=closed",
            "side=sell",
            "strategy=other",
            "symbols=BTC/USD",
            "until=2020-01-01T00:00:00Z",
        ):
            assert client.get(f"/v1/orders?{nothing}").json()["orders"] == [], nothing


def test_a_bracket_and_its_legs(desk):
    """Legs stand under their entry."""
    with desk.http(desk.token("leo")) as client:
        order = place(
            client,
            order_class="bracket",
            take_profit={"limit_price": "2.00"},
            stop_loss={"stop_price": "0.50", "limit_price": "0.45"},
        )
        legs = {leg["leg"]: leg for leg in order["legs"]}
        assert (legs["take_profit"]["limit_price"], legs["stop_loss"]["stop_price"]) == ("2", "0.5")
        (listed,) = client.get("/v1/orders").json()["orders"]
        assert len(listed["legs"]) == 2


def test_every_route_speaks_protobuf(desk):
    """With Accept: application/x-protobuf each answer is its message, errors are an OrderResponse."""
    with desk.http(desk.token("mia"), **PROTOBUF) as client:
        request = orders_pb2.OrderRequest(**RESTING)
        answer = client.post("/v1/orders", content=request.SerializeToString())
        order = orders_pb2.OrderResponse.FromString(answer.content).order
        path = f"/v1/orders/{order.order_id}"
        assert orders_pb2.Order.FromString(client.get(path).content).order_id == order.order_id
        change = orders_pb2.ReplaceOrderRequest(qty="3").SerializeToString()
        replaced = orders_pb2.OrderResponse.FromString(client.patch(path, content=change).content)
        assert replaced.order.replaces == order.order_id
        assert orders_pb2.ListOrdersResponse.FromString(client.get("/v1/orders").content).orders
        assert books_pb2.Account.FromString(client.get("/v1/account").content).user_id == "mia"
        assert books_pb2.ListPositionsResponse.FromString(client.get("/v1/positions").content) is not None
        assert market_pb2.GetLatestResponse.FromString(client.get("/v1/market/latest").content).lines
        results = orders_pb2.CancelAllResponse.FromString(client.post("/v1/orders:cancel-all", content=b"").content)
        assert [result.order_id for result in results.results] == [replaced.order_id]
        missing = client.get("/v1/orders/nothing")
        error = orders_pb2.OrderResponse.FromString(missing.content)
        assert (missing.status_code, error.status, error.code) == (404, "error", "NOT_FOUND")


def test_the_original_client(desk):
    """POST /order with seven string fields and no word about types: 201, and the first eight fields of old."""
    body = orders_pb2.OrderRequest(
        symbol="AAPL", qty="1", side="buy", order_type="limit", time_in_force="gtc", limit_price="1.00"
    )
    with desk.http(desk.token("nina"), **{"X-User-ID": "nina"}) as client:
        answer = client.post("/order", content=body.SerializeToString())
    got = orders_pb2.OrderResponse.FromString(answer.content)
    assert (answer.status_code, got.status, got.symbol, got.qty, got.side, got.filled_qty) == (
        201,
        "success",
        "AAPL",
        "1",
        "buy",
        "0",
    )


def test_unknown_protobuf_fields_are_left_alone(desk):
    """A client of a later version of the contract is served."""
    body = orders_pb2.OrderRequest(**RESTING).SerializeToString() + b"\x82\x7d\x03new"
    with desk.http(desk.token("oscar"), **PROTOBUF) as client:
        assert client.post("/order", content=body).status_code == 201


def test_a_user_sees_nothing_of_another(desk):
    """404 on every route that could tell of another user's order, and lists without it."""
    with desk.http(desk.token("peggy")) as peggy, desk.http(desk.token("quinn")) as quinn:
        order_id = place(peggy)["order_id"]
        for method, path in [
            ("GET", f"/v1/orders/{order_id}"),
            ("PATCH", f"/v1/orders/{order_id}"),
            ("DELETE", f"/v1/orders/{order_id}"),
            ("GET", f"/v1/fills?order_id={order_id}"),
            ("GET", "/v1/orders?user_id=peggy"),
            ("GET", "/v1/orders?user_id=*"),
            ("GET", "/v1/fills?user_id=peggy"),
            ("GET", "/v1/positions?user_id=peggy"),
            ("GET", "/v1/account?user_id=peggy"),
            ("GET", "/v1/account?user_id=nobody"),
            ("GET", "/v1/updates?user_id=peggy"),
            ("GET", "/v1/updates?user_id=*"),
        ]:
            answer = quinn.request(method, path, **({"json": {"qty": "9"}} if method == "PATCH" else {}))
            assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND"), (method, path)
        answer = quinn.post("/v1/orders:cancel-all", json={"user_id": "peggy"})
        assert answer.status_code == 404
        assert quinn.get("/v1/orders").json()["orders"] == []
        assert peggy.get(f"/v1/orders/{order_id}").json()["status"] in ("new", "accepted")


def test_what_only_administrators_may(desk, alice):
    """403 for everybody else."""
    spec = {"user_id": "alice", "strategy": "s", "code_hash": "0" * 64}
    with desk.http(alice) as client:
        for method, path, body in [
            ("POST", "/v1/deployments", spec),
            ("GET", "/v1/deployments", None),
            ("DELETE", "/v1/deployments/x", None),
            ("POST", "/v1/tokens", {"user_id": "alice", "role": "trade"}),
            ("DELETE", "/v1/tokens/x", None),
            ("POST", "/v1/halts", {"scope": "desk", "halted": True}),
            ("GET", "/v1/accounts", None),
        ]:
            answer = client.request(method, path, json=body) if body else client.request(method, path)
            assert (answer.status_code, answer.json()["code"]) == (403, "FORBIDDEN"), (method, path)


def test_an_administrator_sees_everybody(desk):
    """?user_id= names a user, * everybody; the administrator's own token sends no orders."""
    with desk.http(desk.token("ruth")) as ruth, desk.http(desk.admin_token) as admin:
        order_id = place(ruth)["order_id"]
        assert admin.get("/v1/orders?user_id=ruth").json()["orders"][0]["order_id"] == order_id
        assert order_id in [order["order_id"] for order in admin.get("/v1/orders?user_id=*").json()["orders"]]
        assert admin.get("/v1/account?user_id=ruth").json()["user_id"] == "ruth"
        assert "ruth" in [account["user_id"] for account in admin.get("/v1/accounts").json()["accounts"]]
        assert admin.post("/v1/orders", json=RESTING).status_code == 403
        assert admin.get("/v1/account?user_id=*").status_code == 422
        results = admin.post("/v1/orders:cancel-all", json={"user_id": "ruth"}).json()["results"]
        assert [result["order_id"] for result in results] == [order_id]


def test_the_life_of_a_deployment(desk):
    """Created with a token of its own, it trades under its user and strategy, beats, and ends with its token."""
    code_hash = uuid.uuid4().hex * 2
    with desk.http(desk.admin_token) as admin:
        spec = {"user_id": "sam", "strategy": "cross", "code_hash": code_hash, "symbols": ["AAPL"], "version": "1"}
        created = admin.post("/v1/deployments", json=spec)
        assert created.status_code == 201
        deployment, token = created.json()["deployment"], created.json()["token"]
        assert re.fullmatch(r"desk_strategy_[0-9a-f]{16}_[0-9a-f]{64}", token)
        with desk.http(token) as strategy:
            assert place(strategy)["client_order_id"].startswith("d1.sam.cross.")
            beat = strategy.post("/v1/heartbeat", json={"lines_read": 7, "last_seq": 9})
            assert beat.status_code == 200
            assert strategy.get("/v1/deployments").status_code == 403
        with desk.http(desk.token("sam")) as person:
            assert person.post("/v1/heartbeat", json={"lines_read": 1}).status_code == 403
        (listed,) = [one for one in admin.get("/v1/deployments").json()["deployments"] if one["code_hash"] == code_hash]
        assert (listed["lines_read"], listed["last_seq"], listed["orders"]) == (7, 9, 1)
        revoked = admin.delete(f"/v1/deployments/{deployment['deployment_id']}").json()
        assert revoked["revoked_at"]
        with desk.http(token) as strategy:
            assert strategy.get("/v1/orders").status_code == 401
        listed = admin.get("/v1/deployments").json()["deployments"]
        assert deployment["deployment_id"] not in [one["deployment_id"] for one in listed]
        listed = admin.get("/v1/deployments?all=1").json()["deployments"]
        assert deployment["deployment_id"] in [one["deployment_id"] for one in listed]
        got = admin.get("/v1/deployments", headers={"Accept": "application/x-protobuf"})
        admin_pb2.ListDeploymentsResponse.FromString(got.content)


def test_the_docs_page_needs_nothing_from_elsewhere(desk):
    """/docs works without the internet: everything that it loads comes from the desk itself."""
    with desk.http() as client:
        page = client.get("/docs")
        loaded = re.findall(r"""(?:src|href)=["']([^"']+)""", page.text)
        assert len(loaded) >= 3
        for address in loaded:
            assert address.startswith("/")
            assert client.get(address).status_code == 200


def test_state_and_description(desk):
    """Alive, ready with the broker's name, and described at /docs and /openapi.json, all without a token."""
    with desk.http() as client:
        assert client.get("/healthz").json() == {"alive": True}
        assert client.get("/readyz").json() == {"ready": True, "reasons": [], "broker": "paper", "live": False}
        assert client.get("/docs").status_code == 200
        described = client.get("/openapi.json").json()
    for route in ROUTES:
        assert route.method.lower() in described["paths"][route.path]
    order = described["components"]["schemas"]["OrderRequest"]
    assert "Upper case" in order["properties"]["symbol"]["description"]
    assert order["properties"]["line"]["allOf"] == [{"$ref": "#/components/schemas/LineInHand"}]
    references = set(re.findall(r'"#/components/schemas/(\w+)"', str(described).replace("'", '"')))
    assert references <= set(described["components"]["schemas"])
    assert described["paths"]["/v1/orders"]["post"]["requestBody"]["content"]["application/json"]["example"]


def test_not_ready_is_503_with_the_reasons(tmp_path):
    """A tape that has ended (and does not loop) leaves the desk without a feed: /readyz says so."""
    tape = tmp_path / "tape.jsonl.gz"
    line = b'{"symbol":"AAPL","price":100.5,"type":"trade","timestamp":"2026-01-05T15:00:00Z"}\n'
    tape.write_bytes(gzip.compress(line))
    desk = RunningDesk(tmp_path / "run", feed="replay", replay_file=tape, replay_loop=False, replay_speed=0)
    try:
        with desk.http() as client:
            answer = wait_until(lambda: (got := client.get("/readyz")).status_code == 503 and got, "the tape's end")
        assert answer.json()["ready"] is False
        assert answer.json()["reasons"]
    finally:
        desk.stop()


def test_everything_over_the_unix_socket(desk, alice):
    """The same desk answers on its socket."""
    with desk.over_socket(alice) as client:
        order_id = place(client)["order_id"]
        assert client.get(f"/v1/orders/{order_id}").json()["user_id"] == "alice"


def test_a_fault_of_the_desk_tells_no_secrets(tmp_path):
    """An exception nobody expected is a 500 with the request's id, and nothing of what went wrong."""
    desk = RunningDesk(tmp_path)
    try:
        token = desk.token()

        async def fail(*_):
            raise RuntimeError("the cellar key lies under the mat")

        def fail_at_once(*_):
            raise RuntimeError("the cellar key lies under the mat")

        desk.desk.place = fail
        desk.desk.book.orders_of = fail
        desk.desk.hub.first_seq = desk.desk.updates.subscribe = fail_at_once
        with desk.http(token, **{"X-Request-ID": "find-me"}) as client:
            paths = ("/v1/orders", "/v1/updates", "/v1/market/stream")
            for answer in (client.post("/v1/orders", json=RESTING), *map(client.get, paths)):
                assert answer.status_code == 500
                assert answer.json()["code"] == "INTERNAL"
                assert "find-me" in answer.json()["message"]
                assert "cellar" not in answer.text
    finally:
        desk.stop()


@pytest.mark.parametrize("given", ["abc-123", "x" * 65, "a b", "", "ü"])
def test_request_ids(desk, alice, given):
    """X-Request-ID comes back where it is one; otherwise the desk makes one."""
    with desk.http(alice) as client:
        got = client.get("/v1/account", headers={"X-Request-ID": given.encode()}).headers["x-request-id"]
    assert got == given if given == "abc-123" else re.fullmatch(r"[0-9a-f]{16}", got)


def test_an_administrator_says_whose_things_are_meant(desk):
    """Without user_id there is no book to show and nobody's orders to cancel: "everybody" must be said."""
    with desk.http(desk.admin_token) as admin:
        for path in ("/v1/account", "/v1/positions", "/v1/orders", "/v1/fills", "/v1/updates"):
            assert admin.get(path).json()["code"] == "INVALID", path
        assert admin.post("/v1/orders:cancel-all", json={}).json()["code"] == "INVALID"
        assert admin.get("/v1/positions?user_id=*").status_code == 200


def test_updates_of_another_ledger_are_gone(desk):
    """A reader that comes back to a desk with a new ledger is told so, and does not wait for ever."""
    with desk.http(desk.admin_token) as admin:
        answer = admin.get("/v1/updates?user_id=*&after=999999999")
        assert (answer.status_code, answer.json()["code"]) == (410, "GONE")
