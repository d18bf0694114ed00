"""Every setting of the desk server, in one table: environment variable, meaning, default.

`python -m desk_server --help` and docs/settings.md show the same table.
"""

import re
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

_ALPACA_URLS = {
    "alpaca": "https://paper-api.alpaca.markets",
    "alpaca-broker": "https://broker-api.sandbox.alpaca.markets",
}
_NO_REAL_MONEY = {urlsplit(url).hostname for url in _ALPACA_URLS.values()}


def _setting(default: object, env: str, meaning: str, **bounds: Any) -> Any:
    return Field(default, validation_alias=env, description=meaning, **bounds)


class Settings(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    # Doors
    host: str = _setting("127.0.0.1", "HOST", "Address that HTTP and gRPC listen on.")
    port: int = _setting(8080, "PORT", "HTTP port; 0 picks a free one.", ge=0, le=65535)
    grpc_port: int = _setting(50051, "GRPC_PORT", "gRPC port; 0 picks a free one.", ge=0, le=65535)
    run_dir: Path = _setting(Path("run"), "DESK_RUN_DIR", "Where sockets, ledger, tape and the admin token live.")
    socket_gid: int | None = _setting(
        None, "DESK_SOCKET_GID", "Group of the socket directory and sockets; 20000 when run by root."
    )
    trust_user_header: bool = _setting(
        False,
        "DESK_TRUST_USER_HEADER",
        "Believe X-User-ID without a token. Paper exchange and loopback only: anybody can be anybody.",
    )
    drain_s: float = _setting(10.0, "DESK_DRAIN_S", "Seconds that requests may take to finish on SIGTERM.", ge=0)

    # Parts
    broker: Literal["paper", "alpaca", "alpaca-broker"] = _setting(
        "paper",
        "DESK_BROKER",
        "Which broker: paper (embedded), alpaca (one shared account), alpaca-broker (an account for each user).",
    )
    feed: Literal["replay", "walk", "none"] = _setting(
        "walk", "DESK_FEED", "Where market lines come from: replay (a tape file), walk (seeded random walk), none."
    )
    replay_file: Path | None = _setting(
        None, "DESK_REPLAY_FILE", "Tape to replay: JSON lines, gzip where the name ends in .gz."
    )
    replay_speed: float = _setting(
        1.0, "DESK_REPLAY_SPEED", "1 = as recorded, 60 = a minute a second, 0 = as fast as possible.", ge=0
    )
    replay_loop: bool = _setting(True, "DESK_REPLAY_LOOP", "Start over at the tape's end, with times shifted on.")
    walk_symbols: str = _setting(
        "AAPL,MSFT,SPY,BTC/USD", "DESK_WALK_SYMBOLS", "Symbols of the random walk, comma separated."
    )
    walk_seed: int = _setting(1, "DESK_WALK_SEED", "Seed of the random walk.")
    walk_lines_per_s: float = _setting(10.0, "DESK_WALK_LINES_PER_S", "Lines a second of the random walk.", gt=0)

    # Alpaca
    alpaca_key_id: SecretStr = _setting("", "APCA_API_KEY_ID", "Alpaca's key id.")
    alpaca_key_id_file: Path | None = _setting(None, "APCA_API_KEY_ID_FILE", "A file that holds it instead.")
    alpaca_secret_key: SecretStr = _setting("", "APCA_API_SECRET_KEY", "Alpaca's secret key.")
    alpaca_secret_key_file: Path | None = _setting(None, "APCA_API_SECRET_KEY_FILE", "A file that holds it instead.")
    alpaca_base_url: str = _setting(
        "", "APCA_API_BASE_URL", "Alpaca's host: that of paper accounts (or of the Broker API's sandbox) unless set."
    )
    alpaca_stream_url: str = _setting(
        "", "DESK_ALPACA_STREAM_URL", "Where order updates come from, where not from the host above."
    )
    allow_live: bool = _setting(
        False, "DESK_ALLOW_LIVE", "Trade real money: needed besides the live host in APCA_API_BASE_URL."
    )
    alpaca_timeout_s: float = _setting(
        10.0, "DESK_ALPACA_TIMEOUT_S", "Seconds until a request to Alpaca counts as unanswered.", gt=0
    )
    lookup_lag_s: float = _setting(
        60.0,
        "DESK_LOOKUP_LAG_S",
        "Seconds that an unanswered order may still be under way; until then it does not count as not sent.",
        ge=0,
    )
    resend_s: float = _setting(
        60.0,
        "DESK_RESEND_S",
        "An unanswered order that the broker does not have is sent again within these seconds.",
        ge=0,
    )
    poll_s: float = _setting(
        15.0,
        "DESK_POLL_S",
        "Seconds between two looks at the broker's orders while all is well; in doubt, a look comes much sooner.",
        gt=0,
    )
    poll_in_doubt_s: float = _setting(
        2.0, "DESK_POLL_IN_DOUBT_S", "The same while an order is in doubt or no updates stream.", gt=0
    )
    reconcile_s: float = _setting(
        60.0, "DESK_RECONCILE_S", "Seconds between two comparisons of positions and cash with the broker.", gt=0
    )
    grace_s: float = _setting(
        10.0, "DESK_GRACE_S", "How long the broker's own lists may be out of step before a difference counts.", ge=0
    )
    adopt_s: float = _setting(
        300.0, "DESK_ADOPT_S", "Seconds after which a difference that nothing explains becomes the house's.", ge=0
    )
    history_days: int = _setting(
        90, "DESK_HISTORY_DAYS", "How far back a start with an empty ledger reads the broker's account.", ge=1
    )
    config_file: Path | None = _setting(
        None, "DESK_CONFIG", "TOML: users.<id>.alpaca_account_id for the Broker API; see docs/alpaca.md."
    )

    # Ledger
    database_url: SecretStr = _setting(
        "", "DESK_DATABASE_URL", "PostgreSQL for the ledger, postgresql://user:password@host/name; SQLite without."
    )
    database_url_file: Path | None = _setting(None, "DESK_DATABASE_URL_FILE", "A file that holds it instead.")
    lease_s: float = _setting(
        10.0, "DESK_LEASE_S", "Seconds after which a desk that does not answer loses a PostgreSQL ledger.", ge=2
    )

    # Money
    allotment: Decimal = _setting(
        Decimal(100000), "DESK_ALLOTMENT", "Dollars that a new user's book starts with.", ge=0
    )

    # Limits (see risk.py)
    qty_max: Decimal = _setting(Decimal(100000), "DESK_QTY_MAX", "Largest quantity of one order.", gt=0)
    notional_usd_max: Decimal = _setting(
        Decimal(1000000), "DESK_NOTIONAL_USD_MAX", "Largest value of one order, in dollars.", gt=0
    )
    collar_percent: Decimal = _setting(
        Decimal(10), "DESK_COLLAR_PERCENT", "How far a limit price may lie on the bad side of the market.", gt=0
    )
    market_buffer_percent: Decimal = _setting(
        Decimal(2), "DESK_MARKET_BUFFER_PERCENT", "Added to the ask when a market order's cost is reserved.", ge=0
    )
    quote_age_s_max: float = _setting(
        300.0, "DESK_QUOTE_AGE_S_MAX", "Market data older than this (since received) refuses orders.", gt=0
    )
    orders_per_minute_max: int = _setting(
        6000, "DESK_ORDERS_PER_MINUTE_MAX", "Places and replaces of one user in a minute; cancels are free.", gt=0
    )
    open_orders_max: int = _setting(500, "DESK_OPEN_ORDERS_MAX", "Open orders of one user.", gt=0)
    self_trade: Literal["refuse", "hold"] = _setting(
        "refuse",
        "DESK_SELF_TRADE",
        "What becomes of an order that could trade against another of this account: refuse, or hold until it cannot.",
    )
    allow_short: bool = _setting(
        False,
        "DESK_ALLOW_SHORT",
        "Let users sell what they do not own. There is no margin model yet: proceeds count as cash.",
    )

    # Paper exchange
    paper_seed: int = _setting(1, "DESK_PAPER_SEED", "Seed of the paper exchange's chances.")
    paper_slippage_bps: Decimal = _setting(
        Decimal(0), "DESK_PAPER_SLIPPAGE_BPS", "Market and stop orders fill this much worse, in 1/100 %.", ge=0
    )
    paper_fee_per_share: Decimal = _setting(Decimal(0), "DESK_PAPER_FEE_PER_SHARE", "Fee per share, in dollars.", ge=0)
    paper_fee_bps: Decimal = _setting(
        Decimal(0), "DESK_PAPER_FEE_BPS", "Fee on the value of equities, in 1/100 %.", ge=0
    )
    paper_crypto_fee_bps: Decimal = _setting(
        Decimal(25), "DESK_PAPER_CRYPTO_FEE_BPS", "Fee on the value of crypto, in 1/100 %.", ge=0
    )
    paper_partial_percent: float = _setting(
        10.0, "DESK_PAPER_PARTIAL_PERCENT", "How often a fill is a random part of the order, in %.", ge=0, le=100
    )
    paper_size_limited: bool = _setting(
        False, "DESK_PAPER_SIZE_LIMITED", "Fill no more than the quoted size at once, where one is quoted."
    )

    # Market hub
    tape_bytes_max: int = _setting(
        256 * 2**20, "DESK_TAPE_BYTES_MAX", "How much of the published lines is kept on disk.", ge=2**20
    )
    hub_lines_kept: int = _setting(
        100000, "DESK_HUB_LINES_KEPT", "Published lines kept in memory for readers that come back.", ge=1000
    )

    # Logs
    log_format: Literal["json", "console"] = _setting("json", "DESK_LOG_FORMAT", "json or console.")
    log_level: Literal["debug", "info", "warning", "error"] = _setting("info", "DESK_LOG_LEVEL", "Least level shown.")

    @model_validator(mode="after")
    def _check(self) -> "Settings":
        if self.feed == "replay" and self.replay_file is None:
            raise ValueError("DESK_FEED=replay needs DESK_REPLAY_FILE, the tape to replay")
        if self.broker != "paper":
            self._check_alpaca()
        return self

    def _check_alpaca(self) -> None:
        for given, file, name in (
            (self.alpaca_key_id, self.alpaca_key_id_file, "APCA_API_KEY_ID"),
            (self.alpaca_secret_key, self.alpaca_secret_key_file, "APCA_API_SECRET_KEY"),
        ):
            if not given.get_secret_value() and file is None:
                raise ValueError(f"DESK_BROKER={self.broker} needs {name} (or {name}_FILE, a file that holds it)")
        if self.broker == "alpaca-broker" and self.config_file is None:
            raise ValueError("DESK_BROKER=alpaca-broker needs DESK_CONFIG, which tells each user's account")
        self._check_alpaca_url()
        if self.trust_user_header:
            raise ValueError("DESK_TRUST_USER_HEADER=1 is for the paper exchange: an account at Alpaca needs tokens")
        if not self.is_live:
            return
        if not self.allow_live:
            raise ValueError(
                f"{self.broker_url} is where real money trades: set DESK_ALLOW_LIVE=1 if that is meant, "
                "or leave APCA_API_BASE_URL out for the paper account"
            )
        if self.feed in ("walk", "replay"):
            raise ValueError(
                f"DESK_FEED={self.feed} makes prices up, and a live account's orders are checked against them: "
                "a live account needs a feed of its own market"
            )

    def _check_alpaca_url(self) -> None:
        url = urlsplit(self.broker_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError("APCA_API_BASE_URL must look like https://paper-api.alpaca.markets")
        if url.path or url.query:
            raise ValueError("APCA_API_BASE_URL must end after the host: leave /v2 and the like out")
        if url.scheme == "http" and not _is_this_machine(url.hostname):
            raise ValueError("APCA_API_BASE_URL must begin with https://, or the keys would travel in clear text")

    @property
    def broker_url(self) -> str:
        """Where the broker is, without a slash at the end."""
        return (self.alpaca_base_url or _ALPACA_URLS.get(self.broker, "")).rstrip("/")

    @property
    def is_live(self) -> bool:
        """Whether real money trades: always, but for hosts that are known to have none."""
        if self.broker == "paper":
            return False
        host = urlsplit(self.broker_url).hostname or ""
        return not (host in _NO_REAL_MONEY or _is_this_machine(host))

    def secret(self, name: Literal["alpaca_key_id", "alpaca_secret_key", "database_url"]) -> str:
        """The secret itself, or what its file holds. Raises OSError where there is none to be read."""
        file: Path | None = getattr(self, f"{name}_file")
        if file is not None:
            variable = Settings.model_fields[f"{name}_file"].validation_alias
            try:
                found = file.read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                raise OSError(f"the file that {variable} names cannot be read: {error}") from error
            if not found:
                raise OSError(f"the file that {variable} names is empty: {file}")
            return found
        given: SecretStr = getattr(self, name)
        return given.get_secret_value()

    @property
    def socket_dir(self) -> Path:
        return self.run_dir / "desk"


def _is_this_machine(host: str) -> bool:
    return host in ("localhost", "::1") or bool(re.fullmatch(r"127(\.\d{1,3}){3}", host))


def table() -> list[tuple[str, str, str]]:
    """(environment variable, default, meaning) of every setting."""
    rows = []
    for field in Settings.model_fields.values():
        default = "" if field.default is None else str(field.default)
        rows.append((str(field.validation_alias), default, field.description or ""))
    return rows


_PAGE = """# Settings of the desk server

Environment variables, read once at start. A value that cannot be used is refused at start, with the reason.
This page is made by `python -m desk_server settings > docs/settings.md`.

| variable | default | meaning |
|---|---|---|
"""


def page() -> str:
    """The table as docs/settings.md shows it."""
    return _PAGE + "".join(
        f"| `{name}` | {f'`{default}`' if default else ''} | {meaning} |\n" for name, default, meaning in table()
    )
