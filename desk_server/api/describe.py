"""What /docs and /openapi.json say of each route."""

from http import HTTPStatus
from typing import Any

from desk.v1 import market_pb2, orders_pb2
from fastapi import FastAPI
from google.protobuf.message import Message

from desk_server.api import schema
from desk_server.api.routes import ROUTES, Route

DESCRIPTION = """One broker account, many people's strategies. Every order belongs to the user of its token.

Bodies are JSON, or the protobuf messages of proto/desk/v1 with `Content-Type` and `Accept: application/x-protobuf`.
Money, prices and quantities are decimal strings; a JSON number is taken, too. Unknown fields are refused."""


OPEN: dict[str, Any] = {"security": []}


def describe(route: Route) -> dict[str, Any]:
    described: dict[str, Any] = {
        "parameters": schema.parameters(route.request, route.path, query=route.takes == "query"),
        "responses": _responses(route.status, route.response),
    }
    if route.takes == "body":
        described["requestBody"] = _content(route.request)
    return described


def describe_order() -> dict[str, Any]:
    example = {"symbol": "AAPL", "qty": "10", "side": "buy", "order_type": "limit", "limit_price": "145.50"}
    body = _content(orders_pb2.OrderRequest)
    body["content"]["application/json"]["example"] = example
    body["required"] = True
    return {"requestBody": body, "responses": _responses(HTTPStatus.CREATED, orders_pb2.OrderResponse)}


def _content(kind: type[Message]) -> dict[str, Any]:
    return {
        "content": {
            "application/json": {"schema": schema.reference(kind)},
            "application/x-protobuf": {"schema": {"type": "string", "format": "binary"}},
        }
    }


def _responses(status: HTTPStatus, kind: type[Message]) -> dict[str, Any]:
    error = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    return {
        str(status.value): {"description": status.phrase, **_content(kind)},
        "4XX": {"description": "Refused; the message says what to do", **error},
        "5XX": {"description": "Not now; try again with the same request_id", **error},
    }


STREAM_OF_UPDATES: dict[str, Any] = {
    "parameters": schema.parameters(orders_pb2.StreamUpdatesRequest, "", query=True),
    "responses": {
        "200": {
            "description": "One OrderUpdate a line; an empty line every 15 s. As protobuf: each message behind its "
            "length as a varint, a zero length every 15 s. Desk-Last-Seq is the update that the stream starts behind.",
            "content": {"application/x-ndjson": {"schema": schema.reference(orders_pb2.OrderUpdate)}},
        }
    },
}
STREAM_OF_LINES: dict[str, Any] = {
    "parameters": schema.parameters(market_pb2.StreamMarketRequest, "", query=True),
    "responses": {
        "200": {
            "description": "One JSON object a line; an empty line every 15 s. Desk-First-Seq is the first seq that "
            "will be sent at the earliest. See docs/market-lines.md.",
            "content": {"application/x-ndjson": {"schema": {"type": "object"}}},
        }
    },
}


def describe_all(app: FastAPI) -> None:
    """Replace what FastAPI guesses about bodies by the contract's own schemas, and say how to authenticate."""
    guess = app.openapi
    kinds = {kind for route in ROUTES for kind in (route.request, route.response)}
    kinds |= {orders_pb2.OrderRequest, orders_pb2.OrderResponse, orders_pb2.OrderUpdate}

    def openapi() -> dict[str, Any]:
        described = guess()
        described["components"] = {
            "schemas": schema.schemas(kinds),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        }
        described["security"] = [{"token": []}]
        for path in described["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        return described

    app.openapi = openapi  # type: ignore[method-assign]
