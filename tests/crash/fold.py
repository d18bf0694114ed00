"""The ledger's rows added up, by other code than the desk's: small, slow, and only what the invariants need."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from tests.crash.history import Row

HOUSE = "$house"
OPEN = frozenset({"waiting", "sending", "unknown", "quarantine", "held", "live"})
UNPROVEN = frozenset({"sending", "unknown", "quarantine"})
REVOCABLE = frozenset({"rejected", "not_sent"})


@dataclass(slots=True)
class Order:
    order_id: str
    name: str  # its client_order_id
    user: str
    request: dict[str, Any]
    seq: int
    state: str
    replaces: str = ""
    replaced_by: str = ""
    parent: str = ""
    filled: Decimal = Decimal(0)
    value: Decimal = Decimal(0)
    broker_id: str = ""
    # (seq, event's kind, state before, state after), where the state changed.
    steps: list[tuple[int, str, str, str]] = field(default_factory=list)

    @property
    def qty(self) -> Decimal | None:
        return Decimal(self.request["qty"]) if self.request.get("qty") else None

    old: "Order | None" = None

    def become(self, row: Row, state: str) -> None:
        if state == self.state:
            return
        self.steps.append((row.seq, row.kind, self.state, state))
        self.state = state
        # Whatever proves that a replacement lives proves that the old order is over.
        if self.old is not None and state in ("live", "filled") and self.old.state in OPEN:
            self.old.replaced_by = self.order_id
            self.old.become(row, "replaced")


@dataclass(slots=True)
class Execution:
    seq: int
    execution_id: str
    order_id: str
    user: str
    symbol: str
    sign: int
    qty: Decimal
    price: Decimal
    fee: Decimal
    broker_execution_id: str
    cum_qty: Decimal | None


class Books:
    """`problems` are rows that could not follow those before them."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.orders: dict[str, Order] = {}
        self.by_name: dict[str, Order] = {}
        self.by_request: dict[tuple[str, str], Order] = {}
        self.executions: dict[str, Execution] = {}
        self.busted: set[str] = set()
        self.positions: defaultdict[tuple[str, str], Decimal] = defaultdict(Decimal)
        self.cash: defaultdict[str, Decimal] = defaultdict(Decimal)
        self.problems: list[str] = []
        for row in rows:
            take = getattr(self, f"_{row.kind}", None)
            if take is not None:
                take(row, row.body)

    def order(self, row: Row, order_id: str) -> Order | None:
        known = self.orders.get(order_id)
        if known is None:
            self.problems.append(f"event {row.seq} ({row.kind}) is about order {order_id}, which no event opened")
        return known

    # Orders

    def _OrderRefused(self, row: Row, body: dict[str, Any]) -> None:
        self._enter(row, body["order"], "refused")

    def _OrderIntended(self, row: Row, body: dict[str, Any]) -> None:
        state = "waiting" if body["order"].get("state") == "waiting" else "sending"
        entry = self._enter(row, body["order"], state)
        for leg in body.get("legs", ()):
            self._enter(row, leg, state).parent = entry.order_id

    def _SendIntended(self, row: Row, body: dict[str, Any]) -> None:
        order = self.order(row, body["order_id"])
        if order and order.state == "waiting":
            order.become(row, "sending")

    def _OrderRecovered(self, row: Row, body: dict[str, Any]) -> None:
        entry = self._enter(row, body["order"], "live")
        for leg in body.get("legs", ()):
            self._enter(row, leg, leg.get("state", "held")).parent = entry.order_id

    def _ReplaceIntended(self, row: Row, body: dict[str, Any]) -> None:
        new = self._enter(row, body["order"], "sending")
        new.replaces, new.old = body["order_id"], self.order(row, body["order_id"])

    def _enter(self, row: Row, body: dict[str, Any], state: str) -> Order:
        order = Order(body["order_id"], body["client_order_id"], body["user"], dict(body["request"]), row.seq, state)
        order.replaces = body.get("replaces", "")
        for known, key in ((self.orders, order.order_id), (self.by_name, order.name)):
            if key in known:
                self.problems.append(f"event {row.seq} ({row.kind}) opens {key} for the second time")
            known[key] = order
        request_id = order.request.get("request_id", "")
        if request_id and not body.get("parent_id"):
            if (order.user, request_id) in self.by_request:
                self.problems.append(f"event {row.seq}: a second order for {order.user}'s request {request_id}")
            self.by_request[order.user, request_id] = order
        return order

    def _OrderAccepted(self, row: Row, body: dict[str, Any]) -> None:
        if order := self.order(row, body["order_id"]):
            order.broker_id = body.get("broker_order_id", "") or order.broker_id
            if order.state in UNPROVEN | REVOCABLE | {"held"}:
                order.become(row, "held" if body.get("status") == "held" else "live")

    def _OrderReleased(self, row: Row, body: dict[str, Any]) -> None:
        order = self.order(row, body["order_id"])
        if order and order.state in OPEN | REVOCABLE:
            order.become(row, "live")

    def _OrderRejected(self, row: Row, body: dict[str, Any]) -> None:
        self._end(row, body["order_id"], "rejected")

    def _OrderUnknown(self, row: Row, body: dict[str, Any]) -> None:
        order = self.order(row, body["order_id"])
        if order and order.state == "sending":
            order.become(row, "unknown")

    def _OrderQuarantined(self, row: Row, body: dict[str, Any]) -> None:
        order = self.order(row, body["order_id"])
        if order and order.state in UNPROVEN:
            order.become(row, "quarantine")

    def _OrderNotSent(self, row: Row, body: dict[str, Any]) -> None:
        order = self.order(row, body["order_id"])
        if order and order.state in UNPROVEN | {"waiting"}:
            self._end(row, order.order_id, "not_sent")

    def _OrderEnded(self, row: Row, body: dict[str, Any]) -> None:
        self._end(row, body["order_id"], body["state"])

    def _end(self, row: Row, order_id: str, state: str) -> None:
        order = self.order(row, order_id)
        if order and order.state in OPEN:
            order.become(row, state)

    def _OrderReplaced(self, row: Row, body: dict[str, Any]) -> None:
        old, new = self.order(row, body["order_id"]), self.order(row, body["new_order_id"])
        if not old or not new or old.replaced_by not in ("", new.order_id):
            return
        old.replaced_by = new.order_id
        new.broker_id = body.get("broker_order_id", "") or new.broker_id
        if body.get("qty") is not None:
            new.request["qty"] = body["qty"]
        if new.state in UNPROVEN | REVOCABLE:
            new.become(row, "live")
        if old.state in OPEN:
            old.become(row, "replaced")
        self._fill_up(row, new)

    def _ReplaceRejected(self, row: Row, body: dict[str, Any]) -> None:
        new = self.order(row, body["new_order_id"])
        if new and new.state in UNPROVEN:
            new.become(row, "rejected")

    # What moves money and shares

    def _UserOpened(self, row: Row, body: dict[str, Any]) -> None:
        self.cash[body["user"]] += Decimal(body["allotment"])

    def _Executed(self, row: Row, body: dict[str, Any]) -> None:
        order = self.order(row, body["order_id"])
        if order is None:
            return
        sign = 1 if order.request["side"] == "buy" else -1
        symbol = order.request["symbol"]
        one = self._execution(row, body, order_id=order.order_id, user=order.user, symbol=symbol, sign=sign)
        if one is None:
            return
        order.filled += one.qty
        order.value += one.qty * one.price
        if order.state in UNPROVEN | REVOCABLE | {"held"}:
            order.become(row, "live")
        self._fill_up(row, order)

    def _fill_up(self, row: Row, order: Order) -> None:
        if order.qty is not None and order.filled >= order.qty and order.state in OPEN | {"canceled", "expired"}:
            order.become(row, "filled")

    def _HouseExecuted(self, row: Row, body: dict[str, Any]) -> None:
        sign = 1 if body["side"] == "buy" else -1
        self._execution(row, body, order_id="", user=HOUSE, symbol=body["symbol"], sign=sign)

    def _execution(
        self, row: Row, body: dict[str, Any], *, order_id: str, user: str, symbol: str, sign: int
    ) -> Execution | None:
        one = Execution(
            row.seq,
            body["execution_id"],
            order_id,
            user,
            symbol,
            sign,
            Decimal(body["qty"]),
            Decimal(body["price"]),
            Decimal(body.get("fee", "0")),
            body.get("broker_execution_id", ""),
            Decimal(body["cum_qty"]) if body.get("cum_qty") is not None else None,
        )
        if one.execution_id in self.executions:
            self.problems.append(f"event {row.seq}: execution {one.execution_id} for the second time")
            return None
        self.executions[one.execution_id] = one
        self._move(one, 1)
        return one

    def _ExecutionBusted(self, row: Row, body: dict[str, Any]) -> None:
        one = self.executions.get(body["execution_id"])
        if one is None or one.execution_id in self.busted:
            self.problems.append(f"event {row.seq}: bust of {body['execution_id']}, which does not stand")
            return
        self.busted.add(one.execution_id)
        self._move(one, -1)
        if order := self.orders.get(one.order_id):
            order.filled -= one.qty
            order.value -= one.qty * one.price

    def _move(self, one: Execution, times: int) -> None:
        self.positions[one.user, one.symbol] += times * one.sign * one.qty
        self.cash[one.user] -= times * (one.sign * one.qty * one.price + one.fee)

    def _ActivityPosted(self, row: Row, body: dict[str, Any]) -> None:
        for share in body["shares"]:
            self.cash[share["user"]] += Decimal(share.get("cash", "0"))
            if share.get("qty"):
                self.positions[share["user"], body["symbol"]] += Decimal(share["qty"])

    def _HouseAdjusted(self, row: Row, body: dict[str, Any]) -> None:
        self.cash[HOUSE] += Decimal(body.get("cash", "0"))
        if body.get("symbol"):
            self.positions[HOUSE, body["symbol"]] += Decimal(body.get("qty", "0"))

    def standing(self) -> list[Execution]:
        """Executions that were not taken back."""
        return [one for key, one in self.executions.items() if key not in self.busted]
