"""A desk on the paper exchange behind a broker that keeps records of its own, as a real one does, with its own money.

The stream of its events can be lost, doubled or held back; its records can fail, and lag. Time moves when a test
says so.
"""

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal as D
from pathlib import Path

from msgspec.structs import replace as changed

from desk_server.bookkeeper import Bookkeeper
from desk_server.brokers import (
    Ack,
    Activity,
    BrokerEvent,
    BrokerOrder,
    BrokerUnknown,
    Execution,
    Holding,
    Holdings,
    What,
)
from desk_server.brokers.fills import FillModel
from desk_server.brokers.matching import PaperExchange
from desk_server.brokers.paper import PaperBroker
from desk_server.brokers.resting import Resting
from desk_server.desk import Desk
from desk_server.domain import Order, OrderChange, OrderId, OrderRequest, OrderType, Quote, Side, State, Symbol, UserId
from desk_server.ledger.sqlite import SqliteLedger
from desk_server.market import Hub
from desk_server.reconcile import Reconciler
from desk_server.risk import Limits
from desk_server.sessions import NYSE
from desk_server.tape import Tape
from desk_server.throttle import Throttle
from tests.desk.conftest import ASSETS, TEN_O_CLOCK

ENDS = {
    "filled": What.FILL,
    "canceled": What.CANCELED,
    "expired": What.EXPIRED,
    "rejected": What.REJECTED,
    "replaced": What.REPLACED,
}
GRACE_S, ADOPT_S = 10.0, 300.0


def request(side: str = "buy", qty: str = "10", symbol: str = "AAPL", **more: object) -> OrderRequest:
    kind = OrderType.LIMIT if "limit_price" in more else OrderType.MARKET
    return OrderRequest(symbol=Symbol(symbol), side=Side(side), qty=D(qty), type=kind, **more)


class HandClock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.at = TEN_O_CLOCK
        self.s = 1000.0

    def now(self) -> datetime:
        return self.at

    def monotonic_s(self) -> float:
        return self.s

    def advance(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)
        self.s += seconds


class Records:
    """Broker and BrokerRecords. Legs have names of the broker's own, and executions another id in the list than in
    the stream, as nothing says that they are the same."""

    def __init__(self, clock: HandClock, *, seed: int = 1, partial: float = 0.0, cash: D = D(50_000)) -> None:
        self.capabilities = changed(PaperBroker.capabilities, lookup_lag_s=0.2)
        self.clock = clock
        self.exchange = PaperExchange(
            ASSETS, model=FillModel(partial_percent=partial), seed=seed, calendar=NYSE, clock=clock
        )
        self.chance = random.Random(seed)
        self.cash = cash
        self.held: dict[Symbol, D] = {}
        self.list: dict[str, Execution] = {}
        self.stream_id: dict[str, str] = {}
        self.moved: list[Activity] = []
        self.created: dict[str, datetime] = {}
        self.replaced: dict[str, str] = {}
        self.parents: dict[str, str] = {}
        # Faults: what the stream does with an event, which records fail, which executions the list does not show yet.
        self.stream: Callable[[BrokerEvent], Sequence[BrokerEvent]] = lambda said: [said]
        self.is_down = False
        self.unlisted: set[str] = set()
        self.answers_lost = 0
        self.requests = 0
        self._on_event: Callable[[BrokerEvent], Awaitable[None]] | None = None
        self._ids = itertools.count(1)

    # ---- Broker ----

    async def connect(self, on_event: Callable[[BrokerEvent], Awaitable[None]]) -> None:
        self._on_event = on_event

    def problem(self) -> str:
        return ""

    async def submit(self, order: Order, legs: Sequence[Order] = ()) -> Ack:
        ack = self.exchange.submit(order, legs)
        for resting in (self._resting(order), *self._resting(order).legs):
            self.created[resting.broker_id] = self.clock.now()
        for leg in self._resting(order).legs:
            self.parents[leg.broker_id] = self._resting(order).broker_id
        await self.tell()
        self._lose_answer()
        return ack

    async def cancel(self, order: Order) -> None:
        self.exchange.cancel(self._named(order))
        await self.tell()

    async def replace(self, order: Order, new: Order, change: OrderChange) -> Ack:
        old = self._named(order)
        ack = self.exchange.replace(old, new, change)
        self.created[ack.broker_order_id] = self.clock.now()
        self.replaced[self._resting(old).broker_id] = ack.broker_order_id
        if parent := self.parents.get(self._resting(old).broker_id):
            self.parents[ack.broker_order_id] = parent
        await self.tell()
        self._lose_answer()
        return ack

    async def find(self, order: Order) -> BrokerOrder | None:
        self._ask()
        found = [r for r in self.exchange._orders.values() if r.broker_id == order.broker_order_id]
        resting = found[0] if found else self.exchange._orders.get(order.client_order_id)
        if resting is not None and not order.broker_order_id and self._name(resting) != order.client_order_id:
            return None  # a leg: nobody but the desk calls it so
        return None if resting is None else self._shown(resting)

    async def asset(self, symbol: Symbol):
        return self.exchange.assets.get(symbol)

    async def holdings(self) -> Sequence[Holdings]:
        self._ask()
        held = tuple(Holding(symbol, qty, D(100)) for symbol, qty in self.held.items() if qty)
        return [Holdings("", None, self.cash, self.cash, held)]

    async def close(self) -> None:
        pass

    # ---- BrokerRecords ----

    async def orders(self, since: datetime) -> Sequence[BrokerOrder]:
        self._ask()
        mains = [r for r in self.exchange._orders.values() if r.broker_id not in self.parents]
        shown = [self._shown(resting) for resting in mains]
        return [
            one
            for one in shown
            if one.is_open or any(leg.is_open for leg in one.legs) or self.created[one.broker_order_id] >= since
        ]

    async def executions(self, since: datetime) -> Sequence[Execution]:
        self._ask()
        return [one for one in self.list.values() if one.at >= since and one.execution_id not in self.unlisted]

    async def activities(self, since: datetime) -> Sequence[Activity]:
        self._ask()
        return [one for one in self.moved if one.at >= since]

    # ---- what tests do ----

    async def line(self, symbol: str = "AAPL", bid: str = "99.99", ask: str = "100") -> None:
        quote = Quote(Symbol(symbol), D(ask), D(bid), D(ask), self.clock.now(), next(self._ids), self.clock.s, "quote")
        self.exchange.on_quote(quote)
        await self.tell()

    async def external(self, side: Side, qty: str, symbol: str = "AAPL", name: str = "") -> str:
        """Somebody trades on the account without the desk; returns the broker's order id."""
        name = name or f"by-hand-{next(self._ids)}"
        request = OrderRequest(symbol=Symbol(symbol), side=side, qty=D(qty))
        at = self.clock.now()
        order = Order(OrderId("x"), name, UserId("nobody"), "", "", request, at, at)
        return (await self.submit(order)).broker_order_id

    async def activity(self, kind: str, cash: str = "0", symbol: str = "", qty: str = "0", **more: object) -> Activity:
        moved = Activity(f"act-{next(self._ids)}", kind, self.clock.now(), D(cash), Symbol(symbol), D(qty), **more)
        self.moved.append(moved)
        self.cash += moved.cash
        if moved.qty:
            self.held[moved.symbol] = self.held.get(moved.symbol, D(0)) + moved.qty
        return moved

    async def bust(self, execution_id: str, *, tell: bool = True) -> Execution:
        """The broker takes it back: out of its list, its order, its positions and its cash."""
        gone = self.list.pop(execution_id)
        resting = self._by_broker_id(gone.broker_order_id)
        resting.filled -= gone.qty
        self._move(gone, -1)
        if tell:
            await self._deliver(
                BrokerEvent(
                    What.BUSTED,
                    self._name(resting),
                    resting.broker_id,
                    self.clock.now(),
                    broker_execution_id=self.stream_id[execution_id],
                )
            )
        return gone

    async def correct(self, execution_id: str, price: str, *, tell: bool = True) -> Execution:
        """Another price: a new line in the list, placed as the newest, as the order's total is the same again."""
        gone = await self.bust(execution_id, tell=tell)
        resting = self._by_broker_id(gone.broker_order_id)
        resting.filled += gone.qty
        new = changed(gone, price=D(price), cum_qty=resting.filled, execution_id=f"list-{next(self._ids)}")
        self.list[new.execution_id] = new
        self.stream_id[new.execution_id] = f"stream-{new.execution_id}"
        self._move(new, 1)
        if tell:
            await self._deliver(self._fill(new, resting))
        return new

    async def tell(self) -> None:
        """Everything that has happened goes into the records, and then to the stream."""
        while self.exchange.outbox:
            said = self.exchange.outbox.popleft()
            resting = self._by_broker_id(said.broker_order_id)
            if said.what is What.FILL:
                said = self._book(said, resting)
            elif said.what in (What.CANCELED, What.EXPIRED, What.REPLACED):
                said = changed(said, filled_qty=self._booked(resting.broker_id))
            said = changed(said, at=self.clock.now(), client_order_id=self._name(resting))
            if said.what is What.REPLACED and self.chance.random() < 0.5:
                said = changed(said, replaced_by="")
            await self._deliver(said)

    # ---- what it is made of ----

    def _book(self, said: BrokerEvent, resting: Resting) -> BrokerEvent:
        total = self._booked(resting.broker_id) + said.qty
        execution = Execution(
            broker_order_id=resting.broker_id,
            symbol=said.symbol,
            side=said.side,
            qty=said.qty,
            price=said.price,
            at=self.clock.now(),
            cum_qty=total,
            execution_id=f"list-{next(self._ids)}",
        )
        self.list[execution.execution_id] = execution
        self.stream_id[execution.execution_id] = f"stream-{execution.execution_id}"
        self._move(execution, 1)
        return self._fill(execution, resting)

    def _fill(self, execution: Execution, resting: Resting) -> BrokerEvent:
        return BrokerEvent(
            What.FILL,
            self._name(resting),
            resting.broker_id,
            execution.at,
            symbol=execution.symbol,
            side=execution.side,
            qty=execution.qty,
            price=execution.price,
            filled_qty=execution.cum_qty,
            broker_execution_id=self.stream_id[execution.execution_id],
        )

    def _booked(self, broker_order_id: str) -> D:
        return sum((one.qty for one in self.list.values() if one.broker_order_id == broker_order_id), D(0))

    def _move(self, one: Execution, sign: int) -> None:
        change = one.qty * one.side.sign * sign
        self.held[one.symbol] = self.held.get(one.symbol, D(0)) + change
        self.cash -= change * one.price

    async def _deliver(self, said: BrokerEvent) -> None:
        if self._on_event is not None:
            for one in self.stream(said):
                await self._on_event(one)

    def _ask(self) -> None:
        self.requests += 1
        if self.is_down:
            raise BrokerUnknown("503")

    def _lose_answer(self) -> None:
        if self.answers_lost:
            self.answers_lost -= 1
            raise BrokerUnknown("the connection broke before the answer came")

    def _shown(self, resting: Resting) -> BrokerOrder:
        end = ENDS.get(resting.status)
        broker_id = resting.broker_id
        mine = [r for r in self.exchange._orders.values() if self.parents.get(r.broker_id) == broker_id]
        return BrokerOrder(
            client_order_id=self._name(resting),
            broker_order_id=broker_id,
            status=resting.status,
            symbol=resting.symbol,
            side=resting.side,
            qty=resting.qty,
            filled_qty=resting.filled,
            legs=tuple(self._shown(leg) for leg in sorted(mine, key=lambda leg: leg.status == "replaced")),
            is_open=end is None,
            end=end,
            request=OrderRequest(
                symbol=resting.symbol,
                side=resting.side,
                type=resting.type,
                time_in_force=resting.tif,
                qty=resting.qty,
                notional=resting.notional,
                limit_price=resting.limit,
                stop_price=resting.stop,
            ),
            created_at=self.created[broker_id],
            updated_at=self.clock.now(),
            replaces=next((old for old, new in self.replaced.items() if new == broker_id), ""),
            replaced_by=self.replaced.get(broker_id, ""),
            parent_id=self.parents.get(broker_id, ""),
        )

    def _name(self, resting: Resting) -> str:
        is_leg = resting.broker_id in self.parents and resting.broker_id not in self.replaced.values()
        return f"leg-{resting.broker_id}" if is_leg else resting.client_id

    def _named(self, order: Order) -> Order:
        """The exchange knows legs under the desk's names, or, made up by a desk that lost its ledger, not at all."""
        found = [r for r in self.exchange._orders.values() if r.broker_id == order.broker_order_id]
        return changed(order, client_order_id=found[0].client_id) if found else order

    def _resting(self, order: Order) -> Resting:
        return self.exchange._orders[order.client_order_id]

    def _by_broker_id(self, broker_order_id: str) -> Resting:
        return next(r for r in self.exchange._orders.values() if r.broker_id == broker_order_id)


class Ground:
    """One run of a desk on a directory, at a broker that outlives it."""

    def __init__(self, directory: Path, broker: Records, **choices: object) -> None:
        self.directory = directory
        self.broker = broker
        self.clock = broker.clock
        self.ledger = SqliteLedger(directory / "ledger" / "desk.db")
        self.keeper = Bookkeeper(self.ledger, self.clock)
        self.book = self.keeper.book
        self.hub = Hub(Tape(directory / "tape", 2**20), self.clock, 1000)
        self.reconciler = Reconciler(
            self.keeper,
            broker,
            broker,
            self.clock,
            allotment=D(100_000),
            grace_s=GRACE_S,
            adopt_s=ADOPT_S,
            **choices,
        )
        self.desk = Desk(
            keeper=self.keeper,
            broker=broker,
            hub=self.hub,
            clock=self.clock,
            limits=Limits(
                qty_max=D(10_000),
                notional_usd_max=D(1_000_000),
                collar_percent=D(50),
                market_buffer_percent=D(0),
                quote_age_s_max=1e9,
                open_orders_max=500,
                allow_short=False,
            ),
            throttle=Throttle(100_000, self.clock),
            allotment=D(100_000),
        )

    async def start(self) -> "Ground":
        self.keeper.load()
        await self.desk.start()
        for symbol, price in (("AAPL", "100"), ("SPY", "400"), ("BTC/USD", "50000")):
            await self.line(symbol, price, price)
        return self

    async def stop(self) -> None:
        await self.desk.close()
        self.hub.close()

    async def line(self, symbol: str = "AAPL", bid: str = "99.99", ask: str = "100") -> None:
        stamp = self.clock.now().isoformat().replace("+00:00", "Z")
        line = f'{{"type":"quote","symbol":"{symbol}","timestamp":"{stamp}","bid":{bid},"ask":{ask},"price":{ask}}}'
        assert self.hub.publish(line.encode())
        await self.broker.line(symbol, bid, ask)

    async def look(self, times: int = 1, every_s: float = 2.0) -> None:
        for _ in range(times):
            await self.heard()
            await self.reconciler.look()
            self.clock.advance(every_s)

    async def until_live(self, order: Order) -> None:
        """The broker's acceptance is written down."""
        async with asyncio.timeout(10):
            while self.now(order).state is State.SENDING:  # noqa: ASYNC110 (it is the outcome that counts)
                await asyncio.sleep(0.001)

    async def heard(self) -> None:
        """Everything that the stream has said is written down."""
        await self.keeper._said.join()

    def now(self, order: Order) -> Order:
        return self.book.orders[OrderId(order.order_id)]

    def held(self, user: str, symbol: str = "AAPL") -> D:
        return self.book.position(UserId(user), Symbol(symbol)).qty

    def agree(self) -> None:
        """Seen from outside: positions, cash, and every order's executions are the broker's."""
        totals = {symbol: qty for symbol, qty in self.broker.held.items() if qty}
        assert self.book.totals() == totals
        users = [a for a in self.book.accounts.values() if not a.user.startswith("$")]
        cash = sum((a.cash - a.allotment for a in users), D(0))
        houses = sum((a.cash for a in self.book.accounts.values() if a.user.startswith("$")), D(0))
        assert cash + houses == self.broker.cash
        for resting in self.broker.exchange._orders.values():
            order = self.book.by_broker_order_id(resting.broker_id)
            if order is None:
                assert self.book.is_foreign(resting.broker_id), resting.client_id
                continue
            assert order.filled_qty == resting.filled, order
            assert order.state.is_open == resting.is_open, (order, resting.status)
        for account in self.book.accounts.values():
            cost = sum((p.cost for p in self.book.positions.get(account.user, {}).values()), D(0))
            assert account.cash == account.allotment + account.realized_pl - account.fees - cost
