"""The broker's book as it was at every instant, per user: what was open, spent and held, against the limits.

What frees (a cancel, a purchase's shares) is taken before what binds (a new order) where both bear the same time.
Where the broker undid an execution, or executed an order that it had ended, a user may hold less than was sold in
good faith: by as much as that execution's, the limits on shares and money may then be passed.
"""

from collections import defaultdict
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from tests.crash.history import History, is_ours, ns_of, user_of

ZERO = Decimal(0)
# Order of what bears the same time.
_FREES, _BINDS = 0, 1


def breaches(h: History) -> Iterator[str]:
    """A sentence for each user, limit and first time that it did not hold."""
    users: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for order in h.broker_orders():
        if is_ours(order["client_order_id"]) and not order["external"]:
            users[user_of(order["client_order_id"])].append(order)
    executions: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for account in h.accounts:
        for one in account["executions"]:
            executions[one["order_id"]].append(one)
    for user, orders in sorted(users.items()):
        yield from _sizes(user, orders, h)
        yield from _Run(user, orders, executions, h).breaches()


def _sizes(user: str, orders: list[dict[str, Any]], h: History) -> Iterator[str]:
    for order in orders:
        qty, limit = Decimal(order["qty"] or 0), Decimal(order["limit_price"] or 0)
        if qty > h.limits.qty_max:
            yield f"{user}'s {order['client_order_id']} is for {qty}, at most {h.limits.qty_max} are allowed"
        if qty * limit > h.limits.notional_max:
            yield f"{user}'s {order['client_order_id']} is worth ${qty * limit} of ${h.limits.notional_max}"


class _Run:
    """One user's orders, played again in the order in which the broker had them."""

    def __init__(
        self, user: str, orders: list[dict[str, Any]], executions: dict[str, list[dict[str, Any]]], h: History
    ) -> None:
        self.user = user
        self.h = h
        # What the broker's own doing may have made wrong: shares per symbol, and dollars.
        self.slack: defaultdict[str, Decimal] = defaultdict(Decimal)
        self.slack_usd = ZERO
        self.steps: list[tuple[Any, ...]] = []
        for order in orders:
            self._plan(order, executions[order["id"]])
        self.steps.sort(key=lambda step: step[:3])
        self.cash = h.limits.allotment
        self.held: defaultdict[str, Decimal] = defaultdict(Decimal)
        self.open: dict[str, tuple[dict[str, Any], Decimal]] = {}

    def _plan(self, order: dict[str, Any], executions: list[dict[str, Any]]) -> None:
        if not order["history"]:
            return
        start, end = ns_of(order["history"][0][0]), None
        if order["status"] in ("filled", "canceled", "expired", "rejected", "replaced"):
            end = next(
                (ns_of(at) for at, _, status, _ in order["history"] if status == order["status"]),
                ns_of(order["history"][-1][0]),
            )
        self._step(start, _BINDS, "open", order, Decimal(order["qty"] or 0), ZERO)
        for one in executions:
            qty, price, at = Decimal(one["qty"]), Decimal(one["price"]), ns_of(one["at"])
            if one["busted"] or one["corrected_by"] or one["corrects"] or (end is not None and at > end):
                self.slack[order["symbol"]] += qty
                self.slack_usd += qty * price
            if not one["busted"] and not one["corrected_by"]:
                self._step(at, _FREES if order["side"] == "buy" else _BINDS, "fill", order, qty, price)
        if end is not None:
            self._step(end, _FREES, "end", order, ZERO, ZERO)

    def _step(self, at: int, kind: int, what: str, order: dict[str, Any], *amounts: Decimal) -> None:
        self.steps.append((at, kind, len(self.steps), what, order, *amounts))

    def breaches(self) -> Iterator[str]:
        found: set[str] = set()
        for at, _, _, what, order, qty, price in self.steps:
            self._take(what, order, qty, price)
            for limit, sentence in self._broken(order["symbol"]):
                if limit not in found:
                    found.add(limit)
                    yield f"{sentence}, {what} of {order['client_order_id']} at {at}"

    def _take(self, what: str, order: dict[str, Any], qty: Decimal, price: Decimal) -> None:
        if what == "open":
            # What it replaces may be marked as replaced a moment later.
            self.open.pop(order["replaces"] or "", None)
            self.open[order["id"]] = (order, qty)
        elif what == "end":
            self.open.pop(order["id"], None)
        else:
            sign = 1 if order["side"] == "buy" else -1
            self.held[order["symbol"]] += sign * qty
            self.cash -= sign * qty * price
            if order["id"] in self.open:
                left = self.open[order["id"]][1] - qty
                self.open[order["id"]] = (order, left)

    def _broken(self, symbol: str) -> Iterator[tuple[str, str]]:
        working = [(order, left) for order, left in self.open.values() if left > 0]
        if len(working) > self.h.limits.open_orders_max:
            yield "open", f"{self.user} has {len(working)} open orders of {self.h.limits.open_orders_max}"
        bound = sum(
            (left * Decimal(order["limit_price"] or 0) for order, left in working if order["side"] == "buy"), ZERO
        )
        if bound > self.cash + self.slack_usd:
            yield "cash", f"{self.user} has ${self.cash} and open buy orders for ${bound}"
        offered = sum((left for order, left in working if order["side"] == "sell" and order["symbol"] == symbol), ZERO)
        if offered > self.held[symbol] + self.slack[symbol]:
            yield symbol, f"{self.user} has {self.held[symbol]} {symbol} and open sell orders for {offered}"
