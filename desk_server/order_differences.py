"""Orders whose executions are not in the books as the broker has them: told, and corrected by the broker's whole list
of them when its records have had time to agree with each other."""

from collections.abc import Callable, Sequence
from datetime import datetime

import structlog
from msgspec import Struct

from desk_server.attribution import known
from desk_server.audit import corrections, does_not_fit, is_the_same, standing_qty
from desk_server.bookkeeper import Bookkeeper
from desk_server.brokers import BrokerOrder, Execution
from desk_server.clock import Clock
from desk_server.compare import Found, Kind
from desk_server.domain import Order
from desk_server.events import AnyEvent
from desk_server.positions import Fill

log = structlog.get_logger(__name__)


class _Unfit(Struct, frozen=True):
    """An order whose executions do not agree: from when on its records are needed, what was seen, and since when
    (monotonic) it has looked so."""

    since: datetime
    picture: tuple[str, str, str]
    since_s: float


class OrderDifferences:
    def __init__(self, keeper: Bookkeeper, clock: Clock, account_of: Callable[[str], str], grace_s: float) -> None:
        self._keeper = keeper
        self._book = keeper.book
        self._clock = clock
        self._account_of = account_of
        self._grace_s = grace_s
        # By the broker's order id.
        self._unfit: dict[str, _Unfit] = {}

    @property
    def since(self) -> list[datetime]:
        """From when on the records of orders that do not agree are needed; empty when all agree."""
        return [one.since for one in self._unfit.values()]

    async def look(
        self, there: Sequence[BrokerOrder], executions: Sequence[Execution], started: datetime
    ) -> list[Found]:
        """Orders whose executions do not agree. When the broker's lists had time to agree with each other, and
        they do, the list decides."""
        listed: dict[str, list[Execution]] = {}
        for execution in executions:
            listed.setdefault(execution.broker_order_id, []).append(execution)
        found, unfit = [], {}
        now_s = self._clock.monotonic_s()
        for one in there:
            mine = listed.get(one.broker_order_id, [])
            difference = self._unlike(one, mine)
            if difference is None:
                continue
            picture = (difference.ours, difference.theirs, difference.explanation)
            seen = self._unfit.get(one.broker_order_id)
            if seen is None or seen.picture != picture:
                seen = _Unfit(min(one.created_at or started, started), picture, now_s)
            elif now_s - seen.since_s >= self._grace_s:
                await self._correct(one, mine)
                difference = self._unlike(one, mine)
            if difference is not None:
                found.append(difference)
                unfit[one.broker_order_id] = seen
        self._unfit = unfit
        return found

    def _booked(self, there: BrokerOrder) -> tuple[Order | None, list[Fill]] | None:
        """The book's order, None for a foreign one, and its executions; None where the book knows neither."""
        order = known(self._book, there)
        if order is not None:
            return order, self._book.executions_of(order.order_id)
        if self._book.is_foreign(there.broker_order_id):
            return None, self._book.executions_of_foreign(there.broker_order_id)
        return None

    def _unlike(self, there: BrokerOrder, listed: Sequence[Execution]) -> Found | None:
        known_as = self._booked(there)
        if known_as is None:
            return None
        order, booked = known_as
        filled = standing_qty(booked)
        why = ""
        if there.filled_qty != filled:
            why = "its executions are not all told yet, or some were taken back"
        for execution in listed:
            why = why or does_not_fit(execution, booked)
        if not why or (there.filled_qty == filled and is_the_same(listed, booked)):
            return None
        return Found(
            Kind.FILLED,
            ours=f"{filled:f}",
            theirs=f"{there.filled_qty:f}",
            account=self._account_of(there.account),
            symbol=there.symbol,
            subject=order.order_id if order else there.broker_order_id,
            amount=there.filled_qty - filled,
            explanation=why,
        )

    async def _correct(self, there: BrokerOrder, listed: Sequence[Execution]) -> None:
        """Drawn up and recorded with nothing settled in between."""
        made: list[AnyEvent] = []
        before = self._booked(there)

        def events() -> Sequence[AnyEvent]:
            now = self._booked(there)
            if now is not None and now == before:
                order, booked = now
                account, at = self._account_of(there.account), self._clock.now()
                made.extend(corrections(there, listed, order, booked, account=account, now=at))
            return made

        await self._keeper.record_checked(events)
        if made:
            log.error(
                "the broker has corrected executions: the books follow its list",
                broker_order_id=there.broker_order_id,
                symbol=there.symbol,
                events=len(made),
            )
