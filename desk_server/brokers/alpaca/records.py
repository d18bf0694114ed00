"""Alpaca's executions, activities, positions, account, assets, clock and calendar as the protocol's structs. Pure."""

import re
from datetime import UTC, date, datetime, time
from decimal import Decimal

from desk_server.brokers import Activity, BrokerUnknown, Execution, Holding, MarketClock
from desk_server.brokers.alpaca.fields import (
    Json,
    amount,
    needed_amount,
    needed_text,
    needed_when,
    paired,
    side,
    symbol,
    text,
    when,
)
from desk_server.domain import ZERO, Asset, AssetClass, Symbol
from desk_server.sessions import NEW_YORK, TradingDay

# Statuses of an account that may trade. Whatever else it says, it may not.
_ACTIVE = frozenset({"ACTIVE", "ACCOUNT_UPDATED", "EDITED", "PAPER_ONLY"})
_BLOCKS = ("account_blocked", "trading_blocked", "trade_suspended_by_user")
# Activities of these statuses moved nothing (the documented others are executed and correct).
_IDLE = frozenset({"canceled", "pending"})
_ASSET_CLASSES = {"us_equity": AssetClass.US_EQUITY, "crypto": AssetClass.CRYPTO}


def execution(json: Json, account: str = "") -> Execution:
    """A FILL activity. Its id is not the stream's execution id, or not known to be: cum_qty tells the place."""
    return Execution(
        broker_order_id=needed_text(json, "order_id"),
        symbol=symbol(json),
        side=side(json),
        qty=needed_amount(json, "qty"),
        price=needed_amount(json, "price"),
        at=needed_when(json, "transaction_time"),
        cum_qty=amount(json, "cum_qty"),
        execution_id=needed_text(json, "id"),
        account=account or text(json, "account_id"),
    )


def activity(json: Json, account: str = "") -> Activity | None:
    """None for one that is not, or no more, in force."""
    if text(json, "status") in _IDLE:
        return None
    kind = needed_text(json, "activity_type")
    written = text(json, "symbol")
    return Activity(
        activity_id=needed_text(json, "id"),
        kind=kind,
        at=_activity_at(json),
        cash=amount(json, "net_amount") or ZERO,
        symbol=Symbol("") if written == "USDUSD" else paired(written),
        # A dividend's qty is what it was paid on, not what was got.
        qty=ZERO if kind.startswith("DIV") else amount(json, "qty") or ZERO,
        per_share=amount(json, "per_share_amount") if kind.startswith("DIV") else None,
        broker_order_id=text(json, "order_id"),
        description=text(json, "description"),
        account=account or text(json, "account_id"),
    )


def _activity_at(json: Json) -> datetime:
    """To the second where told; else midnight UTC of its date."""
    at = when(json, "created_at") or when(json, "transaction_time")
    if at is not None:
        return at
    try:
        return datetime.combine(date.fromisoformat(needed_text(json, "date")[:10]), time(), UTC)
    except ValueError:
        raise BrokerUnknown("date is no date in Alpaca's activity") from None


def holding(json: Json) -> Holding:
    qty = abs(needed_amount(json, "qty"))
    name = needed_text(json, "symbol")
    is_pair = text(json, "asset_class") == "crypto"
    return Holding(
        paired(name) if is_pair else Symbol(name),
        -qty if text(json, "side") == "short" else qty,
        amount(json, "avg_entry_price") or ZERO,
    )


def account_money(json: Json) -> tuple[Decimal, Decimal]:
    """(cash, buying power), in dollars."""
    return needed_amount(json, "cash"), needed_amount(json, "buying_power")


def account_problem(json: Json) -> str:
    """Why the account cannot trade; "" when it can."""
    status = needed_text(json, "status")
    if status not in _ACTIVE:
        return f"the account at Alpaca is {status}: ask Alpaca's support"
    for name in _BLOCKS:
        if json.get(name) is True:
            return f"the account at Alpaca may not trade ({name}): see Alpaca's dashboard"
    return ""


def asset(json: Json) -> Asset | None:
    """None for what the desk does not trade (options, futures)."""
    asset_class = _ASSET_CLASSES.get(text(json, "class") or text(json, "asset_class"))
    if asset_class is None:
        return None
    name = needed_text(json, "symbol")
    return Asset(
        symbol=paired(name) if asset_class is AssetClass.CRYPTO else Symbol(name),
        asset_class=asset_class,
        tradable=json.get("tradable") is True and text(json, "status") in ("active", ""),
        fractionable=json.get("fractionable") is True,
        shortable=json.get("shortable") is True and json.get("easy_to_borrow") is not False,
    )


def market_clock(json: Json) -> MarketClock:
    if not isinstance(is_open := json.get("is_open"), bool):
        raise BrokerUnknown("is_open is missing in Alpaca's clock")
    return MarketClock(
        needed_when(json, "timestamp"), is_open, needed_when(json, "next_open"), needed_when(json, "next_close")
    )


def trading_day(json: Json) -> TradingDay:
    """Hours are New York's: 09:30 in some fields, 0400 in others."""
    try:
        day = date.fromisoformat(needed_text(json, "date"))
    except ValueError:
        raise BrokerUnknown("date is no date in Alpaca's calendar") from None
    opens, closes = _hour(json, day, "open", ""), _hour(json, day, "close", "")
    return TradingDay(
        early=_hour(json, day, "session_open", "04:00"),
        open=opens,
        close=closes,
        late=_hour(json, day, "session_close", "20:00"),
    )


def _hour(json: Json, day: date, name: str, default: str) -> datetime:
    found = re.fullmatch(r"(\d{2}):?(\d{2})", text(json, name) or default)
    if not found or int(found[1]) > 23 or int(found[2]) > 59:
        raise BrokerUnknown(f"{name} is no time in Alpaca's calendar")
    return datetime.combine(day, time(int(found[1]), int(found[2])), NEW_YORK).astimezone(UTC)
