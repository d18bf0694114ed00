"""What reaches the books besides the desk's own orders: others' orders on the account, dividends, fees, splits,
transfers, and what nobody could explain. Folded as all else is; see book.py."""

from decimal import Decimal
from typing import TYPE_CHECKING

from msgspec.structs import replace

from desk_server.book_queries import BookQueries
from desk_server.domain import ZERO, OrderId, Side, Symbol, UserId, house_of, is_house
from desk_server.events import (
    ActivityPosted,
    Executed,
    ExecutionBusted,
    ForeignOrderSeen,
    HouseAdjusted,
    HouseExecuted,
)
from desk_server.positions import (
    MONEY,
    Account,
    Fill,
    Position,
    book_activity,
    book_execution,
    contributed,
)

if TYPE_CHECKING:
    from desk_server.book import Change


class BookError(Exception):
    """The event cannot follow those already folded: the ledger is not this desk's, or the desk has a bug."""


class HouseBooks(BookQueries):
    """A house book for each account at the broker, and what moves money and shares of everybody."""

    def _house_executed(self, seq: int, event: HouseExecuted) -> "tuple[Change, ...]":
        house = self._house(event.account)
        self._book(house, event.symbol, event.side, event)
        fill = Fill(
            seq=seq,
            execution_id=event.execution_id,
            order_id=OrderId(""),
            user=house,
            strategy="",
            symbol=event.symbol,
            side=event.side,
            qty=event.qty,
            price=event.price,
            fee=event.fee,
            at=event.at,
            cum_qty=event.cum_qty,
            broker_execution_id=event.broker_execution_id,
        )
        self._foreign_fills.setdefault(event.broker_order_id, []).append(len(self.fills))
        self._record(fill)
        return ()

    def _foreign_order_seen(self, seq: int, event: ForeignOrderSeen) -> "tuple[Change, ...]":
        self._foreign[event.broker_order_id] = event
        return ()

    def _activity_posted(self, seq: int, event: ActivityPosted) -> "tuple[Change, ...]":
        for share in event.shares:
            if share.user not in self.accounts and not is_house(share.user):
                raise BookError(f"activity {event.activity_id} is of {share.user}, who has no account")
        for share in event.shares:
            account = self.accounts.get(share.user) or Account(share.user, ZERO, ZERO)
            held = self.positions.setdefault(share.user, {})
            # Money of a symbol whose holder is gone by now has no position to stand with.
            position = held.get(event.symbol) if event.symbol else None
            if position is None and share.qty:
                position = Position(share.user, event.symbol)
            account, position = book_activity(account, position, event.kind, cash=share.cash, qty=share.qty)
            self.accounts[share.user] = account
            if position is not None:
                held[event.symbol] = position
        self.activities.append(event)
        self._activity_ids.add(event.activity_id)
        return ()

    def _house_adjusted(self, seq: int, event: HouseAdjusted) -> "tuple[Change, ...]":
        house = self._house(event.account)
        account = contributed(self.accounts[house], event.cash)
        if event.qty:
            held = self.positions.setdefault(house, {})
            position = held.get(event.symbol) or Position(house, event.symbol)
            side = Side.BUY if event.qty > 0 else Side.SELL
            qty = event.qty.copy_abs()
            account, held[event.symbol] = book_execution(account, position, side, qty, event.price, fee=ZERO)
            # The shares came by no trade: what they are worth is capital, and the cash is as it was.
            account = contributed(account, MONEY.multiply(event.qty, event.price))
        self.accounts[house] = account
        if event.opening:
            self.opened.add(event.account)
        return ()

    # What folding is made of

    def _house(self, account: str) -> UserId:
        house = house_of(account)
        self.accounts.setdefault(house, Account(house, ZERO, ZERO))
        return house

    def _book(self, user: UserId, symbol: Symbol, side: Side, event: Executed | HouseExecuted) -> None:
        account = self.accounts.get(user)
        if account is None:
            raise BookError(f"execution {event.execution_id} is of {user}, who has no account")
        held = self.positions.setdefault(user, {})
        position = held.get(symbol) or Position(user, symbol)
        self.accounts[user], held[symbol] = book_execution(
            account, position, side, event.qty, event.price, fee=event.fee
        )

    def _take_back(self, event: ExecutionBusted) -> Fill | None:
        """Book the execution the other way round; None where it was taken back already."""
        place = self._place_of_execution(event)
        fill = self.fills[place]
        if fill.is_busted:
            return None
        self.fills[place] = fill = replace(fill, is_busted=True)
        account, held = self.accounts[fill.user], self.positions[fill.user]
        opposite = Side.SELL if fill.side is Side.BUY else Side.BUY
        fee: Decimal = MONEY.minus(fill.fee)
        self.accounts[fill.user], held[fill.symbol] = book_execution(
            account, held[fill.symbol], opposite, fill.qty, fill.price, fee=fee
        )
        return fill

    def _place_of_execution(self, event: ExecutionBusted) -> int:
        places = (
            self._fills_of_order.get(event.order_id, ()) if event.order_id else self._fills_of_user.get(event.user, ())
        )
        for place in reversed(places):
            if self.fills[place].execution_id == event.execution_id:
                return place
        raise BookError(f"no event has booked execution {event.execution_id}")

    def _record(self, fill: Fill) -> None:
        place = len(self.fills)
        self.fills.append(fill)
        self._fills_of_user.setdefault(fill.user, []).append(place)
        if fill.order_id:
            self._fills_of_order.setdefault(fill.order_id, []).append(place)
