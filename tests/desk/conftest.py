"""A whole desk without doors, on a real SQLite ledger, whose market moves when a test says so."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from desk_server.bookkeeper import Bookkeeper
from desk_server.brokers import Ack, Broker, BrokerEvent, BrokerOrder, BrokerRejected, BrokerThrottled, BrokerUnknown
from desk_server.brokers.fills import FillModel
from desk_server.brokers.paper import PaperBroker
from desk_server.clock import SystemClock
from desk_server.desk import Desk
from desk_server.domain import Asset, AssetClass, Identity, Order, OrderChange, OrderId, Role, Symbol, UserId
from desk_server.ledger.sqlite import SqliteLedger
from desk_server.market import Hub
from desk_server.risk import Limits
from desk_server.tape import Tape
from desk_server.throttle import Throttle

# A Monday, ten o'clock in New York.
TEN_O_CLOCK = datetime(2026, 1, 5, 15, tzinfo=UTC)
ALICE = Identity(UserId("alice"), Role.TRADE)
BOB = Identity(UserId("bob"), Role.TRADE)
ADMIN = Identity(UserId("admin"), Role.ADMIN)
ASSETS = [
    Asset(Symbol("AAPL"), AssetClass.US_EQUITY),
    Asset(Symbol("SPY"), AssetClass.US_EQUITY),
    Asset(Symbol("BTC/USD"), AssetClass.CRYPTO),
]


@dataclass
class FaultyBroker:
    """The paper exchange behind a wire that fails as told: "lost" before it arrives, "mute" after; "late" arrives
    just before the next request, "throttled" is not looked at, "refused" is, "idle" is granted and not done.
    `gate` holds requests back, `gate_back` their answers. `missing` lookups find nothing."""

    paper: PaperBroker
    faults: list[str] = field(default_factory=list)
    submits: list[str] = field(default_factory=list)
    find_faults: int = 0
    missing: int = 0
    finds: int = 0
    cancel_faults: list[str] = field(default_factory=list)
    cancels: list[str] = field(default_factory=list)
    gate: asyncio.Event | None = None
    gate_back: asyncio.Event | None = None
    late: Callable[[], Awaitable[object]] | None = None

    @property
    def capabilities(self):
        return self.paper.capabilities

    async def connect(self, on_event: Callable[[BrokerEvent], Awaitable[None]]) -> None:
        await self.paper.connect(on_event)

    def problem(self) -> str:
        return self.paper.problem()

    async def submit(self, order: Order, legs: Sequence[Order] = ()) -> Ack:
        self.submits.append(order.client_order_id)
        return await self._through(lambda: self.paper.submit(order, legs), self.faults)

    async def cancel(self, order: Order) -> None:
        self.cancels.append(order.client_order_id)
        await self._through(lambda: self.paper.cancel(order), self.cancel_faults)

    async def replace(self, order: Order, new: Order, change: OrderChange) -> Ack:
        return await self._through(lambda: self.paper.replace(order, new, change), self.faults)

    async def find(self, order: Order) -> BrokerOrder | None:
        self.finds += 1
        if self.missing:
            self.missing -= 1
            return None
        if self.find_faults:
            self.find_faults -= 1
            raise BrokerUnknown("503")
        return await self.paper.find(order)

    async def asset(self, symbol: Symbol) -> Asset | None:
        return await self.paper.asset(symbol)

    async def close(self) -> None:
        await self.paper.close()

    async def _through(self, call, faults: list[str]):
        if self.gate:
            await self.gate.wait()
        late, self.late = self.late, None
        if late is not None:
            await late()
        fault = faults.pop(0) if faults else ""
        if fault == "late":
            self.late = call
        if fault in ("lost", "late"):
            raise BrokerUnknown("the connection broke before the request was sent")
        if fault == "throttled":
            raise BrokerThrottled(0.2)
        if fault == "refused":
            raise BrokerRejected("42210000", "it cannot be done now")
        if fault == "idle":
            return None
        answer = await call()
        if self.gate_back:
            await self.gate_back.wait()
        if fault == "mute":
            raise BrokerUnknown("the connection broke before the answer came")
        return answer


class DeskUnderTest:
    """One run of the desk on a directory; `restarted` is the next run on the same one."""

    def __init__(
        self,
        directory: Path,
        *,
        start_at: datetime = TEN_O_CLOCK,
        model: FillModel | None = None,
        seed: int = 1,
        wire: Callable[[PaperBroker], Broker] = FaultyBroker,
        desk: Mapping[str, object] | None = None,
        **limits: object,
    ) -> None:
        """`desk` are further arguments of Desk."""
        self.directory = directory
        self.made_with = {"model": model, "seed": seed, "wire": wire, "desk": desk, **limits}
        self.at = start_at
        clock = SystemClock()
        self.ledger = SqliteLedger(directory / "ledger" / "desk.db")
        self.hub = Hub(Tape(directory / "tape", 2**20), clock, 1000)
        self.broker = wire(PaperBroker(ASSETS, model=model or FillModel(), seed=seed, clock=clock))
        self.hub.taps.append(self.broker.paper.on_quote)
        self.keeper = Bookkeeper(self.ledger, clock)
        chosen: dict[str, object] = {
            "qty_max": Decimal(10_000),
            "notional_usd_max": Decimal(1_000_000),
            "collar_percent": Decimal(10),
            "market_buffer_percent": Decimal(0),
            "quote_age_s_max": 60.0,
            "open_orders_max": 500,
            "allow_short": False,
        }
        self.desk = Desk(
            keeper=self.keeper,
            broker=self.broker,
            hub=self.hub,
            clock=clock,
            limits=Limits(**(chosen | limits)),
            throttle=Throttle(100_000, clock),
            allotment=Decimal(100_000),
            **(desk or {}),
        )

    async def start(self) -> "DeskUnderTest":
        self.keeper.load()
        self.broker.paper.restore(self.keeper.book.orders.values())
        await self.desk.start()
        return self

    async def stop(self) -> None:
        await self.desk.close()
        self.hub.close()

    async def restarted(self) -> "DeskUnderTest":
        """A second run on what the first one left on disk."""
        await self.stop()
        return await self.anew(self.directory)

    async def anew(self, directory: Path) -> "DeskUnderTest":
        """Another run like this one, on what that directory has."""
        return await DeskUnderTest(directory, start_at=self.at, **self.made_with).start()

    def line(self, symbol: str = "AAPL", bid: str = "99.99", ask: str = "100") -> None:
        self.at += timedelta(seconds=1)
        stamp = self.at.isoformat().replace("+00:00", "Z")
        line = f'{{"type":"quote","symbol":"{symbol}","timestamp":"{stamp}","bid":{bid},"ask":{ask},"price":{ask}}}'
        assert self.hub.publish(line.encode())

    async def until(self, true: Callable[[], bool], timeout_s: float = 10.0) -> None:
        """Wait for the broker's events to have been written down."""
        async with asyncio.timeout(timeout_s):
            while not true():  # noqa: ASYNC110 (there is no event to wait for: it is the outcome that counts)
                await asyncio.sleep(0.005)

    async def ended(self, order: Order, status: str) -> Order:
        await self.until(lambda: self.now(order).status == status)
        return self.now(order)

    def now(self, order: Order) -> Order:
        return self.desk.book.orders[OrderId(order.order_id)]


@pytest.fixture
async def run(tmp_path):
    """A desk with a first line of every asset."""
    under_test = await DeskUnderTest(tmp_path).start()
    for symbol in ("AAPL", "SPY"):
        under_test.line(symbol)
    under_test.line("BTC/USD", "49990", "50000")
    yield under_test
    await under_test.stop()
