"""Whose is an order at the broker: by its name, through its parent, or through the order it replaced. Pure.

From that, what an empty (or older) ledger must be told: users, orders and legs, as the broker has them.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from decimal import Decimal

from msgspec import Struct

from desk_server.book import Book
from desk_server.brokers import BrokerOrder
from desk_server.domain import (
    STRATEGY_PATTERN,
    USER_PATTERN,
    ZERO,
    Leg,
    Order,
    OrderId,
    OrderRequest,
    OrderType,
    Side,
    State,
    UserId,
)
from desk_server.events import AnyEvent, ForeignOrderSeen, OrderAccepted, OrderRecovered, UserOpened
from desk_server.positions import MONEY

_NAME = re.compile(rf"d1\.({USER_PATTERN.pattern})\.({STRATEGY_PATTERN.pattern})\.([0-7][0-9A-HJKMNP-TV-Z]{{25}})")
# States in which the desk does not know that the broker has the order, or thinks that it has not.
UNSURE = frozenset({State.SENDING, State.UNKNOWN, State.QUARANTINE, State.REJECTED, State.NOT_SENT})
_DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


class Owner(Struct, frozen=True):
    user: UserId
    strategy: str
    order_id: OrderId


def owner_of(client_order_id: str) -> Owner | None:
    """Who a name of this desk (d1.<user>.<strategy>.<ulid>) tells; None for any other, ill-formed ones included."""
    found = _NAME.fullmatch(client_order_id)
    return Owner(UserId(found[1]), found[2], OrderId(found[3])) if found else None


def flat(orders: Iterable[BrokerOrder]) -> Iterator[BrokerOrder]:
    """Every order, its legs right after it."""
    for order in orders:
        yield order
        yield from flat(order.legs)


def known(book: Book, there: BrokerOrder) -> Order | None:
    """The book's order that this is."""
    return book.by_client_order_id(there.client_order_id) or book.by_broker_order_id(there.broker_order_id)


class Attribution:
    """What the book must be told of these orders, oldest first: `events`. Found once, then recorded together."""

    def __init__(self, book: Book, allotment: Decimal, now: datetime) -> None:
        self.events: list[AnyEvent] = []
        self.recovered = 0
        self.foreign = 0
        self._book = book
        self._allotment = allotment
        self._now = now
        self._users = set(book.accounts)
        # Orders that this attribution brings in, by the broker's ids.
        self._new: dict[str, Order] = {}
        self._order_ids: set[OrderId] = set()
        self._legs_named: set[str] = set()

    def take(self, there: BrokerOrder, account: str) -> None:
        """An order with its legs; those it replaced must have been taken before."""
        order = known(self._book, there)
        if there.broker_order_id in self._legs_named or there.broker_order_id in self._new:
            return
        if order is not None:
            self._name(order, there)
            self._take_legs(order, there)
        elif (owner := self._owner(there)) is not None:
            self._recover(there, owner)
        else:
            for one in flat([there]):
                self._see_foreign(one, account)

    def _owner(self, there: BrokerOrder, parent: Order | None = None) -> Owner | None:
        """By its name; else it is whose the order is that it replaced (the broker or a person changed it), or whose
        leg it is."""
        named = owner_of(there.client_order_id)
        if named is not None:
            return None if self._is_taken(named.order_id) else named
        old = self._order_at_broker(there.replaces) or parent
        if old is None:
            return None
        return Owner(old.user, old.strategy, self._made_up_id(old.order_id, there.broker_order_id))

    def _recover(self, there: BrokerOrder, owner: Owner) -> None:
        self._open(owner.user)
        order = self._order(there, owner)
        legs = []
        for leg in there.legs:
            leg_owner = self._owner(leg, order)
            if leg_owner is not None and not leg.replaces:
                legs.append(self._order(leg, leg_owner, order))
        self.recovered += 1 + len(legs)
        self.events.append(OrderRecovered(at=self._now, order=order, legs=tuple(legs)))
        for leg in there.legs:
            if leg.replaces and (leg_owner := self._owner(leg, order)) is not None:
                self._recover_alone(leg, leg_owner, order)

    def _recover_alone(self, there: BrokerOrder, owner: Owner, parent: Order) -> None:
        self.recovered += 1
        self.events.append(OrderRecovered(at=self._now, order=self._order(there, owner, parent)))

    def _name(self, order: Order, there: BrokerOrder) -> None:
        """An order whose execution or end was told before its acceptance has no name at the broker yet."""
        is_settled = order.state not in UNSURE and OrderId(order.replaces) not in self._book.replacing
        if not order.broker_order_id and is_settled:
            self.events.append(
                OrderAccepted(
                    at=self._now,
                    order_id=order.order_id,
                    broker_order_id=there.broker_order_id,
                    status=order.broker_status or "new",
                )
            )

    def _take_legs(self, order: Order, there: BrokerOrder) -> None:
        """Legs of an order that the book has: named by the broker now, or put there in the place of one it has."""
        if not there.legs:
            return
        legs = self._book.legs(order)
        names = [leg.broker_order_id for leg in legs]
        for leg in there.legs:
            if known(self._book, leg) is not None or self._book.is_foreign(leg.broker_order_id):
                continue
            place = next((n for n, one in enumerate(legs) if not names[n] and one.leg is _leg(leg)), None)
            if place is not None and not leg.replaces:
                names[place] = leg.broker_order_id
                self._legs_named.add(leg.broker_order_id)
            elif (owner := self._owner(leg, order)) is not None:
                self._recover_alone(leg, owner, order)
        if names != [leg.broker_order_id for leg in legs]:
            status = there.status if there.is_open else order.broker_status or "new"
            self.events.append(
                OrderAccepted(
                    at=self._now,
                    order_id=order.order_id,
                    broker_order_id=there.broker_order_id,
                    status=status,
                    leg_broker_ids=tuple(names),
                )
            )

    def _order(self, there: BrokerOrder, owner: Owner, parent: Order | None = None) -> Order:
        old = self._order_at_broker(there.replaces)
        request = there.request or _least_request(there)
        at = there.created_at or self._now
        order = Order(
            order_id=owner.order_id,
            client_order_id=there.client_order_id or f"broker.{there.broker_order_id}",
            user=owner.user,
            strategy=owner.strategy,
            deployment_id="",
            request=request,
            created_at=at,
            updated_at=at,
            state=State.HELD if there.status == "held" else State.LIVE,
            broker_status=there.status if there.is_open and there.status != "partially_filled" else "new",
            broker_order_id=there.broker_order_id,
            reserved_cash=_needs(request),
            replaces=old.order_id if old else "",
            parent_id=parent.order_id if parent else (old.parent_id if old else ""),
            leg=_leg(there) if parent or (old and old.leg) else Leg.NONE,
        )
        self._new[there.broker_order_id] = order
        self._order_ids.add(order.order_id)
        return order

    def _see_foreign(self, there: BrokerOrder, account: str) -> None:
        if self._book.is_foreign(there.broker_order_id):
            return
        self.foreign += 1
        self.events.append(
            ForeignOrderSeen(
                at=self._now,
                broker_order_id=there.broker_order_id,
                client_order_id=there.client_order_id,
                symbol=there.symbol,
                side=there.side,
                qty=there.qty,
                account=account,
            )
        )

    def _open(self, user: UserId) -> None:
        if user not in self._users:
            self._users.add(user)
            self.events.append(UserOpened(at=self._now, user=user, allotment=self._allotment))

    def _order_at_broker(self, broker_order_id: str) -> Order | None:
        if not broker_order_id:
            return None
        return self._new.get(broker_order_id) or self._book.by_broker_order_id(broker_order_id)

    def _is_taken(self, order_id: OrderId) -> bool:
        return order_id in self._order_ids or order_id in self._book.orders

    def _made_up_id(self, like: OrderId, broker_order_id: str) -> OrderId:
        """An id for an order that the desk never named: the same whenever it is rebuilt from the broker."""
        digest = int.from_bytes(hashlib.sha256(broker_order_id.encode()).digest()[:10])
        return OrderId(like[:10] + "".join(_DIGITS[digest >> shift & 31] for shift in range(75, -1, -5)))


def _leg(there: BrokerOrder) -> Leg:
    """Which exit it is: the profit is taken by a limit order, the loss stopped by a stop."""
    kind = there.request.type if there.request else OrderType.LIMIT
    return Leg.TAKE_PROFIT if kind is OrderType.LIMIT else Leg.STOP_LOSS


def _least_request(there: BrokerOrder) -> OrderRequest:
    """For a kind of order that the desk does not know: what it trades is all that is told."""
    return OrderRequest(symbol=there.symbol, side=there.side, qty=there.qty)


def _needs(request: OrderRequest) -> Decimal:
    """Dollars that a buy may need at the price it names; 0 where it names none."""
    if request.side is not Side.BUY:
        return ZERO
    price = request.limit_price or request.stop_price
    if request.qty is None or price is None:
        return request.notional or ZERO
    return MONEY.multiply(request.qty, price)


def in_order(orders: Sequence[BrokerOrder]) -> list[BrokerOrder]:
    """Each after the one it replaced, whatever the times say."""
    by_id = {order.broker_order_id: order for order in orders}
    done: dict[str, BrokerOrder] = {}
    for order in orders:
        line = [order]
        while (before := by_id.get(line[-1].replaces)) is not None and before not in line:
            line.append(before)
        for one in reversed(line):
            done.setdefault(one.broker_order_id, one)
    return list(done.values())
