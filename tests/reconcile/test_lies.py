"""Seeded lies: a stream that loses, doubles and reorders, lists that lag and fail, crashes in between, busts and
corrections, orders by hand. When it has all been told, the books are the broker's, and nothing was booked twice.

DESK_LIES_SEEDS (like 1-200) tries more of them.
"""

import asyncio
import contextlib
import os
import random
from decimal import Decimal as D

import pytest

from desk_server.book import Book
from desk_server.brokers import BrokerEvent, BrokerUnknown
from desk_server.domain import OrderChange, OrderClass, Side, State, StopLoss, UserId
from desk_server.errors import DeskError
from desk_server.ledger.sqlite_file import checked_rows
from tests.desk.conftest import ALICE, BOB
from tests.reconcile.ground import ADOPT_S, GRACE_S, Ground, HandClock, Records, request

_FIRST, _, _LAST = os.environ.get("DESK_LIES_SEEDS", "1-12").partition("-")
SYMBOLS = {"AAPL": D(100), "SPY": D(400)}


class Liar:
    """The stream: each event lost, told twice, told later (in whatever order), or told."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.late: list[BrokerEvent] = []
        self.is_honest = False

    def __call__(self, said: BrokerEvent) -> list[BrokerEvent]:
        fate = 1.0 if self.is_honest else self.chance.random()
        if fate < 0.25:
            return []
        if fate < 0.4:
            self.late.append(said)
            return []
        if fate < 0.5 and self.late:
            self.chance.shuffle(self.late)
            return [said, self.late.pop(), said]
        return [said, said] if fate < 0.6 else [said]


class Story:
    def __init__(self, directory, seed: int) -> None:
        self.directory = directory
        self.seed = seed
        self.chance = random.Random(seed)
        self.broker = Records(HandClock(), seed=seed, partial=40.0)
        self.liar = self.broker.stream = Liar(seed)
        self.runs = 0
        self.by_hand = 0

    async def run(self) -> Ground:
        self.ground = await self._start()
        await self.ground.look(1)
        acts = [self.place] * 6 + [self.line] * 6 + [self.cancel] * 2 + [self.replace] * 2 + [self.look] * 4
        acts += [self.bracket, self.hand, self.bust, self.correct, self.lag, self.fail, self.crash, self.tell_late]
        for _ in range(120):
            await self.chance.choice(acts)()
            self.broker.clock.advance(self.chance.random())
        await self.heal()
        return self.ground

    async def _start(self) -> Ground:
        self.runs += 1
        return await Ground(self.directory, self.broker).start()

    async def place(self) -> None:
        symbol = self.chance.choice(list(SYMBOLS))
        user, side = self.chance.choice((ALICE, BOB)), self.chance.choice(("buy", "buy", "sell"))
        limit = SYMBOLS[symbol] * self.chance.choice((98, 102)) / 100
        more = {"limit_price": limit} if self.chance.random() < 0.5 else {}
        if self.chance.random() < 0.2:
            self.broker.answers_lost = 1
        with contextlib.suppress(DeskError):
            await self.ground.desk.place(user, request(side, str(self.chance.randint(1, 30)), symbol, **more))

    async def bracket(self) -> None:
        exits = {"order_class": OrderClass.BRACKET, "take_profit": D(103), "stop_loss": StopLoss(D(97))}
        with contextlib.suppress(DeskError):
            await self.ground.desk.place(self.chance.choice((ALICE, BOB)), request("buy", "7", **exits))

    async def line(self) -> None:
        symbol = self.chance.choice(list(SYMBOLS))
        price = SYMBOLS[symbol] * (100 + self.chance.randint(-4, 4)) / 100
        await self.ground.line(symbol, f"{price - D('0.01')}", f"{price}")

    async def cancel(self) -> None:
        if mine := self.ground.book.open_orders():
            order = self.chance.choice(mine)
            with contextlib.suppress(DeskError):
                await self.ground.desk.cancel(ALICE if order.user == "alice" else BOB, order.order_id)

    async def replace(self) -> None:
        mine = [o for o in self.ground.book.open_orders() if o.qty and not o.parent_id and not o.leg_ids]
        if not mine:
            return
        order = self.chance.choice(mine)
        change = OrderChange(qty=order.qty + self.chance.randint(1, 5))
        if self.chance.random() < 0.3:
            self.broker.answers_lost = 1
        with contextlib.suppress(DeskError):
            await self.ground.desk.replace(ALICE if order.user == "alice" else BOB, order.order_id, change)

    async def hand(self) -> None:
        self.by_hand += 1
        self.broker.answers_lost = 0
        await self.broker.external(self.chance.choice(list(Side)), "3", self.chance.choice(list(SYMBOLS)))

    async def bust(self) -> None:
        if ours := self._ours():
            await self.broker.bust(self.chance.choice(ours))

    async def correct(self) -> None:
        if ours := self._ours():
            await self.broker.correct(self.chance.choice(ours), f"{self.chance.randint(90, 110)}")

    def _ours(self) -> list[str]:
        """Executions of orders that are over: what the exchange does next does not depend on them."""
        over = {r.broker_id for r in self.broker.exchange._orders.values() if r.status == "filled" and not r.group}
        return [e for e, one in self.broker.list.items() if one.broker_order_id in over]

    async def lag(self) -> None:
        self.broker.unlisted = set(self.chance.sample(sorted(self.broker.list), min(2, len(self.broker.list))))

    async def fail(self) -> None:
        self.broker.is_down = not self.broker.is_down

    async def tell_late(self) -> None:
        while self.liar.late:
            await self.ground.keeper.on_broker_event(self.liar.late.pop())

    async def look(self) -> None:
        with contextlib.suppress(BrokerUnknown):
            await self.ground.look(1, every_s=self.chance.choice((0.5, 2, 15)))

    async def crash(self) -> None:
        """The desk stops, mostly with its last words unheard, and another starts on what it left."""
        if self.chance.random() < 0.5:
            return
        await self.ground.stop()
        self.broker._on_event = None
        self.ground = await self._start()

    async def heal(self) -> None:
        self.broker.is_down, self.broker.unlisted, self.broker.answers_lost = False, set(), 0
        self.liar.is_honest = True
        await self.tell_late()
        for _ in range(8):
            await self.ground.look(1, every_s=GRACE_S)
            await asyncio.sleep(0.05)
        for _ in range(3):
            await self.ground.look(1, every_s=ADOPT_S)
        await self.ground.look()


@pytest.mark.parametrize("seed", range(int(_FIRST), int(_LAST or _FIRST) + 1))
async def test_the_books_are_the_brokers_after_all_lies(tmp_path, seed):
    """Every order, execution, position and dollar; users got exactly what their orders executed."""
    story = Story(tmp_path, seed)
    ground = await story.run()
    try:
        ground.agree()
        report = ground.reconciler.report()
        assert not report.differences, report.differences
        assert report.problem == ""
        assert len(ground.book.foreign_orders()) == story.by_hand
        _users_have_what_their_orders_executed(ground)
        again = Book()
        for row, event in checked_rows(ground.ledger.path, 0):
            again.fold(row[0], event)
        assert again.positions == ground.book.positions
        assert again.accounts == ground.book.accounts
        open_states = {order.state for order in ground.book.open_orders()}
        assert open_states <= {State.LIVE, State.HELD}
    finally:
        await ground.stop()


def _users_have_what_their_orders_executed(ground: Ground) -> None:
    held: dict[tuple[str, str], D] = {}
    names = {r.broker_id: r.client_id for r in ground.broker.exchange._orders.values()}
    for one in ground.broker.list.values():
        name = names[one.broker_order_id]
        user = name.split(".")[1] if name.startswith("d1.") else "$house"
        held[user, one.symbol] = held.get((user, one.symbol), D(0)) + one.qty * one.side.sign
    for (user, symbol), qty in held.items():
        if user != "$house":
            assert ground.book.position(UserId(user), symbol).qty == qty, (user, symbol)
