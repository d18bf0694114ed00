"""The control API from Python, blocking, on the standard library: a method per call of the package's docstring."""

import http.client
import json
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode, urlsplit


class ControlError(Exception):
    """The server said no; the message is its sentence."""


class Control:
    """`Control("http://127.0.0.1:4000").price(AAPL="190")`. Amounts may be int, str or Decimal."""

    def __init__(self, url: str, timeout_s: float = 30.0) -> None:
        self.url = url
        self._host = urlsplit(url).netloc
        self._timeout_s = timeout_s

    def call(self, name: str, body: dict[str, Any] | None = None, *, method: str = "POST") -> Any:
        connection = http.client.HTTPConnection(self._host, timeout=self._timeout_s)
        try:
            connection.request(method, f"/control/{name}", None if body is None else json.dumps(body, default=_plain))
            response = connection.getresponse()
            told = json.loads(response.read())
        finally:
            connection.close()
        if response.status != 200:
            raise ControlError(told.get("message", told))
        return told

    def settings(self, **changes: Any) -> Any:
        return self.call("settings", changes)

    def price(self, prices: dict[str, Any] | None = None, **more: Any) -> Any:
        """`price(AAPL=190)` or `price({"BTC/USD": 60000})`; without any, all prices."""
        return self.call("price", {**(prices or {}), **more})

    def walk(self, every_ms: float, step_bps: float = 10, symbols: list[str] | None = None) -> None:
        self.call("walk", {"every_ms": every_ms, "step_bps": step_bps, "symbols": symbols})

    def fill(self, order: str, qty: Any = None, price: Any = None) -> Any:
        return self.call("fill", {"order": order, "qty": qty, "price": price})

    def reject(self, order: str) -> Any:
        return self.call("reject", {"order": order})

    def expire(self, order: str | None = None) -> Any:
        return self.call("expire", {"order": order} if order else {})["expired"]

    def tell(self, order: str, event: str, **more: Any) -> Any:
        return self.call("tell", {"order": order, "event": event, **more})

    def external(self, symbol: str, side: str, qty: Any, **more: Any) -> Any:
        """An order by hand; `force=True` skips the broker's own checks."""
        return self.call("external", {"symbol": symbol, "side": side, "qty": qty, **more})

    def activity(self, activity_type: str, **more: Any) -> Any:
        return self.call("activity", {"activity_type": activity_type, **more})

    def bust(self, execution: str) -> Any:
        return self.call("bust", {"execution": execution})

    def correct(self, execution: str, **change: Any) -> Any:
        return self.call("correct", {"execution": execution, **change})

    def faults(self, probabilities: dict[str, float], *, seed: int | None = None, params: Any = None) -> Any:
        """`faults({"503": 0.02, "*": 0.01}, seed=7)`: from now on at random."""
        body = {"probabilities": probabilities, "params": params or {}}
        return self.call("faults", body if seed is None else {**body, "seed": seed})

    def arm(self, fault: str, times: int = 1, **more: Any) -> Any:
        """`arm("accepted_then_dropped", on="submit", client_order_id="d1.alice.…")`."""
        return self.call("arm", {"fault": fault, "times": times, **more})["armed"]

    def heal(self) -> Any:
        return self.call("heal", {})

    def disconnect(self, how: str = "close") -> Any:
        return self.call("disconnect", {"how": how})["closed"]

    def account(self, **changes: Any) -> Any:
        return self.call("account", changes)

    def reset(self, **changes: Any) -> Any:
        return self.call("reset", changes)["accounts"]

    def counts(self) -> Any:
        return self.call("counts", method="GET")

    def dump(self, account: str | None = None, *, posts: bool = True, history: bool = True) -> Any:
        query = {"posts": int(posts), "history": int(history)} | ({"account": account} if account else {})
        return self.call(f"dump?{urlencode(query)}", method="GET")


def _plain(value: Any) -> str:
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(f"{type(value).__name__} is no amount")
