"""What the broker would still let an account spend, between two of its answers about that."""

from collections.abc import Callable
from decimal import Decimal

from desk_server.book import Book
from desk_server.domain import ZERO, UserId, is_house
from desk_server.holds import Holds


class AccountCash:
    """`told` is the broker's buying power of the user's account as last answered (dollars), None where it tells none.

    What the desk's own orders have taken or freed since then is reckoned from the books: the broker counts it too,
    only later. The broker has the last word all the same.
    """

    def __init__(
        self, book: Book, holds: Holds, told: Callable[[UserId], Decimal | None], account_of: Callable[[UserId], str]
    ) -> None:
        self._book = book
        self._holds = holds
        self._told = told
        self._account_of = account_of
        # Each account's last answer, and what each of its users could spend when it came.
        self._last: dict[str, tuple[Decimal, dict[UserId, Decimal]]] = {}

    def left(self, user: UserId) -> Decimal | None:
        """None where nothing is known."""
        told = self._told(user)
        if told is None:
            return None
        account = self._account_of(user)
        everybody = (one for one in self._book.accounts.values() if not is_house(one.user))
        users = [one for one in everybody if self._account_of(one.user) == account]
        now = {one.user: self._book.buying_power(one.user) - self._holds.cash(one.user) for one in users}
        last = self._last.get(account)
        if last is None or last[0] is not told:
            last = self._last[account] = (told, now)
        then = last[1]
        gained = sum((now[one.user] - then.get(one.user, one.allotment) for one in users), ZERO)
        return told + min(gained, ZERO)
