"""Opening and closing the doors: sockets, leftovers, other desks, the drain; and who is believed without a token."""

import asyncio
import grp
import os
import socket
import stat
import subprocess
import sys
import threading
import time

import httpx
import pytest
from desk.v1 import orders_pb2

from desk_server.api import auth, fast, sockets
from desk_server.api.serve import CannotServe, Doors
from desk_server.domain import Identity, Role
from desk_server.errors import Code, DeskError
from desk_server.settings import Settings
from tests.api.running import RawConnection, RunningDesk, post, wait_until
from tests.api.test_http import RESTING, place
from tests.api.test_streams import lines, market


def test_the_sockets_modes_and_group(tmp_path):
    """Directory 0750, sockets 0660, of the group that strategies have."""
    gid = 20000 if os.geteuid() == 0 else os.getegid()
    desk = RunningDesk(tmp_path, socket_gid=gid)
    try:
        directory = tmp_path / "desk"
        assert stat.S_IMODE(directory.stat().st_mode) == 0o750
        for path in (desk.addresses.http_socket, desk.addresses.grpc_socket):
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
            assert path.stat().st_gid == gid
        assert directory.stat().st_gid == gid
        assert sorted(path.name for path in directory.iterdir()) == ["desk-grpc.sock", "desk.sock"]
    finally:
        desk.stop()
    assert list((tmp_path / "desk").iterdir()) == []


def test_the_group_is_20000_for_root_alone(monkeypatch):
    """Any other user's desk leaves the group as it is."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert sockets.socket_gid(Settings()) == 20000
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert sockets.socket_gid(Settings()) is None
    assert sockets.socket_gid(Settings(socket_gid=grp.getgrall()[0].gr_gid)) == grp.getgrall()[0].gr_gid


def test_a_leftover_socket_is_replaced(tmp_path):
    """A socket on which nobody answers, as a killed desk leaves it."""
    (tmp_path / "desk").mkdir()
    for name in ("desk.sock", "desk-grpc.sock"):
        left = socket.socket(socket.AF_UNIX)
        left.bind(str(tmp_path / "desk" / name))
        left.close()
    desk = RunningDesk(tmp_path)
    try:
        with desk.over_socket(desk.token()) as client:
            assert client.get("/v1/account").status_code == 200
        with desk.grpc(desk.token(), f"unix:{desk.addresses.grpc_socket}") as stubs:
            assert (
                stubs.orders.ListOrders(orders_pb2.ListOrdersRequest(), metadata=stubs.metadata, timeout=5) is not None
            )
    finally:
        desk.stop()


def test_another_desks_socket_is_left_alone(tmp_path):
    """A second desk on the same directory does not start, and the first goes on."""
    desk = RunningDesk(tmp_path)
    try:
        second = Doors(desk.desk, desk.settings)
        with pytest.raises(CannotServe, match="another desk answers"):
            desk.call(second.open())
        with desk.over_socket(desk.token()) as client:
            assert client.get("/healthz").status_code == 200
    finally:
        desk.stop()


def test_a_file_in_the_sockets_place_is_kept(tmp_path):
    """What is no socket is somebody's: the desk does not start."""
    (tmp_path / "desk").mkdir()
    (tmp_path / "desk" / "desk.sock").write_text("precious")
    with pytest.raises(CannotServe, match="no socket"):
        RunningDesk(tmp_path)
    assert (tmp_path / "desk" / "desk.sock").read_text() == "precious"


def test_a_port_that_is_taken(tmp_path):
    """Says which, for HTTP and gRPC."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(CannotServe, match=f"{port}.*PORT"):
            RunningDesk(tmp_path / "a", port=port)
        with pytest.raises(CannotServe, match=f"{port}.*GRPC_PORT"):
            RunningDesk(tmp_path / "b", grpc_port=port)


def test_the_drain(tmp_path):
    """On the way out: orders under way are answered, streams end in good order, new connections are refused."""
    desk = RunningDesk(tmp_path, drain_s=30)
    token = desk.token()
    submit, entered = desk.app.broker.submit, threading.Event()

    async def slow(order, legs=()):
        entered.set()
        await asyncio.sleep(0.5)
        return await submit(order, legs)

    desk.app.broker.submit = slow
    answers = []
    with desk.http(token) as client, desk.grpc(token) as stubs:
        _, stream = market(desk, token)
        lines(stream, 3)
        with client.stream("GET", "/v1/updates") as updates:
            by_http = threading.Thread(
                target=lambda: answers.append(client.post("/v1/orders", json=RESTING).status_code)
            )
            request = orders_pb2.OrderRequest(**RESTING)
            by_grpc = threading.Thread(
                target=lambda: answers.append(stubs.orders.PlaceOrder(request, metadata=stubs.metadata).status)
            )
            by_http.start()
            by_grpc.start()
            assert entered.wait(5)
            wait_until(lambda: desk.on_loop(lambda: len(desk.desk.book.orders)) == 2, "both orders")
            began = time.monotonic()
            desk.stop()
            assert time.monotonic() - began < 20
            by_http.join(5)
            by_grpc.join(5)
            assert sorted(map(str, answers)) == ["201", "success"]
            for _ in updates.iter_lines():
                pass
        while stream.chunk():
            pass
        assert stream.is_closed()
    with pytest.raises(httpx.ConnectError), desk.http() as client:
        client.get("/healthz")


def test_a_stuck_order_does_not_hold_the_end_up(tmp_path):
    """After the drain time the desk stops all the same; the order's intent is in the ledger."""
    desk = RunningDesk(tmp_path, drain_s=0.2)
    token = desk.token()

    async def never(order, legs=()):
        await asyncio.sleep(60)

    desk.app.broker.submit = never
    connection = desk.raw(
        post("/v1/orders", b'{"symbol":"AAPL","qty":"1","side":"buy"}', "Content-Type: application/json", token=token)
    )
    wait_until(lambda: desk.on_loop(lambda: len(desk.desk.book.orders)) == 1, "the order")
    began = time.monotonic()
    desk.stop()
    assert time.monotonic() - began < 20
    connection.close()
    again = RunningDesk(tmp_path)
    try:
        with again.http(token) as client:
            (order,) = client.get("/v1/orders").json()["orders"]
        assert order["status"] != "refused"
    finally:
        again.stop()


def test_a_stop_that_hangs_is_ended(tmp_path):
    """What keeps the desk from stopping does so for a while: it says where it hung, and takes its sockets away."""
    hangs = (
        "import asyncio, desk_server.__main__ as main; from desk_server.desk import Desk;"
        "main._STOP_S_MAX = 0.5; Desk.close = lambda self: asyncio.sleep(3600); raise SystemExit(main.main([]))"
    )
    run_dir = tmp_path / "run"
    env = os.environ | {"DESK_RUN_DIR": str(run_dir), "PORT": "0", "GRPC_PORT": "0", "DESK_DRAIN_S": "0.5"}
    with (tmp_path / "log").open("wb") as log:
        desk = subprocess.Popen([sys.executable, "-c", hangs], env=env, stdin=subprocess.DEVNULL, stderr=log)
    try:
        wait_until(lambda: b'"listening"' in (tmp_path / "log").read_bytes(), "the desk")
        assert len(list((run_dir / "desk").glob("*.sock"))) == 2
        desk.terminate()
        assert desk.wait(20) == 1
    finally:
        desk.kill()
        desk.wait()
    assert list((run_dir / "desk").glob("*.sock")) == []
    assert "has not stopped in time" in (said := (tmp_path / "log").read_text()) and "most recent call first" in said


def test_a_desk_that_comes_back(tmp_path):
    """The same directory, the same tokens, the same orders."""
    desk = RunningDesk(tmp_path)
    token = desk.token()
    with desk.http(token) as client:
        order_id = place(client)["order_id"]
    desk.stop()
    desk = RunningDesk(tmp_path)
    try:
        with desk.over_socket(token) as client:
            assert client.get(f"/v1/orders/{order_id}").json()["limit_price"] == "1"
    finally:
        desk.stop()


def test_a_request_that_trickles_in(desk, monkeypatch):
    """A connection that does not finish its request is hung up on."""
    monkeypatch.setattr(fast, "ARRIVAL_S_MAX", 0.3)
    connection = desk.raw(b"POST /order HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
    silent = desk.raw()
    began = time.monotonic()
    connection.file.read()
    silent.file.read()
    assert time.monotonic() - began < 20
    connection.close()
    silent.close()


# Who is believed without a token


@pytest.fixture(scope="module")
def trusting(tmp_path_factory):
    running = RunningDesk(tmp_path_factory.mktemp("trusting"), trust_user_header=True)
    yield running
    running.stop()


def test_a_name_is_believed_only_when_told_to(trusting, desk):
    """With DESK_TRUST_USER_HEADER=1 the header alone says who asks, `default_user` where there is none."""
    with trusting.http(**{"X-User-ID": "bob"}) as client:
        assert client.get("/v1/account").json()["user_id"] == "bob"
        assert place(client)["user_id"] == "bob"
    with trusting.http() as client:
        assert client.get("/v1/account").json()["user_id"] == "default_user"
        assert client.get("/v1/accounts").status_code == 403
    with trusting.http(**{"X-User-ID": "$house"}) as client:
        assert client.get("/v1/account").status_code == 422
    with trusting.http("nonsense", **{"X-User-ID": "bob"}) as client:
        assert client.get("/v1/account").status_code == 401
    with trusting.grpc() as stubs:
        request = orders_pb2.OrderRequest(**RESTING)
        answer = stubs.orders.PlaceOrder(request, metadata=(("x-user-id", "bob"),), timeout=5)
        assert answer.order.user_id == "bob"
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(trusting.addresses.http_socket))) as client:
        answer = client.get("http://desk/v1/account", headers={"X-User-ID": "bob"})
        assert answer.json()["user_id"] == "bob"
    with desk.http(**{"X-User-ID": "bob"}) as client:
        assert client.get("/v1/account").status_code == 401


def test_a_forwarded_address_is_not_believed(trusting, monkeypatch):
    """X-Forwarded-For changes nothing about where a request comes from."""
    monkeypatch.setattr(auth, "is_local", lambda peer: peer == "10.0.0.1")
    with trusting.http(**{"X-User-ID": "bob", "X-Forwarded-For": "10.0.0.1"}) as client:
        assert client.get("/v1/account").status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8080"}, 200),
        ({"Host": "[::1]:8080"}, 200),
        ({"Host": "127.0.0.1:8080", "Origin": "http://127.0.0.1:8080"}, 200),
        ({"Origin": "https://evil.example"}, 401),
        ({"Origin": "null"}, 401),
        ({"Host": "127.0.0.1:8080", "Origin": "http://127.0.0.1:3000"}, 401),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 401),
        ({"Host": "evil.example"}, 401),
        ({"Host": "unix"}, 401),
    ],
)
def test_a_web_page_is_not_believed(trusting, headers, status):
    """A page of another site, or under a name made to mean this machine, cannot act for who looks at it."""
    with trusting.http(**{"X-User-ID": "bob"}) as client:
        assert client.get("/v1/account", headers=headers).status_code == status
        answer = client.post("/order", content=orders_pb2.OrderRequest(**RESTING).SerializeToString(), headers=headers)
        assert answer.status_code == (201 if status == 200 else 401)


def test_one_uid_cannot_take_all_connections(desk, alice, monkeypatch):
    """Above the bound a connection over the socket is refused in words; what one closes counts no more."""
    monkeypatch.setattr(fast, "CONNECTIONS_MAX", 3)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    path = str(desk.addresses.http_socket)
    wait_until(lambda: desk.on_loop(lambda: not desk.doors._protocol.connections_of[os.getuid()]), "closing")
    held = []
    for _ in range(3):
        held.append(socket.socket(socket.AF_UNIX))
        held[-1].connect(path)
    one_more = RawConnection(path)
    answer = one_more.answer()
    assert (answer.status, answer.json()["code"]) == (503, "OVERLOADED")
    assert one_more.is_closed()
    one_more.close()
    for connection in held:
        connection.close()

    def free():
        with desk.over_socket(alice) as client:
            return client.get("/v1/account").status_code == 200

    wait_until(free, "a free place")


class Tokens:
    def authenticate(self, token):
        raise DeskError(Code.UNAUTHENTICATED, "no")


@pytest.mark.parametrize(
    ("peer", "live", "trusted", "believed"),
    [
        ("127.0.0.1", False, True, True),
        ("127.8.9.1", False, True, True),
        ("::1", False, True, True),
        ("::ffff:127.0.0.1", False, True, True),
        ("unix", False, True, True),
        ("127.0.0.1", True, True, False),
        ("unix", True, True, False),
        ("127.0.0.1", False, False, False),
        ("10.0.0.1", False, True, False),
        ("::ffff:10.0.0.1", False, True, False),
        ("", False, True, False),
        ("127.evil.example", False, True, False),
        ("unix.example", False, True, False),
    ],
)
def test_from_where_a_name_is_believed(peer, live, trusted, believed):
    """Loopback and the socket only, with the paper exchange only; an unknown peer never."""
    door = auth.Door(Tokens(), Settings(trust_user_header=trusted), live=live)
    if believed:
        assert door.identify(None, "bob", peer) == Identity(user="bob", role=Role.TRADE)
    else:
        with pytest.raises(DeskError, match="UNAUTHENTICATED"):
            door.identify(None, "bob", peer)
