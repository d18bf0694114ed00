"""What Alpaca lists, looked up without asking it each time.

The whole list is fetched now and then (some 12,000 entries), so that symbols which do not exist, of which anybody
can think up many, cost no requests. What is not in it is asked for by name, but only so often.
"""

import asyncio
import re
from collections import OrderedDict, deque

import structlog

from desk_server.brokers import BrokerThrottled, BrokerUnknown
from desk_server.brokers.alpaca import records
from desk_server.brokers.alpaca.account import looked_up
from desk_server.brokers.alpaca.answers import Answer, is_not_found
from desk_server.brokers.alpaca.fields import mapping, rows
from desk_server.brokers.alpaca.rest import Lane, Rest
from desk_server.clock import Clock
from desk_server.domain import Asset, Symbol

log = structlog.get_logger(__name__)

LOOKUPS_PER_MINUTE_MAX = 20
_UNKNOWN_KEPT, _UNKNOWN_S = 4096, 60.0
_RETRY_S = 10.0
_CLASSES = ("us_equity", "crypto")
# What may stand in a URL's path. Anything else no broker lists.
_SYMBOL = re.compile(r"[A-Z][A-Z0-9.]{0,14}(?:/[A-Z]{2,6})?")


class Assets:
    def __init__(self, rest: Rest, clock: Clock, fresh_s: float) -> None:
        self._rest = rest
        self._clock = clock
        self._fresh_s = fresh_s
        self._all: dict[Symbol, Asset] = {}
        self._due_s = clock.monotonic_s()
        self._loading: asyncio.Task[None] | None = None
        # Symbols that the broker did not know, and until when that is believed.
        self._unknown: OrderedDict[Symbol, float] = OrderedDict()
        self._looked_up: deque[float] = deque(maxlen=LOOKUPS_PER_MINUTE_MAX)

    async def get(self, symbol: Symbol) -> Asset | None:
        """None when the broker does not know the symbol. Raises BrokerUnknown, BrokerThrottled."""
        if self._clock.monotonic_s() >= self._due_s:
            loading = self._load()
            if not self._all:
                await asyncio.wait({loading})
        found = self._all.get(symbol)
        if found is not None or not _SYMBOL.fullmatch(symbol):
            return found
        return await self._look_up(symbol)

    def _load(self) -> asyncio.Task[None]:
        """Fetch the list, unless that is under way."""
        if self._loading is None or self._loading.done():
            self._loading = asyncio.create_task(self._fetch(), name="alpaca assets")
        return self._loading

    async def _fetch(self) -> None:
        fetched: dict[Symbol, Asset] = {}
        try:
            for asset_class in _CLASSES:
                query = {"status": "active", "asset_class": asset_class}
                answer = await self._rest.ask(Lane.RECORDS, "GET", "/assets", query)
                # Some megabytes: too long a pause for the event loop.
                fetched |= await asyncio.to_thread(_listed, answer)
        except (BrokerUnknown, BrokerThrottled) as silence:
            log.warning("the list of assets could not be fetched", reason=str(silence), next_try_s=_RETRY_S)
            self._due_s = self._clock.monotonic_s() + _RETRY_S
            return
        self._all = fetched
        self._unknown.clear()
        self._due_s = self._clock.monotonic_s() + self._fresh_s

    async def _look_up(self, symbol: Symbol) -> Asset | None:
        now_s = self._clock.monotonic_s()
        if self._unknown.get(symbol, now_s) > now_s:
            return None
        looked_up_s = self._looked_up
        if len(looked_up_s) == LOOKUPS_PER_MINUTE_MAX and now_s - looked_up_s[0] < 60:
            raise BrokerThrottled(60 - (now_s - looked_up_s[0]))
        looked_up_s.append(now_s)
        answer = await self._rest.ask(Lane.RECORDS, "GET", f"/assets/{symbol}")
        asset = None if is_not_found(answer) else records.asset(mapping(looked_up(answer)))
        # Another thing than was asked for (BTC/USD for BTCUSD) is not it.
        if asset is None or asset.symbol != symbol:
            self._unknown[symbol] = now_s + _UNKNOWN_S
            if len(self._unknown) > _UNKNOWN_KEPT:
                self._unknown.popitem(last=False)
            return None
        self._all[symbol] = asset
        return asset

    async def close(self) -> None:
        """Ends a fetch that is under way."""
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.gather(self._loading, return_exceptions=True)


def _listed(answer: Answer) -> dict[Symbol, Asset]:
    found = (records.asset(row) for row in rows(looked_up(answer)))
    return {asset.symbol: asset for asset in found if asset is not None}
