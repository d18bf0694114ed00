"""What both Alpaca brokers have besides their orders: a beginning, an end, health, assets, clock and calendar."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from datetime import date
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import structlog

from desk_server.brokers import BrokerThrottled, BrokerUnknown, Capabilities, MarketClock
from desk_server.brokers.alpaca import Tuning
from desk_server.brokers.alpaca.assets import Assets
from desk_server.brokers.alpaca.health import Health
from desk_server.brokers.alpaca.hours import Hours
from desk_server.brokers.alpaca.rest import Rate, Rest
from desk_server.brokers.alpaca.updates import Updates
from desk_server.brokers.alpaca.watch import OnEvent, Watched
from desk_server.clock import Clock, SystemClock
from desk_server.domain import Asset, Order, Symbol
from desk_server.sessions import TradingDay

if TYPE_CHECKING:
    from desk_server.brokers.alpaca.sdk import Line

log = structlog.get_logger(__name__)

_PRACTICE_HOSTS = frozenset(
    {"paper-api.alpaca.markets", "broker-api.sandbox.alpaca.markets", "127.0.0.1", "localhost", "::1"}
)


def is_live(base_url: str) -> bool:
    """Whether orders there move real money: everywhere but on the practice hosts and this machine."""
    return urlsplit(base_url).hostname not in _PRACTICE_HOSTS


class AlpacaBase(ABC):
    """Set `on_gap`, `may_send` and `fenced` before `connect`.

    `on_gap` is called whenever order updates may have been missed: compare with the records then.
    `may_send` is asked right before an order goes out, after it has waited for its turn: why it must not any
    more, or "". It is then not sent (BrokerThrottled). `fenced` is asked so before anything that changes
    something, cancels too: why this process may send nothing.
    """

    capabilities: Capabilities
    stream: Watched

    def __init__(
        self,
        open_line: "Callable[[], Line]",
        on_gap: Callable[[], None] | None,
        clock: Clock | None,
        tuning: Tuning | None,
    ) -> None:
        self.on_gap = on_gap
        self.may_send: Callable[[Order], str] | None = None
        self.tuning = tuning or Tuning()
        self.clock = clock or SystemClock()
        self.health = Health(self.clock, self.tuning.stale_s)
        self.rest = Rest(open_line, self.tuning, self.health)
        self.updates = Updates()
        self._assets = Assets(self.rest, self.clock, self.tuning.assets_s)
        self._hours = Hours(self.rest, self.clock, self.tuning)
        self._tasks: list[asyncio.Task[None]] = []
        # What kept the account from being used at the last look.
        self._trouble = ""

    async def connect(self, on_event: OnEvent) -> None:
        """Returns when the stream was opened and the account looked at, or both were tried in vain: `problem` and
        `stream_problem` tell, and both are tried on."""
        if self._tasks:
            raise RuntimeError("connected already")
        self._tasks = [
            asyncio.create_task(self.stream.run(on_event), name="alpaca stream"),
            asyncio.create_task(self._watch(), name="alpaca watch"),
        ]
        tried = asyncio.create_task(self.stream.tried.wait())
        checked = asyncio.create_task(self._check())
        _, late = await asyncio.wait({tried, checked}, timeout=self.tuning.open_s)
        for task in late:
            task.cancel()

    def problem(self) -> str:
        """Why orders cannot be sent now; "" when all is well. A broken stream is no such reason."""
        return self.health.problem()

    def stream_problem(self) -> str:
        """Why order updates do not come by stream, so that only polling tells; "" when they do."""
        return self.stream.problem

    @property
    def fenced(self) -> Callable[[], str]:
        return self.rest.fenced

    @fenced.setter
    def fenced(self, fenced: Callable[[], str]) -> None:
        self.rest.fenced = fenced

    @property
    def rate(self) -> Rate | None:
        """What the broker said last of its rate limit."""
        return self.rest.rate

    async def asset(self, symbol: Symbol) -> Asset | None:
        return await self._assets.get(symbol)

    async def market_clock(self) -> MarketClock:
        return await self._hours.clock()

    async def calendar(self, start: date, end: date) -> Sequence[TradingDay]:
        return await self._hours.calendar(start, end)

    async def close(self) -> None:
        """Ends the stream and whatever is under way; what was not answered stays unknown."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._assets.close()
        await self._hours.close()
        await self.rest.close()

    @abstractmethod
    async def _look(self) -> None:
        """Ask the broker something that shows whether it is there, and whether it would trade."""
        ...

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.tuning.check_s)
            await self._check()

    async def _check(self) -> None:
        """Says when the account cannot be looked at, why, and when it can again: not every time."""
        trouble = ""
        try:
            await self._look()
        except (BrokerUnknown, BrokerThrottled) as silence:
            trouble = str(silence)
        except Exception:
            log.exception("looking at the account failed: it is tried again")
            return
        trouble = trouble or self.health.account_problem
        if trouble and trouble != self._trouble:
            log.warning("the account at Alpaca cannot be used", reason=trouble)
        elif self._trouble and not trouble:
            log.info("the account at Alpaca can be used again")
        self._trouble = trouble

    def _gap(self) -> None:
        if self.on_gap is not None:
            self.on_gap()

    def _still(self, order: Order) -> Callable[[], bool] | None:
        may_send = self.may_send
        return None if may_send is None else lambda: not may_send(order)
