"""Differences between the books and the broker: found, watched until they count, told. Pure."""

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from enum import StrEnum

from msgspec import Struct
from msgspec.structs import replace

from desk_server.brokers import Holdings
from desk_server.domain import ZERO, Symbol, UserId, house_of, is_house
from desk_server.positions import MONEY, Account, Position


class Kind(StrEnum):
    """What differs: see docs/reconciliation.md for what each means."""

    POSITION = "position"
    CASH = "cash"
    ORDER = "order"
    FILLED = "filled"
    EXECUTION = "execution"


class Found(Struct, frozen=True):
    """One difference, as one comparison saw it. `subject` tells those of one kind and symbol apart (an order id).

    `amount` is what the broker has more than the books, in shares or dollars, where it is a number.
    """

    kind: Kind
    ours: str
    theirs: str
    account: str = ""
    symbol: Symbol = Symbol("")
    subject: str = ""
    amount: Decimal = ZERO
    price: Decimal = ZERO
    explanation: str = ""

    @property
    def key(self) -> tuple[str, str, str, str]:
        return (self.kind, self.account, self.symbol, self.subject)


class Difference(Struct, frozen=True):
    """A difference that has been seen before: `since` when it is there, `same_since` when with this amount.

    `counts` when the broker's own lag cannot be the reason any more: it has been told as an alarm, and its
    symbol is closed for new risk.
    """

    found: Found
    since: datetime
    since_s: float
    same_since_s: float
    looks: int = 1
    counts: bool = False


class Watch:
    """The differences of now. One that was not there in a comparison is forgotten."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._seen: dict[tuple[str, str, str, str], Difference] = {}

    def look(self, kinds: frozenset[Kind], found: Iterable[Found], at: datetime, now_s: float) -> list[Difference]:
        """Take in what a comparison of these kinds has found; those that count since now."""
        before = {key: seen for key, seen in self._seen.items() if seen.found.kind in kinds}
        others = {key: seen for key, seen in self._seen.items() if seen.found.kind not in kinds}
        now: dict[tuple[str, str, str, str], Difference] = {}
        new = []
        for one in found:
            earlier = before.get(one.key)
            seen = now[one.key] = self._seen_again(one, earlier, at, now_s)
            if seen.counts and not (earlier and earlier.counts):
                new.append(seen)
        self._seen = others | now
        return new

    def _seen_again(self, found: Found, earlier: Difference | None, at: datetime, now_s: float) -> Difference:
        if earlier is None:
            return Difference(found, at, now_s, now_s, counts=False)
        same = found.amount == earlier.found.amount and found.theirs == earlier.found.theirs
        same_since_s = earlier.same_since_s if same else now_s
        # A difference that never goes away counts at last, however often trading changes its amount.
        is_old = now_s - same_since_s >= self._grace_s or now_s - earlier.since_s >= 6 * self._grace_s
        return replace(
            earlier,
            found=found,
            same_since_s=same_since_s,
            looks=earlier.looks + 1,
            counts=earlier.counts or is_old,
        )

    def forget(self, kinds: frozenset[Kind]) -> None:
        self._seen = {key: seen for key, seen in self._seen.items() if seen.found.kind not in kinds}

    def all(self) -> list[Difference]:
        """Oldest first."""
        return sorted(self._seen.values(), key=lambda seen: seen.since_s)

    def counting(self) -> list[Difference]:
        return [seen for seen in self.all() if seen.counts]


class Books(Struct, frozen=True):
    """What the book says of one broker account: the sums over the users whose it is, and its house."""

    cash: Decimal
    positions: dict[Symbol, Decimal]


def books_of(
    account: str,
    users: frozenset[UserId] | None,
    accounts: dict[UserId, Account],
    positions: dict[UserId, dict[Symbol, Position]],
) -> Books:
    """The broker's cash is the users' cash without their allotments (which are the desk's own idea) and the
    house's cash, in which the account's opening balance and its transfers are."""
    house = house_of(account)
    cash = accounts[house].cash if house in accounts else ZERO
    held: dict[Symbol, Decimal] = {}
    for user, money in accounts.items():
        is_member = user == house or (not is_house(user) and (users is None or user in users))
        if not is_member:
            continue
        if user != house:
            cash = MONEY.add(cash, MONEY.subtract(money.cash, money.allotment))
        for symbol, position in positions.get(user, {}).items():
            held[symbol] = MONEY.add(held.get(symbol, ZERO), position.qty)
    return Books(cash, {symbol: qty for symbol, qty in held.items() if qty})


def compare(holdings: Holdings, books: Books) -> list[Found]:
    """Positions first, then cash, where the broker tells it."""
    theirs = {held.symbol: held for held in holdings.positions}
    found = []
    for symbol in sorted({*theirs, *books.positions}):
        ours = books.positions.get(symbol, ZERO)
        held = theirs.get(symbol)
        amount = MONEY.subtract(held.qty if held else ZERO, ours)
        if amount:
            found.append(
                Found(
                    Kind.POSITION,
                    ours=f"{ours:f}",
                    theirs=f"{held.qty if held else ZERO:f}",
                    account=holdings.account,
                    symbol=symbol,
                    amount=amount,
                    price=held.price if held else ZERO,
                )
            )
    if holdings.cash is not None and (amount := MONEY.subtract(holdings.cash, books.cash)):
        found.append(
            Found(
                Kind.CASH,
                ours=f"{books.cash:f}",
                theirs=f"{holdings.cash:f}",
                account=holdings.account,
                amount=amount,
            )
        )
    return found
