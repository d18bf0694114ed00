"""What one account remembers: its orders under every name, its activities; and how it tells of what happens."""

from bisect import bisect_left
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from tests.alpaca.market import tradable_at
from tests.alpaca.money import Money
from tests.alpaca.orders import ZERO, Execution, Order, stamp
from tests.alpaca.rules import Refused

if TYPE_CHECKING:
    from tests.alpaca.exchange import Exchange


class Records:
    """The lowest layer of an account: nothing here decides."""

    def __init__(self, exchange: "Exchange", account_id: str, number: str, cash: Decimal) -> None:
        self.exchange = exchange
        self.id = account_id
        self.number = number
        self.created_ns = exchange.now_ns()
        self.money = Money(cash, exchange.market.price)
        self.orders: list[Order] = []
        self.by_id: dict[str, Order] = {}
        self.by_client_id: dict[str, Order] = {}
        self.executions: dict[str, Execution] = {}
        # In the order of their time, each with it.
        self.activities: list[tuple[int, dict[str, Any]]] = []
        self._submitted: list[int] = []

    def file(self, order: Order) -> None:
        if order.type == "trailing_stop":
            tradable_at(order, self.exchange.market.price(order.symbol), arriving=True)
        self.orders.append(order)
        self._submitted.append(order.submitted_ns)
        self.by_id[order.id] = order
        self.by_client_id[order.client_order_id] = order
        self.money.open[order.symbol][order.id] = order

    def close(self, order: Order) -> None:
        self.money.open[order.symbol].pop(order.id, None)

    def rest_of(self, order: Order) -> Decimal:
        """What may still trade: of exits of one group, no more than the group has left."""
        if not order.group:
            return order.rest
        parent = order.parent or order
        exits = [o for o in (parent, *parent.legs) if o.group == order.group]
        return order.wanted - sum((o.filled for o in exits), ZERO)

    def non_trade(self, line: dict[str, Any]) -> dict[str, Any]:
        """Enter an activity that is no trade. The money is not moved here."""
        now = self.exchange.now_ns()
        stamped = {
            "id": f"{day_stamp(now)}::{self.exchange.new_id()}",
            "date": (stamp(now) or "")[:10],
            "status": "executed",
            **line,
        }
        self.activities.append((now, stamped))
        return stamped

    def tell(self, order: Order, event: str, *, at_ns: int | None = None, **more: Any) -> None:
        now = at_ns or self.exchange.now_ns()
        order.updated_ns = now
        self.money.note(order)
        order.history.append((now, event, order.status, order.filled, order.average))
        self.exchange.publish(self, event, order, stamp(now), more)

    def find(self, order_id: str) -> Order:
        order = self.by_id.get(order_id)
        if order is None or self._hidden(order):
            raise Refused(404, 40410000, f"order not found for {order_id}")
        return order

    def find_by_client_id(self, client_order_id: str) -> Order:
        order = self.by_client_id.get(client_order_id)
        if order is None or self._hidden(order):
            raise Refused(404, 40410000, f"order not found for {client_order_id}")
        return order

    def _hidden(self, order: Order) -> bool:
        """Accepted, but not to be found yet (a fault)."""
        if order.visible_ns <= self.exchange.now_ns():
            return False
        self.exchange.faults.count("lookup_404_just_after_acceptance")
        return True

    def submitted_after(self, at_ns: int) -> int:
        return bisect_left(self._submitted, at_ns + 1)

    def visible(self, order: Order) -> bool:
        return order.visible_ns == 0 or not self._hidden(order)

    def open_orders(self) -> list[Order]:
        return [order for orders in self.money.open.values() for order in orders.values()]


def about(order: Order) -> dict[str, str]:
    """What an armed fault can be aimed by."""
    return {"client_order_id": order.client_order_id, "symbol": order.symbol, "order_id": order.id}


def day_stamp(at_ns: int) -> str:
    written = stamp(at_ns) or ""
    return "".join(ch for ch in written if ch.isdigit())[:17]
