"""Keeps a stream of order updates open: opens it again when it breaks, and when it only pretends to be there.

A stream that stays open and says nothing is known by what it should have said: after an order was acknowledged
(`expect`) an update must come within `mute_s`. A refused key is not asked with again and again.
"""

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable

import structlog

from desk_server.brokers import BrokerEvent, BrokerUnknown
from desk_server.brokers.alpaca import Tuning
from desk_server.brokers.alpaca.fields import Json
from desk_server.brokers.alpaca.updates import Updates
from desk_server.clock import Clock

log = structlog.get_logger(__name__)

OnEvent = Callable[[BrokerEvent], Awaitable[None]]

# A stream that was open for so long had not failed at once: the next wait is short again.
_STEADY_S = 10.0


class StreamRefused(Exception):
    """The broker does not want to talk to us: trying at once again would not change that."""


class StreamBroken(Exception):
    """The stream cannot be read on."""


class Watched(ABC):
    """A task's worth of stream: `run` never returns. `on_gap` is called when updates may have been missed."""

    def __init__(self, updates: Updates, tuning: Tuning, clock: Clock, on_gap: Callable[[], None]) -> None:
        self.tuning = tuning
        # Why no updates come this way; "" when they do.
        self.problem = "the stream of order updates is not open yet"
        self.opened = asyncio.Event()
        # Set for good once a first session was opened, or could not be.
        self.tried = asyncio.Event()
        self._clock = clock
        self._updates = updates
        self._on_gap = on_gap
        self._on_event: OnEvent | None = None
        self._failures = 0
        self._awaited_since_s: float | None = None
        self._doubt = ""

    @abstractmethod
    async def _session(self) -> None:
        """Open the stream, call `_is_open`, `_take` each update. Ends by raising, however it ends."""
        ...

    def expect(self) -> None:
        """Something was done that the stream must tell of."""
        if self._awaited_since_s is None:
            self._awaited_since_s = self._clock.monotonic_s()

    def doubt(self, reason: str) -> None:
        """It has not told what others know: open it anew."""
        self._doubt = reason

    async def run(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        while True:
            wait_s = await self._until_broken()
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))

    async def _until_broken(self) -> float:
        """One session from beginning to end; how long to wait before the next."""
        self._awaited_since_s, self._doubt = None, ""
        began_s = self._clock.monotonic_s()
        session = asyncio.create_task(self._session(), name="alpaca stream session")
        try:
            while not session.done():
                await asyncio.wait({session}, timeout=self.tuning.mute_s / 4)
                if not session.done() and (why := self._doubts()):
                    raise StreamBroken(why)
            session.result()
            raise StreamBroken("it ended")
        except StreamRefused as no:
            self._closed(f"{no}")
            return self.tuning.refused_s
        except StreamBroken as error:
            self._closed(f"the stream of order updates broke: {error}")
        except Exception as error:
            # Whatever it was, the next session may do better, and polling goes on meanwhile.
            log.exception("the stream of order updates failed")
            self._closed(f"the stream of order updates failed: {type(error).__name__}")
        finally:
            session.cancel()
            await asyncio.gather(session, return_exceptions=True)
        if self._clock.monotonic_s() - began_s > _STEADY_S:
            self._failures = 0
        self._failures += 1
        longest = self.tuning.backoff_max_s
        return min(self.tuning.backoff_s * float(2 ** min(self._failures - 1, 16)), longest)

    def _doubts(self) -> str:
        since_s = self._awaited_since_s
        if self.opened.is_set() and since_s is not None:
            silence_s = self._clock.monotonic_s() - since_s
            if silence_s > self.tuning.mute_s:
                return f"it said nothing for {silence_s:.0f} s after an order"
        return self._doubt

    def _is_open(self, *, replayed: bool = False) -> None:
        """Updates come from now on; those from before only where they are `replayed`."""
        log.info("order updates come by stream")
        self.problem = ""
        self.opened.set()
        self.tried.set()
        if not replayed:
            self._on_gap()

    def _closed(self, why: str) -> None:
        if self.problem != why:
            log.warning("order updates do not come by stream", reason=why)
        self.problem = why
        self.opened.clear()
        self.tried.set()

    async def _take(self, data: Json, account: str = "") -> None:
        """Deliver one update. One that cannot be read is a gap."""
        self._awaited_since_s = None
        self._failures = 0
        try:
            events = self._updates.events(data, account)
        except BrokerUnknown as unreadable:
            log.error("an order update cannot be read", reason=str(unreadable), update=str(data.get("event"))[:40])
            self._on_gap()
            return
        assert self._on_event is not None
        for event in events:
            await self._on_event(event)
