"""The gRPC surface: the same verbs, identity, errors and streams."""

import asyncio
import re
import time

import grpc
import pytest
from desk.v1 import admin_pb2, books_pb2, market_pb2, orders_pb2, service_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from desk_server.api.grpc import VERBS
from desk_server.api.verbs import Verbs
from tests.api.running import RunningDesk, wait_until

RESTING = orders_pb2.OrderRequest(
    symbol="AAPL", qty="2", side="buy", order_type="limit", limit_price="1.00", time_in_force="gtc"
)


def changed(**fields) -> orders_pb2.OrderRequest:
    request = orders_pb2.OrderRequest()
    request.CopyFrom(RESTING)
    request.MergeFrom(orders_pb2.OrderRequest(**fields))
    return request


def test_every_method_has_a_verb():
    """Each method of the contract is served, under its own name."""
    methods = {m.name for service in service_pb2.DESCRIPTOR.services_by_name.values() for m in service.methods}
    assert methods - set(VERBS) == {"PlaceOrders", "StreamUpdates", "StreamMarket"}
    assert set(VERBS) <= methods
    assert all(callable(getattr(Verbs, verb)) for verb in VERBS.values())


@pytest.mark.parametrize("door", ["tcp", "socket"])
def test_an_order_by_every_rpc(desk, door):
    """Placed, found, listed, replaced and cancelled, over TCP and the unix socket."""
    address = f"unix:{desk.addresses.grpc_socket}" if door == "socket" else None
    with desk.grpc(desk.token(f"anna-{door}"), address) as stubs:
        orders, metadata = stubs.orders, {"metadata": stubs.metadata, "timeout": 5}
        placed = orders.PlaceOrder(RESTING, **metadata)
        assert (placed.status, placed.order.user_id) == ("success", f"anna-{door}")
        found = orders.GetOrder(orders_pb2.GetOrderRequest(order_id=placed.order_id), **metadata)
        assert found.order_id == placed.order_id
        listed = orders.ListOrders(orders_pb2.ListOrdersRequest(status="open"), **metadata)
        assert [order.order_id for order in listed.orders] == [placed.order_id]
        replaced = orders.ReplaceOrder(orders_pb2.ReplaceOrderRequest(order_id=placed.order_id, qty="3"), **metadata)
        assert (replaced.order.replaces, replaced.qty) == (placed.order_id, "3")
        cancelled = orders.CancelOrder(orders_pb2.CancelOrderRequest(order_id=replaced.order_id), **metadata)
        assert cancelled.status == "success"
        assert orders.CancelAll(orders_pb2.CancelAllRequest(), **metadata) is not None
        assert not orders.ListFills(orders_pb2.ListFillsRequest(), **metadata).fills
        assert stubs.books.GetAccount(books_pb2.GetAccountRequest(), **metadata).cash == "100000"
        assert not stubs.books.ListPositions(books_pb2.ListPositionsRequest(), **metadata).positions
        assert stubs.market.GetLatest(market_pb2.GetLatestRequest(symbols=["AAPL"]), **metadata).lines[0].price


def test_administration(desk):
    """Deployments, tokens, halts and heartbeats, for administrators and deployments only."""
    spec = admin_pb2.CreateDeploymentRequest(user_id="ben", strategy="s1", code_hash="0" * 64)
    with desk.grpc(desk.admin_token) as stubs:
        metadata = {"metadata": stubs.metadata, "timeout": 5}
        created = stubs.admin.CreateDeployment(spec, **metadata)
        with desk.grpc(created.token) as own:
            own.admin.Heartbeat(admin_pb2.HeartbeatRequest(lines_read=1), metadata=own.metadata, timeout=5)
            assert refused(own.admin.CreateDeployment, spec, own)[0] is grpc.StatusCode.PERMISSION_DENIED
        shown = stubs.admin.ListDeployments(admin_pb2.ListDeploymentsRequest(), **metadata).deployments
        assert created.deployment.deployment_id in [one.deployment_id for one in shown]
        end = admin_pb2.RevokeDeploymentRequest(deployment_id=created.deployment.deployment_id)
        assert stubs.admin.RevokeDeployment(end, **metadata).revoked_at
        token = stubs.admin.CreateUserToken(admin_pb2.CreateUserTokenRequest(user_id="ben", role="read"), **metadata)
        stubs.admin.RevokeToken(admin_pb2.RevokeTokenRequest(token_id=token.token_id), **metadata)
        halt = admin_pb2.SetHaltRequest(scope="user", name="ben", halted=True, reason="test")
        stubs.admin.SetHalt(halt, **metadata)
        assert stubs.books.ListAccounts(books_pb2.ListAccountsRequest(), **metadata) is not None
    with desk.grpc(desk.token("ben")) as stubs:
        assert refused(stubs.orders.PlaceOrder, RESTING, stubs) == (grpc.StatusCode.FAILED_PRECONDITION, "HALTED")


def refused(method, request, stubs):
    with pytest.raises(grpc.RpcError) as caught:
        method(request, metadata=stubs.metadata, timeout=5)
    return caught.value.code(), dict(caught.value.trailing_metadata())["desk-code"]


def test_a_user_sees_nothing_of_another(desk):
    """NOT_FOUND on every RPC that could tell of another user's order."""
    with desk.grpc(desk.token("carl")) as carl, desk.grpc(desk.token("dana")) as dana:
        order_id = carl.orders.PlaceOrder(RESTING, metadata=carl.metadata, timeout=5).order_id
        orders, books = dana.orders, dana.books
        for method, request in [
            (orders.GetOrder, orders_pb2.GetOrderRequest(order_id=order_id)),
            (orders.CancelOrder, orders_pb2.CancelOrderRequest(order_id=order_id)),
            (orders.ReplaceOrder, orders_pb2.ReplaceOrderRequest(order_id=order_id, qty="9")),
            (orders.ListFills, orders_pb2.ListFillsRequest(order_id=order_id)),
            (orders.ListOrders, orders_pb2.ListOrdersRequest(user_id="carl")),
            (orders.CancelAll, orders_pb2.CancelAllRequest(user_id="carl")),
            (books.GetAccount, books_pb2.GetAccountRequest(user_id="carl")),
            (books.ListPositions, books_pb2.ListPositionsRequest(user_id="*")),
        ]:
            assert refused(method, request, dana) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
        with pytest.raises(grpc.RpcError) as caught:
            next(orders.StreamUpdates(orders_pb2.StreamUpdatesRequest(user_id="carl"), metadata=dana.metadata))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_deadline_ends_the_wait_and_not_the_order(desk):
    """DEADLINE_EXCEEDED while the order goes on; asked again under the same request id, it is the same order."""
    broker = desk.app.broker
    submit = broker.submit

    async def slow(order, legs=()):
        await asyncio.sleep(0.3)
        return await submit(order, legs)

    broker.submit = slow
    try:
        with desk.grpc(desk.token("eve")) as stubs:
            request = changed(request_id="deadline-1")
            with pytest.raises(grpc.RpcError) as caught:
                stubs.orders.PlaceOrder(request, metadata=stubs.metadata, timeout=0.05)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            before = desk.sent
            answer = stubs.orders.PlaceOrder(request, metadata=stubs.metadata, timeout=5)
            assert answer.status == "success"
            assert desk.sent <= before + 1
            listed = stubs.orders.ListOrders(orders_pb2.ListOrdersRequest(), metadata=stubs.metadata, timeout=5)
            assert [order.order_id for order in listed.orders] == [answer.order_id]
    finally:
        broker.submit = submit


def test_a_deadline_of_a_millisecond(desk):
    """Whatever became of it, the retry under the same request id tells."""
    with desk.grpc(desk.token("finn")) as stubs:
        for number in range(20):
            request = changed(request_id=f"hasty-{number}")
            try:
                stubs.orders.PlaceOrder(request, metadata=stubs.metadata, timeout=0.001)
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert stubs.orders.PlaceOrder(request, metadata=stubs.metadata, timeout=5).status == "success"
        listed = stubs.orders.ListOrders(orders_pb2.ListOrdersRequest(limit=500), metadata=stubs.metadata)
        assert len(listed.orders) == 20


def test_many_orders_on_one_stream(desk):
    """One answer per order, in the orders' sequence, errors among them."""
    wishes = [changed(request_id=f"s{number}", qty=str(number % 5)) for number in range(400)]
    with desk.grpc(desk.token("gus")) as stubs:
        answers = list(stubs.orders.PlaceOrders(iter(wishes), metadata=stubs.metadata, timeout=30))
    assert [answer.status for answer in answers] == ["error" if n % 5 == 0 else "success" for n in range(400)]
    assert all(answer.order.request_id == f"s{n}" for n, answer in enumerate(answers) if n % 5)
    assert {answer.code for answer in answers} == {"", "INVALID"}


def test_a_stream_of_orders_that_is_cut_off(desk):
    """Orders that the desk has read are placed, whatever becomes of the stream."""

    def wishes():
        for number in range(50):
            yield changed(request_id=f"c{number}")
        time.sleep(30)

    token = desk.token("hal")
    with desk.grpc(token) as stubs:
        call = stubs.orders.PlaceOrders(wishes(), metadata=stubs.metadata)
        next(call)
        call.cancel()
        listed = orders_pb2.ListOrdersRequest(limit=500)
        wait_until(lambda: stubs.orders.ListOrders(listed, metadata=stubs.metadata).orders, "an order")

        def settled():
            orders = stubs.orders.ListOrders(listed, metadata=stubs.metadata).orders
            return all(order.status != "pending" for order in orders)

        wait_until(settled, "every order's answer")


def test_health_and_reflection(desk):
    """The health service serves while the desk is ready; reflection lists the services."""
    with desk.grpc() as stubs:
        health = health_pb2_grpc.HealthStub(stubs.channel)
        for name in ("", "desk.v1.OrderService"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = reflection_pb2_grpc.ServerReflectionStub(stubs.channel).ServerReflectionInfo(iter([ask]))
        names = {service.name for service in answer.list_services_response.service}
        assert {f"desk.v1.{name}" for name in service_pb2.DESCRIPTOR.services_by_name} <= names


def test_health_follows_readiness(tmp_path):
    """NOT_SERVING once the desk is not ready to trade."""
    desk = RunningDesk(tmp_path)
    try:
        desk.on_loop(lambda: setattr(desk.app.broker, "problem", lambda: "the broker is away"))
        with desk.grpc() as stubs:
            health = health_pb2_grpc.HealthStub(stubs.channel)
            check = health_pb2.HealthCheckRequest(service="desk.v1.OrderService")
            bad = health_pb2.HealthCheckResponse.NOT_SERVING
            wait_until(lambda: health.Check(check, timeout=5).status == bad, "NOT_SERVING")
    finally:
        desk.stop()


def test_a_fault_of_the_desk_tells_no_secrets(tmp_path):
    """INTERNAL with a request id, and nothing of what went wrong; on a stream it is an answer."""
    desk = RunningDesk(tmp_path)
    try:

        async def fail(*_):
            raise RuntimeError("the cellar key lies under the mat")

        def fail_at_once(*_):
            raise RuntimeError("the cellar key lies under the mat")

        desk.desk.place = fail
        desk.desk.hub.subscribe = desk.desk.updates.subscribe = fail_at_once
        with desk.grpc(desk.token()) as stubs:
            with pytest.raises(grpc.RpcError) as caught:
                stubs.orders.PlaceOrder(RESTING, metadata=stubs.metadata, timeout=5)
            assert caught.value.code() is grpc.StatusCode.INTERNAL
            assert re.search(r"X-Request-ID [0-9a-f]{16}", caught.value.details())
            assert "cellar" not in caught.value.details()
            (answer,) = stubs.orders.PlaceOrders(iter([RESTING]), metadata=stubs.metadata, timeout=5)
            assert (answer.code, "cellar" in answer.message) == ("INTERNAL", False)
            for stream, wish in (
                (stubs.orders.StreamUpdates, orders_pb2.StreamUpdatesRequest()),
                (stubs.market.StreamMarket, market_pb2.StreamMarketRequest()),
            ):
                with pytest.raises(grpc.RpcError) as caught:
                    next(stream(wish, metadata=stubs.metadata, timeout=5))
                assert caught.value.code() is grpc.StatusCode.INTERNAL
                assert "cellar" not in caught.value.details()
    finally:
        desk.stop()
