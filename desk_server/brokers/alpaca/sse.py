"""Order updates of all sub-accounts as server-sent events (Broker API), resumed where they broke off.

Each event has an id (a ULID at /v2, a number at the older /v1); the next session asks for everything since the
last one that was delivered. Only "you are reading too slowly, dropped …", told in a comment, is a gap.
alpaca-py reads these with a blocking call without a timeout: here only its URL and headers are used.
"""

from collections.abc import AsyncIterator, Callable, Collection, Mapping
from datetime import datetime

import httpx
import structlog

from desk_server.brokers import BrokerUnknown
from desk_server.brokers.alpaca import Tuning
from desk_server.brokers.alpaca.answers import decoded
from desk_server.brokers.alpaca.fields import mapping, stamp, text
from desk_server.brokers.alpaca.updates import Updates
from desk_server.brokers.alpaca.watch import StreamBroken, StreamRefused, Watched
from desk_server.clock import Clock

log = structlog.get_logger(__name__)

# The older address is still there for those who have always used it.
PATHS = ("/v2/events/trades", "/v1/events/trades")
_EVENT_BYTES_MAX = 2**20


class TradeEvents(Watched):
    """`accounts`: whose events are delivered; those of others are passed over."""

    def __init__(
        self,
        base_url: str,
        headers: Mapping[str, str],
        *,
        accounts: Collection[str],
        since: datetime,
        updates: Updates,
        tuning: Tuning,
        clock: Clock,
        on_gap: Callable[[], None],
    ) -> None:
        super().__init__(updates, tuning, clock, on_gap)
        self._base_url = base_url.rstrip("/")
        self._headers = dict(headers)
        self._accounts = frozenset(accounts)
        self._since = since
        self._path = PATHS[0]
        self._last_id = ""

    async def _session(self) -> None:
        tuning = self.tuning
        timeout = httpx.Timeout(tuning.connect_s, read=tuning.idle_s)
        query = {"since_id": self._last_id} if self._last_id else {"since": stamp(self._since)}
        try:
            async with (
                httpx.AsyncClient(timeout=timeout) as client,
                client.stream("GET", self._base_url + self._path, params=query, headers=self._headers) as response,
            ):
                self._require_open(response.status_code)
                self._is_open(replayed=True)
                await self._read(response)
        except httpx.HTTPError as error:
            raise StreamBroken(type(error).__name__) from None

    def _require_open(self, status: int) -> None:
        if status == 404 and self._path != PATHS[-1]:
            self._path, self._last_id = PATHS[-1], ""
            raise StreamBroken("there are no events under /v2: trying /v1")
        if status in (401, 403):
            raise StreamRefused("Alpaca refuses the key on the stream of order updates")
        if status != 200:
            raise StreamBroken(f"HTTP {status}")

    async def _read(self, response: httpx.Response) -> None:
        data: list[bytes] = []
        async for line in _lines(response):
            if line.startswith(b":"):
                self._comment(line)
            elif line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
                if sum(map(len, data)) > _EVENT_BYTES_MAX:
                    raise StreamBroken("an event has no end")
            elif not line and data:
                await self._event(b"\n".join(data))
                data = []
        raise StreamBroken("it ended")

    async def _event(self, written: bytes) -> None:
        try:
            data = mapping(decoded(written))
        except BrokerUnknown as error:
            # To break off would bring the same one again, for ever.
            log.error("an order update cannot be read", reason=str(error))
            self._on_gap()
            return
        event_id = str(data.get("event_id") or "")
        if event_id and event_id == self._last_id:
            return  # where a replay begins, the last one is told again
        account = text(data, "account_id")
        if account in self._accounts:
            await self._take(data, account)
        self._last_id = event_id or self._last_id

    def _comment(self, line: bytes) -> None:
        if b"drop" in line or b"slow" in line:
            log.error("Alpaca left out order updates", comment=line[:200].decode(errors="replace"))
            self._on_gap()


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """Split at line feeds only: what else counts as a line's end in Unicode may stand inside of JSON."""
    rest = b""
    async for chunk in response.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > _EVENT_BYTES_MAX:
            raise StreamBroken("a line has no end")
        for line in lines:
            yield line.removesuffix(b"\r")
