"""The paper exchange: orders in, market lines in, events out. Synchronous, and deterministic for a seed.

Its time is the market's: the newest line's timestamp, or the clock's before the first line. So the same lines
and the same orders give the same executions at any speed, in a backtest as at the desk. Nothing it does is
visible before it stands in `outbox`, in order. docs/brokers.md says how it fills.
"""

import heapq
import random
from collections import deque
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal

from desk_server.brokers import Ack, BrokerEvent, BrokerOrder, BrokerRejected, What
from desk_server.brokers.fills import FillModel, Touch, shares_for
from desk_server.brokers.resting import STATUS_OF, Group, Resting, SymbolBook, restored, stable_id
from desk_server.clock import Clock
from desk_server.domain import (
    ZERO,
    Asset,
    AssetClass,
    Leg,
    Order,
    OrderChange,
    OrderClass,
    OrderId,
    Quote,
    Symbol,
    TimeInForce,
)
from desk_server.sessions import Calendar, Session, Window

GTC_LASTS = timedelta(days=90)
CRYPTO_COST_MIN = Decimal(10)
_ONE = Decimal(1)


class PaperExchange:
    def __init__(
        self, assets: Iterable[Asset], *, model: FillModel, seed: int, calendar: Calendar, clock: Clock
    ) -> None:
        self.outbox: deque[BrokerEvent] = deque()
        self.assets = {asset.symbol: asset for asset in assets}
        self._model = model
        self._chance = random.Random(seed)
        self._calendar = calendar
        self._clock = clock
        self._line_at: datetime | None = None
        self._window: Window | None = None
        self._orders: dict[str, Resting] = {}
        self._books: dict[Symbol, SymbolBook] = {}
        self._touches: dict[Symbol, Touch] = {}
        self._waiting: dict[str, Resting] = {}
        # Orders given before the first line: which day they are for, only that line's time can tell.
        self._undated: list[Resting] = []
        self._timers: list[tuple[datetime, int, Resting]] = []
        self._timer_count = 0
        self._positions: dict[Symbol, Decimal] = {}

    # Orders in

    def submit(self, order: Order, legs: Sequence[Order] = ()) -> Ack:
        """Raises BrokerRejected; then nothing of the order or its legs exists here."""
        crypto = self._require_takeable(order, legs)
        now = self.now()
        main = Resting(order, now, crypto=crypto)
        main.legs = tuple(Resting(leg, now, crypto=crypto) for leg in legs)
        for one in (main, *main.legs):
            self._orders[one.client_id] = one
        for leg in main.legs:
            leg.status = "held"
        if main.legs:
            oco = order.request.order_class is OrderClass.OCO
            Group(None if oco else main, (main, *main.legs) if oco else main.legs, main.qty or ZERO)
        main.status = "new" if self._works_now(main) else "accepted"
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
            raise BrokerRejected("40010001", "client_order_id must be unique")
        fresh = self._changed(old, new, change)
        old.status = "replaced"
        self._forget(old)
        self._orders[fresh.client_id] = fresh
        if old.group is not None:
            old.group.put(fresh, old)
        self.outbox.append(
            BrokerEvent(
                what=What.REPLACED,
                client_order_id=old.client_id,
                broker_order_id=old.broker_id,
                at=self.now(),
                symbol=old.symbol,
                side=old.side,
                qty=fresh.qty,
                status="replaced",
                replaced_by=fresh.client_id,
                new_broker_order_id=fresh.broker_id,
            )
        )
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
        return self._line_at if self._line_at is not None else self._clock.now()

    @property
    def has_seen_lines(self) -> bool:
        return self._line_at is not None

    # Lines in

    def on_quote(self, quote: Quote) -> None:
        """One market line: time passes, then whatever it makes possible happens."""
        if quote.price <= 0:
            return
        if self._line_at is None:
            self._date_early_orders(quote.at)
        if self._line_at is None or quote.at > self._line_at:
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
        while self._timers and self._timers[0][0] <= at:
            due, _, resting = heapq.heappop(self._timers)
            if resting.is_open and resting.due == due:
                self._line_at = max(due, self._line_at or due)
                self._come_due(resting)
        self._line_at = at
        if self._window is None or not self._window.start <= at < self._window.end:
            self._window = self._calendar.window(at)
            for resting in list(self._waiting.values()):
                if self._works_now(resting):
                    self._release(resting)

    def _come_due(self, resting: Resting) -> None:
        touch = self._touches.get(resting.symbol)
        if resting.tif is TimeInForce.CLS and touch is not None and resting.due is not None:
            day = self._calendar.window(resting.due - timedelta(microseconds=1))
            if touch.at >= day.start:
                self._fill(resting, touch)
        self._end(resting, What.EXPIRED, f"{resting.tif} order expired")

    # Matching

    def _match(self, resting: Resting, touch: Touch) -> None:
        if not resting.is_open or not self._works_now(resting):
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
            self._execute(resting, qty, price)
            touch.take(qty, buy=resting.buy)

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
        signed = qty if resting.buy else -qty
        self._positions[resting.symbol] = self._positions.get(resting.symbol, ZERO) + signed
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

    # The life of an order

    def _start(self, resting: Resting) -> None:
        """Let it work or wait for its time; what is at once or never ends here."""
        works = resting.status in ("new", "partially_filled")
        touch = self._touch_of_session(resting) if works else None
        if touch is not None:
            self._match(resting, touch)
        if resting.at_once:
            self._end(resting, What.CANCELED, f"{resting.tif} order: what did not fill at once is canceled")
        elif resting.is_open:
            self._date(resting, resting.since)
            if works:
                self._book(resting.symbol).add(resting)
            else:
                self._wait(resting)

    def _wait(self, resting: Resting) -> None:
        if resting.tif is TimeInForce.OPG:
            self._book(resting.symbol).add(resting)
        elif resting.tif is not TimeInForce.CLS:
            self._waiting[resting.client_id] = resting

    def _works_now(self, resting: Resting) -> bool:
        if resting.crypto:
            return True
        session = self._session().session
        if resting.tif in (TimeInForce.OPG, TimeInForce.CLS) and resting.status == "accepted":
            return session is Session.REGULAR and resting.opens_at is not None and self.now() >= resting.opens_at
        return session is Session.REGULAR or (resting.extended and session is not Session.CLOSED)

    def _session(self) -> Window:
        window, now = self._window, self.now()
        if window is None or not window.start <= now < window.end:
            window = self._calendar.window(now)
        return window

    def _touch_of_session(self, resting: Resting) -> Touch | None:
        """What the symbol trades at, unless that is from before this session began."""
        touch = self._touches.get(resting.symbol)
        stale = touch is None or not (resting.crypto or touch.at >= self._session().start)
        return None if stale else touch

    def _release(self, resting: Resting) -> None:
        """A leg or a waiting order begins to work; it meets the market with the symbol's next line."""
        self._waiting.pop(resting.client_id, None)
        resting.status = "new" if self._works_now(resting) else "accepted"
        self._say(What.RELEASED, resting)
        if resting.status == "new":
            self._book(resting.symbol).add(resting)
        else:
            self._wait(resting)

    def _release_legs(self, group: Group) -> None:
        for leg in group.exits:
            if leg.status == "held":
                leg.since = self.now()
                self._date(leg, leg.since)
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

    def _say(self, what: What, resting: Resting, why: str = "") -> None:
        self.outbox.append(
            BrokerEvent(
                what=what,
                client_order_id=resting.client_id,
                broker_order_id=resting.broker_id,
                at=self.now(),
                symbol=resting.symbol,
                side=resting.side,
                status=resting.status,
                message=why,
            )
        )

    def _book(self, symbol: Symbol) -> SymbolBook:
        book = self._books.get(symbol)
        if book is None:
            book = self._books[symbol] = SymbolBook()
        return book

    # Days

    def _date(self, resting: Resting, since: datetime) -> None:
        """Which day it is for, and when it expires."""
        if self._line_at is None:
            self._undated.append(resting)
            return
        match resting.tif:
            case TimeInForce.DAY:
                day = self._calendar.day_for(since, extended=resting.extended)
                resting.due = day.late if resting.extended else day.close
            case TimeInForce.GTC:
                resting.due = since + GTC_LASTS
            case TimeInForce.OPG:
                day = self._calendar.day_for(since)
                if since >= day.open:
                    day = self._calendar.day_for(day.close)
                resting.opens_at, resting.due = day.open, day.close
            case TimeInForce.CLS:
                resting.due = self._calendar.day_for(since).close
        if resting.due is not None:
            self._timer_count += 1
            heapq.heappush(self._timers, (resting.due, self._timer_count, resting))

    def _date_early_orders(self, first_line_at: datetime) -> None:
        """Orders from before the first line count from it where the market's time lies behind the clock's."""
        self._line_at = first_line_at
        early, self._undated = self._undated, []
        for resting in early:
            if resting.is_open:
                resting.since = min(resting.since, first_line_at)
                self._date(resting, resting.since)
        self._line_at = None

    # What is refused

    def _require_takeable(self, order: Order, legs: Sequence[Order]) -> bool:
        """Whether the symbol is crypto. Raises BrokerRejected as Alpaca refuses."""
        request = order.request
        for one in (order, *legs):
            if one.client_order_id in self._orders:
                raise BrokerRejected("40010001", "client_order_id must be unique")
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
        fresh.symbol, fresh.side, fresh.buy, fresh.type = old.symbol, old.side, old.buy, old.type
        fresh.qty, fresh.extended, fresh.legs = total - old.filled, old.extended, old.legs
        fresh.tif = change.time_in_force or old.tif
        fresh.limit = old.limit if change.limit_price is None else change.limit_price
        fresh.stop = old.stop if change.stop_price is None else change.stop_price
        by_price = old.trail_price is not None
        fresh.trail_price = change.trail if by_price and change.trail is not None else old.trail_price
        fresh.trail_percent = change.trail if not by_price and change.trail is not None else old.trail_percent
        fresh.mark = old.mark
        fresh.triggered = old.triggered if change.stop_price is None else False
        fresh.status = "new" if self._works_now(fresh) else "accepted"
        return fresh

    # After a restart of the desk, whose ledger is this exchange's memory

    def restore(self, orders: Iterable[Order]) -> None:
        """Take back what the ledger knows, before the first line. Say again what it does not.

        Orders that are SENDING or UNKNOWN there never were here: `find` gives None, and they may be sent again.
        """
        known = {order.order_id: order for order in orders if order.state in STATUS_OF}
        for order in known.values():
            asset = self.assets.get(order.request.symbol)
            crypto = asset.asset_class is AssetClass.CRYPTO if asset else "/" in order.request.symbol
            resting = self._orders[order.client_order_id] = restored(order, crypto=crypto)
            signed = order.filled_qty * order.request.side.sign
            self._positions[resting.symbol] = self._positions.get(resting.symbol, ZERO) + signed
        groups = self._regroup(known)
        for order in known.values():
            resting = self._orders[order.client_order_id]
            if resting.status == "held" or not resting.is_open:
                continue
            if resting.at_once:
                self._end(resting, What.CANCELED, f"{resting.tif} order: what did not fill at once is canceled")
            else:
                self._take_back(resting)
        for group in groups:
            self._catch_up(group)

    def _take_back(self, resting: Resting) -> None:
        self._date(resting, resting.since)
        if resting.status == "accepted":
            self._wait(resting)
        else:
            self._book(resting.symbol).add(resting)

    def _regroup(self, known: dict[OrderId, Order]) -> list[Group]:
        """Groups with an open member, from the parents that legs name; replaced orders count what they executed."""
        families: dict[OrderId, list[Order]] = {}
        for order in known.values():
            if order.leg is not Leg.NONE and order.parent_id in known:
                families.setdefault(OrderId(order.parent_id), []).append(order)
        groups = []
        for parent_id, legs in families.items():
            line = _replacements(known, known[parent_id])
            main = self._orders[line[-1].client_order_id]
            current = [self._orders[leg.client_order_id] for leg in legs if leg.order_id not in _replaced(legs)]
            main.legs = tuple(current)
            if not main.is_open and not any(leg.is_open for leg in current):
                continue
            oco = line[0].request.order_class is OrderClass.OCO
            executed = sum((order.filled_qty for order in (*legs, *(line if oco else ()))), ZERO)
            whole = line[0].request.qty or ZERO
            groups.append(Group(None if oco else main, (main, *current) if oco else current, whole - executed))
        return groups

    def _catch_up(self, group: Group) -> None:
        """What followed from the last thing that was written down, and was not written down itself."""
        over = [member for member in group.members() if member.status in ("canceled", "expired")]
        if group.entry is None and not over:
            self._release_legs(group)
        self._settle(group)
        if over:
            what = What.CANCELED if over[0].status == "canceled" else What.EXPIRED
            for member in group.members():
                if member.is_open:
                    self._finish(member, what, f"its group was {over[0].status}")


def _replacements(known: dict[OrderId, Order], first: Order) -> list[Order]:
    """An order, what replaced it, what replaced that …"""
    line = [first]
    while (following := known.get(OrderId(line[-1].replaced_by))) is not None:
        line.append(following)
    return line


def _replaced(orders: Iterable[Order]) -> set[str]:
    return {order.replaces for order in orders if order.replaces}
