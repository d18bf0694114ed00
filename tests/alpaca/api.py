"""Alpaca's REST API over the book: what each path means, and what it answers when nothing is wrong."""

import base64
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import ROUND_DOWN, Decimal
from typing import Any
from urllib.parse import parse_qs, unquote

from tests.alpaca.account import Account
from tests.alpaca.exchange import BROKER_KEY, BROKER_SECRET, TRADING_KEY, TRADING_SECRET, Exchange
from tests.alpaca.faults import Kind, Pick
from tests.alpaca.money import Holding, position_shown
from tests.alpaca.orders import NANO, ZERO, Order, shown, stamp, text
from tests.alpaca.rules import NEW_YORK, Refused, amount, bad, body_of, draft
from tests.alpaca.streams import moment_ns

_DAY_NS = 86_400_000_000_000
_ACTIVITY_PAGE = 100
# An activity and when it happened, in nanoseconds.
Line = tuple[int, dict[str, Any]]


@dataclass(slots=True)
class Request:
    method: str
    path: str
    query_string: str
    headers: Mapping[str, str]
    body: bytes
    kind: Kind = Kind.READ
    account: Account | None = None
    rest: str = ""
    pick: Pick | None = None
    _query: dict[str, list[str]] | None = None

    def first(self, name: str) -> str | None:
        """A query parameter; None where it is absent."""
        if self._query is None:
            self._query = parse_qs(self.query_string)
        found = self._query.get(name)
        return found[0] if found else None

    def many(self, name: str) -> list[str]:
        """A query parameter given as a comma-separated list, or more than once."""
        self.first(name)
        return [part for value in (self._query or {}).get(name, []) for part in value.split(",") if part]

    def flag(self, name: str) -> bool:
        return (self.first(name) or "").lower() == "true"


@dataclass(slots=True)
class Reply:
    status: int
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    # Set where the answer is one order or a list of them, for the faults that garble those.
    order: Order | None = None


class Api:
    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange

    def place(self, request: Request) -> None:
        """Find who asks, of which account, and what kind of request it is. Raises Refused: 401, 404."""
        parts = request.path.split("/", 2)
        version, rest = parts[1], unquote(parts[2]) if len(parts) > 2 else ""
        exchange = self.exchange
        if version == "v2" and not rest.startswith("events/"):
            _authorize(request.headers, TRADING_KEY, TRADING_SECRET)
            request.account = exchange.main
        else:
            _authorize(request.headers, BROKER_KEY, BROKER_SECRET, basic=True)
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

    def _handler(self, request: Request) -> tuple[Callable[[Request, str], Reply], str]:
        head, _, tail = request.rest.partition("/")
        if request.account is None:
            return self._broker_handler(request)
        match (request.method, head, bool(tail)):
            case ("POST", "orders", False):
                return self._submit, tail
            case ("GET", "orders", False):
                return self._list, tail
            case ("DELETE", "orders", False):
                return self._cancel_all, tail
            case ("GET", "orders", True):
                return self._order, tail
            case ("PATCH", "orders", True):
                return self._replace, tail
            case ("DELETE", "orders", True):
                return self._cancel, tail
            case ("GET", "orders:by_client_order_id", False):
                return self._by_client_id, tail
            case ("GET", "positions", False):
                return self._positions, tail
            case ("GET", "positions", True):
                return self._position, tail
            case ("DELETE", "positions", False):
                return self._close_all, tail
            case ("DELETE", "positions", True):
                return self._close, tail
            case ("GET", "account", _):
                return self._account_handler(tail)
            case ("PATCH", "account", True) if tail == "configurations":
                return self._configurations, tail
        return self._general_handler(request, head, tail)

    def _account_handler(self, tail: str) -> tuple[Callable[[Request, str], Reply], str]:
        what, _, after = tail.partition("/")
        match what:
            case "":
                return self._account, after
            case "activities":
                return self._activities, after
            case "configurations":
                return self._configurations, after
            case "portfolio":
                return self._history, after
        raise Refused(404, None, "Not Found")

    def _general_handler(self, request: Request, head: str, tail: str) -> tuple[Callable[[Request, str], Reply], str]:
        match (request.method, head, bool(tail)):
            case ("GET", "assets", False):
                return self._assets, tail
            case ("GET", "assets", True):
                return self._asset, tail
            case ("GET", "clock", False):
                return self._clock, tail
            case ("GET", "calendar", False):
                return self._calendar, tail
        raise Refused(404, None, "Not Found")

    def _broker_handler(self, request: Request) -> tuple[Callable[[Request, str], Reply], str]:
        head, _, tail = request.rest.partition("/")
        if request.method == "GET" and head == "accounts":
            if tail.startswith("activities"):
                return self._all_activities, tail.partition("/")[2]
            if tail == "positions":
                return self._all_positions, tail
            return self._broker_accounts, tail
        return self._general_handler(request, head, tail)

    # Orders.

    def _submit(self, request: Request, _: str) -> Reply:
        account = _of(request)
        wanted = draft(body_of(request.body), self.exchange.market.assets, self.exchange.now())
        order = self.exchange.submit(account, wanted, request.pick)
        return Reply(200, shown(order, nested=True), order=order)

    def _list(self, request: Request, _: str) -> Reply:
        account, first = _of(request), request.first
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

    def _order(self, request: Request, order_id: str) -> Reply:
        order = _of(request).find(order_id)
        return Reply(200, shown(order, nested=request.flag("nested")), order=order)

    def _by_client_id(self, request: Request, _: str) -> Reply:
        client_order_id = request.first("client_order_id")
        if not client_order_id:
            raise bad("client_order_id is required")
        order = _of(request).find_by_client_id(client_order_id)
        return Reply(200, shown(order, nested=request.flag("nested")), order=order)

    def _replace(self, request: Request, order_id: str) -> Reply:
        account = _of(request)
        new = account.replace(account.find(order_id), body_of(request.body))
        return Reply(200, shown(new, nested=True), order=new)

    def _cancel(self, request: Request, order_id: str) -> Reply:
        account = _of(request)
        account.cancel(account.find(order_id), request.pick)
        return Reply(204)

    def _cancel_all(self, request: Request, _: str) -> Reply:
        account, out = _of(request), []
        for order in account.open_orders():
            waits = order.parent is not None and order.parent.is_open
            if order.is_open and order.status not in ("pending_cancel", "pending_replace") and not waits:
                account.cancel(order)
                out.append({"id": order.id, "status": 200})
        return Reply(207, out)

    # Positions.

    def _positions(self, request: Request, _: str) -> Reply:
        account, as_of = _of(request), self._as_of(request)
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

    def _position(self, request: Request, name: str) -> Reply:
        account = _of(request)
        return Reply(200, self._position_shown(account, *self._holding(account, name)))

    def _close(self, request: Request, name: str) -> Reply:
        account = _of(request)
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
        return self.exchange.submit(account, draft(body, self.exchange.market.assets, self.exchange.now()), None)

    def _close_all(self, request: Request, _: str) -> Reply:
        account, out = _of(request), []
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

    # The account.

    def _account(self, request: Request, _: str) -> Reply:
        account = _of(request)
        money = account.money
        equity, power = money.equity(), text(money.buying_power())
        long = sum((h.qty * self.exchange.market.price(s) for s, h in money.holdings.items() if h.qty > 0), ZERO)
        short = sum((h.qty * self.exchange.market.price(s) for s, h in money.holdings.items() if h.qty < 0), ZERO)
        body = {
            "id": account.id,
            "account_number": account.number,
            "status": "ACTIVE",
            "crypto_status": "ACTIVE",
            "currency": "USD",
            "buying_power": power,
            "regt_buying_power": power,
            "non_marginable_buying_power": text(money.cash_for_crypto()),
            "options_buying_power": text(money.cash_for_crypto()),
            "cash": text(money.cash),
            "accrued_fees": "0",
            "portfolio_value": text(equity),
            "equity": text(equity),
            "last_equity": text(money.last_equity),
            "long_market_value": text(long),
            "short_market_value": text(short),
            "initial_margin": text(money.exposure() / 2),
            "maintenance_margin": text(money.exposure() * 3 / 10),
            "last_maintenance_margin": "0",
            "sma": "0",
            "multiplier": text(money.multiplier),
            "shorting_enabled": money.shorting,
            "trading_blocked": money.blocked,
            "transfers_blocked": False,
            "account_blocked": money.blocked,
            "trade_suspended_by_user": False,
            "created_at": stamp(account.created_ns),
        }
        if account is not self.exchange.main:
            body |= _broker_fields(account)
        return Reply(200, body)

    def _configurations(self, request: Request, _: str) -> Reply:
        money = _of(request).money
        if request.method == "PATCH":
            wanted = body_of(request.body)
            if wanted.get("no_shorting") is not None:
                money.shorting = not wanted["no_shorting"]
            if wanted.get("suspend_trade") is not None:
                money.blocked = bool(wanted["suspend_trade"])
        body = {
            "fractional_trading": True,
            "max_margin_multiplier": text(money.multiplier),
            "no_shorting": not money.shorting,
            "suspend_trade": money.blocked,
            "trade_confirm_email": "none",
            "ptp_no_exception_entry": False,
        }
        return Reply(200, body)

    def _history(self, request: Request, _: str) -> Reply:
        money = _of(request).money
        equity, base = float(money.equity()), float(money.last_equity)
        gain = equity - base
        body = {
            "timestamp": [self.exchange.now_ns() // 1_000_000_000],
            "equity": [equity],
            "profit_loss": [gain],
            "profit_loss_pct": [gain / base if base else 0.0],
            "base_value": base,
            "timeframe": request.first("timeframe") or "1D",
        }
        return Reply(200, body)

    def _activities(self, request: Request, only: str) -> Reply:
        return Reply(200, _page(request, _of(request).activities, only))

    def _all_activities(self, request: Request, only: str) -> Reply:
        wanted = request.first("account_id")
        lines = [
            (at, {"account_id": account.id, **line})
            for account in self.exchange.sub_accounts
            if wanted in (None, account.id)
            for at, line in account.activities
        ]
        if wanted is None:
            lines.sort(key=_when)
        return Reply(200, _page(request, lines, only))

    def _all_positions(self, request: Request, _: str) -> Reply:
        positions = {
            account.id: [self._position_shown(account, s, h) for s, h in account.money.holdings.items()]
            for account in self.exchange.sub_accounts
        }
        return Reply(200, {"as_of": stamp(self.exchange.now_ns()), "positions": positions})

    def _broker_accounts(self, request: Request, account_id: str) -> Reply:
        accounts = [
            {
                "id": account.id,
                "account_number": account.number,
                "status": "ACTIVE",
                "crypto_status": "ACTIVE",
                "currency": "USD",
                "last_equity": text(account.money.last_equity),
                "created_at": stamp(account.created_ns),
            }
            for account in self.exchange.sub_accounts
            if account_id in ("", account.id)
        ]
        if account_id and not accounts:
            raise Refused(404, 40410000, f"account not found for {account_id}")
        return Reply(200, accounts[0] if account_id else accounts)

    # Assets, clock, calendar.

    def _assets(self, request: Request, _: str) -> Reply:
        wanted = request.first("asset_class")
        status = request.first("status")
        assets = [a.shown() for a in self.exchange.market.assets.values() if wanted in (None, a.asset_class)]
        return Reply(200, assets if status in (None, "active") else [])

    def _asset(self, request: Request, name: str) -> Reply:
        asset = self.exchange.market.asset(name)
        if asset is None:
            raise Refused(404, 40410000, f"asset not found for {name}")
        return Reply(200, asset.shown())

    def _clock(self, request: Request, _: str) -> Reply:
        now = self.exchange.now()
        is_open = self.exchange.session() == "regular"
        day = self.exchange.calendar.day_for(now)
        begun = is_open or day.open <= now
        following = self.exchange.calendar.day_for(day.close + timedelta(hours=12)) if begun else day
        body = {
            "timestamp": now.astimezone(NEW_YORK).isoformat(),
            "is_open": is_open,
            "next_open": following.open.astimezone(NEW_YORK).isoformat(),
            "next_close": day.close.astimezone(NEW_YORK).isoformat(),
        }
        return Reply(200, body)

    def _calendar(self, request: Request, _: str) -> Reply:
        today = self.exchange.now().astimezone(NEW_YORK).date()
        day = date.fromisoformat((request.first("start") or str(today))[:10])
        end = date.fromisoformat((request.first("end") or str(today + timedelta(days=30)))[:10])
        out: list[dict[str, str]] = []
        while day <= end and len(out) < 1000:
            noon = datetime.combine(day, time(0, 1), NEW_YORK)
            trading = self.exchange.calendar.day_for(noon)
            opens, closes = trading.open.astimezone(NEW_YORK), trading.close.astimezone(NEW_YORK)
            if opens.date() == day:
                line = {"date": str(day), "open": opens.strftime("%H:%M"), "close": closes.strftime("%H:%M")}
                out.append(line | {"session_open": "0400", "session_close": "2000", "settlement_date": str(day)})
            day += timedelta(days=1)
        return Reply(200, out)


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


def _broker_fields(account: Account) -> dict[str, Any]:
    """What alpaca-py's BrokerClient demands of an account besides."""
    cash = text(account.money.cash)
    return {
        "cash_withdrawable": cash,
        "cash_transferable": cash,
        "previous_close": stamp(account.created_ns),
        "last_long_market_value": "0",
        "last_short_market_value": "0",
        "last_cash": text(account.money.last_equity),
        "last_initial_margin": "0",
        "last_regt_buying_power": text(account.money.last_equity),
        "last_buying_power": text(account.money.last_equity),
        "clearing_broker": "ALPACA_APCA",
    }


def _of(request: Request) -> Account:
    assert request.account is not None
    return request.account


def _page(request: Request, lines: list[Line], only: str) -> list[dict[str, Any]]:
    """Filtered, sorted and cut as account activities are; page_token is the last id of the page before."""
    first = request.first
    types = {only} if only else set(request.many("activity_types")) or set(request.many("activity_type"))
    since, until, day = first("after"), first("until"), first("date")
    low = moment_ns(since, "after") if since else None
    high = moment_ns(until, "until") if until else None
    if day:
        low = moment_ns(day[:10], "date") - 1
        high = low + _DAY_NS + 1
    size = int(first("page_size") or (10_000 if day else _ACTIVITY_PAGE))
    if not day and size > _ACTIVITY_PAGE:
        raise bad(f"page_size must be no more than {_ACTIVITY_PAGE}")
    begin = bisect_left(lines, low + 1, key=_when) if low is not None else 0
    end = bisect_left(lines, high, key=_when) if high is not None else len(lines)
    ordered = lines[begin:end]
    if (first("direction") or "desc") != "asc":
        ordered.reverse()
    token = first("page_token")
    start = next((i + 1 for i, (_, line) in enumerate(ordered) if line["id"] == token), len(ordered)) if token else 0
    out: list[dict[str, Any]] = []
    for _, line in ordered[start:]:
        if len(out) >= size:
            break
        if not types or line["activity_type"] in types:
            out.append(line)
    return out


def _when(line: Line) -> int:
    return line[0]
