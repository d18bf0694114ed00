"""THE ORDER PATH. One order's way, top to bottom: `place` → `_judge` → `_intend` → `send`.

    identity → same request seen before? → order rules → risk, on the book in memory
    → intent durable → broker → outcome durable → book folded → answered, published

Everything here runs on one event loop; nothing is locked. State changes only by folding committed events
(`bookkeeper.py`). A broker that does not answer leaves an order UNKNOWN, which `resolve.py` clears up. An order that
the broker would refuse as a wash trade may wait in `waiting.py`. Halts and the ledger's lease are looked at once more
right before every call of the broker.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Any

import structlog
from msgspec.structs import replace as changed

from desk_server import risk, rules, selftrade
from desk_server.account_cash import AccountCash
from desk_server.bookkeeper import Bookkeeper
from desk_server.brokers import (
    Ack,
    Broker,
    BrokerHasIt,
    BrokerRecords,
    BrokerRejected,
    BrokerThrottled,
    BrokerUnknown,
    What,
)
from desk_server.clock import Clock
from desk_server.domain import (
    ZERO,
    Asset,
    Identity,
    Leg,
    Order,
    OrderChange,
    OrderId,
    OrderRequest,
    Role,
    Side,
    State,
    Symbol,
    UserId,
)
from desk_server.drafts import (
    answer,
    changed_request,
    draw_up,
    draw_up_replacement,
    hold_for,
    hold_for_replacement,
    not_sent_reason,
    require_same,
    require_same_change,
)
from desk_server.errors import TRANSIENT, Code, DeskError
from desk_server.events import (
    AnyEvent,
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
    SendIntended,
    UserOpened,
)
from desk_server.holds import Hold
from desk_server.ledger import DuplicateEvent
from desk_server.market import Hub
from desk_server.resolve import Resolver, working
from desk_server.throttle import Throttle
from desk_server.waiting import Waiting

log = structlog.get_logger(__name__)

# How long acceptances may take to be written when the desk closes; the next start would ask for them again.
_LAST_WRITES_S = 2.0
# A broker that answers at once is not waited for longer; the others are waited for while the doors are open.
_START_S = 0.5
_ASK_AGAIN_S = 1.0
_RETRY_AFTER_S = 1.0
# Rules that an order breaks now and might not break later.
_OF_THE_MOMENT = frozenset({Code.CLOSED, Code.NOT_REPLACEABLE})


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
        records: BrokerRecords | None = None,
        begin_comparing: Callable[[], Awaitable[None]] | None = None,
        uncompared: Callable[[], str] = lambda: "",
        freezes: Callable[[Symbol], str] = lambda _: "",
        soon: Callable[[], None] = lambda: None,
        account_cash: AccountCash | None = None,
        account_of: Callable[[UserId], str] = lambda _: "",
        checks_wash_trades: bool = False,
        holds_wash_trades: bool = False,
    ) -> None:
        """`watched` tell why the desk is not ready although it can trade: "" when all is well.

        The books are compared with the broker's from `begin_comparing` on, and at once when `soon` is called;
        `uncompared` and `freezes` tell why orders that add risk (in one symbol) must wait, "" when they need not.
        The desk becomes ready when `uncompared` is "" for the first time. `account_of` names a user's account at the
        broker. Wash trades are looked for where the broker refuses them, and elsewhere when `checks_wash_trades`;
        orders that would be one wait when `holds_wash_trades`, else they are refused.
        """
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
        self._begin_comparing = begin_comparing
        self._uncompared = uncompared
        self._freezes = freezes
        self.soon = soon
        self._account_cash = account_cash
        self._account_of = account_of
        self._checks_wash_trades = checks_wash_trades or broker.capabilities.wash_trades_refused
        self._holds_wash_trades = holds_wash_trades
        # Requests that are being carried out, with what is set when they have been, or have failed: made by the
        # first twin that waits for it.
        self._in_flight: dict[tuple[UserId, str], asyncio.Event | None] = {}
        self._being_replaced: set[OrderId] = set()
        self._being_canceled: set[OrderId] = set()
        # Answered as accepted, and about to be folded as such.
        self._accepted: dict[OrderId, OrderAccepted] = {}
        # Of these, the ones that this turn of the loop will write down together.
        self._unwritten: list[OrderAccepted] = []
        self._writing: set[asyncio.Future[Any]] = set()
        self._resolver = Resolver(self, records)
        self._waiting = Waiting(self)
        self._starting: asyncio.Task[None] | None = None
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
        while key in self._in_flight:
            done = self._in_flight[key] = self._in_flight[key] or asyncio.Event()
            await done.wait()
        if earlier := self.book.by_request(*key):
            require_same(earlier)
            return self.shown(earlier)
        self._in_flight[key] = None
        try:
            return await act()
        finally:
            if awaited := self._in_flight.pop(key):
                awaited.set()

    async def _place(self, who: Identity, request: OrderRequest) -> Order:
        asset = await self._asset(request.symbol)
        no: risk.Refused | None = None
        try:
            rules.check(request, asset, self._market_time())
        except DeskError as error:
            no = self._decided(who, error)
        if who.user not in self.book.accounts:
            await self._open_account(who.user)
        match no or self._judge(who, request):
            case risk.Refused() as refused:
                return await self._refuse(who, request, refused)
            case risk.Approved() as approved:
                order, legs = draw_up(who, request, self.clock.now(), approved)
                intent = OrderIntended(at=order.created_at, order=order, legs=legs)
                await self._intend(intent, hold_for(order, approved))
                if approved.waits:
                    self._waiting.take(order, self._market_time())
                    return self.book.orders[order.order_id]
                return await self.send(order, legs)

    def _decided(self, who: Identity, no: DeskError) -> risk.Refused:
        """What the rules say of the request itself is raised: it will never be another. What they say of the moment
        is a decision, recorded as every other and therefore no faster than the rate."""
        if no.code not in _OF_THE_MOMENT:
            raise no
        wait_s = self._throttle.take(who.user)
        return risk.too_fast(wait_s) if wait_s else risk.Refused(no.code, no.message, no.limit, no.observed)

    def _judge(self, who: Identity, request: OrderRequest, old: Order | None = None) -> risk.Approved | risk.Refused:
        """The verdict on a new order, or on one that takes the place of `old` (or is `old`, which has waited)."""
        facts = self._facts(who, request, old)
        verdict = risk.check(request, facts)
        if isinstance(verdict, risk.Refused):
            # Refusals are recorded, so they too must come no faster than the rate.
            return risk.throttled(request, facts) or verdict
        return verdict

    def _facts(self, who: Identity, request: OrderRequest, old: Order | None) -> risk.Facts:
        user, symbol, book, holds = who.user, request.symbol, self.book, self.keeper.holds
        position = book.position(user, symbol).qty
        available = position - book.reserved_qty(user, symbol) - holds.qty(user, symbol)
        buying_power = book.buying_power(user) - holds.cash(user)
        if old is not None:
            buying_power += old.reserved_cash
            available += (old.remaining or ZERO) if old.request.side is Side.SELL else ZERO
        has_waited = old is not None and old.state is State.WAITING
        return risk.Facts(
            limits=self._limits,
            quote=self.hub.latest(symbol),
            now_s=self.clock.monotonic_s(),
            buying_power=buying_power,
            position=position,
            available=available,
            open_orders=book.open_count(user) + holds.count(user) - (old is not None),
            throttle_s=0.0 if has_waited else self._throttle.take(user),
            halted=book.halted(user, who.strategy, symbol),
            problems=tuple(self._trading_problems()),
            account_cash=self._account_cash.left(user) if self._account_cash is not None else None,
            meets=self._meets(user, request, old) if self._checks_wash_trades else None,
            may_wait=self._holds_wash_trades and (old is None or has_waited),
            frozen=self._uncompared() or self._freezes(symbol),
        )

    def _meets(self, user: UserId, request: OrderRequest, old: Order | None) -> str | None:
        """See `risk.Facts`. Orders on their way to the ledger or the broker, and those in doubt, count."""
        if selftrade.is_exempt(request, Leg.NONE if old is None else old.leg):
            return None
        symbol, account = request.symbol, self._account_of(user)
        on_account = [
            order
            for order in (*self.book.open_orders(symbol=symbol), *self.keeper.holds.orders(symbol))
            if order.user == user or self._account_of(order.user) == account
        ]
        in_the_way = self._waiting.in_the_way(on_account, old.order_id if old is not None else None)
        met = selftrade.met_by(request, in_the_way)
        own = next((order.order_id for order in met if order.user == user), "")
        return own if met else None

    async def _refuse(self, who: Identity, request: OrderRequest, refused: risk.Refused) -> Order:
        """Record the refusal, so that it is the answer for ever; unless a later try may pass."""
        if refused.code in TRANSIENT:
            raise _error(refused)
        order = _refused(draw_up(who, request, self.clock.now())[0], refused)
        await self.keeper.record(OrderRefused(at=order.created_at, order=order))
        return self.book.orders[order.order_id]

    async def _refuse_replacement(self, old: Order, change: OrderChange, refused: risk.Refused) -> Order:
        """As `_refuse`. What nobody can ask for again, having no request id, need not be recorded."""
        if refused.code in TRANSIENT or not change.request_id:
            raise _error(refused, old.order_id)
        new = _refused(draw_up_replacement(old, change, self.clock.now()), refused)
        await self.keeper.record(OrderRefused(at=new.created_at, order=new))
        return self.book.orders[new.order_id]

    async def _intend(self, event: OrderIntended | ReplaceIntended, hold: Hold) -> None:
        """Make the intent durable. Until it is folded, what it needs (`hold`) is kept apart from the book."""
        self.keeper.holds.add(hold)
        try:
            await self.keeper.record(event)
        finally:
            self.keeper.holds.drop(hold.order_id)

    async def send(self, order: Order, legs: Sequence[Order] = ()) -> Order:
        """Call the broker with a durable intent, and make the outcome durable."""
        self._require_lease(order.order_id)
        if stopped := self.stopped(order):
            return await self._not_sent(order, not_sent_reason(order, stopped))
        try:
            ack = await self.broker.submit(order, legs)
        except BrokerHasIt as known:
            return await self._in_doubt(order.order_id, str(known))
        except BrokerRejected as no:
            return await self._outcome(
                OrderRejected(at=self.clock.now(), order_id=order.order_id, code=no.code, message=no.message)
            )
        except BrokerThrottled as limit:
            return self._send_later(order, limit)
        except BrokerUnknown as silence:
            return await self._in_doubt(order.order_id, str(silence))
        except Exception as surprise:  # whatever went wrong on the way, the broker may have it
            log.exception("sending an order failed in an unknown way", order_id=order.order_id)
            return await self._in_doubt(order.order_id, f"an unforeseen error: {surprise}")
        return self.accept(order, ack)

    async def send_kept(self, order: Order) -> Order:
        """Send an order or a replacement that the broker did not look at before."""
        old = self.book.order(order.replaces)
        if old is None or order.change is None:
            return await self.send(order, self.book.legs(order))
        if old.state is not State.LIVE or old.cancel_requested:
            return await self._not_replaced(order, "NOT_SENT", f"the order to be replaced is {old.status}")
        return await self._send_replace(old, order, order.change)

    def _require_lease(self, order_id: OrderId) -> None:
        """Another server may be at work with this ledger: it will see to what is written there."""
        if fenced := self.keeper.fenced():
            raise DeskError(
                Code.NOT_READY,
                f"this server may not send anything: {fenced}; ask again with the same request id",
                order_id=order_id,
                retry_after_s=_RETRY_AFTER_S,
            )

    def stopped(self, order: Order) -> str:
        """Why this order may not go out now, whatever was decided before; "" when it may."""
        return self.keeper.failure or self.book.halted(order.user, order.strategy, order.request.symbol)

    async def _in_doubt(self, order_id: OrderId, reason: str) -> Order:
        """Nobody knows what became of the request: note that, and find out."""
        order = await self._outcome(OrderUnknown(at=self.clock.now(), order_id=order_id, reason=reason))
        self._resolver.take(order_id)
        return order

    def _send_later(self, order: Order, limit: BrokerThrottled) -> Order:
        """The broker refused to look at it, so it is not there: it stays as it is, and goes when it may."""
        log.warning("the broker's request limit: sent later", order_id=order.order_id, after_s=limit.retry_after_s)
        self._resolver.send_later(order.order_id, limit.retry_after_s)
        return self.book.orders[order.order_id]

    async def _not_sent(self, order: Order, reason: str) -> Order:
        return await self._outcome(OrderNotSent(at=self.clock.now(), order_id=order.order_id, reason=reason))

    def accept(self, order: Order, ack: Ack) -> Order:
        """The broker has it, and would say so again under the order's name: the answer need not wait until that
        is written down. Until it is, `order` shows what was answered.
        """
        event = self._accepted[order.order_id] = _accepted(order.order_id, ack, self.clock.now())
        if not self._unwritten:
            asyncio.get_running_loop().call_soon(self._write_acceptances)
        self._unwritten.append(event)
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

    def _write_acceptances(self) -> None:
        events, self._unwritten = self._unwritten, []
        if events:
            self._when_written(events, self.keeper.append(*events))

    def _when_written(self, events: list[OrderAccepted], writing: asyncio.Future[Any]) -> None:
        self._writing.add(writing)
        writing.add_done_callback(partial(self._acceptances_written, events))

    def _acceptances_written(self, events: list[OrderAccepted], writing: asyncio.Future[Any]) -> None:
        """Or not: then it is tried again until they are."""
        self._writing.discard(writing)
        if writing.cancelled():
            return
        if writing.exception() is not None:
            self._when_written(events, asyncio.create_task(self.keeper.record_stubbornly(*events)))
            return
        for event in events:
            self._accepted.pop(event.order_id, None)
            order = self.book.orders[event.order_id]
            if order.cancel_requested or order.leg_ids:
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
        asset = await self._asset(self.order(who, order_id).request.symbol)
        old = self.order(who, order_id)
        no: risk.Refused | None = None
        try:
            self._check_change(old, change, asset)
        except DeskError as error:
            no = self._decided(who, error)
        match no or self._judge(who, changed_request(old, change), old):
            case risk.Refused() as refused:
                return await self._refuse_replacement(old, change, refused)
            case risk.Approved() as approved:
                new = draw_up_replacement(old, change, self.clock.now(), approved)
                self._being_replaced.add(old.order_id)
                try:
                    event = ReplaceIntended(at=new.created_at, order_id=old.order_id, order=new)
                    await self._intend(event, hold_for_replacement(old, new, approved))
                    return await self._send_replace(old, new, change)
                finally:
                    self._being_replaced.discard(old.order_id)

    def _check_change(self, old: Order, change: OrderChange, asset: Asset | None) -> None:
        rules.check_change(old, change, asset, self._market_time())
        is_being_replaced = old.order_id in self._being_replaced or old.order_id in self.book.replacing
        if old.state is not State.LIVE or old.cancel_requested or is_being_replaced:
            how = "being replaced" if is_being_replaced else old.status
            raise DeskError(Code.NOT_REPLACEABLE, f"the order is {how}: only a working order can be replaced")

    async def _send_replace(self, old: Order, new: Order, change: OrderChange) -> Order:
        self._require_lease(new.order_id)
        if stopped := self.stopped(new):
            return await self._not_replaced(new, "HALTED", f"trading was halted: {stopped}")
        try:
            ack = await self.broker.replace(old, new, change)
        except BrokerHasIt as known:
            return await self._in_doubt(new.order_id, str(known))
        except BrokerRejected as no:
            return await self._not_replaced(new, no.code, no.message)
        except BrokerThrottled as limit:
            return self._send_later(new, limit)
        except BrokerUnknown as silence:
            return await self._in_doubt(new.order_id, str(silence))
        except Exception as surprise:
            log.exception("replacing an order failed in an unknown way", order_id=new.order_id)
            return await self._in_doubt(new.order_id, f"an unforeseen error: {surprise}")
        now = self.clock.now()
        events: list[AnyEvent] = [
            OrderReplaced(
                at=now,
                order_id=old.order_id,
                new_order_id=new.order_id,
                broker_order_id=ack.broker_order_id,
                qty=ack.qty,
                status=working(ack.status),
            )
        ]
        if self.book.orders[old.order_id].cancel_requested:
            # Who wanted the old order gone does not want what took its place.
            events.append(CancelRequested(at=now, order_id=new.order_id, by="desk"))
        await self.keeper.record_stubbornly(*events)
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
            if one.cancel_requested and one.order_id not in self._being_canceled:
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
        now = self.clock.now()
        asked = CancelRequested(at=now, order_id=order.order_id, by=who.user)
        try:
            if order.state is State.WAITING and not self._waiting.is_leaving(order.order_id):
                ended = OrderNotSent(at=now, order_id=order.order_id, reason="canceled before it was sent")
                await self.keeper.record(asked, ended)
            else:
                await self.keeper.record(asked)
            order = self.book.orders[order.order_id]
            if order.state in (State.LIVE, State.HELD):
                await self._cancel_now(order)
            elif order.state is State.REPLACED:
                self._resolver.cancel_heir(order)
            elif order.state in (State.FILLED, State.EXPIRED, State.REJECTED):
                raise _not_cancelable(order, f"it is already {order.status}")
        finally:
            self._being_canceled.discard(order.order_id)
        return self.shown(self.book.orders[order.order_id])

    async def _cancel_now(self, order: Order) -> None:
        """Raises DeskError NOT_CANCELABLE where the broker says that it is over. A refusal alone does not prove
        that, nor that the order lives: then, and when there is no answer, it is asked again until it is over.
        """
        try:
            await self.cancel_at_broker(order)
        except (BrokerUnknown, BrokerThrottled) as silence:
            log.warning("cancel not answered", order_id=order.order_id, reason=str(silence))
            self._resolver.take(order.order_id)
        except BrokerRejected as no:
            log.warning("cancel refused", order_id=order.order_id, reason=str(no))
            self._resolver.take(order.order_id)
            with contextlib.suppress(BrokerUnknown, BrokerThrottled):
                found = await self.broker.find(order)
                if found is not None and not found.is_open and found.end is not What.REPLACED:
                    self.soon()
                    raise _not_cancelable(order, no.message) from no
        except Exception:  # as on the way of an order: nobody knows, so it is asked again
            log.exception("cancelling failed in an unknown way", order_id=order.order_id)
            self._resolver.take(order.order_id)
        else:
            self._resolver.look_after(order.order_id)

    async def cancel_at_broker(self, order: Order) -> None:
        """Raises BrokerRejected, BrokerUnknown, BrokerThrottled; also where another server may be at work."""
        if fenced := self.keeper.fenced():
            raise BrokerUnknown(fenced)
        await self.broker.cancel(order)

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
        watched = (look() for look in (self._uncompared, *self._watched))
        others = (self.keeper.problem, self.hub.problem(), *watched)
        return [*dict.fromkeys((*self._trading_problems(), *(problem for problem in others if problem)))]

    def _trading_problems(self) -> list[str]:
        """A ledger that could not be written is not among them: the next order finds out whether it can again."""
        state, failure, at_broker = self._state, self.keeper.failure, self.broker.problem()
        if not (state or failure or at_broker):
            return []
        return [problem for problem in (state, failure, at_broker) if problem]

    def _market_time(self) -> datetime:
        """The market's own time where lines tell it (a replayed tape is in the past), else the clock's."""
        return self.hub.last_at or self.clock.now()

    async def _asset(self, symbol: Symbol) -> Asset | None:
        try:
            return await self.broker.asset(symbol)
        except (BrokerUnknown, BrokerThrottled) as silence:
            why = self.broker.problem()
            if not why:
                log.warning("the broker does not tell whether it lists a symbol", symbol=symbol, reason=str(silence))
            what = f"the desk is not ready: {why}" if why else f"the broker does not tell now whether it lists {symbol}"
            raise DeskError(
                Code.NOT_READY,
                f"{what}; try again with the same request id",
                retry_after_s=max(_RETRY_AFTER_S, getattr(silence, "retry_after_s", 0.0)),
            ) from silence

    async def _open_account(self, user: UserId) -> None:
        with contextlib.suppress(DuplicateEvent):  # a twin was first
            await self.keeper.record(UserOpened(at=self.clock.now(), user=user, allotment=self._allotment))

    # ---- orders that wait ----

    async def judge_waiting(self, order: Order, *, end: datetime | None) -> bool:
        """Judge an order again that was kept back, by all the rules of this moment; see `waiting.py`."""
        request = order.request
        who = Identity(order.user, Role.STRATEGY, order.strategy, order.deployment_id)
        try:
            if end is not None and self._market_time() >= end:
                raise DeskError(Code.CLOSED, "its day ended before it could be sent")
            rules.check(request, await self._asset(request.symbol), self._market_time())
            order = self.book.orders[order.order_id]
            if order.state is not State.WAITING:
                return True
            match self._judge(who, request, order):
                case risk.Refused() as refused:
                    raise _error(refused)
                case risk.Approved() as approved:
                    if not approved.waits:
                        self._waiting.leave(order.order_id, self._send_waited(order, approved))
                    return not approved.waits
        except DeskError as no:
            if no.code in TRANSIENT:
                return False
            await self._not_sent(order, f"it had to wait, and then: {no.message}")
            return True

    async def _send_waited(self, order: Order, approved: risk.Approved) -> None:
        due = SendIntended(at=self.clock.now(), order_id=order.order_id, reserved_cash=approved.reserved_cash)
        await self.keeper.record_stubbornly(due)
        order = self.book.orders[order.order_id]
        if order.state is not State.SENDING:
            return
        if order.cancel_requested:
            await self._not_sent(order, not_sent_reason(order, ""))
            return
        with contextlib.suppress(DeskError):  # the ledger's next owner sees to it
            await self.send(order)

    # ---- start and end ----

    async def start(self) -> None:
        """Begin; the ledger is loaded already. Returns at once, or when the desk is ready where that is soon.

        Until it is ready, cancels are taken and orders are not: `problems` tells why.
        """
        self.keeper.start()
        self._starting = asyncio.create_task(self._get_ready(), name="get ready")
        await asyncio.wait((self._starting,), timeout=_START_S)

    async def _get_ready(self) -> None:
        """What a crash left SENDING is UNKNOWN → stream → the books compared → what is in doubt cleared up → ready."""
        try:
            await self.keeper.record_stubbornly(*self._caught_by_the_crash())
            await self._connect()
            if self._begin_comparing is not None:
                await self._begin_comparing()
            while uncompared := self._uncompared():
                self._state = uncompared
                await asyncio.sleep(_START_S / 10)
            self._state = ""
            log.info("ready: orders are taken")
        except Exception as error:
            self._state = "the desk could not start: see the log, then restart it"
            log.critical("the desk could not start", error=str(error), exc_info=True)
            return
        for order in self.book.open_orders(None):
            if order.state is State.WAITING:
                self._waiting.take(order, self._market_time())
            elif order.state in (State.UNKNOWN, State.QUARANTINE) or order.cancel_requested:
                self._resolver.take(order.order_id)

    def _caught_by_the_crash(self) -> list[OrderUnknown]:
        now = self.clock.now()
        return [
            OrderUnknown(at=now, order_id=order.order_id, reason="the desk restarted")
            for order in self.book.open_orders(None)
            if order.state is State.SENDING and (order.replaces or not order.parent_id)
        ]

    async def _connect(self) -> None:
        while True:
            try:
                return await self.broker.connect(self.keeper.on_broker_event)
            except (BrokerUnknown, BrokerThrottled) as silence:
                self._state = f"the broker cannot be reached: {silence}"
                log.warning("the broker cannot be reached: trying again", reason=str(silence))
                await asyncio.sleep(_ASK_AGAIN_S)

    async def close(self) -> None:
        """Take no more orders, write down what the broker has said, end the streams."""
        self._state = "the desk is shutting down"
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        await self._waiting.close()
        await self._resolver.close()
        await self.broker.close()
        self._write_acceptances()
        if self._writing:
            _, late = await asyncio.wait(self._writing, timeout=_LAST_WRITES_S)
            for writing in late:
                writing.cancel()
        await self.keeper.close()


def _may_trade(who: Identity) -> None:
    if who.role is Role.ADMIN:
        raise DeskError(Code.FORBIDDEN, "the administrator's token does not trade: use a user's or a deployment's")
    if who.role is Role.READ:
        _may_cancel(who)


def _may_cancel(who: Identity) -> None:
    if not who.may_trade:
        raise DeskError(Code.FORBIDDEN, "this token may only read: ask for one that may trade")


def _error(no: risk.Refused, order_id: str = "") -> DeskError:
    return DeskError(
        no.code, no.message, limit=no.limit, observed=no.observed, order_id=order_id, retry_after_s=no.retry_after_s
    )


def _refused(order: Order, no: risk.Refused) -> Order:
    return changed(
        order,
        state=State.REFUSED,
        code=no.code.value,
        message=no.message,
        limit=no.limit,
        observed=no.observed,
        reserved_cash=ZERO,
    )


def _accepted(order_id: OrderId, ack: Ack, now: datetime) -> OrderAccepted:
    return OrderAccepted(
        at=now,
        order_id=order_id,
        broker_order_id=ack.broker_order_id,
        status=working(ack.status),
        leg_broker_ids=tuple([leg.broker_order_id for leg in ack.legs]) if ack.legs else (),
    )


def _not_cancelable(order: Order, why: str) -> DeskError:
    return DeskError(Code.NOT_CANCELABLE, f"the order cannot be canceled: {why}", order_id=order.order_id)
