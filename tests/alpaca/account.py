"""One account as its owner uses it: submit, cancel, replace. Its book, in the layers below, is the truth."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from tests.alpaca.faults import Pick
from tests.alpaca.life import Life
from tests.alpaca.orders import Order, text
from tests.alpaca.rules import Draft, Refused, amount, bad, check_pennies


class Account(Life):
    """Every verb raises Refused as Alpaca would refuse; what comes of it later is told on the streams."""

    def submit(self, draft: Draft, *, external: bool = False, checked: bool = True) -> Order:
        """Accept, or raise Refused. The order starts to work a moment later."""
        if draft.client_order_id is not None and draft.client_order_id in self.by_client_id:
            raise bad("client_order_id must be unique")
        if checked:
            self.money.check(draft, self.exchange.market.price(draft.asset.symbol))
        order = self._enter(draft, draft.client_order_id, external=external)
        self._enter_legs(order, draft)
        if self.exchange.in_session(order):
            order.status = "pending_new"
            self.tell(order, "pending_new")
            self.exchange.later("work_ms", self.work, order)
        else:
            order.status = "accepted"
            self.tell(order, "accepted")
        return order

    def _enter(self, draft: Draft, client_order_id: str | None, *, external: bool = False) -> Order:
        now = self.exchange.now_ns()
        asset = draft.asset
        order = Order(
            id=self.exchange.new_id(),
            client_order_id=client_order_id or self.exchange.new_id(),
            symbol=asset.symbol,
            asset_id=asset.id,
            asset_class=asset.asset_class,
            side=draft.side,
            type=draft.type,
            tif=draft.tif,
            submitted_ns=now,
            seq=len(self.orders),
            qty=draft.qty,
            notional=draft.notional,
            limit=draft.limit,
            stop=draft.stop,
            trail_price=draft.trail_price,
            trail_percent=draft.trail_percent,
            extended=draft.extended,
            order_class=draft.order_class,
            position_intent=draft.position_intent,
            external=external,
        )
        self.file(order)
        return order

    def _enter_legs(self, parent: Order, draft: Draft) -> None:
        if not draft.order_class:
            return
        oco = draft.order_class == "oco"
        side = draft.side if oco else ("sell" if draft.side == "buy" else "buy")
        wanted: list[tuple[str, Decimal | None, Decimal | None]] = []
        if draft.take_profit is not None and not oco:
            wanted.append(("limit", draft.take_profit, None))
        if draft.loss_stop is not None:
            wanted.append(("stop_limit" if draft.loss_limit else "stop", draft.loss_limit, draft.loss_stop))
        for kind, limit, stop in wanted:
            parent.legs.append(self._leg(parent, side, kind, limit=limit, stop=stop))
        if oco:
            parent.group = parent.id

    def _leg(self, parent: Order, side: str, kind: str, *, limit: Decimal | None, stop: Decimal | None) -> Order:
        leg = Order(
            id=self.exchange.new_id(),
            client_order_id=self.exchange.new_id(),
            symbol=parent.symbol,
            asset_id=parent.asset_id,
            asset_class=parent.asset_class,
            side=side,
            type=kind,
            tif=parent.tif,
            submitted_ns=parent.submitted_ns,
            seq=len(self.orders),
            qty=parent.qty,
            limit=limit,
            stop=stop,
            order_class=parent.order_class,
            status="held",
            parent=parent,
            group=parent.id,
            external=parent.external,
        )
        self.file(leg)
        return leg

    def cancel(self, order: Order, pick: Pick | None = None) -> None:
        """Ask for a cancel, or raise Refused. The end comes a moment later, unless a fill is faster."""
        if not order.is_open:
            raise bad(f'order is already in "{order.status}" state', 42210000)
        if order.status == "pending_cancel":
            return
        if order.status == "pending_replace":
            raise bad("order pending replacement cannot be canceled", 42210000)
        name = pick.name if pick is not None else ""
        if pick is not None and name == "cancel_refused":
            self.exchange.faults.show(pick)
            self.tell(order, "order_cancel_rejected")
            raise bad("order is not cancelable", 42210000)
        order.status = "pending_cancel" if order.status != "held" else "held"
        self.tell(order, "pending_cancel")
        if pick is not None and name == "stuck_pending_cancel":
            self.exchange.faults.show(pick)
            self.exchange.stick(self, order, pick.params["lag_ms"])
        elif pick is not None and name == "fill_after_cancel" and self._can_fill_by_hand(order):
            self.exchange.faults.show(pick)
            self.exchange.later("cancel_ms", self._fill_after_cancel, order, pick.params["how"])
        else:
            self.exchange.later("cancel_ms", self.end, order, "canceled")

    def _can_fill_by_hand(self, order: Order) -> bool:
        return order.status != "held" and order.notional is None and self.rest_of(order) > 0

    def _fill_after_cancel(self, order: Order, how: str) -> None:
        if not order.is_open:
            return
        price = order.limit or self.exchange.market.price(order.symbol)
        rest = self.rest_of(order)
        qty = self.exchange.market.portion(order, rest, 0.5)
        if how == "race":
            self.execute(order, qty, price)
            self.end(order, "canceled")
        else:
            self.end(order, "canceled")
            self.execute(order, qty, price, status="canceled")

    def replace(self, order: Order, body: Mapping[str, Any]) -> Order:
        """A new order in the place of the old, or Refused. qty is the new total: what filled counts towards it."""
        if order.status not in ("new", "partially_filled"):
            raise bad(f"cannot replace order in {order.status} status", 42210000)
        if order.notional is not None or order.wanted % 1:
            raise bad("cannot replace a notional or fractional order", 42210000)
        new = self._replacement(order, body)
        if order.tif == "ioc" or order.type == "market":
            raise bad("order is not replaceable", 42210000)
        order.status, order.replaced_by = "pending_replace", new.id
        self.tell(order, "pending_replace")
        self._swap(order, new)
        self.tell(new, "pending_new")
        self.exchange.later("work_ms", self._replaced, order, new)
        return new

    def _replacement(self, order: Order, body: Mapping[str, Any]) -> Order:
        asset = self.exchange.market.assets[order.symbol]
        qty = amount(body, "qty")
        if qty is not None and (qty <= 0 or qty % 1):
            raise bad("qty must be a whole number > 0")
        if qty is not None and qty <= order.filled:
            raise bad("qty must be greater than the filled quantity", 42210000)
        prices = {}
        for name in ("limit_price", "stop_price", "trail"):
            prices[name] = amount(body, name, decimals=20)
            if prices[name] is not None:
                check_pennies(prices[name], name, asset)  # type: ignore[arg-type]
        client_order_id = body.get("client_order_id") or self.exchange.new_id()
        if client_order_id in self.by_client_id:
            raise bad("client_order_id must be unique")
        new = Order(
            id=self.exchange.new_id(),
            client_order_id=client_order_id,
            symbol=order.symbol,
            asset_id=order.asset_id,
            asset_class=order.asset_class,
            side=order.side,
            type=order.type,
            tif=body.get("time_in_force") or order.tif,
            submitted_ns=self.exchange.now_ns(),
            seq=len(self.orders),
            qty=(qty or order.wanted) - order.filled,
            limit=prices["limit_price"] or order.limit,
            stop=prices["stop_price"] or order.stop,
            trail_price=prices["trail"] if prices["trail"] and order.trail_price else order.trail_price,
            trail_percent=prices["trail"] if prices["trail"] and order.trail_percent else order.trail_percent,
            extended=order.extended,
            order_class=order.order_class,
            replaces=order.id,
            external=order.external,
        )
        self._check_replacement(order, new)
        return new

    def _check_replacement(self, order: Order, new: Order) -> None:
        """The account must be able to bear the new one in the place of the old."""
        money, asset = self.money, self.exchange.market.assets[order.symbol]
        if new.buy and order.parent is None and money.held(asset).qty >= 0:
            more = money.cost_of(new) - money.cost_of(order)
            power = money.buying_power()
            if more > power:
                raise Refused(
                    403, 40310000, "insufficient buying power", buying_power=text(power), cost_basis=text(more)
                )
        elif not new.buy and money.held(asset).qty > 0:
            free = money.held(asset).qty - money.held_for_orders(order.symbol, "sell") + order.rest
            if new.rest > free:
                message = f"insufficient qty available for order (requested: {text(new.rest)}, available: {text(free)})"
                raise Refused(403, 40310000, message, symbol=order.symbol, available=text(free))

    def _swap(self, order: Order, new: Order) -> None:
        """The new order takes the old one's place in its family."""
        new.parent, new.group = order.parent, order.group
        if order.parent is not None:
            order.parent.legs = [new if leg is order else leg for leg in order.parent.legs]
        new.legs, order.legs = order.legs, []
        for leg in new.legs:
            leg.parent = new
            leg.group = leg.group and new.id
            leg.qty = new.qty
        if new.order_class == "oco" and new.parent is None:
            new.group = new.id
        new.status = "pending_new"
        self.file(new)

    def refuse_replacement(self, new: Order) -> None:
        """The market did not take it after all: the old order works on. For orders without a family."""
        old = self.find(new.replaces or "")
        if old.parent is not None or new.legs:
            raise ValueError("only a replacement without legs can be refused later")
        old.status = "partially_filled" if old.filled else "new"
        self.tell(old, "order_replace_rejected")
        old.replaced_by = None
        self.end(new, "rejected")

    def _replaced(self, order: Order, new: Order) -> None:
        if order.replaced_by != new.id:
            return
        self.end(order, "replaced")
        self.work(new)
