"""Requests to Alpaca from the event loop: worker threads, each request with a deadline, each sent once.

The SDK is synchronous and promises no thread-safety, so each request borrows a `Line` (a client and connection
of its own). Three lanes keep apart what must not wait for each other: orders; cancels and lookups; records.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import structlog
from msgspec import Struct

from desk_server.brokers import BrokerThrottled, BrokerUnknown
from desk_server.brokers.alpaca import Tuning
from desk_server.brokers.alpaca.answers import Answer, NoAnswer, is_key_refused, refusal
from desk_server.brokers.alpaca.health import Health

if TYPE_CHECKING:
    from desk_server.brokers.alpaca.sdk import Line

log = structlog.get_logger(__name__)

_BUSY_RETRY_S = 1.0
_CLOSE_S = 2.0


class Lane(StrEnum):
    """ORDERS: submit and replace. LOOKUPS: cancel and find. RECORDS: lists, holdings, assets, clock."""

    ORDERS = "orders"
    LOOKUPS = "lookups"
    RECORDS = "records"


class Rate(Struct, frozen=True):
    """What the broker said last of its limit: requests a minute, and how many are left until `reset` (epoch s)."""

    limit: int
    remaining: int
    reset: int


class Rest:
    """`ask` sends one request. Lives on one event loop; `open_line` makes a line, and may take its time."""

    def __init__(self, open_line: "Callable[[], Line]", tuning: Tuning, health: Health) -> None:
        sizes = {
            Lane.ORDERS: tuning.order_threads,
            Lane.LOOKUPS: tuning.lookup_threads,
            Lane.RECORDS: tuning.record_threads,
        }
        self._lanes = {lane: _Lane(lane, size, open_line, tuning) for lane, size in sizes.items()}
        self._health = health
        self.rate: Rate | None = None
        # Why nothing may be sent that changes anything; "" when it may.
        self.fenced: Callable[[], str] = lambda: ""

    async def ask(
        self,
        lane: Lane,
        method: str,
        path: str,
        data: dict[str, Any] | None = None,
        *,
        version: str | None = None,
        still: Callable[[], bool] | None = None,
    ) -> Answer:
        """Raises BrokerUnknown when no answer came in time, BrokerThrottled when nothing was sent: too many wait
        already, or `still` (or, but for GET, `fenced`), asked when the turn has come, said no."""

        def is_ours() -> bool:
            return method == "GET" or not self.fenced()

        def may_go() -> bool:
            return is_ours() and (still is None or still())

        try:
            answer = await self._lanes[lane].ask(method, path, data, version, may_go=may_go, is_ours=is_ours)
        except NoAnswer as silence:
            raise BrokerUnknown(f"Alpaca did not answer: {silence}") from None
        self.rate = _rate(answer) or self.rate
        if is_key_refused(answer):
            self._health.key_refused()
        elif answer.status < 400 or (answer.status < 500 and refusal(answer) is not None):
            self._health.answered()
        return answer

    async def close(self) -> None:
        """Ends what is under way."""
        await asyncio.gather(*(lane.close() for lane in self._lanes.values()))


class _NotOurs(Exception):
    """Nothing was sent: the ledger may be another desk's by now."""


class _Lane:
    """So many lines, and a bounded crowd that waits for one, first come first served."""

    def __init__(self, name: str, size: int, open_line: "Callable[[], Line]", tuning: Tuning) -> None:
        self._deadline_s = tuning.request_s
        self._waiting_max = tuning.waiting_max
        self._open_line = open_line
        self._waiting = 0
        self._turns = asyncio.Semaphore(size)
        self._lines: list[Line] = []
        self._used: dict[asyncio.Future[Answer], Line] = {}
        self._pool = ThreadPoolExecutor(size, thread_name_prefix=f"alpaca-{name}")
        self._is_closed = False

    async def ask(
        self,
        method: str,
        path: str,
        data: Any,
        version: str | None,
        *,
        may_go: Callable[[], bool],
        is_ours: Callable[[], bool],
    ) -> Answer:
        """`is_ours` is asked by the thread once more: the whole process may have stood still since `may_go` was."""
        await self._turn()
        try:
            if self._is_closed or not may_go():
                raise BrokerThrottled(_BUSY_RETRY_S)
            line = self._lines.pop() if self._lines else self._open_line()
            loop = asyncio.get_running_loop()
            asked = loop.run_in_executor(self._pool, _ask, line, is_ours, method, path, data, version)
        except BaseException:
            self._turns.release()
            raise
        self._used[asked] = line
        asked.add_done_callback(self._done)
        await asyncio.wait({asked}, timeout=self._deadline_s)
        if not asked.done():
            line.cut()
            raise NoAnswer(f"nothing in {self._deadline_s} s")
        error = asked.exception()
        if isinstance(error, _NotOurs):
            raise BrokerThrottled(_BUSY_RETRY_S)
        if error is not None and not isinstance(error, NoAnswer):
            # The request may have gone out before whatever this is.
            raise NoAnswer(type(error).__name__) from error
        return asked.result()

    async def _turn(self) -> None:
        """Wait for a free line; raises BrokerThrottled where too many wait, or when it takes too long."""
        if self._is_closed or (self._turns.locked() and self._waiting >= self._waiting_max):
            raise BrokerThrottled(_BUSY_RETRY_S)
        self._waiting += 1
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._turns.acquire()
        except TimeoutError:
            raise BrokerThrottled(_BUSY_RETRY_S) from None
        finally:
            self._waiting -= 1

    def _done(self, asked: "asyncio.Future[Answer]") -> None:
        """The thread is free again, and only now the line is."""
        self._lines.append(self._used.pop(asked))
        self._turns.release()
        if not asked.cancelled() and (error := asked.exception()) and not isinstance(error, NoAnswer | _NotOurs):
            log.error("a request failed inside the desk", error=type(error).__name__)

    async def close(self) -> None:
        self._is_closed = True
        for line in self._used.values():
            line.cut()
        if self._used:
            await asyncio.wait(set(self._used), timeout=_CLOSE_S)
        self._pool.shutdown(wait=False, cancel_futures=True)
        for line in self._lines:
            line.close()


def _ask(line: "Line", is_ours: Callable[[], bool], *request: Any) -> Answer:
    if not is_ours():
        raise _NotOurs
    return line.ask(*request)


def _rate(answer: Answer) -> Rate | None:
    try:
        limit, remaining, reset = (
            int(float(answer.headers[f"x-ratelimit-{name}"])) for name in ("limit", "remaining", "reset")
        )
    except (KeyError, ValueError, OverflowError):
        return None
    return Rate(limit, remaining, reset)
