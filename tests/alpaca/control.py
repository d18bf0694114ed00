"""What /control does: see the package's docstring for every call."""

from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

import msgspec

from tests.alpaca.account import Account
from tests.alpaca.exchange import Exchange, Settings
from tests.alpaca.faults import FAULTS
from tests.alpaca.messages import Reply, Request
from tests.alpaca.orders import Order, shown, stamp, text
from tests.alpaca.rules import Refused, body_of

if TYPE_CHECKING:
    from tests.alpaca.server import Server

_AIMS = ("client_order_id", "prefix", "symbol", "order_id")


class Controls:
    def __init__(self, exchange: Exchange, server: "Server") -> None:
        self._exchange = exchange
        self._server = server
        self._calls: dict[str, Callable[[dict[str, Any]], Any]] = {
            "settings": self._settings,
            "price": self._price,
            "walk": self._walk,
            "fill": self._fill,
            "reject": self._reject,
            "expire": self._expire,
            "tell": self._tell,
            "external": self._external,
            "activity": self._activity,
            "bust": self._bust,
            "correct": self._correct,
            "faults": self._faults,
            "arm": self._arm,
            "heal": self._heal,
            "disconnect": self._disconnect,
            "account": self._account,
            "reset": self._reset,
            "dump": lambda body: self.dump(),
            "counts": lambda body: dict(self._exchange.faults.counts),
        }

    def answer(self, request: Request) -> Reply:
        """A mistake of the caller's is a 400 with a sentence."""
        name = request.path.removeprefix("/control/")
        call = self._calls.get(name)
        if call is None:
            return Reply(404, {"message": f"no control is called {name!r}; there are {', '.join(self._calls)}"})
        try:
            if name == "dump":
                on = {part: request.first(part) != "0" for part in ("posts", "history")}
                return Reply(200, self.dump(request.first("account"), **on))
            return Reply(200, call(body_of(request.body)))
        except Refused as refused:
            return Reply(400, refused.body)
        except KeyError as error:
            return Reply(400, {"message": f"{name} needs {error}"})
        except (ValueError, TypeError, InvalidOperation, msgspec.ValidationError) as error:
            return Reply(400, {"message": f"{type(error).__name__}: {error}"})

    # The market and the settings.

    def _settings(self, body: dict[str, Any]) -> Any:
        exchange = self._exchange
        if body:
            before = msgspec.to_builtins(exchange.settings)
            exchange.settings = msgspec.convert(_floats({**before, **body}), Settings)
            exchange.session_changed()
        return exchange.settings

    def _price(self, body: dict[str, Any]) -> Any:
        for symbol, price in body.items():
            self._exchange.set_price(symbol, Decimal(price))
        return {symbol: text(price) for symbol, price in self._exchange.market.prices.items()}

    def _walk(self, body: dict[str, Any]) -> Any:
        _only(body, "every_ms", "step_bps", "symbols")
        symbols = body.get("symbols")
        for symbol in symbols or ():
            self._exchange.market.assets[symbol]
        self._exchange.set_walk(float(body["every_ms"]), float(body.get("step_bps", 10)), symbols)
        return {}

    # Orders and executions, by hand.

    def _find(self, name: str) -> tuple[Account, Order]:
        for account in self._exchange.accounts.values():
            order = account.by_id.get(name) or account.by_client_id.get(name)
            if order is not None:
                return account, order
        raise ValueError(f"no order is called {name!r}")

    def _fill(self, body: dict[str, Any]) -> Any:
        _only(body, "order", "qty", "price")
        account, order = self._find(body["order"])
        return account.fill_by_hand(order, _decimal(body, "qty"), _decimal(body, "price")).dumped()

    def _reject(self, body: dict[str, Any]) -> Any:
        _only(body, "order", "reason")
        account, order = self._find(body["order"])
        self._exchange.reject(account, order)
        return shown(order)

    def _expire(self, body: dict[str, Any]) -> Any:
        _only(body, "order")
        if "order" in body:
            ending = [self._find(body["order"])]
        else:
            accounts = self._exchange.accounts.values()
            ending = [(a, o) for a in accounts for o in a.open_orders() if o.tif == "day" and o.parent is None]
        for account, order in ending:
            account.end(order, "expired")
        return {"expired": [order.id for _, order in ending]}

    def _tell(self, body: dict[str, Any]) -> Any:
        _only(body, "order", "event", "status")
        account, order = self._find(body["order"])
        order.status = body.get("status", order.status)
        account.tell(order, body["event"])
        return shown(order)

    def _external(self, body: dict[str, Any]) -> Any:
        _only(body, "symbol", "side", "qty", "type", "limit_price", "client_order_id", "account", "force")
        if body["side"] not in ("buy", "sell"):
            raise ValueError("side is buy or sell")
        limit = _decimal(body, "limit_price")
        if body.get("type", "market" if limit is None else "limit") != ("market" if limit is None else "limit"):
            raise ValueError("type is market without a limit_price, limit with one")
        qty = _decimal(body, "qty")
        if qty is None or qty <= 0:
            raise ValueError("qty must be above zero")
        account = self._account_of(body)
        order = self._exchange.place_externally(
            account,
            body["symbol"],
            body["side"],
            qty,
            limit=limit,
            client_order_id=body.get("client_order_id"),
            checked=body.get("force") is not True,
        )
        return shown(order)

    def _activity(self, body: dict[str, Any]) -> Any:
        names = ("activity_type", "net_amount", "symbol", "qty", "per_share_amount", "price", "description", "account")
        _only(body, *names)
        account = self._account_of(body)
        symbol, qty, net = body.get("symbol"), _decimal(body, "qty"), _decimal(body, "net_amount")
        if body["activity_type"] == "FILL":
            raise ValueError("a FILL comes of an order: use /control/fill or /control/external")
        asset = self._exchange.market.asset(symbol) if symbol else None
        if symbol and asset is None:
            raise ValueError(f"no asset is called {symbol!r}; set its price first")
        line = {name: body[name] for name in names[:-1] if name in body}
        for name in ("net_amount", "qty", "per_share_amount", "price"):
            line[name] = text(_decimal(body, name)) if name in body else None
        line = {name: value for name, value in line.items() if value is not None}
        line.setdefault("net_amount", "0")
        line.setdefault("description", f"{body['activity_type']} by hand")
        account.money.cash += net or 0
        if asset is not None and qty:
            account.money.adjust(asset, qty, self._exchange.now_ns())
        return account.non_trade(line)

    def _execution(self, name: str) -> tuple[Account, Any]:
        for account in self._exchange.accounts.values():
            if name in account.executions:
                return account, account.executions[name]
        raise ValueError(f"no execution is called {name!r}")

    def _bust(self, body: dict[str, Any]) -> Any:
        _only(body, "execution")
        account, done = self._execution(body["execution"])
        account.bust(done)
        self._exchange.faults.count("bust_and_correction")
        return done.dumped()

    def _correct(self, body: dict[str, Any]) -> Any:
        _only(body, "execution", "price", "qty")
        account, done = self._execution(body["execution"])
        new = account.correct(done, _decimal(body, "qty"), _decimal(body, "price"))
        self._exchange.faults.count("bust_and_correction")
        return new.dumped()

    # Faults.

    def _faults(self, body: dict[str, Any]) -> Any:
        _only(body, "seed", "probabilities", "params")
        faults = self._exchange.faults
        if "seed" in body:
            faults.reseed(int(body["seed"]))
        if "probabilities" in body or "params" in body:
            faults.set_probabilities(_floats(body.get("probabilities", {})), _floats(body.get("params", {})))
        return {
            fault.name: {
                "on": fault.on,
                "stage": fault.stage,
                "says": fault.says,
                "params": fault.params,
                "probability": {kind: faults.probability(fault.name, kind) for kind in fault.on},
                "count": faults.counts[fault.name],
            }
            for fault in FAULTS.values()
        }

    def _arm(self, body: dict[str, Any]) -> Any:
        params = dict(body)
        name, times, on = params.pop("fault"), int(params.pop("times", 1)), params.pop("on", None)
        match = {aim: str(params.pop(aim)) for aim in _AIMS if aim in params}
        return {"armed": self._exchange.faults.arm(name, times, on, match, _floats(params))}

    def _heal(self, body: dict[str, Any]) -> Any:
        _only(body)
        self._server.heal()
        return dict(self._exchange.faults.counts)

    def _disconnect(self, body: dict[str, Any]) -> Any:
        _only(body, "how")
        how = body.get("how", "close")
        if how not in ("close", "reset"):
            raise ValueError("how is close or reset")
        return {"closed": self._exchange.streams.cut(reset=how == "reset")}

    # Accounts, and all of it.

    def _account_of(self, body: dict[str, Any]) -> Account:
        name = body.get("account")
        if name is None:
            return self._exchange.main
        if name not in self._exchange.accounts:
            raise ValueError(f"no account is called {name!r}")
        return self._exchange.accounts[name]

    def _account(self, body: dict[str, Any]) -> Any:
        _only(body, "id", "cash", "multiplier", "shorting", "blocked")
        exchange, name = self._exchange, body.get("id")
        cash = _decimal(body, "cash")
        if name is None:
            account = exchange.main
        else:
            account = exchange.accounts.get(name) or exchange.open_account(name, cash or Decimal(100_000))
        if cash is not None:
            account.money.cash = account.money.last_equity = cash
        account.money.multiplier = _decimal(body, "multiplier") or account.money.multiplier
        account.money.shorting = bool(body.get("shorting", account.money.shorting))
        account.money.blocked = bool(body.get("blocked", account.money.blocked))
        return {"id": account.id, "account_number": account.number, "cash": text(account.money.cash)}

    def _reset(self, body: dict[str, Any]) -> Any:
        _only(body, "seed", "cash", "accounts")
        cash = _decimal(body, "cash")
        accounts = int(body.get("accounts", len(self._exchange.sub_accounts)))
        self._exchange.reset(int(body.get("seed", self._exchange.seed)), cash or Decimal(100_000), accounts)
        return {"accounts": [account.id for account in self._exchange.sub_accounts]}

    def dump(self, only: str | None = None, *, posts: bool = True, history: bool = True) -> dict[str, Any]:
        """The whole truth."""
        exchange = self._exchange
        accounts = {
            account.id: _account_dumped(account, history=history)
            for account in exchange.accounts.values()
            if only in (None, account.id)
        }
        return {
            "now": stamp(exchange.now_ns()),
            "seed": exchange.seed,
            "main": exchange.main.id,
            "counts": dict(exchange.faults.counts),
            "prices": {symbol: text(price) for symbol, price in exchange.market.prices.items()},
            "pending_landings": exchange.pending_landings,
            "accounts": accounts,
            "posts": [{"at": stamp(post["at_ns"]), **post} for post in exchange.posts] if posts else [],
            "changes": [{"at": stamp(one["at_ns"]), **one} for one in exchange.changes] if posts else [],
            "requests": dict(exchange.requests),
            "connections": {"streams": len(exchange.streams.listeners), "open": len(self._server.connections)},
        }


def _account_dumped(account: Account, *, history: bool) -> dict[str, Any]:
    return {
        "cash": text(account.money.cash),
        "positions": {
            symbol: {"qty": text(holding.qty), "avg_entry_price": text(holding.average)}
            for symbol, holding in account.money.holdings.items()
        },
        "orders": [_order_dumped(order, history=history) for order in account.orders],
        "executions": [done.dumped() for done in account.executions.values()],
        "activities": [line for _, line in account.activities],
    }


def _order_dumped(order: Order, *, history: bool) -> dict[str, Any]:
    told = shown(order)
    told["external"] = order.external
    told["parent"] = order.parent.id if order.parent is not None else None
    if history:
        told["history"] = [[stamp(at), event, status, text(filled)] for at, event, status, filled, _ in order.history]
    return told


def _only(body: dict[str, Any], *allowed: str) -> None:
    for name in body:
        if name not in allowed:
            raise ValueError(f"there is no {name!r} here; there are {', '.join(allowed) or 'no fields'}")


def _decimal(body: dict[str, Any], name: str) -> Decimal | None:
    value = body.get(name)
    return None if value is None else Decimal(value)


def _floats(value: Any) -> Any:
    """Chances and milliseconds need no exactness."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dict):
        return {name: _floats(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_floats(inner) for inner in value]
    return value
