"""The broker's record of orders and executions, taken into the books: one look at it settles all that it shows.

Every step is a broker event (or an event of attribution.py) that the books may have already: doing it twice, or
beside the stream, changes nothing. What cannot be settled is told as a difference.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal

import structlog

from desk_server.attribution import UNSURE, Attribution, flat, in_order, known
from desk_server.audit import said
from desk_server.bookkeeper import Bookkeeper
from desk_server.brokers import Broker, BrokerEvent, BrokerOrder, BrokerRecords, BrokerUnknown, Execution, What
from desk_server.clock import Clock
from desk_server.compare import Found, Kind
from desk_server.domain import HOUSE, Leg, Order, OrderId, OrderRequest, State, UserId
from desk_server.events import AnyEvent
from desk_server.order_differences import OrderDifferences
from desk_server.outlived import Outlived
from desk_server.settle import Unsettled

log = structlog.get_logger(__name__)

KINDS = frozenset({Kind.ORDER, Kind.FILLED, Kind.EXECUTION})
# What is read again of what the last look has read: bounds are exclusive, clocks differ, lists lag.
OVERLAP = timedelta(minutes=2)
# Lookups of single orders in one look, and remembered strangers.
FINDS_MAX = 20
STRAYS_MAX = 1000
_AT_BROKER = frozenset({State.LIVE, State.HELD})
_GIVEN_UP = frozenset({State.REJECTED, State.NOT_SENT})
_OVER = {What.CANCELED, What.EXPIRED, What.REPLACED, What.FILL, What.REJECTED}
# Statuses that say no more than an order's executions and requests do.
_NO_NEWS = frozenset({"partially_filled", "pending_cancel", "pending_replace", "held"})


class OrderRecords:
    def __init__(
        self,
        keeper: Bookkeeper,
        broker: Broker,
        records: BrokerRecords,
        clock: Clock,
        *,
        allotment: Decimal,
        account_of: Callable[[str], str],
        grace_s: float,
    ) -> None:
        """`account_of` puts the records' account names into those of the broker's holdings. `grace_s`: how long
        the broker's lists may be out of step."""
        self._keeper = keeper
        self._book = keeper.book
        self._broker = broker
        self._records = records
        self._clock = clock
        self._allotment = allotment
        self._account_of = account_of
        # What the stream told of orders that nobody here knows, by the broker's order id.
        self._strays: dict[str, Unsettled] = {}
        # From when on the records have not been taken in yet.
        self._orders_from: datetime | None = None
        self._executions_from: datetime | None = None
        self._differences = OrderDifferences(keeper, clock, account_of, grace_s)
        # Orders that the broker did not show the last time: looked up after the others.
        self._missing: set[OrderId] = set()
        self.outlived = Outlived(keeper, broker)
        self.newest_at: datetime | None = None
        self.recovered = 0
        self.foreign = 0

    def remember(self, doubt: Unsettled) -> None:
        """The stream told what the book cannot place: the next look settles it."""
        if len(self._strays) < STRAYS_MAX and doubt.said.broker_order_id:
            self._strays[doubt.said.broker_order_id] = doubt

    def reach_back(self, since: datetime) -> None:
        """Read from there on again."""
        self._orders_from = min(self._orders_from or since, since)
        self._executions_from = min(self._executions_from or since, since)

    @property
    def in_doubt(self) -> bool:
        return bool(self._strays or self._differences.since)

    async def look(self) -> list[Found]:
        """Raises BrokerUnknown, BrokerThrottled; what was settled until then stays, and is looked at again."""
        started = self._clock.now()
        before = {order.order_id: order for order in self._book.open_orders()}
        strays = list(self._strays.values())
        listed = list(await self._records.orders(self._since(self._orders_from, started)))
        missing, unfound = await self._find_unlisted(listed, before)
        await self._attribute([*listed, *missing])
        executions = await self._records.executions(self._executions_since([*listed, *missing], started))
        names = {one.broker_order_id for one in flat([*listed, *missing])}
        strangers, unknown, is_whole = await self._find_strangers(executions, strays, names)
        await self._attribute(strangers)
        there = list(flat([*listed, *missing, *strangers]))
        await self._settle(there, executions, before)
        if executions:
            self.newest_at = max([one.at for one in executions] + ([self.newest_at] if self.newest_at else []))
        differences = [*unfound, *unknown, *await self._differences.look(there, executions, started)]
        differences += self.outlived.see(there, self._account_of)
        for stray in strays:
            if self._strays.get(stray.said.broker_order_id) is stray:
                del self._strays[stray.said.broker_order_id]
        self._orders_from = started
        if is_whole:
            self._executions_from = started
        return differences

    # ---- reading ----

    def _since(self, of: datetime | None, started: datetime) -> datetime:
        return min([of or started, *self._differences.since]) - OVERLAP

    def _executions_since(self, there: Iterable[BrokerOrder], started: datetime) -> datetime:
        """From the last look on; from its beginning for an order that has executed more than is booked."""
        since = self._since(self._executions_from, started)
        for one in flat(there):
            order = known(self._book, one)
            if order is not None and one.filled_qty > order.filled_qty:
                since = min(since, (one.created_at or order.created_at) - OVERLAP)
        return since

    async def _find_unlisted(
        self, listed: Sequence[BrokerOrder], before: Mapping[OrderId, Order]
    ) -> tuple[list[BrokerOrder], list[Found]]:
        """Orders that the book holds open and the list does not show are looked up. Not being there ends nothing."""
        names = {name for one in flat(listed) for name in (one.client_order_id, one.broker_order_id)}
        found: list[BrokerOrder] = []
        missing: list[Found] = []
        for order in sorted(before.values(), key=lambda order: order.order_id in self._missing):
            is_listed = order.client_order_id in names or order.broker_order_id in names
            # A leg that the broker has not named yet is asked for with its entry.
            is_unnamed = bool(order.parent_id) and not order.broker_order_id
            if is_listed or is_unnamed or order.state not in _AT_BROKER or len(found) + len(missing) >= FINDS_MAX:
                continue
            there = await self._find(order)
            if isinstance(there, BrokerOrder):
                found.append(there)
            elif there is None:
                missing.append(
                    Found(
                        Kind.ORDER,
                        ours=order.status,
                        theirs="not there",
                        account=self._account_of(""),
                        symbol=order.request.symbol,
                        subject=order.order_id,
                        explanation="the broker does not show an order that it had acknowledged",
                    )
                )
        self._missing = {OrderId(one.subject) for one in missing}
        return found, missing

    async def _find_strangers(
        self, executions: Sequence[Execution], strays: Sequence[Unsettled], names: Collection[str]
    ) -> tuple[list[BrokerOrder], list[Found], bool]:
        """The orders of executions that nobody here knows (with their parents), and those of which the stream told
        what does not fit; executions without any order; and whether all could be looked up. `names` are listed."""
        wanted = {stray.said.broker_order_id: stray.said for stray in strays}
        for one in (said(execution) for execution in executions):
            if not self._book.by_broker_order_id(one.broker_order_id) and not self._book.is_foreign(
                one.broker_order_id
            ):
                wanted[one.broker_order_id] = one
        wanted = {name: one for name, one in wanted.items() if name not in names}
        found: list[BrokerOrder] = []
        unknown = []
        for one in list(wanted.values())[:FINDS_MAX]:
            there = await self._find(self._stranger(one, one.broker_order_id))
            if isinstance(there, BrokerOrder):
                parent = await self._find(self._stranger(one, there.parent_id)) if there.parent_id else None
                found.append(parent if isinstance(parent, BrokerOrder) else there)
            elif there is None and one.what is What.FILL:
                unknown.append(
                    Found(
                        Kind.EXECUTION,
                        ours="unknown",
                        theirs=f"{one.side} {one.qty or 0:f} at {one.price or 0:f}",
                        account=self._account_of(one.account),
                        symbol=one.symbol,
                        subject=one.broker_order_id,
                        explanation="the broker tells of an execution, and does not show its order",
                    )
                )
        return found, unknown, len(wanted) <= FINDS_MAX and not unknown

    def _stranger(self, one: BrokerEvent, broker_order_id: str) -> Order:
        """Enough of an order for the broker to look it up by its own id."""
        at = self._clock.now()
        return Order(
            order_id=OrderId(""),
            client_order_id="",
            user=UserId(HOUSE),
            strategy="",
            deployment_id="",
            request=OrderRequest(symbol=one.symbol, side=one.side, qty=one.qty),
            created_at=at,
            updated_at=at,
            broker_order_id=broker_order_id,
            leg=Leg.STOP_LOSS,
        )

    async def _find(self, order: Order) -> BrokerOrder | str | None:
        """A lookup that fails proves nothing and spoils nothing: then a reason."""
        try:
            return await self._broker.find(order)
        except BrokerUnknown as silence:
            return str(silence) or "no answer"

    # ---- settling ----

    async def _attribute(self, there: Sequence[BrokerOrder]) -> None:
        """Whose every order is. Drawn up and recorded with nothing settled in between."""
        if not there:
            return
        found = Attribution(self._book, self._allotment, self._clock.now())

        def events() -> Sequence[AnyEvent]:
            for order in in_order(there):
                found.take(order, self._account_of(order.account))
            return found.events

        await self._keeper.record_checked(events)
        self.recovered += found.recovered
        self.foreign += found.foreign
        if found.recovered:
            log.error("orders of this desk were at the broker and not in the ledger: recovered", orders=found.recovered)
        if found.foreign:
            log.error(
                "orders on the account that nobody here placed: what they execute is the house's", orders=found.foreign
            )

    async def _settle(
        self, there: Sequence[BrokerOrder], executions: Sequence[Execution], before: Mapping[OrderId, Order]
    ) -> None:
        """Names and proofs of life first, then executions, then ends: each needs the ones before it."""
        by_id = {one.broker_order_id: one for one in there}
        replaced = [self._replaced(one, by_id) for one in there if one.end is What.REPLACED]
        await self._keeper.settle(replaced)
        await self._keeper.settle([event for one in there if (event := self._lives(one, before))])
        await self._keeper.settle([said(one, self._account_of(one.account)) for one in executions])
        await self._keeper.settle([event for one in there if (event := self._ended(one, by_id))])

    def _lives(self, there: BrokerOrder, before: Mapping[OrderId, Order]) -> BrokerEvent | None:
        """The broker has it: news for an order in doubt, given up or held; for another, a new status."""
        order = known(self._book, there)
        if order is None or there.end is What.REJECTED:
            return None
        at = there.updated_at or self._clock.now()
        status = there.status if there.is_open else "new"
        if order.state in UNSURE:
            if OrderId(order.replaces) in self._book.replacing:
                return None  # that it is in the other's place is told by the other's end
            if order.state in _GIVEN_UP and order.broker_order_id == there.broker_order_id and not there.is_open:
                # The broker had it, and rejected it later: that it is over is no proof of life.
                return None
            return _event(What.ACCEPTED, there, at, status=status)
        is_unchanged = before.get(order.order_id) is order
        is_held = order.state is State.HELD
        news = is_unchanged and (is_held or order.broker_status != there.status) and there.status not in _NO_NEWS
        if there.is_open and (news or self._book.may_reopen(order)):
            return _event(What.RELEASED, there, at, status=status)
        return None

    def _ended(self, there: BrokerOrder, by_id: Mapping[str, BrokerOrder]) -> BrokerEvent | None:
        order = known(self._book, there)
        if order is None or there.end not in _OVER:
            return None
        if there.end is What.REPLACED and (order.state.is_open or order.order_id in self._book.replacing):
            return self._replaced(there, by_id)
        if not order.state.is_open and not self._book.may_reopen(order):
            return None
        return _event(there.end, there, there.updated_at or self._clock.now(), filled_qty=there.filled_qty)

    def _replaced(self, there: BrokerOrder, by_id: Mapping[str, BrokerOrder]) -> BrokerEvent:
        new = by_id.get(there.replaced_by)
        return BrokerEvent(
            what=What.REPLACED,
            client_order_id=there.client_order_id,
            broker_order_id=there.broker_order_id,
            at=there.updated_at or self._clock.now(),
            symbol=there.symbol,
            side=there.side,
            status=there.status,
            replaced_by=new.client_order_id if new else "",
            new_broker_order_id=there.replaced_by,
            qty=new.qty if new else None,
            filled_qty=there.filled_qty,
        )


def _event(
    what: What, there: BrokerOrder, at: datetime, *, status: str = "", filled_qty: Decimal | None = None
) -> BrokerEvent:
    return BrokerEvent(
        what=what,
        client_order_id=there.client_order_id,
        broker_order_id=there.broker_order_id,
        at=at,
        symbol=there.symbol,
        side=there.side,
        status=status or there.status,
        filled_qty=filled_qty,
        code="REJECTED" if what is What.REJECTED else "",
        message=there.message,
    )
