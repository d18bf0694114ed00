"""The book: orders, positions and cash, as the events of the ledger tell them. No I/O, no clock.

A book made by folding a ledger from its first event equals, digit by digit, the one that was folded live.
"""

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from desk_server.book_house import BookError, HouseBooks
from desk_server.domain import OPEN_STATES, ZERO, Order, OrderId, Side, State
from desk_server.events import (
    ActivityPosted,
    AnyEvent,
    CancelRejected,
    CancelRequested,
    Executed,
    ExecutionBusted,
    ForeignOrderSeen,
    HaltSet,
    HouseAdjusted,
    HouseExecuted,
    OrderAccepted,
    OrderEnded,
    OrderIntended,
    OrderNotSent,
    OrderQuarantined,
    OrderRecovered,
    OrderRefused,
    OrderRejected,
    OrderReleased,
    OrderReplaced,
    OrderUnknown,
    ReplaceIntended,
    ReplaceRejected,
    SendIntended,
    UserOpened,
)
from desk_server.positions import MONEY, Account, Fill, share_of

__all__ = ["Book", "BookError", "Change"]

# States in which the desk does not know that the broker has the order.
_UNPROVEN = frozenset({State.SENDING, State.UNKNOWN, State.QUARANTINE})
# Ends that the broker's proof of life takes back.
_REVOCABLE = frozenset({State.REJECTED, State.NOT_SENT})
_ENDED_WORD = {State.CANCELED: "canceled", State.EXPIRED: "expired", State.REPLACED: "replaced", State.FILLED: "fill"}
# A notional order with less than this left to spend, in dollars, is filled.
_SPENT_USD = Decimal("0.01")


class Change(Struct, frozen=True, gc=False):
    """What an event did to an order: the word of proto OrderUpdate.event, and the order right after it."""

    seq: int
    word: str
    order: Order
    at: datetime
    fill: Fill | None = None


class Book(HouseBooks):
    """Fold events in, ask what is. What it hands out is immutable; only `fold` changes anything.

    Everything is kept in memory: see docs/books.md for how much.
    """

    def __init__(self) -> None:
        super().__init__()
        # What was reserved for orders that ended without having lived: it comes back with them.
        self._released: dict[OrderId, Decimal] = {}
        self._folds: dict[type, Callable[[int, Any], tuple[Change, ...]]] = {
            UserOpened: self._user_opened,
            OrderRefused: self._order_refused,
            OrderIntended: self._order_intended,
            SendIntended: self._send_intended,
            OrderAccepted: self._order_accepted,
            OrderRejected: self._order_rejected,
            OrderUnknown: self._order_unknown,
            OrderQuarantined: self._order_quarantined,
            OrderRecovered: self._order_recovered,
            OrderNotSent: self._order_not_sent,
            OrderReleased: self._order_released,
            Executed: self._executed,
            ExecutionBusted: self._execution_busted,
            OrderEnded: self._order_ended,
            CancelRequested: self._cancel_requested,
            CancelRejected: self._cancel_rejected,
            ReplaceIntended: self._replace_intended,
            OrderReplaced: self._order_replaced,
            ReplaceRejected: self._replace_rejected,
            HouseExecuted: self._house_executed,
            ForeignOrderSeen: self._foreign_order_seen,
            ActivityPosted: self._activity_posted,
            HouseAdjusted: self._house_adjusted,
            HaltSet: self._halt_set,
        }

    def fold(self, seq: int, event: AnyEvent) -> tuple[Change, ...]:
        """Take the event in; what it changed about orders, for the update stream (mostly one, often none).

        Events about tokens and deployments are not the book's and change nothing. Raises BookError, with
        the book as it was, for an event out of sequence or about an order or user that no event opened.
        """
        if seq != self.seq + 1:
            raise BookError(f"event {seq} cannot follow event {self.seq}")
        handler = self._folds.get(type(event))
        changes = handler(seq, event) if handler is not None else ()
        self.seq = seq
        return changes

    def _user_opened(self, seq: int, event: UserOpened) -> tuple[Change, ...]:
        # Two first requests of a user may both have written it: the first counts.
        self.accounts.setdefault(event.user, Account(event.user, event.allotment, event.allotment))
        return ()

    def _order_refused(self, seq: int, event: OrderRefused) -> tuple[Change, ...]:
        order = replace(event.order, state=State.REFUSED, reserved_cash=ZERO)
        self._enter(order)
        return (Change(seq, "refused", order, event.at),)

    def _order_intended(self, seq: int, event: OrderIntended) -> tuple[Change, ...]:
        order, legs = event.order, event.legs
        self._require_account(order)
        if not legs:
            self._enter(order)
            self._reservations.open(order)
            return (Change(seq, "pending", order, event.at),)
        return self._enter_family(seq, "pending", event.at, order, legs)

    def _enter_family(
        self, seq: int, word: str, at: datetime, order: Order, legs: tuple[Order, ...]
    ) -> tuple[Change, ...]:
        """An order and its legs, which share reservations."""
        order = order if order.leg_ids else replace(order, leg_ids=tuple(leg.order_id for leg in legs))
        legs = tuple(leg if leg.parent_id else replace(leg, parent_id=order.order_id) for leg in legs)
        self._enter(order)
        self._reservations.join(order, replaced=self.orders.get(OrderId(order.replaces)))
        for leg in legs:
            self._enter(leg)
            self._reservations.join(leg, parent=order)
        for entered in (order, *legs):
            self._reservations.update(entered)
        return tuple(Change(seq, word, entered, at) for entered in (order, *legs))

    def _order_recovered(self, seq: int, event: OrderRecovered) -> tuple[Change, ...]:
        order = event.order
        self._require_account(order)
        old = self.orders.get(OrderId(order.replaces))
        changes = self._enter_family(seq, "accepted", event.at, order, event.legs)
        for entered in (order, *event.legs):
            self._recovered.add(entered.order_id)
            if entered.broker_order_id:
                self._by_broker_order_id[entered.broker_order_id] = entered.order_id
        if old is None:
            return changes
        self.replacing.pop(old.order_id, None)
        return (*self._gone(seq, old, self.orders[order.order_id], event.at), *changes)

    def _send_intended(self, seq: int, event: SendIntended) -> tuple[Change, ...]:
        order = self._known(event.order_id)
        if order.state is not State.WAITING:
            return ()
        sending = replace(
            order,
            state=State.SENDING,
            message="",
            reserved_cash=event.reserved_cash,
            due_at=event.at,
            updated_at=event.at,
        )
        return (self._put(seq, "pending", sending),)

    def _order_accepted(self, seq: int, event: OrderAccepted) -> tuple[Change, ...]:
        order = self._known(event.order_id)
        if order.state is State.SENDING and not (order.leg_ids or order.parent_id or order.replaces):
            return self._plainly_accepted(seq, event, order)
        if not order.state.is_open and order.state not in _REVOCABLE:
            # It was over before its acceptance came: it gets its name at the broker, and that is all.
            self.orders[order.order_id] = order = self._named(order, event.broker_order_id)
            return tuple(self._hold_legs(seq, event.at, order, event.leg_broker_ids))
        changes, order = self._proved(seq, order, event.at)
        state = State.HELD if event.status == "held" else State.LIVE
        # What it was released to since is newer than the answer to its submission.
        status = (order.state is State.LIVE and order.broker_status) or event.status
        accepted = self._revived(self._named(order, event.broker_order_id), state, event.at, status)
        changes.append(self._put(seq, "accepted", accepted))
        if accepted.leg_ids:
            changes += self._hold_legs(seq, event.at, accepted, event.leg_broker_ids)
        return tuple(changes)

    def _plainly_accepted(self, seq: int, event: OrderAccepted, order: Order) -> tuple[Change, ...]:
        """What becomes of most orders: alone, new, and acknowledged. Nothing that is reserved changes."""
        accepted = replace(
            order,
            state=State.HELD if event.status == "held" else State.LIVE,
            broker_status=event.status,
            broker_order_id=event.broker_order_id or order.broker_order_id,
            updated_at=event.at,
        )
        if event.broker_order_id:
            self._by_broker_order_id[event.broker_order_id] = order.order_id
        self.orders[order.order_id] = accepted
        return (Change(seq, "accepted", accepted, event.at),)

    def _order_rejected(self, seq: int, event: OrderRejected) -> tuple[Change, ...]:
        order = self._known(event.order_id)
        return self._end_with_legs(seq, event, order, State.REJECTED)

    def _order_unknown(self, seq: int, event: OrderUnknown) -> tuple[Change, ...]:
        order = self._known(event.order_id)
        if order.state is not State.SENDING:
            return ()
        unknown = replace(order, state=State.UNKNOWN, message=event.reason, updated_at=event.at)
        return (self._put(seq, "unknown", unknown),)

    def _order_quarantined(self, seq: int, event: OrderQuarantined) -> tuple[Change, ...]:
        order = self._known(event.order_id)
        if order.state not in _UNPROVEN:
            return ()
        missing = replace(order, state=State.QUARANTINE, message=event.reason, updated_at=event.at)
        return (self._put(seq, "unknown", missing),)

    def _order_not_sent(self, seq: int, event: OrderNotSent) -> tuple[Change, ...]:
        order = self._known(event.order_id)
        if order.state not in _UNPROVEN and order.state is not State.WAITING:
            return ()
        return self._end_with_legs(seq, event, order, State.NOT_SENT)

    def _order_released(self, seq: int, event: OrderReleased) -> tuple[Change, ...]:
        order = self._known(event.order_id)
        if not (order.state.is_open or order.state in _REVOCABLE or self.may_reopen(order)):
            return ()
        changes, order = self._proved(seq, order, event.at, event.status)
        if self.may_reopen(order):
            order = replace(order, reserved_cash=self._to_buy_again(order))
        released = self._revived(order, State.LIVE, event.at, broker_status=event.status)
        changes.append(self._put(seq, "accepted", released))
        if order.leg_ids and (order.state in _UNPROVEN or order.state in _REVOCABLE):
            changes += self._hold_legs(seq, event.at, released, ())
        return tuple(changes)

    def _executed(self, seq: int, event: Executed) -> tuple[Change, ...]:
        order = self._known(event.order_id)
        request = order.request
        changes, order = self._proved(seq, order, event.at)
        self._book(order.user, request.symbol, request.side, event)
        filled_qty = MONEY.add(order.filled_qty, event.qty)
        filled_value = MONEY.add(order.filled_value, MONEY.multiply(event.qty, event.price))
        state = _state_after_fill(order, filled_qty, filled_value)
        reserved = order.reserved_cash
        if not state.is_open:
            reserved = ZERO
        elif order.state in _REVOCABLE:
            reserved = self._released.pop(order.order_id, ZERO)
        filled = replace(
            order,
            state=state,
            filled_qty=filled_qty,
            filled_value=filled_value,
            fees=MONEY.add(order.fees, event.fee),
            reserved_cash=_reserved_after_fill(order, reserved, filled_qty, event),
            updated_at=event.at,
        )
        if order.state in _REVOCABLE or order.state in _UNPROVEN:
            self._released.pop(order.order_id, None)
            filled = replace(filled, code="", message="")
        fill = Fill(
            seq,
            event.execution_id,
            order.order_id,
            order.user,
            order.strategy,
            request.symbol,
            request.side,
            event.qty,
            event.price,
            event.fee,
            event.at,
            event.cum_qty,
            event.broker_execution_id,
        )
        self._record(fill)
        word = "fill" if state is State.FILLED else "partial_fill"
        changes.append(self._put(seq, word, filled, fill, event.qty))
        if order.leg_ids and (order.state in _UNPROVEN or order.state in _REVOCABLE):
            changes += self._hold_legs(seq, event.at, order, ())
        return tuple(changes)

    def _execution_busted(self, seq: int, event: ExecutionBusted) -> tuple[Change, ...]:
        fill = self._take_back(event)
        if fill is None or not fill.order_id:
            return ()
        order = self._known(fill.order_id)
        value = MONEY.multiply(fill.qty, fill.price)
        # What it had bought may have to be bought again.
        is_buying = fill.side is Side.BUY and order.state.is_open
        back = replace(
            order,
            filled_qty=MONEY.subtract(order.filled_qty, fill.qty),
            filled_value=MONEY.subtract(order.filled_value, value),
            fees=MONEY.subtract(order.fees, fill.fee),
            reserved_cash=MONEY.add(order.reserved_cash, value) if is_buying else order.reserved_cash,
            message=event.reason,
            updated_at=event.at,
        )
        self._busted.add(order.order_id)
        return (self._put(seq, "busted", back, fill, MONEY.minus(fill.qty)),)

    def _to_buy_again(self, order: Order) -> Decimal:
        """Dollars for what was taken back of a buy, at the prices it had."""
        if order.request.side is not Side.BUY:
            return ZERO
        busted = (fill for fill in self.executions_of(order.order_id) if fill.is_busted)
        cost = max((fill.price for fill in busted), default=ZERO)
        return MONEY.multiply(cost, order.remaining or ZERO)

    def _order_ended(self, seq: int, event: OrderEnded) -> tuple[Change, ...]:
        order = self._known(event.order_id)
        if not order.state.is_open and not self.may_reopen(order):
            return ()
        ended = replace(order, state=event.state, reserved_cash=ZERO, message=event.reason, updated_at=event.at)
        changes = [self._put(seq, _ENDED_WORD.get(event.state, "canceled"), ended)]
        if order.leg_ids and order.state in _UNPROVEN:
            # The broker had it, and so has its legs until it says that they, too, have ended.
            changes += self._hold_legs(seq, event.at, ended, ())
        return tuple(changes)

    def _cancel_requested(self, seq: int, event: CancelRequested) -> tuple[Change, ...]:
        order = self._known(event.order_id)
        if not order.state.is_open:
            return ()
        return (self._put(seq, "cancel_requested", replace(order, cancel_requested=True, updated_at=event.at)),)

    def _cancel_rejected(self, seq: int, event: CancelRejected) -> tuple[Change, ...]:
        order = self._known(event.order_id)
        if not order.state.is_open:
            return ()
        stands = replace(order, cancel_requested=False, message=event.message, updated_at=event.at)
        return (self._put(seq, "cancel_rejected", stands),)

    def _replace_intended(self, seq: int, event: ReplaceIntended) -> tuple[Change, ...]:
        old = self._known(event.order_id)
        new = event.order if event.order.replaces else replace(event.order, replaces=old.order_id)
        if old.parent_id and not new.parent_id:
            new = replace(new, parent_id=old.parent_id, leg=old.leg)
        self._enter(new)
        self.replacing[old.order_id] = new.order_id
        self._reservations.join(new, replaced=old)
        self._reservations.update(new)
        return (Change(seq, "pending", new, event.at),)

    def _order_replaced(self, seq: int, event: OrderReplaced) -> tuple[Change, ...]:
        old, new = self._known(event.order_id), self._known(event.new_order_id)
        if self.replacing.get(old.order_id) == new.order_id:
            del self.replacing[old.order_id]
        elif old.replaced_by:
            return ()
        qty = new.qty if event.qty is None else event.qty
        works = replace(new, request=replace(new.request, qty=qty), leg_ids=new.leg_ids or old.leg_ids)
        if new.state.is_open or new.state in _REVOCABLE:
            works = self._revived(works, State.LIVE, event.at, broker_status=event.status)
            works = replace(works, state=_state_after_fill(works, works.filled_qty, works.filled_value))
            reserved = works.reserved_cash if works.state.is_open else ZERO
            if new.remaining is not None and works.remaining is not None:
                reserved = share_of(reserved, works.remaining, new.remaining)
            works = replace(works, reserved_cash=reserved)
        works = self._named(works, event.broker_order_id)
        changes = self._gone(seq, old, works, event.at)
        self._reservations.set_total(works)
        word = "fill" if works.state is State.FILLED else "accepted"
        return (*changes, self._put(seq, word, works))

    def _replace_rejected(self, seq: int, event: ReplaceRejected) -> tuple[Change, ...]:
        old, new = self._known(event.order_id), self._known(event.new_order_id)
        if new.state not in _UNPROVEN:
            return ()
        changes = self._end_with_legs(seq, event, new, State.REJECTED)
        return (Change(seq, "replace_rejected", old, event.at), *changes)

    def _halt_set(self, seq: int, event: HaltSet) -> tuple[Change, ...]:
        name = "" if event.scope == "desk" else event.name
        what = f"the {event.scope} {name}" if name else f"the {event.scope}"
        self._halts.pop((event.scope, name), None)
        if event.halted:
            self._halts[event.scope, name] = f"{what} is halted by {event.by}: {event.reason or 'no reason given'}"
        return ()

    # What folding is made of

    def _known(self, order_id: OrderId) -> Order:
        order = self.orders.get(order_id)
        if order is None:
            raise BookError(f"no event has opened order {order_id}")
        return order

    def _require_account(self, order: Order) -> None:
        if order.user not in self.accounts:
            raise BookError(f"order {order.order_id} is of {order.user}, who has no account")

    def _enter(self, order: Order) -> None:
        """Take in an order that is new to the book."""
        order_id, user, request_id = order.order_id, order.user, order.request.request_id
        self.orders[order_id] = order
        self._by_client_order_id[order.client_order_id] = order_id
        if request_id and (order.replaces or not order.parent_id):
            self._by_request[user, request_id] = order_id
        if not order.parent_id:
            place = len(self._listed)
            self._listed.append(order_id)
            self._place[order_id] = place
            self._places_of_user.setdefault(user, []).append(place)
        if order.state in OPEN_STATES:
            self._open_up(order)

    def _put(self, seq: int, word: str, order: Order, fill: Fill | None = None, filled: Decimal = ZERO) -> Change:
        """Put a changed order in the place of what it was."""
        before = self.orders[order.order_id]
        self.orders[order.order_id] = order
        if order.state.is_open:
            if not before.state.is_open:
                self._open_up(order)
            elif not filled and order.request is before.request and order.reserved_cash == before.reserved_cash:
                return Change(seq, word, order, order.updated_at, fill)
        else:
            self._open.pop(order.order_id, None)
            self._open_of_user.get(order.user, {}).pop(order.order_id, None)
            self._open_of_symbol.get(order.request.symbol, {}).pop(order.order_id, None)
        self._reservations.update(order, filled)
        return Change(seq, word, order, order.updated_at, fill)

    def _open_up(self, order: Order) -> None:
        self._open[order.order_id] = None
        self._open_of_user.setdefault(order.user, {})[order.order_id] = None
        self._open_of_symbol.setdefault(order.request.symbol, {})[order.order_id] = None

    def _revived(self, order: Order, state: State, at: datetime, broker_status: str) -> Order:
        """The order as the broker's proof that it works makes it, were it rejected or not sent before."""
        if order.state in _REVOCABLE:
            reserved = self._released.pop(order.order_id, ZERO)
            order = replace(order, code="", message="", reserved_cash=reserved)
        elif order.state in _UNPROVEN:
            order = replace(order, message="")
        return replace(order, state=state, broker_status=broker_status, updated_at=at)

    def _named(self, order: Order, broker_order_id: str) -> Order:
        if not broker_order_id or broker_order_id == order.broker_order_id:
            return order
        self._by_broker_order_id[broker_order_id] = order.order_id
        return replace(order, broker_order_id=broker_order_id)

    def _hold_legs(self, seq: int, at: datetime, order: Order, broker_ids: tuple[str, ...]) -> list[Change]:
        """The broker has the order, and so its legs: held, those that nothing was heard of yet."""
        changes = []
        for place, leg in enumerate(self.legs(order)):
            broker_id = broker_ids[place] if place < len(broker_ids) else ""
            if leg.state in _UNPROVEN or leg.state in _REVOCABLE:
                held = self._revived(leg, State.HELD, at, broker_status="held")
                changes.append(self._put(seq, "accepted", self._named(held, broker_id)))
            else:
                self.orders[leg.order_id] = self._named(leg, broker_id)
        return changes

    def _end_with_legs(
        self, seq: int, event: OrderRejected | OrderNotSent | ReplaceRejected, order: Order, end: State
    ) -> tuple[Change, ...]:
        """An order that the broker does not have ends, and with it the legs that are still open."""
        code, message = ("NOT_SENT", event.reason) if isinstance(event, OrderNotSent) else (event.code, event.message)
        changes: list[Change] = []
        if not order.state.is_open:
            return ()
        self.replacing.pop(OrderId(order.replaces), None)
        for ending in (order, *self.legs(order)):
            if ending.state.is_open:
                self._released[ending.order_id] = ending.reserved_cash
                ended = replace(ending, state=end, code=code, message=message, reserved_cash=ZERO, updated_at=event.at)
                changes.append(self._put(seq, "rejected", ended))
        return tuple(changes)

    def _proved(self, seq: int, new: Order, at: datetime, status: str = "new") -> tuple[list[Change], Order]:
        """An order that works has taken the place of the one it replaces, even if OrderReplaced (which tells
        its quantity) is still to come."""
        changes = self._entry_proved(seq, new, at, status)
        new = self.orders[new.order_id]
        old = self.orders.get(OrderId(new.replaces))
        if old is None or old.replaced_by or self.replacing.get(old.order_id) != new.order_id:
            return changes, new
        new = replace(new, leg_ids=new.leg_ids or old.leg_ids)
        return [*changes, *self._gone(seq, old, new, at)], new

    def _entry_proved(self, seq: int, leg: Order, at: datetime, status: str) -> list[Change]:
        """A leg that works proves that the broker has what it came with: the other order of an OCO, in its state."""
        entry = self.orders.get(OrderId(leg.parent_id))
        if entry is None or not (entry.state in _UNPROVEN or entry.state in _REVOCABLE):
            return []
        proved = self._revived(entry, State.LIVE, at, broker_status=status)
        return [self._put(seq, "accepted", proved), *self._hold_legs(seq, at, proved, ())]

    def _gone(self, seq: int, old: Order, new: Order, at: datetime) -> list[Change]:
        """The old order has made way for the new one. Nothing, if that was known already."""
        if old.replaced_by:
            return []
        gone = replace(old, replaced_by=new.order_id, updated_at=at)
        if old.state.is_open:
            gone = replace(gone, state=State.REPLACED, reserved_cash=ZERO, cancel_requested=False)
        self._move_legs(gone, new)
        return [self._put(seq, "replaced", gone)]

    def _move_legs(self, old: Order, new: Order) -> None:
        """Legs of a replaced entry belong to the new one; a replaced leg's place is the new one's."""
        for leg_id in old.leg_ids:
            self.orders[leg_id] = replace(self.orders[leg_id], parent_id=new.order_id)
        parent = self.orders.get(OrderId(old.parent_id))
        if parent is not None:
            legs = tuple(new.order_id if leg_id == old.order_id else leg_id for leg_id in parent.leg_ids)
            self.orders[parent.order_id] = replace(parent, leg_ids=legs)


def _state_after_fill(order: Order, filled_qty: Decimal, filled_value: Decimal) -> State:
    """FILLED when nothing is left, even after a cancel (the broker's last word proves it came too late).

    Otherwise an end stands, except where the execution proves that the order is not rejected or unsent.
    """
    qty, notional = order.request.qty, order.request.notional
    is_spent = notional is not None and MONEY.subtract(notional, filled_value) < _SPENT_USD
    is_done = is_spent if qty is None else filled_qty >= qty
    if is_done and order.state is not State.REPLACED and order.state is not State.REFUSED:
        return State.FILLED
    return State.LIVE if order.state.is_open or order.state in _REVOCABLE else order.state


def _reserved_after_fill(order: Order, reserved: Decimal, filled_qty: Decimal, event: Executed) -> Decimal:
    """What a partly filled order still holds: in proportion to what is left of its quantity, or of its notional."""
    if not reserved:
        return ZERO
    before, qty = order.remaining, order.qty
    if before is None or qty is None:
        return max(ZERO, MONEY.subtract(reserved, MONEY.multiply(event.qty, event.price)))
    return share_of(reserved, MONEY.subtract(qty, filled_qty), before)
