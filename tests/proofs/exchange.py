"""A broker with a book and records of its own, on a virtual clock, behind a network that does what it is told.

The exchange never errs; what reaches it and what is heard of it is the network's doing. It checks at every moment
what must be true of its book, and of each request when it starts; `violations` has what was not.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal as D
from typing import Any

from desk_server import selftrade
from desk_server.brokers import (
    Ack,
    Activity,
    BrokerEvent,
    BrokerHasIt,
    BrokerOrder,
    BrokerRejected,
    BrokerThrottled,
    BrokerUnknown,
    Capabilities,
    Execution,
    Holding,
    Holdings,
    MarketClock,
    What,
)
from desk_server.domain import Asset, AssetClass, Order, OrderChange, OrderRequest, Side, Symbol
from desk_server.sessions import TradingDay
from tests.proofs.virtual import VirtualClock, VirtualLoop

PRICE = D(100)
ALLOTMENT = D(10_000)
# A request that was given up lands within this time, so that lookups prove something after it.
LATE_S = 20.0
LAG_S, RESEND_S = 25.0, 15.0
_HOUR = timedelta(hours=1)


@dataclass
class There:
    """An order as the exchange has it."""

    client_order_id: str
    broker_order_id: str
    request: OrderRequest
    qty: D
    at: datetime
    filled: D = D(0)
    status: str = "new"
    end: What | None = None
    replaces: str = ""
    replaced_by: str = ""
    # A cancel was granted, and is not carried out yet.
    cancels: bool = False

    @property
    def is_open(self) -> bool:
        return self.end is None

    @property
    def left(self) -> D:
        return self.qty - self.filled

    @property
    def user(self) -> str:
        """ "" for an order that is not the desk's."""
        prefix, _, rest = self.client_order_id.partition(".")
        return rest.partition(".")[0] if prefix == "d1" else ""

    @property
    def price(self) -> D:
        return self.request.limit_price or PRICE


@dataclass
class Network:
    """What becomes of the next requests, lookups and events; "fine" where nothing is said."""

    requests: deque[str] = field(default_factory=deque)
    lookups: deque[str] = field(default_factory=deque)
    stream: deque[str] = field(default_factory=deque)
    met: Counter[str] = field(default_factory=Counter)

    def next(self, kind: str) -> str:
        waiting: deque[str] = getattr(self, kind)
        fate = waiting.popleft() if waiting else "fine"
        self.met[f"{kind}: {fate}"] += 1
        return fate

    def heal(self) -> None:
        for waiting in (self.requests, self.lookups, self.stream):
            waiting.clear()


class Exchange:
    def __init__(self, loop: VirtualLoop, clock: VirtualClock) -> None:
        self.loop = loop
        self.clock = clock
        self.network = Network()
        self.orders: dict[str, There] = {}
        self.executions: list[Execution] = []
        self.owners: list[str] = []
        self.cash = D(1_000_000)
        self.rejected: set[str] = set()
        self.violations: list[str] = []
        # Asked when a request starts: why it must not ("" when it may).
        self.forbids: Callable[[Order], str] = lambda _: ""
        self.on_event: Callable[[BrokerEvent], Awaitable[None]] | None = None
        self.is_stuck = False
        self._numbers = iter(range(1, 1_000_000))

    # ---- requests that arrived ----

    def submit(self, order: Order) -> Ack:
        if order.client_order_id in self.orders:
            raise BrokerHasIt("40010001", "client_order_id must be unique")
        request = order.request
        met = selftrade.met_by(request, [_as_order(there) for there in self.orders.values() if there.is_open])
        if any(one.request.symbol == request.symbol for one in met):
            self.rejected.add(order.client_order_id)
            self.violations.append(f"a wash trade reached the broker: {order}")
            raise BrokerRejected("40310000", "potential wash trade detected")
        there = self._add(order.client_order_id, request, request.qty or D(0))
        return Ack(there.broker_order_id, "new")

    def reject(self, order: Order) -> None:
        """A definitive no, of an order that is not there."""
        if order.client_order_id in self.orders:
            raise BrokerHasIt("40010001", "client_order_id must be unique")
        self.rejected.add(order.client_order_id)
        raise BrokerRejected("40310000", "not today")

    def cancel(self, order: Order) -> None:
        there = self._of(order)
        if not there.is_open:
            raise BrokerRejected("42210000", f'order is already in "{there.status}" state')
        there.cancels, there.status = True, "pending_cancel"
        if not self.is_stuck:
            self.loop.call_later(0.02, self.carry_out, there)

    def carry_out(self, there: There) -> None:
        if there.is_open and there.cancels:
            self.finish(there, What.CANCELED)

    def replace(self, old_order: Order, new: Order, change: OrderChange) -> Ack:
        old = self._of(old_order)
        if new.client_order_id in self.orders:
            raise BrokerHasIt("40010001", "client_order_id must be unique")
        total = old.qty if change.qty is None else change.qty
        if not old.is_open or old.cancels or total <= old.filled:
            self.rejected.add(new.client_order_id)
            raise BrokerRejected("42210000", f'cannot replace an order in "{old.status}" state')
        old.end, old.status = What.REPLACED, "replaced"
        fresh = self._add(new.client_order_id, new.request, total - old.filled, quiet=True)
        fresh.replaces, old.replaced_by = old.broker_order_id, fresh.broker_order_id
        self._say(What.REPLACED, old, by=fresh)
        return Ack(fresh.broker_order_id, "new", qty=fresh.qty)

    def find(self, order: Order) -> BrokerOrder | None:
        there = self.orders.get(order.client_order_id) or next(
            (one for one in self.orders.values() if one.broker_order_id == order.broker_order_id), None
        )
        return there and shown(there)

    # ---- what happens by itself ----

    def stranger(self, side: Side, qty: int) -> None:
        """Somebody trades on the account by hand, in a symbol of their own."""
        request = OrderRequest(symbol=Symbol("SPY"), side=side, qty=D(qty))
        self.fill(self._add(f"by hand {next(self._numbers)}", request, D(qty), quiet=True), D(qty))

    def fill(self, there: There, qty: D) -> None:
        there.filled += qty
        sign = there.request.side.sign
        self.cash -= sign * qty * there.price
        number = next(self._numbers)
        self.executions.append(
            Execution(
                broker_order_id=there.broker_order_id,
                symbol=there.request.symbol,
                side=there.request.side,
                qty=qty,
                price=there.price,
                at=self.clock.true_now(),
                cum_qty=there.filled,
                execution_id=f"activity {number}",
            )
        )
        self.owners.append(there.user)
        there.status = "partially_filled"
        if there.left == 0:
            there.end, there.status = What.FILL, "filled"
        self._say(What.FILL, there, qty=qty, execution=f"execution {number}")
        self._check()

    def finish(self, there: There, what: What) -> None:
        words = {What.CANCELED: "canceled", What.EXPIRED: "expired", What.REJECTED: "rejected"}
        there.end, there.status = what, words[what]
        self._say(what, there)

    def open_orders(self) -> list[There]:
        return [there for there in self.orders.values() if there.is_open]

    def position(self, symbol: str, user: str | None = None) -> D:
        return sum(
            (
                one.side.sign * one.qty
                for one, owner in zip(self.executions, self.owners, strict=True)
                if one.symbol == symbol and user in (None, owner)
            ),
            D(0),
        )

    # ---- what it is made of ----

    def _add(self, client_order_id: str, request: OrderRequest, qty: D, *, quiet: bool = False) -> There:
        there = There(client_order_id, f"b{next(self._numbers)}", request, qty, self.clock.true_now())
        self.orders[client_order_id] = there
        if not quiet:
            self._say(What.ACCEPTED, there)
        self._check()
        return there

    def _of(self, order: Order) -> There:
        there = self.orders.get(order.client_order_id)
        if there is None:
            raise BrokerRejected("40410000", f"order not found for {order.client_order_id}")
        return there

    def _say(
        self, what: What, there: There, qty: D | None = None, execution: str = "", by: There | None = None
    ) -> None:
        said = BrokerEvent(
            what=what,
            client_order_id=there.client_order_id,
            broker_order_id=there.broker_order_id,
            at=self.clock.true_now(),
            symbol=there.request.symbol,
            side=there.request.side,
            qty=by.qty if by else qty,
            price=there.price if what is What.FILL else None,
            status=there.status,
            broker_execution_id=execution,
            filled_qty=there.filled,
            replaced_by=by.client_order_id if by else "",
            new_broker_order_id=by.broker_order_id if by else "",
            message="rejected after all" if what is What.REJECTED else "",
        )
        delays = {"fine": [0.005], "lost": [], "twice": [0.005, 1.0], "late": [3.0]}[self.network.next("stream")]
        for delay_s in delays:
            self.loop.call_later(delay_s, self._deliver, said)

    def _deliver(self, said: BrokerEvent) -> None:
        if self.on_event is not None:
            self.loop.create_task(self.on_event(said))

    def _check(self) -> None:
        """Limits hold at the broker's book, at every instant."""
        for user in {there.user for there in self.orders.values() if there.user}:
            mine = [there for there in self.open_orders() if there.user == user]
            owned = self.position("AAPL", user)
            selling = sum((there.left for there in mine if there.request.side is Side.SELL), D(0))
            if selling > owned:
                self.violations.append(f"{user} owns {owned} and sells {selling}: {mine}")
            spent = sum(
                one.side.sign * one.qty * one.price
                for one, owner in zip(self.executions, self.owners, strict=True)
                if owner == user
            )
            buying = sum((there.left * there.price for there in mine if there.request.side is Side.BUY), D(0))
            if spent + buying > ALLOTMENT:
                self.violations.append(f"{user} has {ALLOTMENT - spent} and buys for {buying}: {mine}")


class Link:
    """One desk's line to the exchange: the Broker and BrokerRecords protocols. A dead one carries nothing."""

    capabilities = Capabilities(name="model", lookup_lag_s=LAG_S, resend_s=RESEND_S, wash_trades_refused=True)

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.is_dead = False
        # A desk that lost its ledger must not send anything.
        self.must_be_silent = False

    async def connect(self, on_event: Callable[[BrokerEvent], Awaitable[None]]) -> None:
        await self._ask("lookups")
        self.exchange.on_event = on_event

    def problem(self) -> str:
        return ""

    async def submit(self, order: Order, legs: Sequence[Order] = ()) -> Ack:
        self._starts(order)
        return await self._send(lambda: self.exchange.submit(order), lambda: self.exchange.reject(order))

    async def cancel(self, order: Order) -> None:
        self._must_not_be_fenced()

        def refuse() -> None:
            raise BrokerRejected("42210000", "order is not cancelable")

        await self._send(lambda: self.exchange.cancel(order), refuse)

    async def replace(self, order: Order, new: Order, change: OrderChange) -> Ack:
        self._starts(new)
        return await self._send(lambda: self.exchange.replace(order, new, change), lambda: self.exchange.reject(new))

    async def find(self, order: Order) -> BrokerOrder | None:
        lags = await self._ask("lookups")
        found = self.exchange.find(order)
        is_new = found is not None and self._age_s(found) < 2.0
        return None if lags and is_new else found

    async def asset(self, symbol: Symbol) -> Asset | None:
        return Asset(symbol, AssetClass.US_EQUITY)

    async def holdings(self) -> Sequence[Holdings]:
        await self._ask("lookups")
        exchange = self.exchange
        held = {one.symbol: exchange.position(one.symbol) for one in exchange.executions}
        positions = tuple(Holding(symbol, qty, PRICE) for symbol, qty in held.items() if qty)
        return [Holdings(account="", users=None, cash=exchange.cash, buying_power=D(10**9), positions=positions)]

    async def orders(self, since: datetime) -> Sequence[BrokerOrder]:
        await self._ask("lookups")
        return [shown(there) for there in self.exchange.orders.values() if there.is_open or there.at >= since]

    async def executions(self, since: datetime) -> Sequence[Execution]:
        await self._ask("lookups")
        return [one for one in self.exchange.executions if one.at >= since]

    async def activities(self, since: datetime) -> Sequence[Activity]:
        return []

    async def market_clock(self) -> MarketClock:
        now = self.exchange.clock.true_now()
        return MarketClock(now, True, now + _HOUR, now + _HOUR)

    async def calendar(self, start: date, end: date) -> Sequence[TradingDay]:
        return []

    async def close(self) -> None:
        self.is_dead = True

    # ---- the network ----

    def _starts(self, order: Order) -> None:
        self._must_not_be_fenced()
        if why := self.exchange.forbids(order):
            self.exchange.violations.append(f"{why}: {order}")

    def _must_not_be_fenced(self) -> None:
        if self.must_be_silent:
            self.exchange.violations.append("a desk that had lost its ledger called the broker")

    async def _send(self, call: Callable[[], Any], refuse: Callable[[], Any]) -> Any:
        fate = self.exchange.network.next("requests")
        if fate == "throttled":
            raise BrokerThrottled(3.0)
        if fate == "late":
            self.exchange.loop.call_later(LATE_S * 0.9, _land, call)
        if fate in ("lost", "late"):
            await asyncio.sleep(1.0)
            raise BrokerUnknown("no answer")
        await asyncio.sleep(0.5 if fate == "slow" else 0.01)
        if self.is_dead:
            await asyncio.sleep(3600)
        answer = refuse() if fate == "refused" else call()
        await asyncio.sleep(0.5 if fate == "slow" else 0.01)
        if fate == "mute":
            await asyncio.sleep(9.0)
            raise BrokerUnknown("no answer")
        if fate == "odd":
            raise ZeroDivisionError("a bug in the adapter")
        return answer

    async def _ask(self, kind: str) -> bool:
        """Whether the broker's lookups lag."""
        fate = self.exchange.network.next(kind)
        await asyncio.sleep(0.01)
        if self.is_dead:
            await asyncio.sleep(3600)
        if fate == "503":
            raise BrokerUnknown("503")
        if fate == "throttled":
            raise BrokerThrottled(2.0)
        return fate == "lags"

    def _age_s(self, found: BrokerOrder) -> float:
        assert found.created_at is not None
        return (self.exchange.clock.true_now() - found.created_at).total_seconds()


def shown(there: There) -> BrokerOrder:
    return BrokerOrder(
        client_order_id=there.client_order_id,
        broker_order_id=there.broker_order_id,
        status=there.status,
        symbol=there.request.symbol,
        side=there.request.side,
        qty=there.qty,
        filled_qty=there.filled,
        is_open=there.is_open,
        end=there.end,
        filled_avg_price=there.price if there.filled else None,
        request=there.request,
        created_at=there.at,
        updated_at=there.at,
        replaces=there.replaces,
        replaced_by=there.replaced_by,
        message="rejected after all" if there.end is What.REJECTED else "",
    )


def _as_order(there: There) -> Order:
    """For the rule about wash trades, which looks at requests only."""
    return Order(
        order_id="",  # type: ignore[arg-type]
        client_order_id=there.client_order_id,
        user=there.user,  # type: ignore[arg-type]
        strategy="",
        deployment_id="",
        request=there.request,
        created_at=there.at,
        updated_at=there.at,
    )


def _land(call: Callable[[], Any]) -> None:
    """A request that was given up arrives after all."""
    try:
        call()
    except BrokerRejected:
        return
