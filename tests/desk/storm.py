"""A storm over the desk: many users at once, a wire that loses and repeats, restarts and crashes in the middle.

A seed gives the mix of orders and faults; the interleaving is the machine's. `Storm.run` raises AssertionError
when, seen from outside, the desk's books and the exchange's record do not agree.
"""

import asyncio
import contextlib
import random
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from decimal import Decimal as D
from pathlib import Path

from msgspec.structs import replace as changed

from desk_server.book import Book
from desk_server.brokers import Ack, BrokerEvent, BrokerOrder, BrokerRejected, BrokerThrottled, BrokerUnknown, What
from desk_server.brokers.fills import FillModel
from desk_server.brokers.paper import PaperBroker
from desk_server.domain import (
    HOUSE,
    Identity,
    Order,
    OrderChange,
    OrderClass,
    OrderId,
    OrderRequest,
    OrderType,
    Role,
    Side,
    State,
    StopLoss,
    Symbol,
    TimeInForce,
    UserId,
)
from desk_server.errors import TRANSIENT, Code, DeskError
from desk_server.ledger import LedgerUnavailable
from desk_server.ledger.sqlite_file import checked_rows
from tests.desk.conftest import ADMIN, DeskUnderTest

USERS = [Identity(UserId(name), Role.TRADE) for name in ("alice", "bob", "carol", "dave")]
MIDDLE = {"AAPL": D(100), "SPY": D(400), "BTC/USD": D(50_000)}
# Prices stay this near to the middle, and the desk reserves for more: nobody's cash can go below zero.
BAND_PERCENT, BUFFER_PERCENT = D(2), D(5)
ALLOTMENT = D(100_000)
HEALED_S = 30.0
FATES = {"fine": 55, "slow there": 8, "slow back": 12, "lost": 7, "mute": 8, "late": 5, "throttled": 5}
ACTIONS = {
    "place": 45,
    "line": 22,
    "replace": 12,
    "cancel": 8,
    "twins": 4,
    "cancel_all": 2,
    "replay": 4,
    "halt": 1,
    "rest": 2,
}
AT_EXCHANGE = {
    State.LIVE: {"new", "accepted", "partially_filled"},
    State.HELD: {"held"},
    State.FILLED: {"filled"},
    State.CANCELED: {"canceled"},
    State.EXPIRED: {"expired"},
    State.REPLACED: {"replaced"},
}
ROUGH = FillModel(slippage_bps=D(5), fee_per_share=D("0.01"), fee_bps=D(1), partial_percent=50.0, crypto_fee_bps=D(25))
EXACT = FillModel(partial_percent=50.0, crypto_fee_bps=D(0))


class Wire:
    """The exchange behind a wire whose faults a seeded chance decides, until `calm`.

    "lost" never arrives, "mute" arrives and is not answered, "late" arrives when the caller has given up.
    Events come late, and some come twice.
    """

    def __init__(self, paper: PaperBroker, chance: random.Random) -> None:
        self.paper = paper
        self.capabilities = changed(paper.capabilities, lookup_lag_s=0.2)
        self.calm = False
        self.sent: set[str] = set()
        self.taken: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.executions: dict[str, BrokerEvent] = {}
        self.under_way = 0
        self._chance = chance
        self._late: set[asyncio.Task[None]] = set()
        self._said: list[BrokerEvent] = []

    async def connect(self, on_event: Callable[[BrokerEvent], Awaitable[None]]) -> None:
        async def hear(said: BrokerEvent) -> None:
            self.under_way += 1
            await self._hear(said, on_event)
            self.under_way -= 1

        await self.paper.connect(hear)

    async def _hear(self, said: BrokerEvent, on_event: Callable[[BrokerEvent], Awaitable[None]]) -> None:
        if said.what is What.FILL:
            self.executions[said.execution_id] = said
        if not self.calm and self._chance.random() < 0.1:
            await self._pause()
        await on_event(said)
        self._said = [*self._said[-20:], said]
        if not self.calm and self._chance.random() < 0.05:
            await on_event(self._chance.choice(self._said))

    def problem(self) -> str:
        return self.paper.problem()

    async def submit(self, order: Order, legs: Sequence[Order] = ()) -> Ack:
        self.sent.add(order.client_order_id)

        async def call() -> Ack:
            ack = await self.paper.submit(order, legs)
            self.taken[order.client_order_id] += 1
            return ack

        return await self._through(call)

    async def cancel(self, order: Order) -> None:
        await self._through(lambda: self.paper.cancel(order))

    async def replace(self, order: Order, new: Order, change: OrderChange) -> Ack:
        self.sent.add(new.client_order_id)
        return await self._through(lambda: self.paper.replace(order, new, change))

    async def find(self, order: Order) -> BrokerOrder | None:
        if not self.calm and self._chance.random() < 0.4:
            await self._pause()
            if self._chance.random() < 0.5:
                raise BrokerUnknown("503")
        return await self.paper.find(order)

    async def asset(self, symbol):
        return await self.paper.asset(symbol)

    async def close(self) -> None:
        await self.paper.close()

    @property
    def is_idle(self) -> bool:
        return not self.under_way and not self._late

    async def _through(self, call):
        fate = "fine" if self.calm else self._chance.choices(list(FATES), FATES.values())[0]
        self.faults[fate] += 1
        if fate == "throttled":
            raise BrokerThrottled(0.01)
        if fate == "late":
            task = asyncio.create_task(self._call_late(call))
            self._late.add(task)
            task.add_done_callback(self._late.discard)
        if fate in ("lost", "late"):
            raise BrokerUnknown("the connection broke before the request was sent, it seems")
        self.under_way += 1
        try:
            if fate == "slow there":
                await self._pause()
            answer = await call()
            if fate == "slow back":
                await self._pause()
        finally:
            self.under_way -= 1
        if fate == "mute":
            raise BrokerUnknown("the connection broke before the answer came")
        return answer

    async def _call_late(self, call) -> None:
        await self._pause()
        with contextlib.suppress(BrokerRejected, BrokerThrottled):
            await call()

    async def _pause(self) -> None:
        await asyncio.sleep(self._chance.random() * self._chance.choice((0.001, 0.01, 0.03)))


class Storm:
    """`exact`: no fees and no slippage, so that reservations must cover everything to the cent."""

    def __init__(self, directory: Path, seed: int, *, actions: int, rounds: int = 4) -> None:
        self.directory = directory
        self.seed = seed
        self.exact = seed % 2 == 0
        self.actions = actions
        self.rounds = rounds
        self.chance = random.Random(seed)
        self.step_s = self.chance.choice((0.2, 1.0, 20.0, 300.0))
        self.prices = dict(MIDDLE)
        self.runs = 0
        self.ids = 0
        # What users asked, and what they were told: an order's id, or "" where nothing was recorded.
        self.asked: dict[tuple[Identity, str], OrderRequest] = {}
        self.told: dict[tuple[Identity, str], str] = {}
        self.outcomes: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.sent: set[str] = set()
        self.errors: list[BaseException] = []

    # ---- the storm ----

    async def run(self) -> None:
        limits = {"market_buffer_percent": BUFFER_PERCENT}
        model = EXACT if self.exact else ROUGH
        self.now = await DeskUnderTest(
            self.directory / "run0", model=model, seed=self.seed, wire=self._wire, **limits
        ).start()
        self._open_market()
        self._break_disk_sometimes(self.now)
        for _ in range(self.rounds):
            await self._round()
        await self._heal()
        await self._end()
        await self.now.stop()

    def _break_disk_sometimes(self, run: DeskUnderTest) -> None:
        append, chance = run.ledger.append, random.Random(self.seed)

        def append_or_not(*events):
            if run.broker.calm or chance.random() > 0.01:
                return append(*events)
            failed = asyncio.get_running_loop().create_future()
            failed.set_exception(LedgerUnavailable("disk full"))
            return failed

        run.ledger.append = append_or_not

    def _wire(self, paper: PaperBroker) -> Wire:
        return Wire(paper, random.Random(f"{self.seed}/{self.runs}"))

    async def _round(self) -> None:
        users = [asyncio.create_task(self._be(who)) for who in USERS]
        match self.chance.choice(("heal", "clean", "stop", "crash", "crash")):
            case "heal":
                await asyncio.gather(*users)
                await self._heal()
            case "clean":
                await asyncio.gather(*users)
                await self._restart()
            case "stop":
                await self._some_time(users)
                await self._restart(users)
            case "crash":
                await self._some_time(users)
                await self._crash()
        self._raise_errors()
        self._check_books()

    async def _some_time(self, users: list[asyncio.Task[None]]) -> None:
        await asyncio.wait(users, timeout=self.chance.random() * self.actions * 0.004)

    async def _be(self, who: Identity) -> None:
        try:
            await self._ask_again(who)
            for _ in range(self.actions):
                await getattr(self, "_" + self.chance.choices(list(ACTIONS), ACTIONS.values())[0])(who)
                self._check_now()
        except Exception as error:
            self.errors.append(error)

    async def _rest(self, _: Identity) -> None:
        await asyncio.sleep(self.chance.random() * 0.02)

    async def _place(self, who: Identity) -> None:
        self.ids += 1
        request_id = f"r{self.ids}" if self.chance.random() < 0.8 else ""
        await self._ask(who, changed(self._some_request(who), request_id=request_id))

    async def _ask(self, who: Identity, request: OrderRequest) -> str:
        """Place it, and hold against the desk what it told before."""
        key = (who, request.request_id)
        if request.request_id:
            self.asked.setdefault(key, request)
        try:
            order = await self.now.desk.place(who, request)
            outcome, order_id = order.status, order.order_id
        except DeskError as error:
            outcome, order_id = error.code.value, error.order_id
            assert error.code is not Code.INTERNAL, error
            assert error.code is not Code.INVALID, (error, request)
            if error.code is Code.KEY_REUSED:
                return outcome
            assert order_id or error.code in TRANSIENT or error.code is Code.CLOSED, error
        self.outcomes[outcome] += 1
        if request.request_id and order_id:
            assert self.told.setdefault(key, order_id) == order_id, f"two orders for {key}"
        elif request.request_id:
            assert not self.told.get(key), f"{key} was {self.told[key]}, now {outcome}"
        return outcome

    async def _ask_again(self, who: Identity) -> None:
        """What was not answered before the desk went down is asked again."""
        for (user, request_id), request in list(self.asked.items()):
            if user is who and (user, request_id) not in self.told:
                await self._ask(who, request)

    async def _twins(self, who: Identity) -> None:
        """The same request several times at once, and another content under the same id."""
        self.ids += 1
        request = changed(self._some_request(who), request_id=f"r{self.ids}")
        other = changed(self._some_request(who), request_id=request.request_id)
        if other == request:
            return
        requests = [request, other, request, request]
        self.chance.shuffle(requests)
        self.asked[who, request.request_id] = requests[0]
        outcomes = await asyncio.gather(*(self._ask(who, one) for one in requests))
        if order_id := self.told.get((who, request.request_id)):
            won = self.now.desk.book.orders[OrderId(order_id)].request
            for one, outcome in zip(requests, outcomes, strict=True):
                same = changed(one, qty=won.qty, line=won.line) == won and (one.qty or 0) == (won.qty or 0)
                assert same or outcome in ("KEY_REUSED", "CLOSED") or Code(outcome) in TRANSIENT, (one, won)
            self.asked[who, request.request_id] = next(one for one in requests if one.side is won.side and one == won)

    async def _replay(self, who: Identity) -> None:
        mine = [request for (user, _), request in self.asked.items() if user is who]
        if mine:
            request = self.chance.choice(mine)
            await self._ask(who, request)
            if self.told.get((who, request.request_id)):
                other = changed(request, symbol=Symbol("SPY" if request.symbol == "AAPL" else "AAPL"))
                assert await self._ask(who, other) == "KEY_REUSED"

    async def _replace(self, who: Identity) -> None:
        order = self._one_of(who)
        if order is None:
            return
        self.ids += 1
        request = order.request
        change = OrderChange(request_id=f"r{self.ids}" if self.chance.random() < 0.5 else "")
        if request.limit_price is not None:
            change = changed(change, limit_price=self._near(request.symbol))
        elif request.stop_price is not None:
            change = changed(change, stop_price=self._near(request.symbol))
        elif request.type is OrderType.TRAILING_STOP:
            change = changed(change, trail=D(self.chance.randint(1, 99)) / 100)
        simple = request.order_class is OrderClass.SIMPLE and not order.parent_id
        if simple and request.qty and self.chance.random() < 0.6:
            change = changed(change, qty=D(self.chance.randint(1, 60)))
        try:
            new = await self.now.desk.replace(who, order.order_id, change)
            self.outcomes["replace " + new.status] += 1
            if change.request_id:
                again = await self.now.desk.replace(who, order.order_id, change)
                assert again.order_id == new.order_id
        except DeskError as error:
            assert error.code not in (Code.INTERNAL, Code.KEY_REUSED), error
            self.outcomes["replace " + error.code.value] += 1

    async def _cancel(self, who: Identity) -> None:
        order = self._one_of(who)
        if order is not None:
            with contextlib.suppress(DeskError):
                await self.now.desk.cancel(self.chance.choice((who, who, ADMIN)), order.order_id)

    async def _cancel_all(self, who: Identity) -> None:
        symbols = frozenset(self.chance.sample(list(MIDDLE), self.chance.randint(0, 1)))
        with contextlib.suppress(DeskError):
            await self.now.desk.cancel_all(who, who.user, symbols)

    async def _halt(self, who: Identity) -> None:
        scope, name = self.chance.choice((("user", str(who.user)), ("symbol", "SPY"), ("desk", "")))
        with contextlib.suppress(DeskError):
            await self.now.desk.set_halt(ADMIN, scope, name, True, "a storm")
        await self._rest(who)
        await self._allow(self.now, scope, name)

    async def _allow(self, run: DeskUnderTest, scope: str, name: str) -> None:
        while run is self.now and (scope, name) in run.desk.book._halts:
            with contextlib.suppress(DeskError):
                await run.desk.set_halt(ADMIN, scope, name, False, "over")
            await asyncio.sleep(0.001)

    async def _line(self, _: Identity) -> None:
        self._move()

    def _move(self) -> None:
        symbol = self.chance.choice(list(MIDDLE))
        middle, price = MIDDLE[symbol], self.prices[symbol]
        price *= 1 + D(self.chance.randint(-60, 60)) / 10_000
        width = middle * BAND_PERCENT / 100
        self.prices[symbol] = price = min(max(price, middle - width), middle + width).quantize(D("0.01"))
        self.now.at += timedelta(seconds=self.step_s)
        if self.now.at.hour >= 22:
            self.now.at = self.now.at.replace(hour=14, minute=20) + timedelta(days=1)
        self.now.line(symbol, str(price - D("0.01")), str(price))

    def _open_market(self) -> None:
        for symbol, price in self.prices.items():
            self.now.line(symbol, str(price - D("0.01")), str(price))

    # ---- what is asked for ----

    def _some_request(self, who: Identity) -> OrderRequest:
        chance = self.chance
        symbol = Symbol(chance.choice(list(MIDDLE)))
        held = self.now.desk.book.position(who.user, symbol).qty
        side = Side.SELL if held > 0 and chance.random() < 0.5 else Side.BUY
        if symbol == "BTC/USD":
            return self._some_crypto(symbol, side, held)
        qty = D(chance.randint(1, chance.choice((20, 20, 120))))
        if side is Side.SELL and chance.random() < 0.7:
            qty = min(qty, max(held.to_integral_value(), D(1)))
        base = OrderRequest(symbol=symbol, side=side, qty=qty)
        tif = chance.choice(list(TimeInForce)[:4])
        lasting = chance.choice((TimeInForce.DAY, TimeInForce.GTC))
        match chance.choice(("market", "limit", "limit", "stop", "stop_limit", "trail", "notional", "legs", "legs")):
            case "market":
                if chance.random() < 0.2:
                    return changed(base, qty=qty + D("0.25"))
                return changed(base, time_in_force=tif)
            case "limit":
                auction = chance.random() < 0.05
                extended = not auction and chance.random() < 0.1
                return changed(
                    base,
                    type=OrderType.LIMIT,
                    limit_price=self._near(symbol),
                    time_in_force=TimeInForce.CLS if auction else lasting if extended else tif,
                    extended_hours=extended,
                )
            case "stop":
                return changed(base, type=OrderType.STOP, stop_price=self._near(symbol), time_in_force=lasting)
            case "stop_limit":
                return changed(
                    base,
                    type=OrderType.STOP_LIMIT,
                    stop_price=self._near(symbol),
                    limit_price=self._near(symbol),
                    time_in_force=lasting,
                )
            case "trail":
                trail = D(chance.randint(5, 150)) / 100
                name = chance.choice(("trail_price", "trail_percent"))
                return changed(base, type=OrderType.TRAILING_STOP, time_in_force=lasting, **{name: trail})
            case "notional":
                return changed(base, qty=None, notional=D(chance.randint(100, 900_000)) / 100)
            case _:
                return self._with_legs(changed(base, time_in_force=lasting))

    def _some_crypto(self, symbol: Symbol, side: Side, held: D) -> OrderRequest:
        qty = D(self.chance.randint(100, self.chance.choice((10_000, 99_999)))) / 100_000
        if side is Side.SELL and self.chance.random() < 0.7:
            qty = min(qty, held)
        base = OrderRequest(symbol=symbol, side=side, qty=qty, time_in_force=TimeInForce.GTC)
        match self.chance.choice(("market", "limit", "ioc", "stop_limit")):
            case "limit":
                return changed(base, type=OrderType.LIMIT, limit_price=self._near(symbol))
            case "ioc":
                return changed(
                    base, type=OrderType.LIMIT, limit_price=self._near(symbol), time_in_force=TimeInForce.IOC
                )
            case "stop_limit":
                price = self._near(symbol)
                return changed(base, type=OrderType.STOP_LIMIT, stop_price=price, limit_price=price)
            case _:
                return base

    def _with_legs(self, base: OrderRequest) -> OrderRequest:
        price, sign = self.prices[base.symbol], base.side.sign
        cents = (price * D(self.chance.randint(5, 150)) / 10_000).quantize(D("0.01")) + D("0.02")
        target, loss = price + sign * cents, price - sign * cents
        stop_loss = StopLoss(loss, loss - sign * D("0.10") if self.chance.random() < 0.3 else None)
        kind = self.chance.choice((OrderClass.BRACKET, OrderClass.BRACKET, OrderClass.OTO, OrderClass.OCO))
        if kind is OrderClass.OCO:
            target, loss = price - sign * cents, price + sign * cents
            return changed(
                base,
                type=OrderType.LIMIT,
                order_class=kind,
                take_profit=target,
                limit_price=target if self.chance.random() < 0.5 else None,
                stop_loss=StopLoss(loss, loss + sign * D("0.10") if self.chance.random() < 0.3 else None),
            )
        if self.chance.random() < 0.5:
            base = changed(base, type=OrderType.LIMIT, limit_price=price)
        if kind is OrderClass.BRACKET:
            return changed(base, order_class=kind, take_profit=target, stop_loss=stop_loss)
        if self.chance.random() < 0.5:
            return changed(base, order_class=kind, take_profit=target)
        return changed(base, order_class=kind, stop_loss=stop_loss)

    def _near(self, symbol: str) -> D:
        return (self.prices[symbol] * (1 + D(self.chance.randint(-120, 120)) / 10_000)).quantize(D("0.01"))

    def _one_of(self, who: Identity) -> Order | None:
        mine = self.now.desk.book.open_orders(who.user)
        return self.chance.choice(mine) if mine else None

    # ---- restarts ----

    async def _restart(self, users: Sequence[asyncio.Task[None]] = ()) -> None:
        """Stop in good order, with requests under way; what had not been answered then is asked again."""
        self.ends["stop"] += 1
        self._remember(self.now)
        await self.now.stop()
        for task in users:
            task.cancel()
        await asyncio.gather(*users, return_exceptions=True)
        await self._start_again(self.now.directory)

    async def _crash(self) -> None:
        """The process dies between two steps of its loop; what its ledger has committed is all that is left."""
        self.ends["crash"] += 1
        self._remember(self.now)
        old = self.now
        copy = self.directory / f"run{self.runs + 1}"
        (copy / "ledger").mkdir(parents=True)
        with (
            contextlib.closing(sqlite3.connect(f"file:{old.ledger.path}?mode=ro", uri=True)) as source,
            contextlib.closing(sqlite3.connect(copy / "ledger" / "desk.db")) as target,
        ):
            source.backup(target)
        everything = asyncio.all_tasks() - {asyncio.current_task()}
        for task in everything:
            task.cancel()
        await asyncio.gather(*everything, return_exceptions=True)
        await old.ledger.close()
        old.hub.close()
        await self._start_again(copy)

    def _remember(self, run: DeskUnderTest) -> None:
        self.sent |= run.broker.sent
        self.faults += run.broker.faults

    async def _start_again(self, directory: Path) -> None:
        self.runs += 1
        self.now = await self.now.anew(directory)
        self._open_market()
        self._break_disk_sometimes(self.now)
        for scope, name in list(self.now.desk.book._halts):
            await self._allow(self.now, scope, name)

    # ---- what must be so ----

    async def _heal(self) -> None:
        """The faults stop: everything in doubt is cleared up, and then the books agree."""
        self.now.broker.calm = True
        self._raise_errors()
        try:
            await self.now.until(self._is_quiet, HEALED_S)
        except TimeoutError:
            odd = [o for o in self.now.desk.book.open_orders() if o.state not in (State.LIVE, State.HELD)]
            raise AssertionError(f"seed {self.seed}: not cleared up: {odd}, {self._stuck_cancels()}") from None
        await self._check()
        self.now.broker.calm = False

    def _is_quiet(self) -> bool:
        run = self.now
        return (
            run.broker.is_idle
            and not run.broker.paper._exchange.outbox
            and not run.keeper._said._unfinished_tasks
            and not run.desk._writing
            and not run.desk._resolver._tasks
            and not self._stuck_cancels()
            and all(order.state in (State.LIVE, State.HELD) for order in run.desk.book.open_orders())
        )

    def _stuck_cancels(self) -> list[Order]:
        return [order for order in self.now.desk.book.open_orders() if order.cancel_requested]

    async def _end(self) -> None:
        """All is cancelled: nothing is held back for anybody, and every request has the answer it had."""
        self.now.broker.calm = True
        await self.now.desk.cancel_all(ADMIN, None, frozenset())
        await self.now.until(lambda: not self.now.desk.book.open_orders() and self._is_quiet(), HEALED_S)
        await self._check()
        book = self.now.desk.book
        held = book._reservations
        assert not held._cash and not held._qty and not any(held._notional.values()) and not held._groups
        assert not book.replacing and not self.now.keeper.holds._held
        assert not any(self.now.keeper.holds._cash.values()) and not any(self.now.keeper.holds._qty.values())
        assert not self.now.desk._in_flight and not self.now.desk._accepted and not self.now.desk._being_replaced
        for (who, request_id), order_id in list(self.told.items()):
            assert book.orders[OrderId(order_id)].user == who.user
            await self._ask(who, self.asked[who, request_id])
        self._raise_errors()

    def _raise_errors(self) -> None:
        if self.errors:
            raise AssertionError(f"seed {self.seed}: {self.errors[0]!r}") from self.errors[0]

    def _check_now(self) -> None:
        """At every moment: nobody sells what is not theirs, nobody spends what they do not have."""
        book, holds = self.now.desk.book, self.now.keeper.holds
        for user, account in book.accounts.items():
            for position in book.positions_of(user):
                assert position.qty >= 0, f"{user} is short: {position} {self._trail(user, position.symbol)}"
            if self.exact:
                assert account.cash >= 0, f"{user} has overspent: {account}"
                free = book.buying_power(user) - holds.cash(user) + self._cannot_be(user)
                assert free >= 0, f"{user} has {free} to spend: {account}, {book.open_orders(user)}"

    def _cannot_be(self, user: UserId) -> D:
        """What replacements hold that the exchange can only refuse: what they were to replace is over."""
        book = self.now.desk.book
        new = [order for order in book.open_orders(user) if order.replaces]
        return sum((o.reserved_cash for o in new if not book.orders[OrderId(o.replaces)].state.is_open), D(0))

    def _trail(self, user, symbol) -> str:
        fills = [fill for fill in self.now.desk.book.fills if fill.user == user and fill.symbol == symbol][-12:]
        orders = {fill.order_id: self.now.desk.book.orders[fill.order_id] for fill in fills}
        return "\n".join(map(str, [*fills, *orders.values()]))

    async def _check(self) -> None:
        book, paper = self.now.desk.book, self.now.broker.paper
        self._check_books()
        self._check_now()
        assert book.totals() == {held.symbol: held.qty for held in (await paper.holdings())[0].positions}
        for order in book.orders.values():
            there = await paper.find(order)
            expected = AT_EXCHANGE.get(order.state)
            if expected is None:
                assert there is None, f"{order} is at the exchange: {there}"
                continue
            assert there is not None and there.status in expected, f"{order} {there}"
            assert order.filled_qty == there.filled_qty, f"{order} {there}"
            # The ledger does not tell whether a replacement works at once or waits for the opening.
            if order.state is State.LIVE and there.status in ("new", "accepted") and not order.replaces:
                assert order.broker_status == there.status, f"{order} {there}"
            if order.state.is_open:
                assert order.qty == there.qty, f"{order} {there}"
        for client_order_id in paper._exchange._orders:
            assert book.by_client_order_id(client_order_id) is not None, client_order_id
        assert all(count == 1 for count in self.now.broker.taken.values())
        executed = {fill.execution_id for fill in book.fills}
        assert executed >= set(self.now.broker.executions)

    def _check_books(self) -> None:
        book = self.now.desk.book
        live = [_shape(book)]
        again = Book()
        for row, event in checked_rows(self.now.ledger.path, 0):
            if row[0] <= book.seq:
                again.fold(row[0], event)
        assert live == [_shape(again)], "the book made anew is another"
        assert HOUSE not in book.accounts
        sent = self.sent | self.now.broker.sent
        for (who, request_id), order_id in self.told.items():
            order = book.orders.get(OrderId(order_id))
            assert order is not None, f"{who.user}'s {request_id} was answered, and is not in the ledger"
            assert order.user == who.user
        names: Counter[tuple[str, str]] = Counter()
        for order in book.orders.values():
            if order.request.request_id and not order.parent_id:
                names[order.user, order.request.request_id] += 1
            if order.state is State.REFUSED:
                assert order.client_order_id not in sent, f"refused, and sent: {order}"
            if order.qty is not None and not order.replaced_by:
                assert order.filled_qty <= order.qty, order
        assert all(count == 1 for count in names.values()), names.most_common(3)
        _check_money(book)


def _check_money(book: Book) -> None:
    filled: Counter[str] = Counter()
    cash = {user: account.allotment for user, account in book.accounts.items()}
    held: dict[tuple[str, str], D] = {}
    for fill in book.fills:
        filled[fill.order_id] += fill.qty
        cash[fill.user] -= fill.side.sign * fill.qty * fill.price + fill.fee
        held[fill.user, fill.symbol] = held.get((fill.user, fill.symbol), D(0)) + fill.side.sign * fill.qty
    assert len({fill.execution_id for fill in book.fills}) == len(book.fills)
    for order in book.orders.values():
        assert order.filled_qty == filled[order.order_id], order
    for user, account in book.accounts.items():
        assert account.cash == cash[user]
        cost = sum((position.cost for position in book.positions_of(user)), D(0))
        assert account.cash == account.allotment + account.realized_pl - account.fees - cost
        for position in book.positions_of(user):
            assert position.qty == held[user, position.symbol]
        reserved = book.reserved_cash(user)
        assert reserved >= 0


def _shape(book: Book) -> dict[str, object]:
    return {
        "orders": book.orders,
        "accounts": book.accounts,
        "positions": book.positions,
        "fills": book.fills,
        "replacing": book.replacing,
        "open": list(book._open),
        "cash": dict(book._reservations._cash),
        "qty": dict(book._reservations._qty),
        "halts": book._halts,
    }
