"""The parts list: every part of the desk is made here, in the order in which data flows through them."""

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog

from desk_server.account_cash import AccountCash
from desk_server.bookkeeper import Bookkeeper
from desk_server.brokers import Broker, BrokerRecords
from desk_server.brokers.alpaca import Tuning
from desk_server.brokers.alpaca.broker_api import AlpacaSubAccounts
from desk_server.brokers.alpaca.trading import AlpacaBroker
from desk_server.brokers.paper import PaperBroker, fill_model
from desk_server.clock import Clock, SystemClock
from desk_server.desk import Desk
from desk_server.desk_toml import account_ids
from desk_server.domain import Order, UserId
from desk_server.feeds import Feed
from desk_server.feeds.none import NoFeed
from desk_server.feeds.replay import BadTapeFile, ReplayFeed
from desk_server.feeds.walk import WalkFeed
from desk_server.ledger import Ledger, LedgerUnavailable
from desk_server.ledger.sqlite import SqliteLedger
from desk_server.market import Hub
from desk_server.reconcile import Reconciler
from desk_server.risk import Limits
from desk_server.settings import Settings
from desk_server.tape import Tape, TapeError
from desk_server.throttle import Throttle

log = structlog.get_logger(__name__)


class App:
    """The desk without its doors (see `api/serve.py`): start it, stop it."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        run_dir = settings.run_dir
        self.settings = settings
        # What only some brokers have: a memory that is the ledger's, a stream that can fail.
        self._restores: list[Callable[[Iterable[Order]], None]] = []
        self._stream_problems: list[Callable[[], str]] = []
        # Users with an account of their own at the broker.
        self._accounts: dict[UserId, str] = {}
        self.feed = _feed(settings)
        self.hub = Hub(Tape(run_dir / "tape", settings.tape_bytes_max), clock, settings.hub_lines_kept)
        self.ledger = _ledger(settings)
        self.keeper = Bookkeeper(self.ledger, clock)
        self.broker, records = self._broker(clock)
        self.reconciler = Reconciler(
            self.keeper,
            self.broker,
            records,
            clock,
            allotment=settings.allotment,
            poll_s=settings.poll_s,
            poll_in_doubt_s=settings.poll_in_doubt_s,
            reconcile_s=settings.reconcile_s,
            grace_s=settings.grace_s,
            adopt_s=settings.adopt_s,
            history_days=settings.history_days,
            stream_problem=self._stream_problem,
        )
        self.desk = Desk(
            keeper=self.keeper,
            broker=self.broker,
            hub=self.hub,
            clock=clock,
            limits=_limits(settings),
            throttle=Throttle(settings.orders_per_minute_max, clock),
            allotment=settings.allotment,
            watched=(self._feed_problem, self._stream_problem),
            records=records,
            begin_comparing=self.reconciler.start,
            uncompared=self.reconciler.problem,
            freezes=self.reconciler.frozen,
            soon=self.reconciler.soon,
            account_cash=AccountCash(
                self.keeper.book, self.keeper.holds, self.reconciler.buying_power, self._account_of
            ),
            account_of=self._account_of,
            holds_wash_trades=settings.self_trade == "hold",
        )
        self._feeding: asyncio.Task[None] | None = None
        self._feed_failure = ""

    async def start(self, on_lost: Callable[[str], None] = log.critical) -> None:
        """Read the ledger, take the exchange's orders back from it, then let lines and orders in.

        `on_lost` is called with the reason when another desk has the ledger now: stop then.
        """
        self.keeper.load(on_lost)
        for restore in self._restores:
            restore(self.keeper.book.orders.values())
        await self.desk.start()
        await self.desk.registry.ensure_admin_token(self.settings.run_dir / "admin.token")
        self._feeding = asyncio.create_task(self._feed(), name="feed")

    async def stop(self) -> None:
        """Stop the feed, write down what the broker has said, end every stream, let go of tape and ledger."""
        if self._feeding:
            self._feeding.cancel()
            await asyncio.gather(self._feeding, return_exceptions=True)
        await self.reconciler.close()
        await self.desk.close()
        self.hub.close()

    def _broker(self, clock: Clock) -> tuple[Broker, BrokerRecords | None]:
        """The broker, and what it tells to compare the books with. Imports a vendor's SDK only when it is chosen."""
        settings = self.settings
        match settings.broker:
            case "paper":
                paper = PaperBroker(
                    self.feed.assets(), model=fill_model(settings), seed=settings.paper_seed, clock=clock
                )
                self.hub.taps.append(paper.on_quote)
                self._restores.append(paper.restore)
                return paper, None
            case "alpaca":
                shared = AlpacaBroker(
                    settings.secret("alpaca_key_id"),
                    settings.secret("alpaca_secret_key"),
                    base_url=settings.broker_url,
                    stream_url=settings.alpaca_stream_url,
                    on_gap=self._compare_soon,
                    clock=clock,
                    tuning=_tuning(settings),
                )
                return self._guarded(shared)
            case "alpaca-broker":
                self._accounts = account_ids(settings.config_file or Path("desk.toml"))
                accounts = AlpacaSubAccounts(
                    settings.secret("alpaca_key_id"),
                    settings.secret("alpaca_secret_key"),
                    accounts=self._accounts,
                    base_url=settings.broker_url,
                    on_gap=self._compare_soon,
                    clock=clock,
                    tuning=_tuning(settings),
                )
                return self._guarded(accounts)

    def _guarded(self, alpaca: AlpacaBroker | AlpacaSubAccounts) -> tuple[Broker, BrokerRecords]:
        """It asks once more, when an order's turn comes, whether the desk may still send it."""
        alpaca.may_send, alpaca.fenced = self._stopped, self.keeper.fenced
        self._stream_problems.append(alpaca.stream_problem)
        return alpaca, alpaca

    def _account_of(self, user: UserId) -> str:
        """The user's account at the broker; "" where all share one."""
        return self._accounts.get(user, "")

    def _stopped(self, order: Order) -> str:
        return self.desk.stopped(order)

    def _compare_soon(self) -> None:
        self.reconciler.soon()

    def _stream_problem(self) -> str:
        return next((problem for look in self._stream_problems if (problem := look())), "")

    async def _feed(self) -> None:
        try:
            await self.feed.run(self.hub.publish, self.hub.last_at)
        except Exception as error:
            self._feed_failure = f"the market feed has failed: {error}"
            log.exception("the market feed has failed: no more lines come", feed=self.feed.name)

    def _feed_problem(self) -> str:
        return self._feed_failure or self.feed.problem()


class CannotBuild(Exception):
    """A part cannot be made: a file that cannot be used, a wrong setting. The message says what to do."""


def build(settings: Settings, clock: Clock | None = None) -> App:
    """Raises CannotBuild."""
    try:
        for directory in (settings.run_dir, settings.run_dir / "tape"):
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        return App(settings, clock or SystemClock())
    except (TapeError, BadTapeFile, LedgerUnavailable, ValueError, OSError) as error:
        raise CannotBuild(str(error)) from error


def ledger_path(settings: Settings) -> Path:
    return settings.run_dir / "ledger" / "desk.db"


def look_after_ledger(settings: Settings, command: str, file: Path | None, expect: str) -> int:
    """`verify-ledger`, `backup` or `restore`: the exit code. `verify-ledger FILE` looks at a backup."""
    from desk_server.ledger import commands  # noqa: PLC0415  (PostgreSQL's driver costs 12 MiB, 0.1 s)

    place = settings.secret("database_url") or ledger_path(settings)
    if command == "verify-ledger" or file is None:
        return commands.verify(file or place, expect)
    return commands.backup(place, file) if command == "backup" else commands.restore(file, place, expect)


def _ledger(settings: Settings) -> Ledger:
    if url := settings.secret("database_url"):
        from desk_server.ledger.postgres import PostgresLedger  # noqa: PLC0415  (as above)

        return PostgresLedger(url, lease_s=settings.lease_s)
    return SqliteLedger(ledger_path(settings))


def _tuning(settings: Settings) -> Tuning:
    given_up_s = settings.alpaca_timeout_s
    return Tuning(
        connect_s=min(Tuning().connect_s, given_up_s),
        read_s=min(Tuning().read_s, given_up_s),
        request_s=given_up_s,
        lookup_lag_s=settings.lookup_lag_s,
        resend_s=settings.resend_s,
    )


def _feed(settings: Settings) -> Feed:
    match settings.feed:
        case "replay":
            return ReplayFeed(Path(settings.replay_file or ""), settings.replay_speed, settings.replay_loop)
        case "walk":
            symbols = [symbol.strip() for symbol in settings.walk_symbols.split(",") if symbol.strip()]
            return WalkFeed(symbols, settings.walk_seed, settings.walk_lines_per_s)
        case "none":
            return NoFeed()


def _limits(settings: Settings) -> Limits:
    return Limits(
        qty_max=settings.qty_max,
        notional_usd_max=settings.notional_usd_max,
        collar_percent=settings.collar_percent,
        market_buffer_percent=settings.market_buffer_percent,
        quote_age_s_max=settings.quote_age_s_max,
        open_orders_max=settings.open_orders_max,
        allow_short=settings.allow_short,
        fee_bps=settings.paper_fee_bps,
        crypto_fee_bps=settings.paper_crypto_fee_bps,
        fee_per_share=settings.paper_fee_per_share,
    )
