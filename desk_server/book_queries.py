"""What the book holds, and every question that can be asked about it. `book.py` is what changes it."""

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime
from decimal import Decimal

from desk_server.domain import ZERO, Order, OrderId, Side, State, Symbol, UserId
from desk_server.events import ActivityPosted, ForeignOrderSeen
from desk_server.positions import MONEY, Account, Fill, Position, PriceOf
from desk_server.reservations import Reservations

# How many orders or fills one page looks at before it gives a token to go on with, matches or not.
SCAN_MAX = 10_000


class BookQueries:
    """What it hands out is immutable; the dictionaries are for reading."""

    def __init__(self) -> None:
        self.seq = 0
        self.orders: dict[OrderId, Order] = {}
        self.accounts: dict[UserId, Account] = {}
        self.positions: dict[UserId, dict[Symbol, Position]] = {}
        self.fills: list[Fill] = []
        # Orders being replaced: the order that may take their place.
        self.replacing: dict[OrderId, OrderId] = {}
        self._by_client_order_id: dict[str, OrderId] = {}
        self._by_broker_order_id: dict[str, OrderId] = {}
        self._by_request: dict[tuple[UserId, str], OrderId] = {}
        self._open: dict[OrderId, None] = {}
        self._open_of_user: dict[UserId, dict[OrderId, None]] = {}
        self._open_of_symbol: dict[Symbol, dict[OrderId, None]] = {}
        # Orders that are not legs, in the order they were written down; users' lists hold places in it.
        self._listed: list[OrderId] = []
        self._place: dict[OrderId, int] = {}
        self._places_of_user: dict[UserId, list[int]] = {}
        # Places in `fills`.
        self._fills_of_user: dict[UserId, list[int]] = {}
        self._fills_of_order: dict[OrderId, list[int]] = {}
        # Others' orders on the account, and the places of their executions in `fills`, by the broker's order id.
        self._foreign: dict[str, ForeignOrderSeen] = {}
        self._foreign_fills: dict[str, list[int]] = {}
        self.activities: list[ActivityPosted] = []
        self._activity_ids: set[str] = set()
        # The accounts at the broker whose opening balance is booked.
        self.opened: set[str] = set()
        # Orders that this desk did not place, or did when it had another ledger.
        self._recovered: set[OrderId] = set()
        # Orders of which the broker has taken an execution back.
        self._busted: set[OrderId] = set()
        self._reservations = Reservations(self.orders)
        self._halts: dict[tuple[str, str], str] = {}

    # Questions about orders

    def order(self, order_id: str) -> Order | None:
        return self.orders.get(OrderId(order_id))

    def by_client_order_id(self, client_order_id: str) -> Order | None:
        return self._order_or_none(self._by_client_order_id.get(client_order_id))

    def by_broker_order_id(self, broker_order_id: str) -> Order | None:
        return self._order_or_none(self._by_broker_order_id.get(broker_order_id))

    def by_request(self, user: UserId, request_id: str) -> Order | None:
        """The order (placed, refused or replacing) that the user's request made."""
        order_id = self._by_request.get((user, request_id))
        return None if order_id is None else self.orders[order_id]

    def legs(self, order: Order) -> tuple[Order, ...]:
        return tuple(self.orders[leg_id] for leg_id in order.leg_ids)

    def total_qty(self, order: Order) -> Decimal | None:
        """The quantity with what the orders it replaced had filled; exact while the order is open."""
        return self._reservations.total(order)

    def open_orders(self, user: UserId | None = None, symbol: Symbol | None = None) -> list[Order]:
        """Legs, held ones too, included; oldest first. Of everybody where no user is given."""
        ids: Iterable[OrderId]
        if user is not None:
            ids = self._open_of_user.get(user, ())
        elif symbol is not None:
            ids = self._open_of_symbol.get(symbol, ())
        else:
            ids = self._open
        found = (self.orders[order_id] for order_id in ids)
        return [order for order in found if symbol is None or order.request.symbol == symbol]

    def open_count(self, user: UserId) -> int:
        """How many orders of the user are open, legs included."""
        return len(self._open_of_user.get(user, ()))

    def orders_of(
        self,
        user: UserId | None,
        *,
        is_open: bool | None = None,
        symbols: Collection[str] = (),
        side: Side | None = None,
        strategy: str = "",
        after: datetime | None = None,
        until: datetime | None = None,
        limit: int = 50,
        page_token: str = "",
    ) -> tuple[list[Order], str]:
        """A page of the user's orders (everybody's for None), newest first, and the token of the next, "" on the
        last. Legs are not listed: they stand under their entry, which counts as open while one of them is.

        A page may be short, even empty, and yet have a next one. Raises ValueError for a token not from here.
        """
        before = _place_of(page_token, len(self._listed))
        places: Iterable[int]
        if is_open:
            roots = {self._place[self._root(order_id)] for order_id in self._open_ids(user)}
            places = sorted((place for place in roots if place < before), reverse=True)
        elif user is None:
            places = range(before - 1, -1, -1)
        else:
            places = _backwards(self._places_of_user.get(user, []), before)
        page: list[Order] = []
        for looked_at, place in enumerate(places):
            if len(page) == limit or looked_at == SCAN_MAX:
                return page, str(before)
            before = place
            order = self.orders[self._listed[place]]
            if (
                (not symbols or order.request.symbol in symbols)
                and (side is None or order.request.side is side)
                and (not strategy or order.strategy == strategy)
                and (after is None or order.created_at >= after)
                and (until is None or order.created_at < until)
                and (is_open is None or is_open is self._lives(order))
            ):
                page.append(order)
        return page, ""

    def fills_of(
        self, user: UserId | None, *, symbol: str = "", order_id: str = "", limit: int = 50, page_token: str = ""
    ) -> tuple[list[Fill], str]:
        """A page of the user's fills (everybody's for None), newest first; tokens and errors as `orders_of`.
        Executions that the broker took back are not among them."""
        before = _place_of(page_token, len(self.fills))
        places: Iterable[int]
        if order_id:
            places = _backwards(self._fills_of_order.get(OrderId(order_id), []), before)
        elif user is not None:
            places = _backwards(self._fills_of_user.get(user, []), before)
        else:
            places = range(before - 1, -1, -1)
        page: list[Fill] = []
        for looked_at, place in enumerate(places):
            if len(page) == limit or looked_at == SCAN_MAX:
                return page, str(before)
            before = place
            fill = self.fills[place]
            if (user is None or fill.user == user) and (not symbol or fill.symbol == symbol) and not fill.is_busted:
                page.append(fill)
        return page, ""

    def executions_of(self, order_id: OrderId) -> list[Fill]:
        """All that were ever booked to the order, oldest first; those taken back, too."""
        return [self.fills[place] for place in self._fills_of_order.get(order_id, ())]

    def executions_of_foreign(self, broker_order_id: str) -> list[Fill]:
        """The same for an order that is not this desk's."""
        return [self.fills[place] for place in self._foreign_fills.get(broker_order_id, ())]

    def fill_places(self, user: UserId) -> Sequence[int]:
        """Where the user's executions stand in `fills`, ascending."""
        return self._fills_of_user.get(user, ())

    def may_reopen(self, order: Order) -> bool:
        """True for an order that was filled until the broker took an execution back: its word counts again."""
        is_whole = order.qty is not None and order.filled_qty >= order.qty
        return order.state is State.FILLED and order.order_id in self._busted and not is_whole

    def has_sent_orders(self) -> bool:
        """Whether any order was sent by a desk with this ledger."""
        return any(
            order.state is not State.REFUSED and order_id not in self._recovered
            for order_id, order in self.orders.items()
        )

    def foreign_orders(self) -> list[ForeignOrderSeen]:
        """Orders on the account that nobody here placed, in the order they were seen."""
        return list(self._foreign.values())

    def is_foreign(self, broker_order_id: str) -> bool:
        return broker_order_id in self._foreign

    def has_activity(self, activity_id: str) -> bool:
        return activity_id in self._activity_ids

    # Questions about money

    def position(self, user: UserId, symbol: Symbol) -> Position:
        """Flat where the user never traded the symbol."""
        return self.positions.get(user, {}).get(symbol) or Position(user, symbol)

    def positions_of(self, user: UserId) -> list[Position]:
        """What the user holds now, by symbol."""
        held = self.positions.get(user, {})
        return [held[symbol] for symbol in sorted(held) if held[symbol].qty]

    def reserved_cash(self, user: UserId) -> Decimal:
        return self._reservations.cash(user)

    def buying_power(self, user: UserId) -> Decimal:
        """Cash that no open order holds; 0 for a user without an account."""
        account = self.accounts.get(user)
        return MONEY.subtract(account.cash, self._reservations.cash(user)) if account else ZERO

    def open_qty(self, user: UserId, symbol: Symbol, side: Side) -> Decimal:
        """What the user's open orders of that side may still execute; notional orders are not in it."""
        return self._reservations.qty(user, symbol, side)

    def reserved_qty(self, user: UserId, symbol: Symbol) -> Decimal:
        """What open sell orders hold of the user's shares. One without a quantity (notional) holds all of them."""
        open_qty = self._reservations.qty(user, symbol, Side.SELL)
        if self._reservations.notional_orders(user, symbol, Side.SELL):
            return max(open_qty, self.position(user, symbol).qty)
        return open_qty

    def available_qty(self, user: UserId, symbol: Symbol) -> Decimal:
        """The position minus what open closing orders hold: negative when short; never beyond zero."""
        qty = self.position(user, symbol).qty
        if qty >= 0:
            return max(ZERO, MONEY.subtract(qty, self.reserved_qty(user, symbol)))
        return min(ZERO, MONEY.add(qty, self._reservations.qty(user, symbol, Side.BUY)))

    def market_value(self, user: UserId, price_of: PriceOf) -> Decimal:
        """Long positions minus short ones, in dollars; at cost where no price is known."""
        values = (p.market_value(price_of(p.symbol)) for p in self.positions_of(user))
        return _sum(values)

    def unrealized_pl(self, user: UserId, price_of: PriceOf) -> Decimal:
        values = (p.unrealized_pl(price_of(p.symbol)) for p in self.positions_of(user))
        return _sum(values)

    def equity(self, user: UserId, price_of: PriceOf) -> Decimal:
        account = self.accounts.get(user)
        return MONEY.add(account.cash if account else ZERO, self.market_value(user, price_of))

    def totals(self) -> dict[Symbol, Decimal]:
        """What the broker's account must hold: the sum of all users' positions and the house's, without zeros."""
        totals: dict[Symbol, Decimal] = {}
        for held in self.positions.values():
            for symbol, position in held.items():
                totals[symbol] = MONEY.add(totals.get(symbol, ZERO), position.qty)
        return {symbol: qty for symbol, qty in totals.items() if qty}

    def halted(self, user: UserId, strategy: str, symbol: str) -> str:
        """Why this may not be traded now, in a sentence; "" when it may."""
        if not self._halts:
            return ""
        scopes = (("desk", ""), ("user", user), ("strategy", f"{user}/{strategy}"), ("symbol", symbol))
        return next((self._halts[scope] for scope in scopes if scope in self._halts), "")

    # What questions are made of

    def _order_or_none(self, order_id: OrderId | None) -> Order | None:
        return None if order_id is None else self.orders[order_id]

    def _open_ids(self, user: UserId | None) -> Iterable[OrderId]:
        return self._open if user is None else self._open_of_user.get(user, ())

    def _root(self, order_id: OrderId) -> OrderId:
        while parent_id := self.orders[order_id].parent_id:
            order_id = OrderId(parent_id)
        return order_id

    def _lives(self, order: Order) -> bool:
        return order.state.is_open or any(self.orders[leg_id].state.is_open for leg_id in order.leg_ids)


def _sum(amounts: Iterable[Decimal]) -> Decimal:
    total = ZERO
    for amount in amounts:
        total = MONEY.add(total, amount)
    return total


def _backwards(places: list[int], before: int) -> Iterator[int]:
    """The places below `before`, of an ascending list, last first."""
    for index in range(bisect_left(places, before) - 1, -1, -1):
        yield places[index]


def _place_of(page_token: str, end: int) -> int:
    """A page token is the place that the page before ended with; pages go down from the `end`."""
    if not page_token:
        return end
    if not (page_token.isascii() and page_token.isdigit() and len(page_token) <= 18):
        raise ValueError(f"page_token {page_token[:40]!r} is not one that a list answered with: start without one")
    return min(int(page_token), end)
