"""Alpaca's Trading API: one account, paper or live, that all users share."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from desk_server.brokers import Ack, Activity, BrokerOrder, Capabilities, Execution, Holdings
from desk_server.brokers.alpaca import Tuning, records
from desk_server.brokers.alpaca.account import Account, activity_rows
from desk_server.brokers.alpaca.base import AlpacaBase, is_live
from desk_server.brokers.alpaca.fields import stamp
from desk_server.brokers.alpaca.stream import TradeStream, stream_url_of
from desk_server.clock import Clock
from desk_server.domain import Order, OrderChange

PAPER_URL = "https://paper-api.alpaca.markets"
# Activities other than executions are dated by day, and may be booked days later under an earlier date.
ACTIVITIES_OVERLAP = timedelta(days=3)
_EXECUTIONS_OVERLAP = timedelta(seconds=1)


class AlpacaBroker(AlpacaBase):
    """Broker and BrokerRecords (see brokers/__init__.py). Lives on one event loop.

    `base_url` without /v2; any host but the paper host and this machine counts as live. `stream_url` is the whole
    websocket URL, by default made from `base_url`. `on_gap` is called whenever updates may have been missed (a
    stream was opened): compare with the records then, nothing is replayed.
    """

    def __init__(
        self,
        key_id: str,
        secret_key: str,
        *,
        base_url: str = PAPER_URL,
        stream_url: str = "",
        on_gap: Callable[[], None] | None = None,
        clock: Clock | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        # Here, so that only who trades with Alpaca pays for its SDK.
        from desk_server.brokers.alpaca.sdk import trading_line  # noqa: PLC0415

        tuning, base_url = tuning or Tuning(), base_url.rstrip("/")
        super().__init__(
            lambda: trading_line(key_id, secret_key, base_url, connect_s=tuning.connect_s, read_s=tuning.read_s),
            on_gap,
            clock,
            tuning,
        )
        self.capabilities = Capabilities(
            name="alpaca",
            live=is_live(base_url),
            wash_trades_refused=True,
            lookup_lag_s=tuning.lookup_lag_s,
            resend_s=tuning.resend_s,
        )
        self._account = Account(self.rest, self.updates)
        self.stream = TradeStream(
            stream_url or stream_url_of(base_url),
            key_id,
            secret_key,
            updates=self.updates,
            tuning=tuning,
            clock=self.clock,
            on_gap=self._gap,
        )

    async def submit(self, order: Order, legs: Sequence[Order] = ()) -> Ack:
        ack = await self._account.submit(order, legs, self._still(order))
        self.stream.expect()
        return ack

    async def cancel(self, order: Order) -> None:
        await self._account.cancel(order)
        self.stream.expect()

    async def replace(self, order: Order, new: Order, change: OrderChange) -> Ack:
        ack = await self._account.replace(order, new, change, self._still(new))
        self.stream.expect()
        return ack

    async def find(self, order: Order) -> BrokerOrder | None:
        return await self._account.find(order)

    async def holdings(self) -> Sequence[Holdings]:
        state = await self._account.state()
        cash, buying_power = records.account_money(state.json)
        self.health.account_problem = problem = records.account_problem(state.json)
        return [Holdings("", None, cash, buying_power, state.positions, problem)]

    async def orders(self, since: datetime) -> Sequence[BrokerOrder]:
        return await self._account.orders(since)

    async def executions(self, since: datetime) -> Sequence[Execution]:
        query = {"after": stamp(since - _EXECUTIONS_OVERLAP)}
        rows = await activity_rows(self.rest, "/account/activities/FILL", query)
        return sorted((records.execution(row) for row in rows), key=lambda execution: execution.at)

    async def activities(self, since: datetime) -> Sequence[Activity]:
        """Some days more than was asked for: they are dated by day, and not always by the day they are booked."""
        query = {"after": stamp(since - ACTIVITIES_OVERLAP), "category": "non_trade_activity"}
        rows = await activity_rows(self.rest, "/account/activities", query)
        found = [records.activity(row) for row in rows if row.get("activity_type") != "FILL"]
        return sorted((one for one in found if one is not None), key=lambda activity: activity.at)

    async def _look(self) -> None:
        self.health.account_problem = records.account_problem(await self._account.json())
