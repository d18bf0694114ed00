"""The paper exchange: orders in, market lines in, events out. Synchronous, and deterministic for a seed.

Its time is the market's (schedule.py), so the same lines and the same orders give the same executions at any
speed, in a backtest as at the desk. Nothing it does is visible before it stands in `outbox`, in order.
docs/brokers.md says how it fills.
"""

import random
from collections import deque
from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal

from desk_server.brokers import Ack, BrokerEvent, BrokerHasIt, BrokerOrder, BrokerRejected, What
from desk_server.brokers.fills import FillModel, Touch, shares_for
from desk_server.brokers.restart import regroup, restored, was_here
from desk_server.brokers.resting import Group, Resting, SymbolBook, stable_id
from desk_server.brokers.schedule import Schedule
from desk_server.clock import Clock
from desk_server.domain import (
    ZERO,
    Asset,
    AssetClass,
    Order,
    OrderChange,
    OrderClass,
    Quote,
    Symbol,
    TimeInForce,
)
from desk_server.sessions import Calendar

CRYPTO_COST_MIN = Decimal(10)
_ONE = Decimal(1)
_AUCTIONS = frozenset({TimeInForce.OPG, TimeInForce.CLS})


class PaperExchange:
    def __init__(
        self, assets: Iterable[Asset], *, model: FillModel, seed: int, calendar: Calendar, clock: Clock
    ) -> None:
        self.outbox: deque[BrokerEvent] = deque()
        self.assets = {asset.symbol: asset for asset in assets}
        self._model = model
        self._chance = random.Random(seed)
        self._schedule = Schedule(calendar, clock)
        self._orders: dict[str, Resting] = {}
        self._books: dict[Symbol, SymbolBook] = {}
        self._touches: dict[Symbol, Touch] = {}
        self._waiting: dict[str, Resting] = {}
        self._positions: dict[Symbol, Decimal] = {}

    # Orders in

    def submit(self, order: Order, legs: Sequence[Order] = ()) -> Ack:
        """Raises BrokerRejected; then nothing of the order or its legs exists here."""
        crypto = self._require_takeable(order, legs)
        now = self.now()
        main = self._orders[order.client_order_id] = Resting(order, now, crypto=crypto)
        if legs:
            main.legs = tuple(Resting(leg, now, crypto=crypto) for leg in legs)
            for leg in main.legs:
                leg.status = "held"
                self._orders[leg.client_id] = leg
            oco = order.request.order_class is OrderClass.OCO
            Group(None if oco else main, (main, *main.legs) if oco else main.legs, main.qty or ZERO)
        main.status = self._status_now(main)
        ack = main.ack()
        self._start(main)
        if main.group is not None and main.group.entry is None:
            self._release_legs(main.group)
        return ack

    def cancel(self, order: Order) -> None:
        """Raises BrokerRejected. One order of a group takes the others with it."""
        resting = self._require_known(order)
        if not resting.is_open:
            raise BrokerRejected("42210000", f'order is already in "{resting.status}" state')
        self._end(resting, What.CANCELED, "canceled on request")

    def replace(self, order: Order, new: Order, change: OrderChange) -> Ack:
        """Raises BrokerRejected; then the old order stands. `Ack.qty` is what the new one may execute."""
        old = self._require_known(order)
        if new.client_order_id in self._orders:
            raise BrokerHasIt("40010001", "client_order_id must be unique")
        fresh = self._changed(old, new, change)
        old.status = "replaced"
        self._forget(old)
        self._orders[fresh.client_id] = fresh
        if old.group is not None:
            old.group.put(fresh, old)
        self._say(What.REPLACED, old, by=fresh)
        ack = Ack(fresh.broker_id, fresh.status, fresh.ack().legs, fresh.qty)
        self._start(fresh)
        return ack

    def find(self, client_order_id: str) -> BrokerOrder | None:
        resting = self._orders.get(client_order_id)
        return None if resting is None else resting.shown()

    def positions(self) -> dict[Symbol, Decimal]:
        return {symbol: qty for symbol, qty in self._positions.items() if qty}

    def now(self) -> datetime:
        """The market's time."""
        return self._schedule.now()

    @property
    def has_seen_lines(self) -> bool:
        return self._schedule.has_begun

    def restore(self, orders: Iterable[Order]) -> None:
        """Take back what the ledger knows, before the first line. Say again what it was not told in time."""
        known = {order.order_id: order for order in orders if was_here(order)}
        for order in known.values():
            asset = self.assets.get(order.request.symbol)
            crypto = asset.asset_class is AssetClass.CRYPTO if asset else "/" in order.request.symbol
            self._orders[order.client_order_id] = restored(order, crypto=crypto)
            self._move(order.request.symbol, order.filled_qty * order.request.side.sign)
        groups = regroup(known, self._orders)
        for order in known.values():
            self._take_back(self._orders[order.client_order_id])
        for group in groups:
            self._catch_up(group)

    # Lines in

    def on_quote(self, quote: Quote) -> None:
        """One market line: time passes, then whatever it makes possible happens."""
        if quote.price <= 0:
            return
        self._pass_time(quote.at)
        touch = Touch(quote)
        before = self._touches.get(quote.symbol)
        if before is not None and quote.kind not in ("quote", ""):
            touch.keep_sizes(before)
        self._touches[quote.symbol] = touch
        book = self._books.get(quote.symbol)
        if book is None or not book.orders or not book.concerns(touch):
            return
        for resting in list(book.orders.values()):
            self._match(resting, touch)

    def _pass_time(self, at: datetime) -> None:
        self._schedule.begin(at)
        for resting in self._schedule.due_by(at):
            self._come_due(resting)
        if self._schedule.reach(at):
            for resting in list(self._waiting.values()):
                if self._schedule.works(resting):
                    self._release(resting)

    def _come_due(self, resting: Resting) -> None:
        touch, due = self._touches.get(resting.symbol), resting.due
        closes = resting.tif is TimeInForce.CLS
        if closes and due is not None and touch is not None and touch.at >= self._schedule.opened_on(due):
            self._fill(resting, touch)
        self._end(resting, What.EXPIRED, f"{resting.tif} order expired")

    # Matching

    def _match(self, resting: Resting, touch: Touch) -> None:
        if not resting.is_open or not self._schedule.works(resting):
            return
        if resting.tif is TimeInForce.OPG:
            if resting.opens_at is not None and touch.at >= resting.opens_at:
                self._fill(resting, touch)
                self._end(resting, What.EXPIRED, "not filled at the opening")
            return
        was_triggered = resting.triggered
        if resting.reached(touch):
            if not was_triggered:
                self._book(resting.symbol).changed()
            self._fill(resting, touch)

    def _fill(self, resting: Resting, touch: Touch) -> None:
        """Execute what can be executed at these prices: at the limit or better, or at the market."""
        price = touch.buy if resting.buy else touch.sell
        if not resting.marketable(price):
            return
        if resting.limit is None:
            price = self._model.taken_price(price, buy=resting.buy, crypto=resting.crypto)
        qty = self._amount(resting, touch, price)
        if qty > 0:
            touch.take(qty, buy=resting.buy)
            self._execute(resting, qty, price)

    def _amount(self, resting: Resting, touch: Touch, price: Decimal) -> Decimal:
        if resting.notional is not None:
            return shares_for(resting.notional, price)
        wanted = qty = resting.left
        if self._model.size_limited:
            size = touch.left(buy=resting.buy, whole=resting.whole)
            qty = wanted if size is None else min(wanted, size)
        if resting.tif is TimeInForce.FOK:
            return qty if qty == wanted else ZERO
        return self._model.part(qty, self._chance) if qty > 0 else ZERO

    def _execute(self, resting: Resting, qty: Decimal, price: Decimal) -> None:
        resting.filled += qty
        group = resting.group
        if group is not None and not resting.is_entry:
            group.left -= qty
        complete = resting.notional is not None or resting.filled == resting.qty
        resting.status = "filled" if complete else "partially_filled"
        self._move(resting.symbol, qty if resting.buy else -qty)
        self.outbox.append(
            BrokerEvent(
                what=What.FILL,
                client_order_id=resting.client_id,
                broker_order_id=resting.broker_id,
                at=self.now(),
                symbol=resting.symbol,
                side=resting.side,
                execution_id=stable_id(f"{resting.broker_id}:{resting.filled.normalize():f}"),
                qty=qty,
                price=price,
                fee=self._model.fee(qty, price, crypto=resting.crypto),
                status=resting.status,
            )
        )
        if complete:
            self._forget(resting)
        if group is not None:
            self._settle(group)

    def _move(self, symbol: Symbol, qty: Decimal) -> None:
        self._positions[symbol] = self._positions.get(symbol, ZERO) + qty

    # The life of an order

    def _start(self, resting: Resting) -> None:
        """Let it work or wait for its time; what is at once or never ends here."""
        works = resting.status == "new"
        touch = self._touch_of_session(resting) if works else None
        if touch is not None:
            self._match(resting, touch)
        if resting.at_once:
            self._end(resting, What.CANCELED, f"{resting.tif} order: what did not fill at once is canceled")
        elif resting.is_open:
            self._schedule.date(resting)
            self._put(resting)

    def _put(self, resting: Resting) -> None:
        """To the working orders, or to those that wait for a session; a closing order waits for its timer only."""
        if resting.status != "accepted" or resting.tif is TimeInForce.OPG:
            self._book(resting.symbol).add(resting)
        elif resting.tif is not TimeInForce.CLS:
            self._waiting[resting.client_id] = resting

    def _status_now(self, resting: Resting) -> str:
        waits = resting.tif in _AUCTIONS or not self._schedule.works(resting)
        return "accepted" if waits else "new"

    def _touch_of_session(self, resting: Resting) -> Touch | None:
        """What the symbol trades at, unless that is from before this session began."""
        touch = self._touches.get(resting.symbol)
        stale = touch is None or not (resting.crypto or touch.at >= self._schedule.session().start)
        return None if stale else touch

    def _release(self, resting: Resting) -> None:
        """A leg or a waiting order begins to work; it meets the market with the symbol's next line."""
        self._waiting.pop(resting.client_id, None)
        resting.status = self._status_now(resting)
        self._say(What.RELEASED, resting)
        self._put(resting)

    def _release_legs(self, group: Group) -> None:
        for leg in group.exits:
            if leg.status == "held":
                leg.since = self.now()
                self._schedule.date(leg)
                self._release(leg)

    def _settle(self, group: Group) -> None:
        """Entry filled: the exits begin to work. Exits done: what is left of them ends."""
        if group.entry is not None and group.entry.status == "filled":
            self._release_legs(group)
        if group.left <= 0:
            for leg in list(group.exits):
                if leg.is_open:
                    self._finish(leg, What.CANCELED, "the position was closed by the other leg")

    def _end(self, resting: Resting, what: What, why: str) -> None:
        """End it, and its group with it."""
        if not resting.is_open:
            return
        self._finish(resting, what, why)
        if resting.group is not None:
            for member in resting.group.members():
                if member.is_open:
                    self._finish(member, what, why)

    def _finish(self, resting: Resting, what: What, why: str) -> None:
        resting.status = "canceled" if what is What.CANCELED else "expired"
        self._forget(resting)
        self._say(what, resting, why)

    def _forget(self, resting: Resting) -> None:
        """It no longer works nor waits; it is still known, and its name is taken for ever."""
        self._waiting.pop(resting.client_id, None)
        if book := self._books.get(resting.symbol):
            book.drop(resting)

    def _say(self, what: What, resting: Resting, why: str = "", by: Resting | None = None) -> None:
        self.outbox.append(
            BrokerEvent(
                what=what,
                client_order_id=resting.client_id,
                broker_order_id=resting.broker_id,
                at=self.now(),
                symbol=resting.symbol,
                side=resting.side,
                qty=by.qty if by else None,
                status=resting.status,
                replaced_by=by.client_id if by else "",
                new_broker_order_id=by.broker_id if by else "",
                message=why,
            )
        )

    def _book(self, symbol: Symbol) -> SymbolBook:
        book = self._books.get(symbol)
        if book is None:
            book = self._books[symbol] = SymbolBook()
        return book

    # What is refused

    def _require_takeable(self, order: Order, legs: Sequence[Order]) -> bool:
        """Whether the symbol is crypto. Raises BrokerRejected as Alpaca refuses."""
        request = order.request
        for one in (order, *legs):
            if one.client_order_id in self._orders:
                raise BrokerHasIt("40010001", "client_order_id must be unique")
        asset = self.assets.get(request.symbol)
        if asset is None:
            raise BrokerRejected("42210000", f'asset "{request.symbol}" not found')
        if not asset.tradable:
            raise BrokerRejected("42210000", f'asset "{request.symbol}" is not tradable')
        if asset.asset_class is not AssetClass.CRYPTO:
            return False
        cost = request.notional
        touch = self._touches.get(request.symbol)
        price = request.limit_price or (touch.buy if touch else None)
        if cost is None and price is not None:
            cost = (request.qty or ZERO) * price
        if cost is not None and cost < CRYPTO_COST_MIN:
            raise BrokerRejected("40310000", f"cost basis must be >= minimal amount of order {CRYPTO_COST_MIN}")
        return True

    def _require_known(self, order: Order) -> Resting:
        resting = self._orders.get(order.client_order_id)
        if resting is None:
            raise BrokerRejected("40410000", f"order not found for {order.broker_order_id or order.client_order_id}")
        return resting

    def _changed(self, old: Resting, new: Order, change: OrderChange) -> Resting:
        """The order that takes the place of `old`. Raises BrokerRejected, with nothing changed."""
        if old.status not in ("new", "partially_filled"):
            raise BrokerRejected("42210000", f'cannot replace an order in "{old.status}" state')
        if old.qty is None:
            raise BrokerRejected("42210000", "notional orders cannot be replaced")
        total = old.qty if change.qty is None else change.qty
        if change.qty is not None and (change.qty % _ONE or old.group is not None):
            raise BrokerRejected("42210000", "qty can be replaced by whole shares, of simple orders only")
        if total <= old.filled:
            raise BrokerRejected("42210000", f"qty must be > filled_qty {old.filled}")
        fresh = Resting(new, self.now(), crypto=old.crypto)
        fresh.take_terms(old, change, total - old.filled)
        fresh.status = self._status_now(fresh)
        return fresh

    # After a restart

    def _take_back(self, resting: Resting) -> None:
        if not resting.is_open or resting.status == "held":
            return
        if resting.at_once:
            self._end(resting, What.CANCELED, f"{resting.tif} order: what did not fill at once is canceled")
        else:
            self._schedule.date(resting)
            self._put(resting)

    def _catch_up(self, group: Group) -> None:
        """Say what followed from the last thing that was written down, and was not written down itself."""
        over = [member for member in group.members() if member.status in ("canceled", "expired")]
        if group.entry is None and not over:
            self._release_legs(group)
        self._settle(group)
        if over:
            what = What.CANCELED if over[0].status == "canceled" else What.EXPIRED
            for member in group.members():
                if member.is_open:
                    self._finish(member, what, f"its group was {over[0].status}")
