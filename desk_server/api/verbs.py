"""Everything a caller can do, as message in, message out: what HTTP and gRPC both call, so that they cannot differ.

Every verb takes the identity and the request's message, and raises DeskError. Verbs that trade must run to their
end whatever becomes of the caller: the doors shield them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal

import structlog
from desk.v1 import admin_pb2, books_pb2, market_pb2, orders_pb2

from desk_server import logs, rules
from desk_server.api import reference, wire
from desk_server.api.auth import admin, chosen_user
from desk_server.api.reconciliation import reconciliation_message
from desk_server.api.streams import symbols_of
from desk_server.desk import Desk
from desk_server.domain import Identity, Order, Side, Symbol, UserId
from desk_server.errors import Code, DeskError
from desk_server.positions import Account, Position
from desk_server.reconcile import Report
from desk_server.registry import Deployment, DeploymentSpec

PAGE_DEFAULT, PAGE_MAX = 50, 500

log = structlog.get_logger("desk.orders")


class Verbs:
    def __init__(self, desk: Desk, allotment: Decimal, report: Callable[[], Report] = Report) -> None:
        self._desk = desk
        self.report = report
        self._allotment = allotment

    # Orders

    async def place_order(self, who: Identity, m: orders_pb2.OrderRequest) -> orders_pb2.OrderResponse:
        try:
            order = await self._desk.place(who, wire.order_request(m))
        except DeskError as error:
            _log_refusal("order", error)
            raise
        return self._logged("order", order)

    async def get_order(self, who: Identity, m: orders_pb2.GetOrderRequest) -> orders_pb2.Order:
        order = self._desk.order(who, m.order_id)
        return wire.order_message(order, self._desk.book.legs(order))

    async def list_orders(self, who: Identity, m: orders_pb2.ListOrdersRequest) -> orders_pb2.ListOrdersResponse:
        try:
            orders, token = self._desk.book.orders_of(
                chosen_user(who, m.user_id),
                is_open=_status(m.status),
                symbols=symbols_of(m.symbols),
                side=_side(m.side),
                strategy=m.strategy,
                after=_time(m.after, "after"),
                until=_time(m.until, "until"),
                limit=_page(m.limit),
                page_token=m.page_token,
            )
        except ValueError as error:
            raise DeskError(Code.INVALID, str(error)) from error
        shown, legs = self._desk.shown, self._desk.book.legs
        return orders_pb2.ListOrdersResponse(
            orders=[wire.order_message(shown(order), legs(order)) for order in orders], next_page_token=token
        )

    async def replace_order(self, who: Identity, m: orders_pb2.ReplaceOrderRequest) -> orders_pb2.OrderResponse:
        with _refusals_logged("replace"):
            order = await self._desk.replace(who, m.order_id, wire.order_change(m))
        return self._logged("replace", order)

    async def cancel_order(self, who: Identity, m: orders_pb2.CancelOrderRequest) -> orders_pb2.OrderResponse:
        with _refusals_logged("cancel"):
            order = await self._desk.cancel(who, m.order_id)
        return self._logged("cancel", order)

    async def cancel_all(self, who: Identity, m: orders_pb2.CancelAllRequest) -> orders_pb2.CancelAllResponse:
        user = chosen_user(who, m.user_id)
        orders = await self._desk.cancel_all(who, user, symbols_of(m.symbols))
        return orders_pb2.CancelAllResponse(results=[self._answer(order) for order in orders])

    async def list_fills(self, who: Identity, m: orders_pb2.ListFillsRequest) -> orders_pb2.ListFillsResponse:
        try:
            fills, token = self._desk.book.fills_of(
                chosen_user(who, m.user_id),
                symbol=rules.symbol_of(m.symbol) if m.symbol else "",
                order_id=self._desk.order(who, m.order_id).order_id if m.order_id else "",
                limit=_page(m.limit),
                page_token=m.page_token,
            )
        except ValueError as error:
            raise DeskError(Code.INVALID, str(error)) from error
        return orders_pb2.ListFillsResponse(fills=[wire.fill_message(fill) for fill in fills], next_page_token=token)

    def _logged(self, what: str, order: Order) -> orders_pb2.OrderResponse:
        answer = self._answer(order)
        logs.brief(what, symbol=answer.symbol, side=answer.side, status=answer.order_status, order_id=answer.order_id)
        return answer

    def _answer(self, order: Order) -> orders_pb2.OrderResponse:
        return wire.answer(order, self._desk.book.legs(order) if order.leg_ids else ())

    # Books

    async def get_account(self, who: Identity, m: books_pb2.GetAccountRequest) -> books_pb2.Account:
        return self._account(_one_user(who, m.user_id))

    async def list_accounts(self, who: Identity, _: books_pb2.ListAccountsRequest) -> books_pb2.ListAccountsResponse:
        admin(who)
        return books_pb2.ListAccountsResponse(accounts=[self._account(user) for user in sorted(self._users())])

    async def list_positions(self, who: Identity, m: books_pb2.ListPositionsRequest) -> books_pb2.ListPositionsResponse:
        user = chosen_user(who, m.user_id)
        users = sorted(self._users()) if user is None else [user]
        book = self._desk.book
        return books_pb2.ListPositionsResponse(
            positions=[self._position(position) for one in users for position in book.positions_of(one)]
        )

    def _users(self) -> set[UserId]:
        return set(self._desk.book.accounts)

    def _price(self, symbol: Symbol) -> Decimal | None:
        quote = self._desk.hub.latest(symbol)
        return quote.price if quote else None

    def _account(self, user: UserId) -> books_pb2.Account:
        """One who has not traded yet is shown with the allotment that the first order will open."""
        book = self._desk.book
        account = book.accounts.get(user) or Account(user, self._allotment, self._allotment)
        reserved = book.reserved_cash(user)
        value = book.market_value(user, self._price)
        return books_pb2.Account(
            user_id=user,
            allotment=wire.decimal_text(account.allotment),
            cash=wire.decimal_text(account.cash),
            reserved=wire.decimal_text(reserved),
            buying_power=wire.decimal_text(account.cash - reserved),
            market_value=wire.average_text(value),
            equity=wire.average_text(account.cash + value),
            realized_pl=wire.average_text(account.realized_pl),
            unrealized_pl=wire.average_text(book.unrealized_pl(user, self._price)),
            fees=wire.decimal_text(account.fees),
            open_orders=book.open_count(user),
        )

    def _position(self, position: Position) -> books_pb2.Position:
        price = self._price(position.symbol)
        return books_pb2.Position(
            user_id=position.user,
            symbol=position.symbol,
            qty=wire.decimal_text(position.qty),
            qty_available=wire.decimal_text(self._desk.book.available_qty(position.user, position.symbol)),
            avg_entry_price=wire.average_text(position.avg_entry_price),
            cost_basis=wire.average_text(position.cost),
            current_price=wire.decimal_text(price),
            market_value=wire.average_text(position.market_value(price)),
            unrealized_pl=wire.average_text(position.unrealized_pl(price)),
            realized_pl=wire.average_text(position.realized_pl),
            fees=wire.decimal_text(position.fees),
        )

    # Market

    async def get_latest(self, _: Identity, m: market_pb2.GetLatestRequest) -> market_pb2.GetLatestResponse:
        wanted = symbols_of(m.symbols)
        quotes = self._desk.hub.quotes()
        return market_pb2.GetLatestResponse(
            lines=[wire.latest_message(quotes[symbol]) for symbol in sorted(quotes) if not wanted or symbol in wanted]
        )

    async def get_asset(self, _: Identity, m: market_pb2.GetAssetRequest) -> market_pb2.Asset:
        return await reference.asset(self._desk.broker, m.symbol)

    async def get_clock(self, _: Identity, __: market_pb2.GetClockRequest) -> market_pb2.Clock:
        return await reference.clock(self._desk.broker)

    async def get_calendar(self, _: Identity, m: market_pb2.GetCalendarRequest) -> market_pb2.Calendar:
        return await reference.calendar(self._desk.broker, m.start, m.end)

    # Administration

    async def create_deployment(
        self, who: Identity, m: admin_pb2.CreateDeploymentRequest
    ) -> admin_pb2.CreateDeploymentResponse:
        admin(who)
        spec = DeploymentSpec(
            user=m.user_id,
            strategy=m.strategy,
            code_hash=m.code_hash,
            name=m.name,
            description=m.description,
            version=m.version,
            symbols=tuple(m.symbols),
        )
        deployment, token = await self._desk.registry.create_deployment(spec)
        return admin_pb2.CreateDeploymentResponse(deployment=_deployment(deployment), token=token)

    async def list_deployments(
        self, who: Identity, m: admin_pb2.ListDeploymentsRequest
    ) -> admin_pb2.ListDeploymentsResponse:
        admin(who)
        found = self._desk.registry.deployments(revoked_too=m.all)
        return admin_pb2.ListDeploymentsResponse(deployments=[_deployment(one) for one in found])

    async def revoke_deployment(self, who: Identity, m: admin_pb2.RevokeDeploymentRequest) -> admin_pb2.Deployment:
        admin(who)
        return _deployment(await self._desk.registry.revoke_deployment(m.deployment_id))

    async def create_user_token(
        self, who: Identity, m: admin_pb2.CreateUserTokenRequest
    ) -> admin_pb2.CreateUserTokenResponse:
        admin(who)
        token_id, token = await self._desk.registry.create_user_token(m.user_id, m.role, m.label)
        return admin_pb2.CreateUserTokenResponse(token_id=token_id, token=token)

    async def revoke_token(self, who: Identity, m: admin_pb2.RevokeTokenRequest) -> admin_pb2.RevokeTokenResponse:
        admin(who)
        await self._desk.registry.revoke_token(m.token_id)
        return admin_pb2.RevokeTokenResponse()

    async def set_halt(self, who: Identity, m: admin_pb2.SetHaltRequest) -> admin_pb2.SetHaltResponse:
        await self._desk.set_halt(admin(who), m.scope, m.name, m.halted, m.reason)
        return admin_pb2.SetHaltResponse()

    async def get_reconciliation(
        self, who: Identity, _: admin_pb2.GetReconciliationRequest
    ) -> admin_pb2.Reconciliation:
        admin(who)
        return reconciliation_message(self.report(), self._desk.book)

    async def heartbeat(self, who: Identity, m: admin_pb2.HeartbeatRequest) -> admin_pb2.HeartbeatResponse:
        self._desk.registry.heartbeat(who, m.lines_read, m.last_seq)
        return admin_pb2.HeartbeatResponse()


@contextmanager
def _refusals_logged(what: str) -> Iterator[None]:
    try:
        yield
    except DeskError as error:
        _log_refusal(what, error)
        raise


def _log_refusal(what: str, error: DeskError) -> None:
    ids = {"order_id": error.order_id} if error.order_id else {}
    logs.brief(f"{what} refused", code=error.code.value, reason=error.message, **ids)


def _deployment(deployment: Deployment) -> admin_pb2.Deployment:
    spec = deployment.spec
    return admin_pb2.Deployment(
        deployment_id=deployment.deployment_id,
        user_id=spec.user,
        strategy=spec.strategy,
        code_hash=spec.code_hash,
        name=spec.name,
        description=spec.description,
        version=spec.version,
        symbols=list(spec.symbols),
        created_at=wire.time_text(spec.at),
        revoked_at=wire.time_text(deployment.revoked_at),
        connected=deployment.connected,
        lines_read=deployment.lines_read,
        last_seq=deployment.last_seq,
        last_line_at=wire.time_text(deployment.last_line_at),
        heartbeat_at=wire.time_text(deployment.heartbeat_at),
        lines_sent=deployment.lines_sent,
        orders=deployment.orders,
        fills=deployment.fills,
    )


def _one_user(who: Identity, user_id: str) -> UserId:
    user = chosen_user(who, user_id)
    if user is None:
        raise DeskError(Code.INVALID, 'user_id "*" is everybody: name one user here, or list the accounts')
    return user


def _status(word: str) -> bool | None:
    known = {"": None, "all": None, "open": True, "closed": False}
    if word not in known:
        raise DeskError(Code.INVALID, "status must be open, closed or all")
    return known[word]


def _side(word: str) -> Side | None:
    if word not in ("", "buy", "sell"):
        raise DeskError(Code.INVALID, "side must be buy or sell")
    return Side(word) if word else None


def _page(limit: int) -> int:
    if limit > PAGE_MAX:
        raise DeskError(Code.INVALID, f"limit must be 1 to {PAGE_MAX}", limit=str(PAGE_MAX), observed=str(limit))
    return limit or PAGE_DEFAULT


def _time(text: str, field: str) -> datetime | None:
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise DeskError(Code.INVALID, f"{field} must be a time with its zone, such as 2026-01-02T14:30:00Z")
    return at
