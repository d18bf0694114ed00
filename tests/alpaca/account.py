"""One account: its orders' lives from acceptance to the end, and the executions that move its money."""

from bisect import bisect_left
from collections.abc import Mapping
from decimal import ROUND_DOWN, Decimal
from typing import TYPE_CHECKING, Any

from tests.alpaca.faults import Pick
from tests.alpaca.market import tradable_at
from tests.alpaca.money import CRYPTO_FEE, Money
from tests.alpaca.orders import NANO, ZERO, Execution, Order, stamp, text
from tests.alpaca.rules import Asset, Draft, Refused, amount, bad, check_pennies

if TYPE_CHECKING:
    from tests.alpaca.exchange import Exchange

_TERMINAL = frozenset(("filled", "canceled", "expired", "replaced", "rejected"))


class Account:
    """Its book is the truth. Everything it does is told to the exchange's streams as it happens."""

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

    # Into the book.

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
        self._file(order)
        return order

    def _file(self, order: Order) -> None:
        if order.type == "trailing_stop":
            tradable_at(order, self.exchange.market.price(order.symbol), arriving=True)
        self.orders.append(order)
        self._submitted.append(order.submitted_ns)
        self.by_id[order.id] = order
        self.by_client_id[order.client_order_id] = order
        self.money.open[order.symbol][order.id] = order

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
        self._file(leg)
        return leg

    # At the market.

    def work(self, order: Order) -> None:
        """The market has the order: it is `new`, and trades if it can."""
        if order.status in ("pending_new", "accepted"):
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
        rest = self._rest(order)
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

    def _rest(self, order: Order) -> Decimal:
        """What may still trade: of exits of one group, no more than the group has left."""
        if not order.group:
            return order.rest
        parent = order.parent or order
        exits = [o for o in (parent, *parent.legs) if o.group == order.group]
        return order.wanted - sum((o.filled for o in exits), ZERO)

    def execute(self, order: Order, qty: Decimal, price: Decimal, *, status: str | None = None) -> Execution:
        """One fill. `status` keeps the order's status (a fill reported after its end)."""
        now = self.exchange.now_ns()
        order.filled += qty
        order.filled_cost += qty * price
        complete = order.filled >= order.wanted
        done = self._executed(order, qty, price, now, complete=complete)
        asset = self.exchange.market.assets[order.symbol]
        self.money.apply(asset, done)
        self._file_execution(done, asset)
        if status is not None:
            order.status = status
        elif complete:
            order.status, order.filled_ns = "filled", now
            self._close(order)
        elif order.status != "pending_cancel":
            order.status = "partially_filled"
        self._tell_fill(done, asset)
        if complete and status is None:
            self._after_fill(order)
        self._settle_group(order)
        self.exchange.maybe_bust(self, done)
        return done

    def _executed(self, order: Order, qty: Decimal, price: Decimal, now: int, *, complete: bool) -> Execution:
        execution_id = self.exchange.new_id()
        own = self.exchange.settings.activity_ids == "own"
        activity_id = f"{_day_stamp(now)}::{self.exchange.new_id() if own else execution_id}"
        kind = "fill" if complete else "partial_fill"
        leaves = max(order.rest, ZERO)
        return Execution(execution_id, activity_id, order, qty, price, now, order.filled, leaves, kind)

    def _file_execution(self, done: Execution, asset: Asset) -> None:
        self.executions[done.id] = done
        self.activities.append((done.at_ns, done.activity()))
        if done.fee:
            self._fee_activity(done, asset)

    def _fee_activity(self, done: Execution, asset: Asset, *, back: bool = False) -> None:
        in_coin = done.fee_asset != "USD"
        fee = done.fee if back else -done.fee
        self.non_trade(
            {
                "activity_type": "CFEE",
                "net_amount": "0" if in_coin else text(fee),
                "description": f"Coin Pair Transaction Fee ({'Non USD' if in_coin else 'USD'})",
                "symbol": asset.position_symbol if in_coin else "USDUSD",
                "qty": text(fee) if in_coin else "0",
                "price": text(done.price),
                "per_share_amount": text(CRYPTO_FEE),
            }
        )

    def non_trade(self, line: dict[str, Any]) -> dict[str, Any]:
        """Enter an activity that is no trade. The money is not moved here."""
        now = self.exchange.now_ns()
        stamped = {
            "id": f"{_day_stamp(now)}::{self.exchange.new_id()}",
            "date": (stamp(now) or "")[:10],
            "status": "executed",
            **line,
        }
        self.activities.append((now, stamped))
        return stamped

    def _tell_fill(self, done: Execution, asset: Asset) -> None:
        self.tell(
            done.order,
            done.type,
            execution_id=done.id,
            price=text(done.price),
            qty=text(done.qty),
            position_qty=text(self.money.held(asset).qty),
            at_ns=done.at_ns,
        )

    def _after_fill(self, order: Order) -> None:
        if order.legs and order.order_class != "oco":
            self._release(order)

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
        if not order.group or self._rest(order) > 0:
            return
        parent = order.parent or order
        for other in (parent, *parent.legs):
            if other is not order and other.group == order.group and other.is_open:
                self.end(other, "canceled")

    # Out of the book.

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
        self._close(order)
        self.tell(order, status)
        if status == "replaced":
            return
        parent = order.parent
        family = (parent, *parent.legs) if parent is not None else tuple(order.legs)
        for other in family:
            if other is not order and other.is_open and (parent is None or other.group == order.group):
                self.end(other, "canceled")

    def _close(self, order: Order) -> None:
        self.money.open[order.symbol].pop(order.id, None)

    def cancel(self, order: Order, pick: Pick | None = None) -> None:
        """Ask for a cancel, or raise Refused. The end comes a moment later, unless a fill is faster."""
        if order.status in _TERMINAL:
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
        return order.status != "held" and order.notional is None and self._rest(order) > 0

    def _fill_after_cancel(self, order: Order, how: str) -> None:
        if not order.is_open:
            return
        price = order.limit or self.exchange.market.price(order.symbol)
        rest = self._rest(order)
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
        self._file(new)

    def _replaced(self, order: Order, new: Order) -> None:
        self.end(order, "replaced")
        self.work(new)

    # By hand.

    def fill_by_hand(self, order: Order, qty: Decimal | None, price: Decimal | None) -> Execution:
        if order.status in ("pending_new", "accepted"):
            order.status = "new"
            self.tell(order, "new")
        at = price or order.limit or self.exchange.market.price(order.symbol)
        if order.notional is not None and order.target is None:
            order.target = (order.notional / at).quantize(NANO, ROUND_DOWN)
        rest = self._rest(order)
        if not order.is_open or rest <= 0 or (qty or rest) > rest:
            raise ValueError(f"{text(qty or rest)} cannot fill: {order.status}, {text(rest)} left")
        return self.execute(order, qty or rest, at)

    def bust(self, done: Execution) -> None:
        """The execution never was: money back, filled quantity down. The order's status stays (an assumption)."""
        self._unwind(done)
        done.busted = True
        self._drop_activity(done)
        self.tell(
            done.order,
            "trade_bust",
            execution_id=self.exchange.new_id(),
            previous_execution_id=done.id,
            price=text(done.price),
            qty=text(done.qty),
            reason="TRADE_BUST",
        )

    def correct(self, done: Execution, qty: Decimal | None, price: Decimal | None) -> Execution:
        """The execution was another: undone, and done anew under a new id."""
        if done.busted:
            raise ValueError("the execution was busted")
        order, asset = done.order, self.exchange.market.assets[done.order.symbol]
        index = self._drop_activity(done)
        self._unwind(done)
        done.busted = True
        order.filled += qty or done.qty
        order.filled_cost += (qty or done.qty) * (price or done.price)
        now = self.exchange.now_ns()
        new = self._executed(order, qty or done.qty, price or done.price, now, complete=order.filled >= order.wanted)
        new.corrects, done.corrected_by = done.id, new.id
        self.money.apply(asset, new)
        self.executions[new.id] = new
        self.activities.insert(index, (done.at_ns, new.activity()))
        if new.fee:
            self._fee_activity(new, asset)
        self.tell(
            order,
            "trade_correct",
            execution_id=new.id,
            previous_execution_id=done.id,
            price=text(new.price),
            qty=text(new.qty),
            position_qty=text(self.money.held(asset).qty),
        )
        return new

    def _unwind(self, done: Execution) -> None:
        if done.busted:
            raise ValueError("the execution was already busted or corrected")
        order = done.order
        self.money.undo(self.exchange.market.assets[order.symbol], done)
        order.filled -= done.qty
        order.filled_cost -= done.qty * done.price
        if done.fee:
            self._fee_activity(done, self.exchange.market.assets[order.symbol], back=True)

    def _drop_activity(self, done: Execution) -> int:
        ids = ((i, line["id"]) for i, (_, line) in enumerate(self.activities))
        index = next(i for i, activity_id in ids if activity_id == done.activity_id)
        del self.activities[index]
        return index

    # Out of it.

    def tell(self, order: Order, event: str, *, at_ns: int | None = None, **more: Any) -> None:
        now = at_ns or self.exchange.now_ns()
        order.updated_ns = now
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


def _day_stamp(at_ns: int) -> str:
    written = stamp(at_ns) or ""
    return "".join(ch for ch in written if ch.isdigit())[:17]
