"""The broker's accounts beside the books: positions, cash, and what moved them besides trading."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal

import structlog

from desk_server.activities import shares_of
from desk_server.bookkeeper import Bookkeeper
from desk_server.brokers import Activity, Broker, BrokerRecords, Holdings
from desk_server.clock import Clock
from desk_server.compare import Difference, Found, Kind, books_of, compare
from desk_server.domain import UserId, is_house
from desk_server.events import ActivityPosted, AnyEvent, HouseAdjusted
from desk_server.ledger import DuplicateEvent

log = structlog.get_logger(__name__)

KINDS = frozenset({Kind.POSITION, Kind.CASH})
# Activities are dated by day, and some are told days later.
_ACTIVITIES_OVERLAP = timedelta(days=2)
# A broker that keeps cash in cents may round each execution by this much.
_ROUNDING_USD = Decimal("0.01")


class AccountRecords:
    def __init__(self, keeper: Bookkeeper, broker: Broker, records: BrokerRecords | None, clock: Clock) -> None:
        self._keeper = keeper
        self._book = keeper.book
        self._broker = broker
        self._records = records
        self._clock = clock
        # The broker's accounts, and whose each is.
        self._accounts: dict[str, frozenset[UserId] | None] = {}
        self._activities_from: datetime | None = None
        self.holdings: tuple[Holdings, ...] = ()
        self.adopted = 0
        self.posted = 0

    def account_of(self, name: str) -> str:
        """An account's name in the records as it is in the holdings, where one account may have none."""
        return name if name in self._accounts or "" not in self._accounts else ""

    async def learn_accounts(self) -> None:
        """Raises BrokerUnknown, BrokerThrottled."""
        if not self._accounts:
            self._take(await self._broker.holdings())

    def reach_back(self, since: datetime) -> None:
        self._activities_from = min(self._activities_from or since, since)

    async def post_activities(self, floor: datetime) -> None:
        """Book what moved money or shares besides trading since the last time, to those it is for.

        Nothing from before `floor` is: it is part of the opening balance. Raises BrokerUnknown, BrokerThrottled.
        """
        if self._records is None:
            return
        started = self._clock.now()
        since = max(floor, (self._activities_from or started) - _ACTIVITIES_OVERLAP)
        for activity in await self._records.activities(since):
            if activity.at >= floor and not self._book.has_activity(activity.activity_id):
                await self._post(activity)
        self._activities_from = started

    async def _post(self, activity: Activity) -> None:
        account = self.account_of(activity.account)
        shares = shares_of(activity, self._book, account, self._accounts.get(account))
        event = ActivityPosted(
            at=activity.at,
            activity_id=activity.activity_id,
            kind=activity.kind,
            shares=shares,
            symbol=activity.symbol,
            description=activity.description,
            account=account,
        )
        try:
            await self._keeper.record_stubbornly(event)
        except DuplicateEvent:
            return
        self.posted += 1
        parts = {share.user: f"{share.cash:f} USD {share.qty:f} shares" for share in shares}
        log.info("activity posted", kind=activity.kind, symbol=activity.symbol, id=activity.activity_id, parts=parts)

    async def compare(self) -> list[Found]:
        """Raises BrokerUnknown, BrokerThrottled."""
        self._take(await self._broker.holdings())
        found = []
        for holdings in self.holdings:
            books = books_of(holdings.account, holdings.users, self._book.accounts, self._book.positions)
            found += compare(holdings, books)
        return found

    def unopened(self) -> list[str]:
        """Accounts whose opening balance is not known yet."""
        return [holdings.account for holdings in self.holdings if holdings.account not in self._book.opened]

    async def open_accounts(self, found: Sequence[Found]) -> list[Found]:
        """What accounts had before the desk, to their house books; what is left of `found`."""
        for account in self.unopened():
            mine = [one for one in found if one.account == account]
            await self._keeper.record_stubbornly(*self._opening(account, mine))
            has_positions = any(one.kind is Kind.POSITION for one in mine)
            tell = log.warning if has_positions else log.info
            tell(
                "opening balance: what the account had before the desk is the house's",
                account=account,
                differences={one.symbol or "cash": f"{one.amount:f}" for one in mine},
            )
            found = [one for one in found if one.account != account]
        return list(found)

    def _opening(self, account: str, found: Sequence[Found]) -> list[AnyEvent]:
        now = self._clock.now()
        reason = "opening balance"
        positions: list[AnyEvent] = [
            HouseAdjusted(at=now, reason=reason, symbol=one.symbol, qty=one.amount, price=one.price, account=account)
            for one in found
            if one.kind is Kind.POSITION
        ]
        cash = sum((one.amount for one in found if one.kind is Kind.CASH), Decimal(0))
        return [*positions, HouseAdjusted(at=now, reason=reason, cash=cash, account=account, opening=True)]

    async def adopt(self, difference: Difference) -> None:
        """Nothing has explained it in time: it is the house's. No fill is made up for it."""
        found = difference.found
        is_cash = found.kind is Kind.CASH
        await self._keeper.record_stubbornly(
            HouseAdjusted(
                at=self._clock.now(),
                reason=f"unexplained since {difference.since:%Y-%m-%d %H:%M:%S} UTC",
                symbol=found.symbol,
                qty=Decimal(0) if is_cash else found.amount,
                price=found.price,
                cash=found.amount if is_cash else Decimal(0),
                account=found.account,
            )
        )
        self.adopted += 1
        is_small = self.is_rounding(found)
        tell = log.info if is_small else log.error
        tell(
            "rounding is the house's" if is_small else "a difference that nothing explained is the house's now",
            kind=found.kind,
            account=found.account,
            symbol=found.symbol,
            amount=f"{found.amount:f}",
            ours=found.ours,
            theirs=found.theirs,
        )

    def is_rounding(self, found: Found) -> bool:
        """Whether a broker that rounds cash to cents explains it."""
        return found.kind is Kind.CASH and abs(found.amount) <= _ROUNDING_USD * (1 + len(self._book.fills))

    def houses(self) -> dict[str, dict[str, str]]:
        """What the house books hold: cash, and shares by symbol."""
        books: dict[str, dict[str, str]] = {}
        for user, account in self._book.accounts.items():
            if is_house(user):
                held = {str(p.symbol): f"{p.qty:f}" for p in self._book.positions_of(user)}
                books[user] = {"cash": f"{account.cash:f}", **held}
        return books

    def _take(self, holdings: Sequence[Holdings]) -> None:
        self.holdings = tuple(holdings)
        self._accounts = {one.account: one.users for one in holdings}
