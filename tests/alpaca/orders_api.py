"""Orders and positions over REST: what each call answers when nothing is wrong."""

from decimal import ROUND_DOWN, Decimal
from typing import Any

from tests.alpaca.account import Account
from tests.alpaca.exchange import Exchange
from tests.alpaca.messages import Reply, Request
from tests.alpaca.money import Holding, position_shown
from tests.alpaca.orders import NANO, ZERO, Order, shown, stamp, text
from tests.alpaca.rules import Refused, amount, bad, body_of, draft
from tests.alpaca.streams import moment_ns


class OrdersApi:
    """Every verb takes the request and the last part of its path."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange

    def submit(self, request: Request, _: str) -> Reply:
        account = request.book
        wanted = draft(body_of(request.body), self.exchange.market.assets, self.exchange.local_time())
        order = self.exchange.submit(account, wanted, request.pick)
        return Reply(200, shown(order, nested=True), order=order)

    def listed(self, request: Request, _: str) -> Reply:
        account, first = request.book, request.first
        limit = min(int(first("limit") or 50), 500)
        status, side, symbols = first("status") or "open", first("side"), set(request.many("symbols"))
        nested, descending = request.flag("nested"), (first("direction") or "desc") != "asc"
        after, until = first("after"), first("until")
        start = account.submitted_after(moment_ns(after, "after")) if after else 0
        end_ns = moment_ns(until, "until") if until else None
        as_of = self._as_of(request)
        if status == "open" and not after:
            found = {order.parent or order if nested else order for order in account.open_orders()}
            orders = sorted(found, key=lambda order: order.seq)
        else:
            orders = account.orders[start:]
        out: list[dict[str, Any]] = []
        differs = False
        for order in reversed(orders) if descending else orders:
            if len(out) >= limit:
                break
            if end_ns is not None and order.submitted_ns >= end_ns:
                continue
            if (side and order.side != side) or (symbols and order.symbol not in symbols):
                continue
            if nested and order.parent is not None:
                continue
            is_open = order.is_open or (nested and any(leg.is_open for leg in order.legs))
            if status != "all" and is_open != (status == "open"):
                continue
            if as_of is not None and order.submitted_ns > as_of:
                differs = True
                continue
            if not account.visible(order):
                continue
            now = shown(order, nested=nested)
            then = shown(order, nested=nested, as_of_ns=as_of) if as_of is not None else now
            differs = differs or then["status"] != now["status"] or then["filled_qty"] != now["filled_qty"]
            out.append(then)
        self._stale_shown(request, differs)
        return Reply(200, out)

    def _as_of(self, request: Request) -> int | None:
        if request.pick is None or request.pick.name != "stale":
            return None
        return self.exchange.now_ns() - int(request.pick.params["lag_ms"] * 1e6)

    def _stale_shown(self, request: Request, differs: bool) -> None:
        if differs and request.pick is not None:
            self.exchange.faults.show(request.pick)

    def one(self, request: Request, order_id: str) -> Reply:
        order = request.book.find(order_id)
        return Reply(200, shown(order, nested=request.flag("nested")), order=order)

    def by_client_id(self, request: Request, _: str) -> Reply:
        client_order_id = request.first("client_order_id")
        if not client_order_id:
            raise bad("client_order_id is required")
        order = request.book.find_by_client_id(client_order_id)
        return Reply(200, shown(order, nested=request.flag("nested")), order=order)

    def replace(self, request: Request, order_id: str) -> Reply:
        account = request.book
        new = self.exchange.replace(account, account.find(order_id), body_of(request.body), request.pick)
        return Reply(200, shown(new, nested=True), order=new)

    def cancel(self, request: Request, order_id: str) -> Reply:
        account = request.book
        account.cancel(account.find(order_id), request.pick)
        return Reply(204)

    def cancel_all(self, request: Request, _: str) -> Reply:
        account, out = request.book, []
        for order in account.open_orders():
            waits = order.parent is not None and order.parent.is_open
            if order.is_open and order.status not in ("pending_cancel", "pending_replace") and not waits:
                account.cancel(order)
                out.append({"id": order.id, "status": 200})
        return Reply(207, out)

    # Positions.

    def positions(self, request: Request, _: str) -> Reply:
        account, as_of = request.book, self._as_of(request)
        holdings = account.money.holdings
        if as_of is not None:
            then = account.money.as_of(as_of)
            self._stale_shown(request, {s: h.qty for s, h in then.items()} != {s: h.qty for s, h in holdings.items()})
            holdings = then
        return Reply(200, [self._position_shown(account, symbol, h) for symbol, h in holdings.items()])

    def _position_shown(self, account: Account, symbol: str, holding: Holding) -> dict[str, Any]:
        asset = account.money.assets[symbol]
        side = "sell" if holding.qty > 0 else "buy"
        free = max(abs(holding.qty) - account.money.held_for_orders(asset.symbol, side), ZERO)
        return position_shown(asset, holding, self.exchange.market.price(asset.symbol), free)

    def _holding(self, account: Account, name: str) -> tuple[str, Holding]:
        asset = self.exchange.market.asset(name)
        if asset is None:
            raise Refused(404, 40410000, f"symbol not found: {name}")
        holding = account.money.held(asset)
        if not holding.qty:
            raise Refused(404, 40410000, "position does not exist")
        return asset.position_symbol, holding

    def position(self, request: Request, name: str) -> Reply:
        account = request.book
        return Reply(200, self._position_shown(account, *self._holding(account, name)))

    def close(self, request: Request, name: str) -> Reply:
        account = request.book
        symbol, holding = self._holding(account, name)
        query = {"qty": request.first("qty"), "percentage": request.first("percentage")}
        qty, percentage = amount(query, "qty"), amount(query, "percentage")
        if percentage is not None:
            qty = (abs(holding.qty) * percentage / 100).quantize(NANO, ROUND_DOWN)
        order = self._closing(account, symbol, holding, qty)
        return Reply(200, shown(order), order=order)

    def _closing(self, account: Account, symbol: str, holding: Holding, qty: Decimal | None) -> Order:
        asset = account.money.assets[symbol]
        body = {
            "symbol": asset.symbol,
            "qty": text(qty or abs(holding.qty)),
            "side": "sell" if holding.qty > 0 else "buy",
            "type": "market",
            "time_in_force": "gtc" if asset.crypto else "day",
        }
        return self.exchange.submit(account, draft(body, self.exchange.market.assets, self.exchange.local_time()), None)

    def close_all(self, request: Request, _: str) -> Reply:
        account, out = request.book, []
        if request.flag("cancel_orders"):
            for order in account.open_orders():
                account.end(order, "canceled")
        for symbol, holding in list(account.money.holdings.items()):
            try:
                order = self._closing(account, symbol, holding, None)
                out.append({"symbol": symbol, "status": 200, "body": shown(order)})
            except Refused as refused:
                out.append({"symbol": symbol, "status": refused.status, "body": refused.body})
        return Reply(207, out)

    def all_positions(self, request: Request, _: str) -> Reply:
        positions = {
            account.id: [self._position_shown(account, s, h) for s, h in account.money.holdings.items()]
            for account in self.exchange.sub_accounts
        }
        return Reply(200, {"as_of": stamp(self.exchange.now_ns()), "positions": positions})
