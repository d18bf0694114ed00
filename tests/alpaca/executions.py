"""Executions: how a fill moves the order, the money and the activities; and how it is undone or corrected."""

from decimal import ROUND_DOWN, Decimal

from tests.alpaca.money import CRYPTO_FEE
from tests.alpaca.orders import NANO, ZERO, Execution, Order, text
from tests.alpaca.records import Records, day_stamp
from tests.alpaca.rules import Asset


class Executions(Records):
    """Above the records. What follows from a fill for other orders is for the layer above, see `follow`."""

    def follow(self, order: Order, *, released: bool) -> None:
        raise NotImplementedError

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
            self.close(order)
        elif order.status != "pending_cancel":
            order.status = "partially_filled"
        self._tell_fill(done, asset)
        self.follow(order, released=complete and status is None)
        self.exchange.maybe_bust(self, done)
        return done

    def _executed(self, order: Order, qty: Decimal, price: Decimal, now: int, *, complete: bool) -> Execution:
        execution_id = self.exchange.new_id()
        own = self.exchange.settings.activity_ids == "own"
        activity_id = f"{day_stamp(now)}::{self.exchange.new_id() if own else execution_id}"
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

    def fill_by_hand(self, order: Order, qty: Decimal | None, price: Decimal | None) -> Execution:
        if order.status in ("pending_new", "accepted"):
            order.status = "new"
            self.tell(order, "new")
        at = price or order.limit or self.exchange.market.price(order.symbol)
        if order.notional is not None and order.target is None:
            order.target = (order.notional / at).quantize(NANO, ROUND_DOWN)
        rest = self.rest_of(order)
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
