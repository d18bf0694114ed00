"""The HTTP surface: FastAPI, one endpoint for each row of `routes.ROUTES`, and the streams.

Answers are made by `exchange.py`, not by FastAPI's own parsing, so that they are the same by either door and speak
protobuf as well as JSON. What FastAPI adds is routing and the description at /docs.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, TypeVar

from desk.v1 import market_pb2, orders_pb2
from fastapi import FastAPI, Request
from fastapi_offline import FastAPIOffline
from google.protobuf.message import Message
from starlette import routing
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from desk_server.api import errors, exchange
from desk_server.api.auth import Door, admin
from desk_server.api.describe import (
    DESCRIPTION,
    OPEN,
    STREAM_OF_LINES,
    STREAM_OF_UPDATES,
    describe,
    describe_all,
    describe_order,
)
from desk_server.api.exchange import Answer, Head
from desk_server.api.metrics import CONTENT_TYPE_LATEST, Metrics
from desk_server.api.orders import PATHS, OrderRoute
from desk_server.api.routes import ROUTES, Route
from desk_server.api.streams import Streams, message_of_query, stream_headers, update_frame
from desk_server.api.verbs import Verbs
from desk_server.desk import Desk
from desk_server.domain import Identity
from desk_server.errors import Code, DeskError

T = TypeVar("T")
Endpoint = Callable[[Request], Awaitable[Response]]


class Api:
    """What the routes stand on; one for both doors."""

    def __init__(self, desk: Desk, verbs: Verbs, door: Door, orders: OrderRoute, streams: Streams) -> None:
        self.desk = desk
        self.verbs = verbs
        self.door = door
        self.orders = orders
        self.streams = streams
        self._acting: set[asyncio.Task[Any]] = set()

    async def to_the_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for the work; when the caller goes, the wait ends and the work goes on."""
        task = asyncio.get_running_loop().create_task(work)
        self._acting.add(task)
        task.add_done_callback(self._acting.discard)
        return await asyncio.shield(task)


def build_http(api: Api) -> FastAPI:
    # FastAPI's own /docs loads its script from elsewhere: blank without the internet, and a stranger's code on a
    # page that people type tokens into. This one brings Swagger UI along.
    app = FastAPIOffline(
        title="The desk",
        version=version("desk"),
        description=DESCRIPTION,
        redoc_url=None,
        redirect_slashes=False,
    )
    for path in sorted(PATHS):
        _add(app, "POST", path, _place(api), describe_order(), tag="orders", summary="Send an order", status=201)
    for route in ROUTES:
        named = {"tag": route.tag, "summary": route.summary}
        _add(app, route.method, route.pattern, _call(api, route), describe(route), **named, status=route.status)
    stream = "A stream of what happens to your orders"
    _add(app, "GET", "/v1/updates", _updates(api), STREAM_OF_UPDATES, tag="orders", summary=stream)
    stream = "A stream of market lines"
    _add(app, "GET", "/v1/market/stream", _market(api), STREAM_OF_LINES, tag="market", summary=stream)
    _add(app, "GET", "/healthz", _alive, dict(OPEN), tag="state", summary="Alive?")
    _add(app, "GET", "/readyz", _ready(api.desk), dict(OPEN), tag="state", summary="Ready? 503 with the reasons if not")
    _add(app, "GET", "/metrics", _metrics(api), {}, tag="state", summary="Figures for Prometheus (administrators)")
    app.add_exception_handler(HTTPException, _not_routed)
    app.add_exception_handler(Exception, _failed)
    describe_all(app)
    return app


class Exact(Response):
    """An answer's own headers, in its own order."""

    def __init__(self, answer: Answer) -> None:
        self.status_code = answer.status
        self.body = answer.body
        self.raw_headers = answer.headers
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body})


def _place(api: Api) -> Endpoint:
    async def place(request: Request) -> Response:
        head = exchange.head_of(request.scope["headers"])
        if request.scope["query_string"]:
            return Exact(exchange.refusal(head, _no_query()))
        try:
            body = await _body(request, head)
        except DeskError as error:
            return Exact(exchange.refusal(head, error))
        return Exact(await api.to_the_end(api.orders.handle(request.url.path, head, body, _peer(request))))

    return place


def _call(api: Api, route: Route) -> Endpoint:
    verb = getattr(api.verbs, route.verb)

    async def call(request: Request) -> Response:
        head = exchange.head_of(request.scope["headers"])
        exchange.start_log(head)

        async def work() -> Message:
            who = exchange.identify(api.door, head, _peer(request))
            result: Message = await verb(who, await _message(route, request, head))
            return result

        answering = exchange.answered(head, work(), route.status)
        answer = await (api.to_the_end(answering) if route.acts else answering)
        exchange.log.debug("http", method=route.method, path=request.url.path, status=answer.status)
        return Exact(answer)

    return call


async def _message(route: Route, request: Request, head: Head) -> Message:
    body = await _body(request, head)
    query = request.scope["query_string"]
    if route.takes == "body":
        if query:
            raise _no_query()
        message = exchange.message_of(head, body, route.request)
    else:
        message = message_of_query(query, route.request)
    for name, value in request.path_params.items():
        if getattr(message, name) not in ("", value):
            raise DeskError(Code.INVALID, f"{name} in the request is not the one in the path: leave it out")
        setattr(message, name, value)
    return message


async def _body(request: Request, head: Head) -> bytes:
    """Raises DeskError TOO_LARGE before more than the limit is in memory."""
    if head.content_length is not None and head.content_length > exchange.BODY_BYTES_MAX:
        raise exchange.too_large()
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > exchange.BODY_BYTES_MAX:
            raise exchange.too_large()
    return bytes(body)


def _updates(api: Api) -> Endpoint:
    async def updates(request: Request) -> Response:
        head = exchange.head_of(request.scope["headers"])
        exchange.start_log(head)
        try:
            who = exchange.identify(api.door, head, _peer(request))
            wish = message_of_query(request.scope["query_string"], orders_pb2.StreamUpdatesRequest)
            source = api.streams.updates(who, wish)
            last_seq = api.streams.last_update(who, wish)
        except DeskError as error:
            return Exact(exchange.refusal(head, error))
        protobuf = head.wants_protobuf
        kind = exchange.PROTOBUF if protobuf else b"application/x-ndjson"
        headers = [*stream_headers(head, kind), (b"desk-last-seq", b"%d" % last_seq)]
        return _stream(headers, _ending(update_frame(update, protobuf=protobuf) async for update in source))

    return updates


def _market(api: Api) -> Endpoint:
    async def market(request: Request) -> Response:
        head = exchange.head_of(request.scope["headers"])
        exchange.start_log(head)
        try:
            who: Identity = exchange.identify(api.door, head, _peer(request))
            wish = message_of_query(request.scope["query_string"], market_pb2.StreamMarketRequest)
            headers = api.streams.market_headers(head, wish)
        except DeskError as error:
            return Exact(exchange.refusal(head, error))
        lines = api.streams.market_lines(who, wish)
        return _stream(headers, ((line or b"") + b"\n" async for line in lines))

    return market


async def _ending(frames: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """A reader who fell behind finds the stream ended, and learns why when it resumes."""
    try:
        async for frame in frames:
            yield frame
    except DeskError as error:
        exchange.log.info("update stream ended", code=error.code.value)


def _stream(headers: list[tuple[bytes, bytes]], content: AsyncIterator[bytes]) -> Response:
    response = StreamingResponse(content)
    response.raw_headers = headers
    return response


async def _alive(_: Request) -> Response:
    return JSONResponse({"alive": True})


def _ready(desk: Desk) -> Endpoint:
    async def ready(_: Request) -> Response:
        reasons = desk.problems()
        capabilities = desk.broker.capabilities
        return JSONResponse(
            {"ready": not reasons, "reasons": reasons, "broker": capabilities.name, "live": capabilities.live},
            status_code=HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK,
        )

    return ready


def _metrics(api: Api) -> Endpoint:
    metrics = Metrics(api.desk, api.verbs.report)

    async def page(request: Request) -> Response:
        head = exchange.head_of(request.scope["headers"])
        try:
            admin(exchange.identify(api.door, head, _peer(request)))
        except DeskError as error:
            return Exact(exchange.refusal(head, error))
        return Response(metrics.page(), media_type=CONTENT_TYPE_LATEST)

    return page


async def _not_routed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    head = exchange.head_of(request.scope["headers"])
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = ", ".join(_methods_at(request))
        refused = DeskError(Code.INVALID, f"{request.method} is not allowed here: use {allowed}")
        answer = exchange.refusal(head, refused, HTTPStatus.METHOD_NOT_ALLOWED)
        answer.headers.append((b"allow", allowed.encode()))
        return Exact(answer)
    return Exact(exchange.refusal(head, DeskError(Code.NOT_FOUND, "there is nothing at this path: see /docs")))


async def _failed(request: Request, error: Exception) -> Response:
    head = exchange.head_of(request.scope["headers"])
    exchange.log.error("request failed", request_id=head.request_id.decode(), exc_info=error)
    return Exact(exchange.refusal(head, errors.internal(head.request_id.decode())))


def _methods_at(request: Request) -> list[str]:
    """What the path may be asked with; Starlette itself tells of one route only."""
    here = [
        route
        for route in request.app.routes
        if isinstance(route, routing.Route) and route.path_regex.match(request.url.path)
    ]
    return sorted({method for route in here for method in route.methods or ()})


def _no_query() -> DeskError:
    return DeskError(Code.INVALID, "this route takes no parameters in its URL: put them into the body")


def _peer(request: Request) -> str:
    return request.client.host if request.client else ""


def _guarded(endpoint: Endpoint) -> Endpoint:
    """What the endpoint did not foresee is answered here, so that the connection stays good."""

    async def guarded(request: Request) -> Response:
        try:
            return await endpoint(request)
        except HTTPException:
            raise
        except Exception as error:  # the boundary of a request
            return await _failed(request, error)

    return guarded


def _add(
    app: FastAPI,
    method: str,
    path: str,
    endpoint: Endpoint,
    describe: dict[str, Any],
    *,
    tag: str,
    summary: str,
    status: int = 200,
) -> None:
    app.add_api_route(
        path,
        _guarded(endpoint),
        methods=[method],
        tags=[tag],
        summary=summary,
        openapi_extra=describe,
        status_code=status,
        response_model=None,
    )
