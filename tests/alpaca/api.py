"""Which path means what: who asks, of which account, and which verb answers."""

import base64
from collections.abc import Callable, Mapping
from urllib.parse import unquote

from tests.alpaca.account_api import AccountApi
from tests.alpaca.exchange import Exchange
from tests.alpaca.faults import Kind
from tests.alpaca.messages import Reply, Request
from tests.alpaca.orders_api import OrdersApi
from tests.alpaca.rules import Refused

_Verb = Callable[[Request, str], Reply]


class Api:
    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self._orders = OrdersApi(exchange)
        self._accounts = AccountApi(exchange)

    def place(self, request: Request) -> None:
        """Find who asks, of which account, and what kind of request it is. Raises Refused: 401, 404."""
        parts = request.path.split("/", 2)
        version, rest = parts[1], unquote(parts[2]) if len(parts) > 2 else ""
        exchange = self.exchange
        if version == "v2" and not rest.startswith("events/"):
            _authorize(request.headers, exchange.keys.key, exchange.keys.secret)
            request.account = exchange.main
        else:
            _authorize(request.headers, exchange.keys.broker_key, exchange.keys.broker_secret, basic=True)
            if rest.startswith("trading/accounts/"):
                _, _, account_id, *after = rest.split("/", 3)
                request.account = exchange.accounts.get(account_id)
                if request.account is None or request.account is exchange.main:
                    raise Refused(404, 40410000, f"account not found for {account_id}")
                rest = after[0] if after else ""
        request.rest = rest
        request.kind = _kind(request.method, rest)

    def answer(self, request: Request) -> Reply:
        """Do it. Raises Refused."""
        handler, name = self._handler(request)
        if request.account is not None:
            headers = self.exchange.spend(request.account)
            reply = handler(request, name)
            reply.headers |= headers
            return reply
        return handler(request, name)

    def _handler(self, request: Request) -> tuple[_Verb, str]:
        head, _, tail = request.rest.partition("/")
        if request.account is None:
            return self._broker_handler(request)
        match (request.method, head, bool(tail)):
            case ("POST", "orders", False):
                return self._orders.submit, tail
            case ("GET", "orders", False):
                return self._orders.listed, tail
            case ("DELETE", "orders", False):
                return self._orders.cancel_all, tail
            case ("GET", "orders", True):
                return self._orders.one, tail
            case ("PATCH", "orders", True):
                return self._orders.replace, tail
            case ("DELETE", "orders", True):
                return self._orders.cancel, tail
            case ("GET", "orders:by_client_order_id", False):
                return self._orders.by_client_id, tail
            case ("GET", "positions", False):
                return self._orders.positions, tail
            case ("GET", "positions", True):
                return self._orders.position, tail
            case ("DELETE", "positions", False):
                return self._orders.close_all, tail
            case ("DELETE", "positions", True):
                return self._orders.close, tail
            case ("GET", "account", _):
                return self._account_handler(tail)
            case ("PATCH", "account", True) if tail == "configurations":
                return self._accounts.configurations, tail
        return self._general_handler(request, head, tail)

    def _account_handler(self, tail: str) -> tuple[_Verb, str]:
        what, _, after = tail.partition("/")
        match what:
            case "":
                return self._accounts.account, after
            case "activities":
                return self._accounts.activities, after
            case "configurations":
                return self._accounts.configurations, after
            case "portfolio":
                return self._accounts.history, after
        raise Refused(404, None, "Not Found")

    def _general_handler(self, request: Request, head: str, tail: str) -> tuple[_Verb, str]:
        match (request.method, head, bool(tail)):
            case ("GET", "assets", False):
                return self._accounts.assets, tail
            case ("GET", "assets", True):
                return self._accounts.asset, tail
            case ("GET", "clock", False):
                return self._accounts.clock, tail
            case ("GET", "calendar", False):
                return self._accounts.calendar, tail
        raise Refused(404, None, "Not Found")

    def _broker_handler(self, request: Request) -> tuple[_Verb, str]:
        head, _, tail = request.rest.partition("/")
        if request.method == "GET" and head == "accounts":
            if tail.startswith("activities"):
                return self._accounts.all_activities, tail.partition("/")[2]
            if tail == "positions":
                return self._orders.all_positions, tail
            return self._accounts.broker_accounts, tail
        return self._general_handler(request, head, tail)


def _authorize(headers: Mapping[str, str], key: str, secret: str, *, basic: bool = False) -> None:
    given = headers.get("authorization", "")
    token = base64.b64encode(f"{key}:{secret}".encode()).decode()
    if given == f"Basic {token}":
        return
    if not basic and (headers.get("apca-api-key-id"), headers.get("apca-api-secret-key")) == (key, secret):
        return
    raise Refused(401, None, "unauthorized.")


def _kind(method: str, rest: str) -> Kind:
    head, _, tail = rest.partition("/")
    match (method, head, bool(tail)):
        case ("POST", "orders", False):
            return Kind.SUBMIT
        case ("GET", "orders", False):
            return Kind.LIST
        case ("GET", "orders" | "orders:by_client_order_id", _):
            return Kind.LOOKUP
        case ("PATCH", "orders", True):
            return Kind.REPLACE
        case ("DELETE", "orders", True):
            return Kind.CANCEL
        case ("DELETE", "orders", False):
            return Kind.CANCEL_ALL
        case ("DELETE", "positions", _):
            return Kind.CLOSE
        case ("GET", "positions", _):
            return Kind.POSITIONS
        case ("GET", "account" | "accounts", True) if tail.startswith("activities"):
            return Kind.ACTIVITIES
    return Kind.READ
