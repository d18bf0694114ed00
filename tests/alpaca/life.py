"""An order's life at the market: it works, trades, releases its legs, and ends."""

from decimal import ROUND_DOWN

from tests.alpaca.executions import Executions
from tests.alpaca.market import tradable_at
from tests.alpaca.orders import NANO, Order


class Life(Executions):
    def work(self, order: Order) -> None:
        """The market has the order: it is `new`, and trades if it can."""
        if order.status not in ("pending_new", "accepted"):
            return
        if order.doomed:
            self.exchange.faults.count("reject_later")
            self.end(order, "rejected")
        else:
            order.status = "new"
            self.tell(order, "new")
            if order.order_class == "oco":
                self._release(order)
            self.match(order, arriving=True)

    def match(self, order: Order, *, arriving: bool = False) -> None:
        """Trade what can be traded now; an ioc's or fok's rest is cancelled on arrival."""
        exchange = self.exchange
        if order.status not in ("new", "partially_filled", "pending_cancel", "held"):
            return
        if order.status == "held" and not self._stop_leg_works(order):
            return
        if exchange.settings.fills == "held" or not exchange.in_session(order):
            return
        price = tradable_at(order, exchange.market.price(order.symbol), arriving=arriving)
        now_or_never = arriving and order.tif in ("ioc", "fok")
        if price is None:
            if now_or_never:
                self.end(order, "canceled")
            return
        if order.notional is not None and order.target is None:
            order.target = (order.notional / price).quantize(NANO, ROUND_DOWN)
        rest = self.rest_of(order)
        if rest <= 0:
            return
        qty = rest if order.tif == "fok" else exchange.market.portion(order, rest, exchange.settings.partial)
        self.execute(order, qty, price)
        if order.is_open and now_or_never:
            self.end(order, "canceled")
        elif order.is_open and not order.retrying:
            order.retrying = True
            exchange.later("again_ms", self._again, order)

    def _again(self, order: Order) -> None:
        order.retrying = False
        self.match(order)

    def _stop_leg_works(self, order: Order) -> bool:
        parent = order.parent
        return parent is not None and (parent.status == "filled" or parent.order_class == "oco")

    def follow(self, order: Order, *, released: bool) -> None:
        """What a fill means for the family: legs are released, the other exit is cancelled."""
        if released and order.legs and order.order_class != "oco":
            self._release(order)
        self._settle_group(order)

    def _release(self, parent: Order) -> None:
        """The exits start to work. A stop leg may keep the status `held`, see the setting stop_leg."""
        for leg in parent.legs:
            if leg.status != "held":
                continue
            if leg.type == "limit" or self.exchange.settings.stop_leg == "new":
                leg.status = "new"
                self.tell(leg, "new")
        for leg in parent.legs:
            self.exchange.later("work_ms", self.match, leg)

    def _settle_group(self, order: Order) -> None:
        """One exit filled as much as the group had: the other is cancelled."""
        if not order.group or self.rest_of(order) > 0:
            return
        parent = order.parent or order
        for other in (parent, *parent.legs):
            if other is not order and other.group == order.group and other.is_open:
                self.end(other, "canceled")

    def end(self, order: Order, status: str) -> None:
        """canceled, expired, rejected or replaced; legs that wait for it end with it."""
        now = self.exchange.now_ns()
        if not order.is_open:
            return
        order.status = status
        match status:
            case "canceled":
                order.canceled_ns = now
            case "expired":
                order.expired_ns = now
            case "rejected":
                order.failed_ns = now
            case "replaced":
                order.replaced_ns = now
        self.close(order)
        self.tell(order, status)
        if status == "replaced":
            return
        parent = order.parent
        family = (parent, *parent.legs) if parent is not None else tuple(order.legs)
        for other in family:
            if other is not order and other.is_open and (parent is None or other.group == order.group):
                self.end(other, "canceled")
