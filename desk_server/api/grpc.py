"""The gRPC surface: the verbs of `verbs.py` under the names of proto/desk/v1/service.proto, and the streams.

Handlers are made from the services' descriptors rather than from the generated servicers, so that a request that
cannot be decoded is refused by the same table of errors as everything else.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, TypeAlias, TypeVar
from urllib.parse import unquote

import grpc
import structlog
from desk.v1 import market_pb2, orders_pb2, service_pb2
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from desk_server import logs
from desk_server.api import errors, strict, wire
from desk_server.api.auth import UNIX_PEER, Door
from desk_server.api.exchange import BODY_BYTES_MAX, new_request_id, too_large
from desk_server.api.streams import Streams
from desk_server.api.verbs import Verbs
from desk_server.desk import Desk
from desk_server.domain import Identity
from desk_server.errors import Code, DeskError
from desk_server.tape import seq_of

log = structlog.get_logger("desk.grpc")

T = TypeVar("T")
Request: TypeAlias = Message | DeskError
Context = Any

RPCS_MAX = 2000
# Orders of one stream that may be under way at once; the next one waits to be read.
STREAM_WINDOW = 256
_OPTIONS = (
    ("grpc.max_receive_message_length", 64 * 1024),
    ("grpc.max_send_message_length", -1),
    # Two desks on one port would share its callers between them.
    ("grpc.so_reuseport", 0),
    ("grpc.max_concurrent_streams", RPCS_MAX),
)
VERBS = {
    "PlaceOrder": "place_order",
    "GetOrder": "get_order",
    "ListOrders": "list_orders",
    "ReplaceOrder": "replace_order",
    "CancelOrder": "cancel_order",
    "CancelAll": "cancel_all",
    "ListFills": "list_fills",
    "GetAccount": "get_account",
    "ListPositions": "list_positions",
    "ListAccounts": "list_accounts",
    "GetLatest": "get_latest",
    "GetAsset": "get_asset",
    "GetClock": "get_clock",
    "GetCalendar": "get_calendar",
    "CreateDeployment": "create_deployment",
    "ListDeployments": "list_deployments",
    "RevokeDeployment": "revoke_deployment",
    "CreateUserToken": "create_user_token",
    "RevokeToken": "revoke_token",
    "SetHalt": "set_halt",
    "GetReconciliation": "get_reconciliation",
    "Heartbeat": "heartbeat",
}


class GrpcDoor:
    def __init__(self, desk: Desk, verbs: Verbs, door: Door, streams: Streams) -> None:
        self._desk = desk
        self._verbs = verbs
        self._door = door
        self._streams = streams
        self._server: Any = None
        self._started = False
        self._health = health.aio.HealthServicer()
        self._acting: set[asyncio.Task[Any]] = set()

    def listen(self, address: str) -> int:
        """Before `start`; the port, as it is. Raises OSError."""
        if self._server is None:
            self._server = self._new_server()
        try:
            port: int = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"gRPC cannot listen on {address}: the address is in use, or not this machine's") from error
        return port

    async def start(self) -> None:
        await self._server.start()
        self._started = True
        await self.tell_health(ready=not self._desk.problems())

    def _new_server(self) -> Any:
        server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=RPCS_MAX)
        services = list(service_pb2.DESCRIPTOR.services_by_name.values())
        for service in services:
            server.add_generic_rpc_handlers((self._service(service),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = [service.full_name for service in services]
        reflection.enable_server_reflection((*names, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        return server

    async def tell_health(self, *, ready: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *(service.full_name for service in service_pb2.DESCRIPTOR.services_by_name.values())):
            await self._health.set(name, status)

    async def stop(self, drain_s: float) -> None:
        """Ends calls after `drain_s`; what they have begun goes on, and is waited for without end: bound it."""
        server, self._server = self._server, None
        if server is not None and not self._started:
            await server.stop(None)
        elif server is not None:
            await self._health.enter_graceful_shutdown()
            await server.stop(drain_s)
        if self._acting:
            await asyncio.wait(set(self._acting))

    # Handlers

    def _service(self, service: ServiceDescriptor) -> Any:
        return grpc.method_handlers_generic_handler(
            service.full_name, {method.name: self._method(method) for method in service.methods}
        )

    def _method(self, method: MethodDescriptor) -> Any:
        reads = _reader(GetMessageClass(method.input_type))
        writes = GetMessageClass(method.output_type).SerializeToString
        match method.name:
            case "PlaceOrders":
                return grpc.stream_stream_rpc_method_handler(self._place_orders, reads, writes)
            case "StreamUpdates":
                return grpc.unary_stream_rpc_method_handler(self._stream_updates, reads, writes)
            case "StreamMarket":
                return grpc.unary_stream_rpc_method_handler(self._stream_market, reads, writes)
            case name:
                return grpc.unary_unary_rpc_method_handler(
                    self._unary(getattr(self._verbs, VERBS[name])), reads, writes
                )

    def _unary(
        self, verb: Callable[[Identity, Any], Awaitable[Message]]
    ) -> Callable[[Request, Context], Awaitable[Message]]:
        async def call(request: Request, context: Context) -> Message:
            request_id = _start_log(context)

            async def work() -> Message:
                return await verb(self._identify(context), _decoded(request))

            try:
                return await self._to_the_end(_finished(work(), request_id))
            except DeskError as error:
                await _abort(context, error)

        return call

    async def _place_orders(self, _: Any, context: Context) -> None:
        """One answer per order, in order; up to STREAM_WINDOW of them are under way together."""
        _start_log(context)
        try:
            who = self._identify(context)
        except DeskError as error:
            await _abort(context, error)
        answers: asyncio.Queue[asyncio.Task[orders_pb2.OrderResponse] | None] = asyncio.Queue(STREAM_WINDOW)

        async def read() -> None:
            try:
                while (request := await context.read()) is not grpc.aio.EOF:
                    await answers.put(self._keep(self._place_one(who, request)))
            except Exception:  # the boundary of a task: the orders that were read are answered all the same
                log.warning("a stream of orders broke off", exc_info=True)
            await answers.put(None)

        reading = asyncio.create_task(read())
        try:
            while (answer := await answers.get()) is not None:
                await context.write(await asyncio.shield(answer))
        finally:
            reading.cancel()

    async def _place_one(self, who: Identity, request: Request) -> orders_pb2.OrderResponse:
        try:
            order = _decoded(request)
            assert isinstance(order, orders_pb2.OrderRequest)
            return await _finished(self._verbs.place_order(who, order), logs.bound().get("request_id", ""))
        except DeskError as error:
            return errors.as_message(error)

    async def _stream_updates(self, request: Request, context: Context) -> AsyncIterator[orders_pb2.OrderUpdate]:
        async def updates() -> AsyncIterator[orders_pb2.OrderUpdate]:
            wish = _decoded(request)
            assert isinstance(wish, orders_pb2.StreamUpdatesRequest)
            async for update in self._streams.updates(self._identify(context), wish):
                if update is not None:
                    yield wire.update_message(update)

        async for message in _guarded(updates(), context):
            yield message

    async def _stream_market(self, request: Request, context: Context) -> AsyncIterator[market_pb2.MarketLine]:
        async def lines() -> AsyncIterator[market_pb2.MarketLine]:
            wish = _decoded(request)
            assert isinstance(wish, market_pb2.StreamMarketRequest)
            async for line in self._streams.market_lines(self._identify(context), wish):
                if line is not None:
                    yield market_pb2.MarketLine(seq=seq_of(line), json=line)

        async for message in _guarded(lines(), context):
            yield message

    def _identify(self, context: Context) -> Identity:
        """Raises DeskError, the same as over HTTP."""
        given: dict[str, str] = {}
        for name, value in context.invocation_metadata() or ():
            if name in ("authorization", "x-user-id"):
                if name in given:
                    raise DeskError(Code.UNAUTHENTICATED, f"{name} was sent twice: send it once")
                given[name] = value
        who = self._door.identify(given.get("authorization"), given.get("x-user-id"), _peer(context.peer()))
        logs.bind(user=who.user, deployment_id=who.deployment_id)
        return who

    def _keep(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._acting.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._acting.discard(task)
        if not task.cancelled():
            # A caller whose deadline passed does not ask for the outcome.
            task.exception()

    async def _to_the_end(self, work: Awaitable[T]) -> T:
        """Wait for the work; a deadline or a cancel ends the wait, and the work goes on."""
        result: T = await asyncio.shield(self._keep(work))
        return result


async def _guarded(source: AsyncIterator[T], context: Context) -> AsyncIterator[T]:
    """A stream of answers; whatever goes wrong ends it with an error of the table."""
    request_id = _start_log(context)
    try:
        async for item in source:
            yield item
        return
    except DeskError as refused:
        error = refused
    except Exception:  # the boundary of a request: logged, and the caller told no more than its id
        log.exception("stream failed")
        error = errors.internal(request_id)
    await _abort(context, error)


async def _finished(work: Awaitable[T], request_id: str) -> T:
    """The result or a DeskError, whatever went wrong."""
    try:
        return await work
    except DeskError:
        raise
    except Exception as error:  # the boundary of a request: logged, and the caller told no more than its id
        log.exception("request failed")
        raise errors.internal(request_id) from error


def _reader(kind: type[Message]) -> Callable[[bytes], Request]:
    """Never raises: gRPC would answer INTERNAL."""

    def read(body: bytes) -> Request:
        try:
            if len(body) > BODY_BYTES_MAX:
                raise too_large()
            return strict.message_of_protobuf(body, kind)
        except DeskError as error:
            return error

    return read


def _decoded(request: Request) -> Message:
    if isinstance(request, DeskError):
        raise request
    return request


def _start_log(context: Context) -> str:
    request_id = new_request_id().decode()
    for name, value in context.invocation_metadata() or ():
        if name == "x-request-id" and value.isascii() and value.isalnum() and len(value) <= 64:
            request_id = value
    logs.bind_only({"request_id": request_id})
    return request_id


async def _abort(context: Context, error: DeskError) -> NoReturn:
    details = {
        "desk-code": error.code.value,
        "desk-limit": error.limit,
        "desk-observed": error.observed,
        "desk-order-id": error.order_id,
        "desk-retry-after-s": errors.retry_after(error),
    }
    metadata = tuple((name, ascii(value)[1:-1]) for name, value in details.items() if value)
    await context.abort(errors.TABLE[error.code].grpc, error.message, metadata)
    raise AssertionError("abort raises")


def _peer(address: str) -> str:
    """gRPC's name of the other side: "unix:…", "ipv4:127.0.0.1:4242", "ipv6:[::1]:4242" (escaped)."""
    kind, _, rest = address.partition(":")
    if kind == "unix":
        return UNIX_PEER
    return unquote(rest).rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else ""
