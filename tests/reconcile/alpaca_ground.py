"""A desk on the real adapter, at a misbehaving Alpaca with a book of its own, compared in real time."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal as D
from pathlib import Path

from desk_server.bookkeeper import Bookkeeper
from desk_server.brokers.alpaca import Tuning
from desk_server.brokers.alpaca.broker_api import AlpacaSubAccounts
from desk_server.brokers.alpaca.trading import AlpacaBroker
from desk_server.clock import SystemClock
from desk_server.desk import Desk
from desk_server.domain import Order, OrderId, Symbol, UserId
from desk_server.ledger.sqlite import SqliteLedger
from desk_server.market import Hub
from desk_server.reconcile import Reconciler
from desk_server.risk import Limits
from desk_server.tape import Tape
from desk_server.throttle import Throttle

PATIENCE_S = 30.0
GRACE_S = 1.0
TUNING = Tuning(check_s=0.5, backoff_s=0.05, backoff_max_s=0.5, mute_s=2.0, lookup_lag_s=2.0, resend_s=5.0)


class AlpacaGround:
    """`sub_accounts`: the Broker API, where alice and bob have an account each."""

    def __init__(self, directory: Path, alpaca, *, sub_accounts: bool = False, adopt_s: float = 300.0) -> None:
        self.alpaca = alpaca
        self.control = alpaca.control
        self.names = dict(zip(("alice", "bob"), alpaca.accounts, strict=False)) if sub_accounts else {}
        clock = SystemClock()
        self.ledger = SqliteLedger(directory / "ledger" / "desk.db")
        self.keeper = Bookkeeper(self.ledger, clock)
        self.book = self.keeper.book
        self.hub = Hub(Tape(directory / "tape", 2**20), clock, 1000)
        self.broker = self._broker()
        self.reconciler = Reconciler(
            self.keeper,
            self.broker,
            self.broker,
            clock,
            allotment=D(100_000),
            poll_s=0.5,
            poll_in_doubt_s=0.2,
            reconcile_s=0.5,
            grace_s=GRACE_S,
            adopt_s=adopt_s,
            stream_problem=self.broker.stream_problem,
        )
        self.desk = Desk(
            keeper=self.keeper,
            broker=self.broker,
            hub=self.hub,
            clock=clock,
            limits=Limits(
                qty_max=D(10_000),
                notional_usd_max=D(1_000_000),
                collar_percent=D(50),
                market_buffer_percent=D(0),
                quote_age_s_max=1e9,
                open_orders_max=500,
                allow_short=False,
            ),
            throttle=Throttle(100_000, clock),
            allotment=D(100_000),
            records=self.broker,
            begin_comparing=self.reconciler.start,
            uncompared=self.reconciler.problem,
            freezes=self.reconciler.frozen,
            soon=self.reconciler.soon,
            account_of=lambda user: self.names.get(user, ""),
        )

    def _broker(self) -> AlpacaBroker | AlpacaSubAccounts:
        alpaca = self.alpaca
        if self.names:
            return AlpacaSubAccounts(
                alpaca.broker_key,
                alpaca.broker_secret,
                accounts={UserId(user): account for user, account in self.names.items()},
                base_url=alpaca.url,
                on_gap=self._soon,
                tuning=TUNING,
            )
        return AlpacaBroker(
            alpaca.key,
            alpaca.secret,
            base_url=alpaca.url,
            stream_url=alpaca.stream_url,
            on_gap=self._soon,
            tuning=TUNING,
        )

    def _soon(self) -> None:
        self.reconciler.soon()

    async def start(self) -> "AlpacaGround":
        self.keeper.load()
        await self.desk.start()
        await self.until(lambda: not self.desk._state)
        for symbol, price in (("AAPL", "100"), ("SPY", "400"), ("BTC/USD", "50000")):
            stamp = datetime.now(UTC).isoformat().replace("+00:00", "Z")
            line = f'{{"type":"trade","symbol":"{symbol}","timestamp":"{stamp}","price":{price}}}'
            assert self.hub.publish(line.encode())
        return self

    async def stop(self) -> None:
        await self.reconciler.close()
        await self.desk.close()
        self.hub.close()

    async def until(self, is_so: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not is_so():
            assert time.monotonic() < deadline, f"it did not come to pass: {self.reconciler.report()}"
            await asyncio.sleep(0.02)

    async def passed(self, times: int = 2) -> None:
        """So many more looks at the broker's records, money included."""
        wanted = self.reconciler.passes + times
        self.reconciler._compared_s = None
        await self.until(lambda: self.reconciler.passes >= wanted)

    async def agreed(self) -> None:
        await self.until(self._agree)

    def now(self, order: Order) -> Order:
        return self.book.orders[OrderId(order.order_id)]

    def held(self, user: str, symbol: str = "AAPL") -> D:
        return self.book.position(UserId(user), Symbol(symbol)).qty

    def truth(self) -> dict:
        return self.control.dump(posts=False, history=False)

    def _agree(self) -> bool:
        """Positions, cash and every execution are those of the broker's own book, and nothing differs."""
        truth = self.truth()
        mine = list(self.names.values()) or [truth["main"]]
        accounts = [truth["accounts"][account] for account in mine]
        held: Counter[str] = Counter()
        for account in accounts:
            for symbol, position in account["positions"].items():
                held[symbol] += D(position["qty"])
        ours = {symbol.replace("/", ""): qty for symbol, qty in self.book.totals().items()}
        users = [a for a in self.book.accounts.values() if not a.user.startswith("$")]
        cash = sum((a.cash - a.allotment for a in users), D(0))
        cash += sum((a.cash for a in self.book.accounts.values() if a.user.startswith("$")), D(0))
        theirs = sum((D(account["cash"]) for account in accounts), D(0))
        orders = {one["id"]: one for account in accounts for one in account["orders"]}
        return (
            ours == {symbol: qty for symbol, qty in held.items() if qty}
            and cash == theirs
            and all(
                (order := self.book.by_broker_order_id(broker_id)) is None or order.filled_qty == D(one["filled_qty"])
                for broker_id, one in orders.items()
            )
            and not self.reconciler.report().differences
        )
