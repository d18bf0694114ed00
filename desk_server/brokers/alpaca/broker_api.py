"""Alpaca's Broker API: every user has a sub-account of their own."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TypeVar

from desk_server.brokers import Ack, Activity, BrokerOrder, BrokerRejected, Capabilities, Execution, Holdings
from desk_server.brokers.alpaca import Tuning, records
from desk_server.brokers.alpaca.account import Account, activity_rows
from desk_server.brokers.alpaca.base import AlpacaBase, is_live
from desk_server.brokers.alpaca.fields import stamp, text
from desk_server.brokers.alpaca.sse import TradeEvents
from desk_server.brokers.alpaca.trading import ACTIVITIES_OVERLAP
from desk_server.clock import Clock
from desk_server.domain import Order, OrderChange, UserId

SANDBOX_URL = "https://broker-api.sandbox.alpaca.markets"
_REPLAYED = timedelta(hours=1)
_EXECUTIONS_OVERLAP = timedelta(seconds=1)
_T = TypeVar("_T")


class AlpacaSubAccounts(AlpacaBase):
    """Broker and BrokerRecords (see brokers/__init__.py). Lives on one event loop.

    `accounts` maps users to their Alpaca account ids; an order of any other user is rejected before anything is
    sent. `base_url` without /v1. `events_since`: replay order updates from then on; by default from an hour ago.
    """

    def __init__(
        self,
        key: str,
        secret: str,
        *,
        accounts: Mapping[UserId, str],
        base_url: str = SANDBOX_URL,
        events_since: datetime | None = None,
        on_gap: Callable[[], None] | None = None,
        clock: Clock | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        # Here, so that only who trades with Alpaca pays for its SDK.
        from desk_server.brokers.alpaca.sdk import broker_line, event_headers  # noqa: PLC0415

        tuning, base_url = tuning or Tuning(), base_url.rstrip("/")
        super().__init__(
            lambda: broker_line(key, secret, base_url, connect_s=tuning.connect_s, read_s=tuning.read_s),
            on_gap,
            clock,
            tuning,
        )
        self.capabilities = Capabilities(
            name="alpaca-broker", live=is_live(base_url), lookup_lag_s=tuning.lookup_lag_s, resend_s=tuning.resend_s
        )
        self._accounts = {
            name: Account(self.rest, self.updates, path=f"/trading/accounts/{name}", name=name)
            for name in sorted(set(accounts.values()))
        }
        self._account_of = {user: self._accounts[name] for user, name in accounts.items()}
        self.stream = TradeEvents(
            base_url,
            event_headers(key, secret, base_url),
            accounts=self._accounts.keys(),
            since=events_since or self.clock.now() - _REPLAYED,
            updates=self.updates,
            tuning=tuning,
            clock=self.clock,
            on_gap=self._gap,
        )

    async def submit(self, order: Order, legs: Sequence[Order] = ()) -> Ack:
        ack = await self._account(order).submit(order, legs, self._still(order))
        self.stream.expect()
        return ack

    async def cancel(self, order: Order) -> None:
        await self._account(order).cancel(order)
        self.stream.expect()

    async def replace(self, order: Order, new: Order, change: OrderChange) -> Ack:
        ack = await self._account(order).replace(order, new, change, self._still(new))
        self.stream.expect()
        return ack

    async def find(self, order: Order) -> BrokerOrder | None:
        """None, without asking, for a user who has no account: nothing was ever sent for them."""
        account = self._account_of.get(order.user)
        return None if account is None else await account.find(order)

    async def holdings(self) -> Sequence[Holdings]:
        return await self._of_each(self._holdings)

    async def _holdings(self, account: Account) -> Holdings:
        state = await account.state()
        cash, buying_power = records.account_money(state.json)
        users = frozenset(user for user, theirs in self._account_of.items() if theirs is account)
        problem = records.account_problem(state.json)
        return Holdings(account.name, users, cash, buying_power, state.positions, problem)

    async def orders(self, since: datetime) -> Sequence[BrokerOrder]:
        lists = await self._of_each(lambda account: account.orders(since))
        every = [order for orders in lists for order in orders]
        return sorted(every, key=lambda order: order.created_at or since)

    async def executions(self, since: datetime) -> Sequence[Execution]:
        query = {"after": stamp(since - _EXECUTIONS_OVERLAP)}
        rows = await activity_rows(self.rest, "/accounts/activities/FILL", query)
        mine = [records.execution(row) for row in rows if text(row, "account_id") in self._accounts]
        return sorted(mine, key=lambda execution: execution.at)

    async def activities(self, since: datetime) -> Sequence[Activity]:
        """Some days more than was asked for: they are dated by day, and not always by the day they are booked."""
        query = {"after": stamp(since - ACTIVITIES_OVERLAP), "category": "non_trade_activity"}
        rows = await activity_rows(self.rest, "/accounts/activities", query)
        mine = [row for row in rows if text(row, "account_id") in self._accounts]
        found = [records.activity(row) for row in mine if row.get("activity_type") != "FILL"]
        return sorted((one for one in found if one is not None), key=lambda activity: activity.at)

    async def _look(self) -> None:
        """That an account is blocked is its user's problem alone, and shows in `holdings`."""
        await self.market_clock()

    async def _of_each(self, ask: Callable[[Account], Awaitable[_T]]) -> list[_T]:
        """Of every account, some at a time: there may be more of them than requests that may wait."""
        turns = asyncio.Semaphore(self.tuning.record_threads)

        async def in_turn(account: Account) -> _T:
            async with turns:
                return await ask(account)

        return await asyncio.gather(*(in_turn(account) for account in self._accounts.values()))

    def _account(self, order: Order) -> Account:
        account = self._account_of.get(order.user)
        if account is None:
            raise BrokerRejected(
                "NO_ACCOUNT",
                f"user {order.user} has no account at Alpaca: set users.{order.user}.alpaca_account_id in desk.toml",
            )
        return account
