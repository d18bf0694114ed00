"""THE ORDER PATH. One order's way, top to bottom: `place` → `_judge` → `_intend` → `send`.

    identity → same request seen before? → order rules → risk, on the book in memory
    → intent durable → broker → outcome durable → book folded → answered, published

Everything here runs on one event loop; nothing is locked. State changes only by folding committed events
(`bookkeeper.py`). A broker that does not answer leaves an order UNKNOWN, which `resolve.py` clears up.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Any

import structlog
from msgspec.structs import replace as changed

from desk_server import risk, rules
from desk_server.bookkeeper import Bookkeeper
from desk_server.brokers import Ack, Broker, BrokerHasIt, BrokerRejected, BrokerThrottled, BrokerUnknown
from desk_server.clock import Clock
from desk_server.domain import ZERO, Identity, Order, OrderChange, OrderId, OrderRequest, Side, State, UserId
from desk_server.drafts import (
    answer,
    changed_request,
    draw_up,
    draw_up_replacement,
    hold_for,
    hold_for_replacement,
    require_same,
    require_same_change,
)
from desk_server.errors import TRANSIENT, Code, DeskError
from desk_server.events import (
    CancelRejected,
    CancelRequested,
    HaltSet,
    OrderAccepted,
    OrderIntended,
    OrderNotSent,
    OrderRefused,
    OrderRejected,
    OrderReplaced,
    OrderUnknown,
    ReplaceIntended,
    ReplaceRejected,
    UserOpened,
)
from desk_server.holds import Hold
from desk_server.ledger import DuplicateEvent
from desk_server.market import Hub
from desk_server.resolve import Resolver
from desk_server.throttle import Throttle

log = structlog.get_logger(__name__)

# How long acceptances may take to be written when the desk closes; the next start would ask for them again.
_LAST_WRITES_S = 2.0


class Desk:
    def __init__(
        self,
        *,
        keeper: Bookkeeper,
        broker: Broker,
        hub: Hub,
        clock: Clock,
        limits: risk.Limits,
        throttle: Throttle,
        allotment: Decimal,
        watched: Sequence[Callable[[], str]] = (),
    ) -> None:
        """`watched` tell why the desk is not ready although it can trade: "" when all is well."""
        self.keeper = keeper
        self.book = keeper.book
        self.registry = keeper.registry
        self.updates = keeper.updates
        self.hub = hub
        self.broker = broker
        self.clock = clock
        self._limits = limits
        self._throttle = throttle
        self._allotment = allotment
        self._watched = watched
        # Requests that are being carried out: set when they have been, or have failed.
        self._in_flight: dict[tuple[UserId, str], asyncio.Event] = {}
        self._being_replaced: set[OrderId] = set()
        self._being_canceled: set[OrderId] = set()
        # Answered as accepted, and about to be folded as such.
        self._accepted: dict[OrderId, OrderAccepted] = {}
        self._writing: set[asyncio.Future[Any]] = set()
        self._resolver = Resolver(self)
        self._state = "the desk is starting"

    # ---- the order path ----

    async def place(self, who: Identity, request: OrderRequest) -> Order:
        """Carry the order to the broker, once; return it as the broker acknowledged it.

        The same request id with the same content returns the same order. Raises DeskError; where a refusal
        or rejection was recorded, its `order_id` names it. Do not cancel this coroutine: shield it.
        """
        _may_trade(who)
        key = (who.user, request.request_id)
        order = await self._once(key, lambda earlier: require_same(earlier, request), lambda: self._place(who, request))
        return answer(order)

    async def _once(
        self,
        key: tuple[UserId, str],
        require_same: Callable[[Order], None],
        act: Callable[[], Coroutine[Any, Any, Order]],
    ) -> Order:
        """Do `act`, unless a request of this key was carried out, or is just being: then that one's order.

        A twin that left nothing behind (it was no order, or came too early) answers for itself alone.
        """
        if not key[1]:
            return await act()
        while twin := self._in_flight.get(key):
            await twin.wait()
        if earlier := self.book.by_request(*key):
            require_same(earlier)
            return self.shown(earlier)
        mine = self._in_flight[key] = asyncio.Event()
        try:
            return await act()
        finally:
            del self._in_flight[key]
            mine.set()

    async def _place(self, who: Identity, request: OrderRequest) -> Order:
        asset = await self.broker.asset(request.symbol)
        rules.check(request, asset, self._market_time())
        await self._open_account(who.user)
        match self._judge(who, request):
            case risk.Refused() as refused:
                return await self._refuse(who, request, refused)
            case risk.Approved() as approved:
                order, legs = draw_up(who, request, self.clock.now(), approved)
                intent = OrderIntended(at=order.created_at, order=order, legs=legs)
                await self._intend(intent, hold_for(order, approved))
                return await self.send(order, legs)

    def _judge(self, who: Identity, request: OrderRequest, old: Order | None = None) -> risk.Approved | risk.Refused:
        """The verdict on a new order, or on one that takes the place of `old`."""
        user, symbol, book, holds = who.user, request.symbol, self.book, self.keeper.holds
        position = book.position(user, symbol).qty
        available = position - book.reserved_qty(user, symbol) - holds.qty(user, symbol)
        buying_power = book.buying_power(user) - holds.cash(user)
        if old is not None:
            buying_power += old.reserved_cash
            available += (old.remaining or ZERO) if old.request.side is Side.SELL else ZERO
        facts = risk.Facts(
            limits=self._limits,
            quote=self.hub.latest(symbol),
            now_s=self.clock.monotonic_s(),
            buying_power=buying_power,
            position=position,
            available=available,
            open_orders=book.open_count(user) + holds.count(user) - (old is not None),
            throttle_s=self._throttle.take(user),
            halted=book.halted(user, who.strategy, symbol),
            problems=tuple(self._trading_problems()),
        )
        verdict = risk.check(request, facts)
        if isinstance(verdict, risk.Refused):
            # Refusals are recorded, so they too must come no faster than the rate.
            return risk.throttled(request, facts) or verdict
        return verdict

    async def _refuse(self, who: Identity, request: OrderRequest, refused: risk.Refused) -> Order:
        """Record the refusal, so that it is the answer for ever; unless a later try may pass."""
        if refused.code in TRANSIENT:
            raise _error(refused)
        order, _ = draw_up(who, request, self.clock.now())
        order = changed(
            order,
            state=State.REFUSED,
            code=refused.code.value,
            message=refused.message,
            limit=refused.limit,
            observed=refused.observed,
        )
        await self.keeper.record(OrderRefused(at=order.created_at, order=order))
        return self.book.orders[order.order_id]

    async def _intend(self, event: OrderIntended | ReplaceIntended, hold: Hold) -> None:
        """Make the intent durable. Until it is folded, what it needs (`hold`) is kept apart from the book."""
        self.keeper.holds.add(hold)
        try:
            await self.keeper.record(event)
        finally:
            self.keeper.holds.drop(hold.order_id)

    async def send(self, order: Order, legs: Sequence[Order] = ()) -> Order:
        """Call the broker with a durable intent, and make the outcome durable."""
        if stopped := self.stopped(order):
            return await self._outcome(
                OrderNotSent(at=self.clock.now(), order_id=order.order_id, reason=f"trading was halted: {stopped}")
            )
        try:
            ack = await self.broker.submit(order, legs)
        except BrokerHasIt as known:
            return await self._in_doubt(order.order_id, str(known))
        except BrokerRejected as no:
            return await self._outcome(
                OrderRejected(at=self.clock.now(), order_id=order.order_id, code=no.code, message=no.message)
            )
        except (BrokerUnknown, BrokerThrottled) as silence:
            return await self._in_doubt(order.order_id, str(silence))
        return self._accept(order, ack)

    def stopped(self, order: Order) -> str:
        """Why this order may not go out now, whatever was decided before; "" when it may."""
        return self.keeper.failure or self.book.halted(order.user, order.strategy, order.request.symbol)

    async def _in_doubt(self, order_id: OrderId, reason: str) -> Order:
        """Nobody knows what became of the request: note that, and find out."""
        order = await self._outcome(OrderUnknown(at=self.clock.now(), order_id=order_id, reason=reason))
        self._resolver.take(order_id)
        return order

    def _accept(self, order: Order, ack: Ack) -> Order:
        """The broker has it, and would say so again under the order's name: the answer need not wait until that
        is written down. Until it is, `order` shows what was answered.
        """
        event = self._accepted[order.order_id] = _accepted(order.order_id, ack, self.clock.now())
        writing = self.keeper.append(event)
        self._writing.add(writing)
        writing.add_done_callback(partial(self._acceptance_written, event))
        return self.shown(self.book.orders[order.order_id])

    def shown(self, order: Order) -> Order:
        """The book's order, with the acceptance that was answered and is still being written down."""
        event = self._accepted.get(order.order_id)
        if event is None or order.state not in (State.SENDING, State.UNKNOWN):
            return order
        return changed(
            order,
            state=State.LIVE,
            broker_status=event.status,
            broker_order_id=event.broker_order_id,
            message="",
            updated_at=event.at,
        )

    def _acceptance_written(self, event: OrderAccepted, writing: asyncio.Future[Any]) -> None:
        """Or not: then it is tried again until it is."""
        self._writing.discard(writing)
        if writing.cancelled():
            return
        if writing.exception() is not None:
            again = asyncio.create_task(self.keeper.record_stubbornly(event))
            self._writing.add(again)
            again.add_done_callback(partial(self._acceptance_written, event))
            return
        self._accepted.pop(event.order_id, None)
        self._cancel_if_asked(event.order_id)

    async def _outcome(self, event: OrderRejected | OrderUnknown | OrderNotSent) -> Order:
        """The broker has been asked, so this must be written down, however long the ledger takes."""
        await self.keeper.record_stubbornly(event)
        return self.book.orders[event.order_id]

    # ---- changing and ending orders ----

    async def replace(self, who: Identity, order_id: str, change: OrderChange) -> Order:
        """Put a changed order in the place of `order_id`; returns the new one.

        Raises DeskError NOT_FOUND, NOT_REPLACEABLE, REJECTED (the old order stands) or a refusal.
        """
        _may_trade(who)
        self.order(who, order_id)
        key = (who.user, change.request_id)
        order = await self._once(
            key,
            lambda earlier: require_same_change(earlier, order_id, change),
            lambda: self._replace(who, order_id, change),
        )
        return answer(order)

    async def _replace(self, who: Identity, order_id: str, change: OrderChange) -> Order:
        asset = await self.broker.asset(self.order(who, order_id).request.symbol)
        old = self.order(who, order_id)
        rules.check_change(old, change, asset, self._market_time())
        is_being_replaced = old.order_id in self._being_replaced or old.order_id in self.book.replacing
        if old.state is not State.LIVE or old.cancel_requested or is_being_replaced:
            raise DeskError(
                Code.NOT_REPLACEABLE,
                f"the order is {'being replaced' if is_being_replaced else old.status}: "
                "only a working order can be replaced",
                order_id=old.order_id,
            )
        match self._judge(who, changed_request(old, change), old):
            case risk.Refused() as refused:
                raise _error(refused)
            case risk.Approved() as approved:
                new = draw_up_replacement(old, change, self.clock.now(), approved)
                self._being_replaced.add(old.order_id)
                try:
                    event = ReplaceIntended(at=new.created_at, order_id=old.order_id, order=new)
                    await self._intend(event, hold_for_replacement(old, new, approved))
                    return await self._send_replace(old, new, change)
                finally:
                    self._being_replaced.discard(old.order_id)

    async def _send_replace(self, old: Order, new: Order, change: OrderChange) -> Order:
        if stopped := self.stopped(new):
            return await self._not_replaced(new, "HALTED", f"trading was halted: {stopped}")
        try:
            ack = await self.broker.replace(old, new, change)
        except BrokerHasIt as known:
            return await self._in_doubt(new.order_id, str(known))
        except BrokerRejected as no:
            return await self._not_replaced(new, no.code, no.message)
        except (BrokerUnknown, BrokerThrottled) as silence:
            return await self._in_doubt(new.order_id, str(silence))
        await self.keeper.record_stubbornly(
            OrderReplaced(
                at=self.clock.now(),
                order_id=old.order_id,
                new_order_id=new.order_id,
                broker_order_id=ack.broker_order_id,
                qty=ack.qty,
                status=ack.status,
            )
        )
        return self._cancel_if_asked(new.order_id)

    async def _not_replaced(self, new: Order, code: str, message: str) -> Order:
        await self.keeper.record_stubbornly(
            ReplaceRejected(
                at=self.clock.now(),
                order_id=OrderId(new.replaces),
                new_order_id=new.order_id,
                code=code,
                message=message,
            )
        )
        return self.book.orders[new.order_id]

    def _cancel_if_asked(self, order_id: OrderId) -> Order:
        """A cancel (of the order or a leg) that came before the broker had the order is due now."""
        order = self.book.orders[order_id]
        for one in (order, *self.book.legs(order)):
            if one.cancel_requested:
                self._resolver.take(one.order_id)
        return order

    async def cancel(self, who: Identity, order_id: str) -> Order:
        """Ask the broker to cancel; the outcome comes as an update. Cancelling twice is the same as once.

        Raises DeskError NOT_FOUND, or NOT_CANCELABLE for what is filled or otherwise over.
        """
        _may_cancel(who)
        order = self.order(who, order_id)
        never_sent = order.state is State.NOT_SENT and order.cancel_requested
        if order.state is State.CANCELED or never_sent:
            return order
        if not order.state.is_open:
            raise _not_cancelable(order, f"it is already {order.status}")
        if order.cancel_requested or order.order_id in self._being_canceled:
            return order
        self._being_canceled.add(order.order_id)
        try:
            await self.keeper.record(CancelRequested(at=self.clock.now(), order_id=order.order_id, by=who.user))
        finally:
            self._being_canceled.discard(order.order_id)
        order = self.book.orders[order.order_id]
        if order.state in (State.LIVE, State.HELD):
            try:
                await self.cancel_at_broker(order)
            except (BrokerUnknown, BrokerThrottled) as silence:
                self._resolver.take(order.order_id)
                log.warning("cancel not answered", order_id=order.order_id, reason=str(silence))
        return self.shown(self.book.orders[order.order_id])

    async def cancel_at_broker(self, order: Order) -> None:
        """Raises DeskError NOT_CANCELABLE when the broker said no; BrokerUnknown or BrokerThrottled: ask again."""
        try:
            await self.broker.cancel(order)
        except BrokerRejected as no:
            await self.keeper.record_stubbornly(
                CancelRejected(at=self.clock.now(), order_id=order.order_id, message=no.message)
            )
            raise _not_cancelable(order, no.message) from no

    async def cancel_all(self, who: Identity, user: UserId | None, symbols: frozenset[str]) -> list[Order]:
        """Cancel every open order of `user` (None: of everybody) in `symbols` (empty: in all).

        Raises DeskError when some could not even be asked for; the others have been.
        """
        _may_cancel(who)
        wanted = [
            order
            for order in self.book.open_orders(user)
            if who.may_see(order.user) and (not symbols or order.request.symbol in symbols)
        ]
        # A held leg ends with its entry; asking for both would only race.
        wanted = [order for order in wanted if order.state is not State.HELD or not self._entry_is_open(order)]
        done = await asyncio.gather(*(self.cancel(who, order.order_id) for order in wanted), return_exceptions=True)
        for outcome in done:
            is_over = isinstance(outcome, DeskError) and outcome.code is Code.NOT_CANCELABLE
            if isinstance(outcome, BaseException) and not is_over:
                raise outcome
        return [self.shown(self.book.orders[order.order_id]) for order in wanted]

    def _entry_is_open(self, leg: Order) -> bool:
        entry = self.book.order(leg.parent_id)
        return entry is not None and entry.state.is_open

    async def set_halt(self, who: Identity, scope: str, name: str, halted: bool, reason: str) -> None:
        """Stop (or allow) trading of the desk, a user, a "user/strategy" or a symbol. Kept across restarts."""
        if not who.is_admin:
            raise DeskError(Code.FORBIDDEN, "only the desk's administrator may halt trading")
        if scope not in ("desk", "user", "strategy", "symbol") or (scope == "desk") == bool(name):
            raise DeskError(
                Code.INVALID, 'scope must be "desk" without a name, or "user", "strategy" (user/strategy) or "symbol"'
            )
        await self.keeper.record(
            HaltSet(at=self.clock.now(), scope=scope, name=name, halted=halted, reason=reason, by=who.user)
        )
        log.warning("trading halted" if halted else "trading allowed again", scope=scope, name=name, reason=reason)

    # ---- asking ----

    def order(self, who: Identity, order_id: str) -> Order:
        """Raises DeskError NOT_FOUND; another user's order is not found either."""
        order = self.book.order(order_id)
        if order is None or not who.may_see(order.user):
            raise DeskError(Code.NOT_FOUND, f"you have no order {order_id[:64]!r}: list your orders for their ids")
        return self.shown(order)

    def problems(self) -> list[str]:
        """Why the desk is not ready; empty when it is."""
        watched = (look() for look in self._watched)
        others = (self.keeper.problem, self.hub.problem(), *watched)
        return [*self._trading_problems(), *(problem for problem in others if problem)]

    def _trading_problems(self) -> list[str]:
        """A ledger that could not be written is not among them: the next order finds out whether it can again."""
        return [problem for problem in (self._state, self.keeper.failure, self.broker.problem()) if problem]

    def _market_time(self) -> datetime:
        """The market's own time where lines tell it (a replayed tape is in the past), else the clock's."""
        return self.hub.last_at or self.clock.now()

    async def _open_account(self, user: UserId) -> None:
        if user not in self.book.accounts:
            with contextlib.suppress(DuplicateEvent):  # a twin was first
                await self.keeper.record(UserOpened(at=self.clock.now(), user=user, allotment=self._allotment))

    # ---- start and end ----

    async def start(self) -> None:
        """Listen to the broker, clear up what a crash left open, then take orders. The ledger is loaded already."""
        self.keeper.start()
        await self.broker.connect(self.keeper.on_broker_event)
        for order in self.book.open_orders(None):
            if order.state is State.SENDING and (order.replaces or not order.parent_id):
                await self._outcome(
                    OrderUnknown(at=self.clock.now(), order_id=order.order_id, reason="the desk restarted")
                )
        self._state = ""
        for order in self.book.open_orders(None):
            if order.state is State.UNKNOWN or order.cancel_requested:
                self._resolver.take(order.order_id)

    async def close(self) -> None:
        """Take no more orders, write down what the broker has said, end the streams."""
        self._state = "the desk is shutting down"
        await self._resolver.close()
        await self.broker.close()
        if self._writing:
            _, late = await asyncio.wait(self._writing, timeout=_LAST_WRITES_S)
            for writing in late:
                writing.cancel()
        await self.keeper.close()


def _may_trade(who: Identity) -> None:
    if who.is_admin:
        raise DeskError(Code.FORBIDDEN, "the administrator's token does not trade: use a user's or a deployment's")
    _may_cancel(who)


def _may_cancel(who: Identity) -> None:
    if not who.may_trade:
        raise DeskError(Code.FORBIDDEN, "this token may only read: ask for one that may trade")


def _error(no: risk.Refused) -> DeskError:
    return DeskError(no.code, no.message, limit=no.limit, observed=no.observed, retry_after_s=no.retry_after_s)


def _accepted(order_id: OrderId, ack: Ack, now: datetime) -> OrderAccepted:
    return OrderAccepted(
        at=now,
        order_id=order_id,
        broker_order_id=ack.broker_order_id,
        status=ack.status,
        leg_broker_ids=tuple(leg.broker_order_id for leg in ack.legs),
    )


def _not_cancelable(order: Order, why: str) -> DeskError:
    return DeskError(Code.NOT_CANCELABLE, f"the order cannot be canceled: {why}", order_id=order.order_id)
