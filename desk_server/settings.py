"""Every setting of the desk server, in one table: environment variable, meaning, default.

`python -m desk_server --help` and docs/settings.md show the same table.
"""

from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


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
    broker: Literal["paper"] = _setting("paper", "DESK_BROKER", "Which broker: paper (the embedded exchange).")
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
        return self

    @property
    def socket_dir(self) -> Path:
        return self.run_dir / "desk"


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
