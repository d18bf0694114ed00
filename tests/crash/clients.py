"""Strategies and people who trade through a desk that keeps dying: `python -m tests.crash.clients PLAN.json`.

Each actor is a thread with a user, a seed and a way to speak: desk_client, or HTTP as anybody would write it. Every
request has an id and is repeated under it until the answer is definite. What is asked and told is written to the
actors' log, line by line, before anything is built on it. Commands on standard input: `finish` (ask for nothing new,
get the answers that are missing), `replay` (repeat every request that was answered), and the end of the input.
"""

import http.client
import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import desk_client
from desk_client.client import Client
from desk_client.settings import Settings, Token, parse_url

TRANSIENT = frozenset({"STALE_DATA", "THROTTLED", "NOT_READY", "LEDGER", "OVERLOADED", "DEADLINE", "INTERNAL"})
_ATTEMPT_S = 3.0


class Log:
    """Lines on the disk before `write` returns."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._lock = threading.Lock()

    def write(self, kind: str, **fields: Any) -> None:
        with self._lock:
            os.write(self._fd, json.dumps({"k": kind, "at": time.time_ns(), **fields}).encode() + b"\n")
            os.fdatasync(self._fd)


class Told:
    """An answer: `http` is 0 where the speaker does not know it. `code` "" with status "success"."""

    def __init__(self, http_status: int, status: str, code: str, order_id: str) -> None:
        self.http, self.status, self.code, self.order_id = http_status, status, code, order_id

    @property
    def is_definite(self) -> bool:
        if self.status == "success":
            return True
        return self.code not in TRANSIENT and self.http not in (401, 408, 429, 500, 502, 503, 504)


class NoAnswer(Exception):
    pass


class Raw:
    """HTTP by hand: JSON, a connection that is made anew after every trouble. `token` may be the file it stands in:
    then it is read each time, for a desk that took over may have written another."""

    def __init__(self, url: str, token: str | Path) -> None:
        self._host = url.removeprefix("http://")
        self._token = token
        self._connection: http.client.HTTPConnection | None = None

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        connection = self._connection or http.client.HTTPConnection(self._host, timeout=_ATTEMPT_S)
        self._connection = None
        token = self._token.read_text().strip() if isinstance(self._token, Path) else self._token
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            told = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            connection.close()
            raise NoAnswer(f"{type(error).__name__}: {error}") from error
        self._connection = connection
        return response.status, told

    def place(self, rid: str, fields: dict[str, Any]) -> Told:
        return self._told("POST", "/v1/orders", {**fields, "request_id": rid})

    def replace(self, rid: str, order_id: str, limit_price: str) -> Told:
        return self._told("PATCH", f"/v1/orders/{order_id}", {"limit_price": limit_price, "request_id": rid})

    def cancel(self, order_id: str) -> Told:
        return self._told("DELETE", f"/v1/orders/{order_id}", None)

    def _told(self, method: str, path: str, body: dict[str, Any] | None) -> Told:
        status, told = self.call(method, path, body)
        ok = status < 300
        return Told(status, "success" if ok else "error", told.get("code", ""), told.get("order_id", ""))


class Sdk:
    """The same through desk_client."""

    def __init__(self, url: str, token: str) -> None:
        self.client = Client(Settings(parse_url(url), Token(token)))

    def place(self, rid: str, fields: dict[str, Any]) -> Told:
        more = {name: value for name, value in fields.items() if name not in ("symbol", "qty", "side")}
        return self._told(
            lambda: self.client.place_order(
                fields["symbol"], fields["qty"], fields["side"], request_id=rid, timeout=_ATTEMPT_S, **more
            )
        )

    def replace(self, rid: str, order_id: str, limit_price: str) -> Told:
        return self._told(
            lambda: self.client.replace_order(order_id, limit_price=limit_price, request_id=rid, timeout=_ATTEMPT_S)
        )

    def cancel(self, order_id: str) -> Told:
        return self._told(lambda: self.client.cancel_order(order_id, timeout=_ATTEMPT_S))

    def _told(self, call: Callable[[], Any]) -> Told:
        try:
            response = call()
        except desk_client.DeskClientError as error:
            raise NoAnswer(f"{type(error).__name__}: {error}") from error
        return Told(0, response.status, response.code if response.status == "error" else "", response.order_id)


class Prices:
    """Limit prices and quantities that no other request of the epoch has: actor `place` of `of` takes every of-th."""

    def __init__(self, prices: dict[str, str], place: int, of: int) -> None:
        self._prices = {symbol: Decimal(price) for symbol, price in prices.items()}
        self._place, self._of = place, of
        self._counts: dict[tuple[str, str], int] = {}

    def limit(self, symbol: str, what: str) -> str:
        """`what` is "take buy", "rest buy", "take sell" or "rest sell"."""
        base = {"take buy": "1.01", "rest buy": "0.88", "take sell": "0.99", "rest sell": "1.15"}[what]
        step = 1 if what in ("take buy", "rest sell") else -1
        cents = int(self._prices[symbol] * Decimal(base) * 100) + step * self._next(symbol, what)
        return f"{Decimal(cents) / 100:.2f}"

    def market_qty(self, symbol: str, side: str) -> str:
        return f"{1 + Decimal(self._next(symbol, side)) / 1_000_000:.6f}"

    def of(self, symbol: str) -> Decimal:
        return self._prices[symbol]

    def _next(self, symbol: str, what: str) -> int:
        self._counts[symbol, what] = self._counts.get((symbol, what), 0) + 1
        return self._counts[symbol, what] * self._of + self._place


class Actor(threading.Thread):
    """One strategy or person. `market` is the symbol that is traded at the market only."""

    def __init__(self, number: int, plan: dict[str, Any], log: Log) -> None:
        super().__init__(name=f"actor {number}", daemon=True)
        self.user: str = plan["actors"][number]["user"]
        token = plan["tokens"][self.user]
        self.speaker: Raw | Sdk = (Sdk if plan["actors"][number]["speaks"] == "sdk" else Raw)(plan["url"], token)
        self.books = Raw(plan["url"], token)
        self.log = log
        self.chance = random.Random(f"actor {plan['seed']} {number}")
        self.prices = Prices(plan["prices"], number, len(plan["actors"]))
        self.symbols = [symbol for symbol in plan["prices"] if symbol != plan["market"]]
        self.market: str = plan["market"]
        self.pause_s: float = plan["pause_s"]
        self.number = number
        self.count = 0
        self.open: list[tuple[str, str, str]] = []  # (order id, symbol, "rest buy" | "rest sell")
        self.done: list[tuple[str, Callable[[], Told]]] = []
        self.finishing = threading.Event()
        self.finish_by = float("inf")

    def run(self) -> None:
        while not self.finishing.is_set():
            self._act()
            self.finishing.wait(self.chance.expovariate(1 / self.pause_s))

    def _act(self) -> None:
        acts = {
            self._take_buy: 30,
            self._take_sell: 16,
            self._rest_buy: 12,
            self._rest_sell: 10,
            self._at_market: 8,
            self._replace: 14,
            self._cancel: 10,
            self._ask_too_much: 4,
            self._sell_twice: 7,
            self._spend_twice: 4,
        }
        self.chance.choices(list(acts), list(acts.values()))[0]()

    def _take_buy(self) -> None:
        self._limit("take buy", self.chance.randint(1, 12))

    def _take_sell(self) -> None:
        self._limit("take sell", self.chance.randint(1, 6))

    def _rest_buy(self) -> None:
        self._limit("rest buy", self.chance.randint(1, 8))

    def _rest_sell(self) -> None:
        self._limit("rest sell", self.chance.randint(1, 6))

    def _limit(self, what: str, qty: int, symbol: str = "") -> None:
        symbol = symbol or self.chance.choice(self.symbols)
        tif = self.chance.choice(("day", "gtc"))
        fields = self._fields(symbol, what, qty) | {"time_in_force": tif}
        told = self.place(fields)
        if told and told.status == "success" and what.startswith("rest"):
            self.open.append((told.order_id, symbol, what))

    def _fields(self, symbol: str, what: str, qty: int) -> dict[str, Any]:
        price = self.prices.limit(symbol, what)
        return {
            "symbol": symbol,
            "qty": str(qty),
            "side": what.split()[1],
            "order_type": "limit",
            "limit_price": price,
        }

    def _at_market(self) -> None:
        side = self.chance.choice(("buy", "buy", "sell"))
        self.place({"symbol": self.market, "qty": self.prices.market_qty(self.market, side), "side": side})

    def _ask_too_much(self) -> None:
        self._limit("rest buy", self.chance.randint(101, 5000))

    def _replace(self) -> None:
        if not self.open:
            return
        order_id, symbol, what = self.open.pop(self.chance.randrange(len(self.open)))
        told = self.replace(order_id, symbol, what, self.prices.limit(symbol, what))
        if told and told.status == "success":
            self.open.append((told.order_id, symbol, what))

    def _cancel(self) -> None:
        if not self.open:
            return
        order_id, _, _ = self.open.pop(self.chance.randrange(len(self.open)))
        told = self._until_definite("", lambda: self.speaker.cancel(order_id))
        if told:
            self.log.write("cancel_told", user=self.user, order_id=order_id, status=told.status, code=told.code)

    def _sell_twice(self) -> None:
        """All that one may sell of a symbol, twice at once: one of the two must be refused."""
        held = [one for one in self._positions() if Decimal(one["qty_available"]) >= 1 and one["symbol"] != self.market]
        if held:
            one = self.chance.choice(held)
            self._twice(one["symbol"], "rest sell", int(Decimal(one["qty_available"])))

    def _spend_twice(self) -> None:
        try:
            _, account = self.books.call("GET", "/v1/account")
            power = Decimal(account["buying_power"])
        except (NoAnswer, KeyError):
            return
        symbol = self.chance.choice(self.symbols)
        qty = int(power * Decimal("0.6") / self.prices.of(symbol) / Decimal("0.88"))
        if qty >= 1:
            self._twice(symbol, "rest buy", min(qty, 100))

    def _twice(self, symbol: str, what: str, qty: int) -> None:
        # Prices are drawn before the second thread starts: which of the two is first is chance enough.
        pair = [self._fields(symbol, what, qty) for _ in range(2)]
        other = threading.Thread(target=self.place, args=(pair[1], Raw(self.books._host, self.books._token)))
        other.start()
        told = self.place(pair[0])
        other.join()
        if told and told.status == "success":
            self.open.append((told.order_id, symbol, what))

    def _positions(self) -> list[dict[str, Any]]:
        try:
            status, told = self.books.call("GET", "/v1/positions")
        except NoAnswer:
            return []
        return list(told["positions"]) if status == 200 else []

    # Asking until it is told

    def place(self, fields: dict[str, Any], speaker: "Raw | Sdk | None" = None) -> Told | None:
        rid = self._new_id()
        self._ask(rid, fields["symbol"], fields["side"], fields["qty"], fields.get("limit_price"))
        via = speaker or self.speaker
        return self._carried_out(rid, lambda: via.place(rid, fields))

    def replace(self, order_id: str, symbol: str, what: str, price: str) -> Told | None:
        rid = self._new_id()
        self._ask(rid, symbol, what.split()[1], None, price, replaces=order_id)
        return self._carried_out(rid, lambda: self.speaker.replace(rid, order_id, price))

    def _new_id(self) -> str:
        self.count += 1
        return f"{self.number}-{self.count}"

    def _ask(self, rid: str, symbol: str, side: str, *terms: str | None, replaces: str = "") -> None:
        qty, price = terms
        ask = {"user": self.user, "rid": rid, "symbol": symbol, "side": side, "qty": qty, "limit_price": price}
        self.log.write("ask", **ask, replaces=replaces)

    def _carried_out(self, rid: str, attempt: Callable[[], Told]) -> Told | None:
        told = self._until_definite(rid, attempt)
        if told:
            self._told(rid, told)
            self.done.append((rid, attempt))
        return told

    def _told(self, rid: str, told: Told) -> None:
        answer = {"http": told.http, "status": told.status, "code": told.code, "order_id": told.order_id}
        self.log.write("told", user=self.user, rid=rid, **answer)

    def _until_definite(self, rid: str, attempt: Callable[[], Told]) -> Told | None:
        wait_s, last = 0.02, ""
        while time.monotonic() < self.finish_by:
            try:
                told = attempt()
            except NoAnswer as error:
                last = str(error)
            else:
                if told.is_definite:
                    return told
                if told.code == "INTERNAL":
                    self._told(rid, told)
                last = f"{told.http} {told.code}"
            time.sleep(self.chance.uniform(0.5, 1) * wait_s)
            wait_s = min(wait_s * 1.5, 0.3)
        self.log.write("unanswered", user=self.user, rid=rid, last=last[:200])
        return None

    def replay(self) -> None:
        for rid, attempt in list(self.done):
            if told := self._until_definite(rid, attempt):
                self._told(rid, told)


class Operator(threading.Thread):
    """An administrator who halts users and symbols now and then, and lets them trade again."""

    def __init__(self, plan: dict[str, Any], log: Log) -> None:
        super().__init__(name="operator", daemon=True)
        self.speaker = Raw(plan["url"], Path(plan["admin"]))
        self.chance = random.Random(f"operator {plan['seed']}")
        self.what = [("user", user) for user in plan["tokens"]] + [("symbol", symbol) for symbol in plan["prices"]]
        self.log = log
        self.finishing = threading.Event()
        self.finish_by = float("inf")

    def run(self) -> None:
        while not self.finishing.wait(self.chance.expovariate(1 / 2.0)):
            scope, name = self.chance.choice(self.what)
            self.halt(scope, name, True)
            self.finishing.wait(self.chance.uniform(0.1, 1.5))
            self.halt(scope, name, False)

    def halt(self, scope: str, name: str, halted: bool) -> None:
        asked_at = time.time_ns()
        while time.monotonic() < self.finish_by:
            try:
                status, _ = self.speaker.call(
                    "POST", "/v1/halts", {"scope": scope, "name": name, "halted": halted, "reason": "a test"}
                )
            except NoAnswer:
                status = 0
            if status == 200:
                self.log.write("halt", scope=scope, name=name, halted=halted, asked_at=asked_at)
                return
            time.sleep(0.05)
        self.log.write("unanswered", user="admin", rid=f"halt {scope} {name} {halted}", last="")


class Reader(threading.Thread):
    """Reads one user's updates for as long as the process lives."""

    def __init__(self, user: str, plan: dict[str, Any], log: Log) -> None:
        super().__init__(name=f"updates of {user}", daemon=True)
        self.client = Client(Settings(parse_url(plan["url"]), Token(plan["tokens"][user])))
        self.user = user
        self.log = log

    def run(self) -> None:
        while True:
            try:
                for update in self.client.updates(timeout=30):
                    order = update.order
                    said = {"order_id": order.order_id, "status": order.status, "filled_qty": order.filled_qty}
                    said |= {"seq": update.seq, "event": update.event, "symbol": order.symbol}
                    self.log.write("seen", **{"from": "updates"}, user=self.user, reader=self.name, **said)
            except desk_client.DeskClientError as error:
                self.log.write("trouble", user=self.user, last=f"{type(error).__name__}: {error}"[:300])
                time.sleep(0.2)


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text())
    log = Log(Path(plan["log"]))
    actors = [Actor(number, plan, log) for number in plan["mine"]]
    readers = [Reader(user, plan, log) for user in plan["readers"]]
    operators = [Operator(plan, log)] if plan["operator"] else []
    for thread in [*actors, *readers, *operators]:
        thread.start()
    for line in sys.stdin:
        if line.strip() == "finish":
            for one in [*actors, *operators]:
                one.finish_by = time.monotonic() + plan["patience_s"]
                one.finishing.set()
            for one in [*actors, *operators]:
                one.join()
        elif line.strip() == "replay":
            again = [threading.Thread(target=actor.replay) for actor in actors]
            for one in actors:
                one.finish_by = time.monotonic() + plan["patience_s"]
            for thread in again:
                thread.start()
            for thread in again:
                thread.join()
        print("done", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
