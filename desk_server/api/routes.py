"""The HTTP routes as a table: which verb each calls, and what goes in and comes out."""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Literal

from desk.v1 import admin_pb2 as a
from desk.v1 import books_pb2 as b
from desk.v1 import market_pb2 as m
from desk.v1 import orders_pb2 as o
from google.protobuf.message import Message


@dataclass(frozen=True, slots=True)
class Route:
    """`takes` says where the request's fields come from; a name in braces in the path fills the field of that name."""

    method: Literal["GET", "POST", "PATCH", "DELETE"]
    path: str
    verb: str
    request: type[Message]
    response: type[Message]
    takes: Literal["body", "query", "path"]
    tag: str
    summary: str
    status: HTTPStatus = HTTPStatus.OK

    @property
    def pattern(self) -> str:
        """The path for the router: a symbol may have a slash in it (BTC/USD)."""
        return self.path.replace("{symbol}", "{symbol:path}")

    @property
    def acts(self) -> bool:
        """True where a caller who hangs up must not stop what was begun."""
        return self.method != "GET"


CREATED = HTTPStatus.CREATED

# POST /order and POST /v1/orders are not here: see orders.py, which both doors share.
ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/v1/orders",
        "list_orders",
        o.ListOrdersRequest,
        o.ListOrdersResponse,
        "query",
        "orders",
        "Your orders, newest first; legs stand under their entry",
    ),
    Route(
        "POST",
        "/v1/orders:cancel-all",
        "cancel_all",
        o.CancelAllRequest,
        o.CancelAllResponse,
        "body",
        "orders",
        "Ask for the cancel of every open order",
    ),
    Route("GET", "/v1/orders/{order_id}", "get_order", o.GetOrderRequest, o.Order, "path", "orders", "One order"),
    Route(
        "PATCH",
        "/v1/orders/{order_id}",
        "replace_order",
        o.ReplaceOrderRequest,
        o.OrderResponse,
        "body",
        "orders",
        "Replace an open order; the answer is the new one",
    ),
    Route(
        "DELETE",
        "/v1/orders/{order_id}",
        "cancel_order",
        o.CancelOrderRequest,
        o.OrderResponse,
        "path",
        "orders",
        "Ask for an order's cancel; the outcome comes on the update stream",
    ),
    Route(
        "GET",
        "/v1/fills",
        "list_fills",
        o.ListFillsRequest,
        o.ListFillsResponse,
        "query",
        "orders",
        "Your fills, newest first",
    ),
    Route(
        "GET",
        "/v1/positions",
        "list_positions",
        b.ListPositionsRequest,
        b.ListPositionsResponse,
        "query",
        "books",
        "What you hold",
    ),
    Route("GET", "/v1/account", "get_account", b.GetAccountRequest, b.Account, "query", "books", "Your money"),
    Route(
        "GET",
        "/v1/accounts",
        "list_accounts",
        b.ListAccountsRequest,
        b.ListAccountsResponse,
        "query",
        "books",
        "Everybody's money (administrators)",
    ),
    Route(
        "GET",
        "/v1/market/latest",
        "get_latest",
        m.GetLatestRequest,
        m.GetLatestResponse,
        "query",
        "market",
        "The newest price of each symbol",
    ),
    Route(
        "GET",
        "/v1/assets/{symbol}",
        "get_asset",
        m.GetAssetRequest,
        m.Asset,
        "path",
        "market",
        "What can be traded: one symbol, its slash as it is or as %2F",
    ),
    Route("GET", "/v1/clock", "get_clock", m.GetClockRequest, m.Clock, "query", "market", "Is the market open?"),
    Route(
        "GET",
        "/v1/calendar",
        "get_calendar",
        m.GetCalendarRequest,
        m.Calendar,
        "query",
        "market",
        "The market's trading days and their hours",
    ),
    Route(
        "POST",
        "/v1/deployments",
        "create_deployment",
        a.CreateDeploymentRequest,
        a.CreateDeploymentResponse,
        "body",
        "administration",
        "A new deployment and its token (administrators)",
        CREATED,
    ),
    Route(
        "GET",
        "/v1/deployments",
        "list_deployments",
        a.ListDeploymentsRequest,
        a.ListDeploymentsResponse,
        "query",
        "administration",
        "Deployments and their signs of life (administrators)",
    ),
    Route(
        "DELETE",
        "/v1/deployments/{deployment_id}",
        "revoke_deployment",
        a.RevokeDeploymentRequest,
        a.Deployment,
        "path",
        "administration",
        "Revoke a deployment's token (administrators)",
    ),
    Route(
        "POST",
        "/v1/tokens",
        "create_user_token",
        a.CreateUserTokenRequest,
        a.CreateUserTokenResponse,
        "body",
        "administration",
        "A token for a person (administrators)",
        CREATED,
    ),
    Route(
        "DELETE",
        "/v1/tokens/{token_id}",
        "revoke_token",
        a.RevokeTokenRequest,
        a.RevokeTokenResponse,
        "path",
        "administration",
        "Revoke a token (administrators)",
    ),
    Route(
        "POST",
        "/v1/halts",
        "set_halt",
        a.SetHaltRequest,
        a.SetHaltResponse,
        "body",
        "administration",
        "Stop or allow trading (administrators)",
    ),
    Route(
        "GET",
        "/v1/reconciliation",
        "get_reconciliation",
        a.GetReconciliationRequest,
        a.Reconciliation,
        "query",
        "administration",
        "The books beside the broker's records (administrators)",
    ),
    Route(
        "POST",
        "/v1/heartbeat",
        "heartbeat",
        a.HeartbeatRequest,
        a.HeartbeatResponse,
        "body",
        "strategies",
        "A strategy's sign of life (a deployment's own token)",
    ),
)
