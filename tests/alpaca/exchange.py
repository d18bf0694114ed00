"""Everything behind the doors: accounts, the market, time, the faults of the book; timers on one event loop."""

import asyncio
import datetime as dt
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from msgspec import Struct

from desk_server.sessions import NewYork
from tests.alpaca.account import Account
from tests.alpaca.executions import Executions
from tests.alpaca.faults import Faults, Kind, Pick
from tests.alpaca.market import Market
from tests.alpaca.orders import Execution, Order, shown
from tests.alpaca.records import Records, about
from tests.alpaca.rules import NEW_YORK, Draft, Refused
from tests.alpaca.streams import Streams

_TIMES = {"pre": dt.time(8), "regular": dt.time(12), "post": dt.time(17), "closed": dt.time(21)}


class Keys(Struct, frozen=True):
    """What the Trading API and the Broker API accept."""

    key: str = "key"
    secret: str = "secret"
    broker_key: str = "broker-key"
    broker_secret: str = "broker-secret"


class Settings(Struct, forbid_unknown_fields=True):
    """What /control/settings sets; see the package's docstring."""

    work_ms: tuple[float, float] = (0, 0)
    cancel_ms: tuple[float, float] = (0, 0)
    fills: str = "auto"
    partial: float = 0.0
    again_ms: tuple[float, float] = (5, 30)
    session: str = "regular"
    rate_limit: int = 0
    stop_leg: str = "new"
    activity_ids: str = "own"
    keep_events: bool = False

    _CHOICES = {
        "fills": ("auto", "held"),
        "session": ("regular", "closed", "pre", "post", "real"),
        "stop_leg": ("new", "held"),
        "activity_ids": ("own", "execution"),
    }

    def __post_init__(self) -> None:
        for name, allowed in self._CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is one of {', '.join(allowed)}, not {getattr(self, name)!r}")


class Exchange:
    """All of it lives on one event loop; nothing here may be touched from another thread."""

    def __init__(
        self, seed: int = 1, cash: Decimal = Decimal(100_000), accounts: int = 0, keys: Keys | None = None
    ) -> None:
        self.keys = keys or Keys()
        self.calendar = NewYork()
        self.streams = Streams(self)
        self.posts: list[dict[str, Any]] = []
        self.changes: list[dict[str, Any]] = []
        self._walk: asyncio.TimerHandle | None = None
        self.faults = Faults(seed)
        self.reset(seed, cash, accounts)

    def reset(self, seed: int, cash: Decimal, accounts: int) -> None:
        """Forget everything. Timers of the old life find orders that nobody knows."""
        self.seed = seed
        self.set_walk(0, 0.0, None)
        self.faults = Faults(seed)
        self.settings = Settings()
        self.market = Market(seed)
        self._ids = random.Random(f"ids {seed} {time.time_ns()}")
        self._chance = random.Random(f"exchange {seed}")
        self._stuck: list[tuple[Account, Order]] = []
        self.pending_landings = 0
        self.requests: Counter[str] = Counter()
        self.posts.clear()
        self.changes.clear()
        self._windows: dict[str, tuple[int, int]] = {}
        self.main = Account(self, self.new_id(), "PA3MISBEHAVE", cash)
        self.accounts: dict[str, Account] = {self.main.id: self.main}
        for _ in range(accounts):
            self.open_account(None, cash)
        self.streams.reset()

    def open_account(self, account_id: str | None, cash: Decimal) -> Account:
        account = Account(self, account_id or self.new_id(), f"9{len(self.accounts):08d}", cash)
        self.accounts[account.id] = account
        return account

    @property
    def sub_accounts(self) -> list[Account]:
        return [account for account in self.accounts.values() if account is not self.main]

    # Time and chance.

    def now_ns(self) -> int:
        """In whole microseconds: what is told of a time is all of it."""
        return time.time_ns() // 1000 * 1000

    def now(self) -> datetime:
        return datetime.now(UTC)

    def new_id(self) -> str:
        """A UUID. Two lives of one seed do not share ids, as two accounts would not."""
        return str(uuid.UUID(int=self._ids.getrandbits(128), version=4))

    def later(self, setting: str, call: Callable[..., object], *args: Any) -> None:
        low, high = getattr(self.settings, setting)
        self.after_ms(self._chance.uniform(low, high) if high > 0 else 0, call, *args)

    def after_ms(self, delay_ms: float, call: Callable[..., object], *args: Any) -> None:
        loop = asyncio.get_running_loop()
        if delay_ms <= 0:
            loop.call_soon(call, *args)
        else:
            loop.call_later(delay_ms / 1000, call, *args)

    def session(self) -> str:
        if self.settings.session != "real":
            return self.settings.session
        return str(self.calendar.window(self.now()).session)

    def local_time(self) -> dt.time:
        """The time in New York, where a session is set one that fits it."""
        fixed = _TIMES.get(self.settings.session)
        return fixed if fixed is not None else self.now().astimezone(NEW_YORK).time()

    def in_session(self, order: Order) -> bool:
        """Whether the order can work now. Auctions are not modelled: opg and cls work in regular hours."""
        session = self.session()
        return order.crypto or session == "regular" or (order.extended and session in ("pre", "post"))

    # The market.

    def set_price(self, symbol: str, price: Decimal) -> None:
        self.market.set(symbol, price)
        self._moved(symbol)

    def _moved(self, symbol: str) -> None:
        for account in self.accounts.values():
            for order in list(account.money.open[symbol].values()):
                account.match(order)

    def set_walk(self, every_ms: float, step_bps: float, symbols: list[str] | None) -> None:
        if self._walk is not None:
            self._walk.cancel()
            self._walk = None
        if every_ms > 0:
            loop = asyncio.get_running_loop()
            self._walk = loop.call_later(every_ms / 1000, self._walked, every_ms, step_bps, symbols)

    def _walked(self, every_ms: float, step_bps: float, symbols: list[str] | None) -> None:
        for symbol in self.market.step(symbols or list(self.market.assets), step_bps):
            self._moved(symbol)
        self.set_walk(every_ms, step_bps, symbols)

    def session_changed(self) -> None:
        """What waited for the market starts to work."""
        for account in self.accounts.values():
            for order in account.open_orders():
                if order.status == "accepted" and self.in_session(order):
                    account.work(order)

    # Orders, with the faults that the book itself shows.

    def submit(self, account: Account, draft: Draft, pick: Pick | None) -> Order:
        order = account.submit(draft)
        if pick is not None:
            self._misbehave(account, order, pick)
        return order

    def _misbehave(self, account: Account, order: Order, pick: Pick) -> None:
        """The book's own faults of an order that was just accepted."""
        match pick.name:
            case "lookup_404_just_after_acceptance":
                self._hide(order, pick)
            case "fill_before_ack":
                account.work(order)
                if order.filled > 0:
                    self.faults.show(pick)
            case "reject_later":
                self.faults.use(pick)
                order.doomed = True
            case "manual_external_order":
                self._trade_by_hand(account, order.symbol, pick)

    def replace(self, account: Account, order: Order, body: dict[str, Any], pick: Pick | None) -> Order:
        new = account.replace(order, body)
        if pick is not None and pick.name == "lookup_404_just_after_acceptance":
            self._hide(new, pick)
        return new

    def _hide(self, order: Order, pick: Pick) -> None:
        """It is not to be found for a while; counted when somebody looks."""
        self.faults.use(pick)
        order.visible_ns = self.now_ns() + int(pick.params["lag_ms"] * 1e6)

    def _trade_by_hand(self, account: Account, symbol: str, pick: Pick) -> None:
        """The owner buys or sells one, whichever the account can have."""
        for side in self._chance.sample(("buy", "sell"), 2):
            try:
                self.place_externally(account, symbol, side, Decimal(1))
            except Refused:
                continue
            self.faults.show(pick)
            return

    def reject(self, account: Account, order: Order) -> None:
        if order.replaces and order.status == "pending_new":
            account.refuse_replacement(order)
        elif order.is_open and not order.filled:
            account.end(order, "rejected")

    def place_externally(
        self,
        account: Account,
        symbol: str,
        side: str,
        qty: Decimal,
        *,
        limit: Decimal | None = None,
        client_order_id: str | None = None,
        checked: bool = True,
    ) -> Order:
        """The account's owner trades by hand. Raises Refused as any order; ValueError for what cannot be."""
        asset = self.market.asset(symbol)
        if asset is None:
            raise ValueError(f"no asset is called {symbol!r}; set its price first")
        kind = "market" if limit is None else "limit"
        nothing: dict[str, Any] = dict.fromkeys(
            ("notional", "stop", "trail_price", "trail_percent", "take_profit", "loss_stop", "loss_limit")
        )
        draft = Draft(
            asset=asset,
            side=side,
            type=kind,
            tif="gtc" if asset.crypto else "day",
            qty=qty,
            limit=limit,
            extended=False,
            order_class="",
            client_order_id=client_order_id,
            **nothing,
        )
        return account.submit(draft, external=True, checked=checked)

    def stick(self, account: Account, order: Order, lag_ms: float) -> None:
        """A cancel that is not getting anywhere until the lag is over, or all is healed."""
        self._stuck.append((account, order))
        self.after_ms(lag_ms, self._unstick, account, order)

    def _unstick(self, account: Account, order: Order) -> None:
        if (account, order) in self._stuck:
            self._stuck.remove((account, order))
            account.end(order, "canceled")

    def maybe_bust(self, account: Executions, done: Execution) -> None:
        pick = self.faults.pick(Kind.EXECUTION, about(done.order))
        if pick is not None:
            self.faults.use(pick)
            self.after_ms(pick.params["delay_ms"], self._bust, account, done, pick.params["how"])

    def _bust(self, account: Executions, done: Execution, how: str) -> None:
        if done.busted or account.executions.get(done.id) is not done:
            return
        self.faults.count("bust_and_correction")
        if how == "bust":
            account.bust(done)
        else:
            account.correct(done, None, done.price + Decimal("0.01"))

    def heal(self) -> None:
        """All faults off, at once."""
        self.faults.heal()
        for account, order in list(self._stuck):
            self._unstick(account, order)
        for account in self.accounts.values():
            for order in account.orders:
                order.visible_ns = 0
        self.streams.heal()

    def publish(self, account: Records, event: str, order: Order, timestamp: str | None, more: dict[str, Any]) -> None:
        if self.streams.wanted(account):
            data = {"event": event, "order": shown(order), "timestamp": timestamp, **more}
            self.streams.publish(account, data, about(order))

    def spend(self, account: Account) -> dict[str, str]:
        """Count a request against the account's minute: the rate-limit headers, or Refused."""
        minute = int(time.time()) // 60
        since, used = self._windows.get(account.id, (minute, 0))
        used = 1 if since != minute else used + 1
        self._windows[account.id] = (minute, used)
        limit = self.settings.rate_limit
        headers = {
            "X-RateLimit-Limit": str(limit or 1_000_000),
            "X-RateLimit-Remaining": str(max((limit or 1_000_000) - used, 0)),
            "X-RateLimit-Reset": str((minute + 1) * 60),
        }
        if limit and used > limit:
            raise Refused(429, 42910000, "rate limit exceeded")
        return headers
