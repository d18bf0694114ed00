"""The brokers under test, each with a market that it can be made to see and the events it has delivered."""

import asyncio
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from msgspec.structs import replace
from paper_samples import ASSETS, NOON, FixedClock, line, whats

from desk_server.brokers import What
from desk_server.brokers.alpaca import Tuning
from desk_server.brokers.alpaca.broker_api import AlpacaSubAccounts
from desk_server.brokers.alpaca.trading import AlpacaBroker
from desk_server.brokers.paper import PaperBroker
from tests.alpaca.server import running_alpaca

DEADLINE_S = 10.0
# Nothing is given up because the machine is busy.
CALM = Tuning(check_s=0.5, backoff_s=0.02)
# For tests of what is given up: as the defaults, but faster where a test would have to wait.
FAST = Tuning(
    connect_s=1.0,
    read_s=1.0,
    request_s=1.2,
    check_s=0.3,
    stale_s=3.0,
    open_s=3.0,
    ping_s=1.0,
    mute_s=0.8,
    idle_s=6.0,
    backoff_s=0.02,
    backoff_max_s=0.2,
    refused_s=0.3,
)


class Rig:
    """`broker` is made and connected by `connected`; `submit` is the broker's, and notes what orders are called."""

    def __init__(self) -> None:
        self.events = []
        self._ids = {}

    async def on_event(self, event) -> None:
        self.events.append(event)

    async def submit(self, order, legs=()):
        ack = await self.broker.submit(order, legs)
        self._ids[order.order_id] = ack.broker_order_id
        self._ids |= {leg.order_id: known.broker_order_id for leg, known in zip(legs, ack.legs, strict=True)}
        return ack

    def known(self, order):
        """The order as the book has it once it was acknowledged."""
        return replace(order, broker_order_id=self._ids.get(order.order_id, ""))

    def about(self, order) -> list:
        """What was said of it: legs have another name at the broker, and are known by their id."""
        names = (order.client_order_id, self._ids.get(order.order_id))
        return [event for event in self.events if event.client_order_id in names or event.broker_order_id in names]

    async def until(self, order, what: str, times: int = 1) -> None:
        """Wait for that event; fails after a while."""
        await self.eventually(lambda: whats(self.about(order)).count(what) >= times, lambda: whats(self.events))

    @staticmethod
    async def eventually(is_so, shown=lambda: "") -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not is_so():
            assert time.monotonic() < deadline, f"it did not come to pass: {shown()}"
            await asyncio.sleep(0.002)

    def fills(self, order=None) -> list:
        events = self.events if order is None else self.about(order)
        return [event for event in events if event.what is What.FILL]


class PaperRig(Rig):
    @asynccontextmanager
    async def running(self):
        self.broker = PaperBroker(ASSETS, clock=FixedClock(NOON))
        yield

    async def market(self, price, symbol: str = "AAPL") -> None:
        self.broker.on_quote(line(price, symbol=symbol))


class AlpacaRig(Rig):
    """The Trading API, on a server with a book of its own."""

    def __init__(self, tuning=CALM) -> None:
        super().__init__()
        self.tuning = tuning

    @asynccontextmanager
    async def running(self):
        with running_alpaca(seed=7, accounts=2) as self.alpaca:
            self.control = self.alpaca.control
            self.gaps = 0
            self.broker = self.make()
            yield

    def make(self, **more):
        alpaca = self.alpaca
        given = {"base_url": alpaca.url, "stream_url": alpaca.stream_url, "on_gap": self.gap, "tuning": self.tuning}
        return AlpacaBroker(alpaca.key, alpaca.secret, **(given | more))

    def gap(self) -> None:
        self.gaps += 1

    async def market(self, price, symbol: str = "AAPL") -> None:
        await asyncio.to_thread(self.control.price, {symbol: price})

    @property
    def account(self) -> str:
        return self.control.dump(posts=False, history=False)["main"]

    def truth(self) -> dict:
        """The account as the broker's own book has it."""
        return self.control.dump(posts=False)["accounts"][self.account]

    def truth_of(self, order) -> dict:
        return next(one for one in self.truth()["orders"] if one["client_order_id"] == order.client_order_id)

    def posts(self, order) -> list[dict]:
        return [one for one in self.control.dump()["posts"] if one["client_order_id"] == order.client_order_id]


class SubAccountRig(AlpacaRig):
    """The Broker API: alice and bob have an account each."""

    def make(self, **more):
        alpaca = self.alpaca
        self.accounts = dict(zip(("alice", "bob"), alpaca.accounts, strict=True))
        given = {
            "accounts": self.accounts,
            "base_url": alpaca.url,
            "on_gap": self.gap,
            "tuning": self.tuning,
            "events_since": datetime.now(UTC) - timedelta(minutes=1),
        }
        return AlpacaSubAccounts(alpaca.broker_key, alpaca.broker_secret, **(given | more))

    @property
    def account(self) -> str:
        return self.accounts["alice"]


@asynccontextmanager
async def connected(rig):
    """The rig with its broker connected, at a market where AAPL is 100."""
    async with rig.running():
        await rig.broker.connect(rig.on_event)
        await rig.market(100)
        try:
            yield rig
        finally:
            await rig.broker.close()
