"""The embedded broker: the paper exchange behind the Broker protocol, its events delivered later, as a broker's.

`submit` answers first; what follows comes through `on_event`, one event at a time, from a task of its own. The
queue between them is bounded: while it is full, new requests are refused with BrokerThrottled, and lines wait
(the newest per symbol). Nothing is dropped.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import date, timedelta

import structlog

from desk_server.brokers import (
    Ack,
    BrokerEvent,
    BrokerOrder,
    BrokerThrottled,
    Capabilities,
    Holding,
    Holdings,
    MarketClock,
)
from desk_server.brokers.fills import FillModel
from desk_server.brokers.matching import PaperExchange
from desk_server.clock import Clock, SystemClock
from desk_server.domain import Asset, Order, OrderChange, Quote, Symbol
from desk_server.sessions import NYSE, Calendar, TradingDay, next_open, trading_day
from desk_server.sessions import Session as MarketSession
from desk_server.settings import Settings

log = structlog.get_logger(__name__)

OnEvent = Callable[[BrokerEvent], Awaitable[None]]

EVENTS_WAITING_MAX = 10_000
CLOSE_TIMEOUT_S = 2.0
_RETRY_AFTER_S = 0.05
_EVENTS_PER_TURN = 256


def fill_model(settings: Settings) -> FillModel:
    return FillModel(
        slippage_bps=settings.paper_slippage_bps,
        fee_per_share=settings.paper_fee_per_share,
        fee_bps=settings.paper_fee_bps,
        crypto_fee_bps=settings.paper_crypto_fee_bps,
        partial_percent=settings.paper_partial_percent,
        size_limited=settings.paper_size_limited,
    )


class PaperBroker:
    """Feed it with `on_quote`, a tap of the hub. Lives on one event loop.

    `assets` is all it lists: what the feed will send lines of. After a restart, `restore` comes before `connect`.
    """

    capabilities = Capabilities(name="paper")

    def __init__(
        self,
        assets: Iterable[Asset],
        *,
        model: FillModel | None = None,
        seed: int = 1,
        calendar: Calendar = NYSE,
        clock: Clock | None = None,
        events_waiting_max: int = EVENTS_WAITING_MAX,
    ) -> None:
        self._exchange = PaperExchange(
            assets, model=model or FillModel(), seed=seed, calendar=calendar, clock=clock or SystemClock()
        )
        self._waiting_max = events_waiting_max
        self._late: dict[Symbol, Quote] = {}
        self._said = asyncio.Event()
        self._all_delivered = asyncio.Event()
        self._delivery: asyncio.Task[None] | None = None
        self._failure = ""

    async def connect(self, on_event: OnEvent) -> None:
        if self._delivery is not None:
            raise RuntimeError("the paper exchange is connected already")
        self._said.set()
        self._delivery = asyncio.create_task(self._deliver(on_event), name="paper exchange")

    def problem(self) -> str:
        if self._failure:
            return self._failure
        return "" if self._exchange.has_seen_lines else "no market line seen yet"

    def on_quote(self, quote: Quote) -> None:
        """A market line: called by the hub for each, in order."""
        if self._full or self._failure:
            self._late[quote.symbol] = quote
            return
        self._exchange.on_quote(quote)
        self._announce()

    def restore(self, orders: Iterable[Order]) -> None:
        """Take back the ledger's orders after a restart: open ones work on, all keep their names."""
        self._exchange.restore(orders)

    async def submit(self, order: Order, legs: Sequence[Order] = ()) -> Ack:
        self._require_room()
        ack = self._exchange.submit(order, legs)
        self._announce()
        return ack

    async def cancel(self, order: Order) -> None:
        self._require_room()
        self._exchange.cancel(order)
        self._announce()

    async def replace(self, order: Order, new: Order, change: OrderChange) -> Ack:
        self._require_room()
        ack = self._exchange.replace(order, new, change)
        self._announce()
        return ack

    async def find(self, order: Order) -> BrokerOrder | None:
        return self._exchange.find(order.client_order_id)

    async def asset(self, symbol: Symbol) -> Asset | None:
        return self._exchange.assets.get(symbol)

    async def holdings(self) -> Sequence[Holdings]:
        """Positions only: money is the books' business."""
        held = tuple(Holding(symbol, qty) for symbol, qty in self._exchange.positions().items())
        return [Holdings(account="", users=None, cash=None, buying_power=None, positions=held)]

    async def market_clock(self) -> MarketClock:
        """By the market's time: a replayed tape's own."""
        now = self._exchange.now()
        close = NYSE.day_for(now).close
        return MarketClock(now, NYSE.window(now).session is MarketSession.REGULAR, next_open(now), close)

    async def calendar(self, start: date, end: date) -> Sequence[TradingDay]:
        days = (trading_day(start + timedelta(days=n)) for n in range((end - start).days + 1))
        return [day for day in days if day is not None]

    async def close(self) -> None:
        """Deliver what was said, then stop. What is not delivered never happened: the ledger is the memory."""
        delivery, self._delivery = self._delivery, None
        if delivery is None:
            return
        if not self._failure:
            self._failure = "the paper exchange is closed"
            try:
                await asyncio.wait_for(self._all_delivered.wait(), CLOSE_TIMEOUT_S)
            except TimeoutError:
                log.warning("closed with events undelivered", events=len(self._exchange.outbox))
        delivery.cancel()
        await asyncio.gather(delivery, return_exceptions=True)

    @property
    def _full(self) -> bool:
        return len(self._exchange.outbox) >= self._waiting_max

    def _require_room(self) -> None:
        if self._full or self._failure:
            raise BrokerThrottled(_RETRY_AFTER_S)

    def _announce(self) -> None:
        if self._exchange.outbox:
            self._all_delivered.clear()
            self._said.set()

    async def _deliver(self, on_event: OnEvent) -> None:
        outbox = self._exchange.outbox
        try:
            while True:
                for _ in range(_EVENTS_PER_TURN):
                    if not outbox:
                        break
                    await on_event(outbox.popleft())
                if self._late and not self._full and not self._failure:
                    self._take_late_lines()
                if outbox:
                    await asyncio.sleep(0)
                    continue
                self._all_delivered.set()
                self._said.clear()
                await self._said.wait()
        except Exception:
            log.exception("events of the paper exchange cannot be delivered: it takes no more orders")
            self._failure = "the paper exchange cannot deliver its events: see the log, then restart the desk"

    def _take_late_lines(self) -> None:
        late, self._late = self._late, {}
        for quote in late.values():
            self.on_quote(quote)
