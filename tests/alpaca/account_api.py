"""The account, its activities, assets, clock and calendar over REST."""

from bisect import bisect_left
from datetime import date, datetime, time, timedelta
from typing import Any

from tests.alpaca.account import Account
from tests.alpaca.exchange import Exchange
from tests.alpaca.messages import Reply, Request
from tests.alpaca.orders import ZERO, stamp, text
from tests.alpaca.rules import NEW_YORK, Refused, bad, body_of
from tests.alpaca.streams import moment_ns

_DAY_NS = 86_400_000_000_000
_ACTIVITY_PAGE = 100
# An activity and when it happened, in nanoseconds.
Line = tuple[int, dict[str, Any]]


class AccountApi:
    """Every verb takes the request and the last part of its path."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange

    def account(self, request: Request, _: str) -> Reply:
        account = request.book
        money = account.money
        equity, power = money.equity(), text(money.buying_power())
        long = sum((h.qty * self.exchange.market.price(s) for s, h in money.holdings.items() if h.qty > 0), ZERO)
        short = sum((h.qty * self.exchange.market.price(s) for s, h in money.holdings.items() if h.qty < 0), ZERO)
        body = {
            "id": account.id,
            "account_number": account.number,
            "status": "ACTIVE",
            "crypto_status": "ACTIVE",
            "currency": "USD",
            "buying_power": power,
            "regt_buying_power": power,
            "non_marginable_buying_power": text(money.cash_for_crypto()),
            "options_buying_power": text(money.cash_for_crypto()),
            "cash": text(money.cash),
            "accrued_fees": "0",
            "portfolio_value": text(equity),
            "equity": text(equity),
            "last_equity": text(money.last_equity),
            "long_market_value": text(long),
            "short_market_value": text(short),
            "initial_margin": text(money.exposure() / 2),
            "maintenance_margin": text(money.exposure() * 3 / 10),
            "last_maintenance_margin": "0",
            "sma": "0",
            "multiplier": text(money.multiplier),
            "shorting_enabled": money.shorting,
            "trading_blocked": money.blocked,
            "transfers_blocked": False,
            "account_blocked": money.blocked,
            "trade_suspended_by_user": False,
            "created_at": stamp(account.created_ns),
        }
        if account is not self.exchange.main:
            body |= _broker_fields(account)
        return Reply(200, body)

    def configurations(self, request: Request, _: str) -> Reply:
        money = request.book.money
        if request.method == "PATCH":
            wanted = body_of(request.body)
            if wanted.get("no_shorting") is not None:
                money.shorting = not wanted["no_shorting"]
            if wanted.get("suspend_trade") is not None:
                money.blocked = bool(wanted["suspend_trade"])
        body = {
            "fractional_trading": True,
            "max_margin_multiplier": text(money.multiplier),
            "no_shorting": not money.shorting,
            "suspend_trade": money.blocked,
            "trade_confirm_email": "none",
            "ptp_no_exception_entry": False,
        }
        return Reply(200, body)

    def history(self, request: Request, _: str) -> Reply:
        money = request.book.money
        equity, base = float(money.equity()), float(money.last_equity)
        gain = equity - base
        body = {
            "timestamp": [self.exchange.now_ns() // 1_000_000_000],
            "equity": [equity],
            "profit_loss": [gain],
            "profit_loss_pct": [gain / base if base else 0.0],
            "base_value": base,
            "timeframe": request.first("timeframe") or "1D",
        }
        return Reply(200, body)

    def activities(self, request: Request, only: str) -> Reply:
        return Reply(200, _page(request, request.book.activities, only))

    def all_activities(self, request: Request, only: str) -> Reply:
        wanted = request.first("account_id")
        lines = [
            (at, {"account_id": account.id, **line})
            for account in self.exchange.sub_accounts
            if wanted in (None, account.id)
            for at, line in account.activities
        ]
        if wanted is None:
            lines.sort(key=_when)
        return Reply(200, _page(request, lines, only))

    def broker_accounts(self, request: Request, account_id: str) -> Reply:
        accounts = [
            {
                "id": account.id,
                "account_number": account.number,
                "status": "ACTIVE",
                "crypto_status": "ACTIVE",
                "currency": "USD",
                "last_equity": text(account.money.last_equity),
                "created_at": stamp(account.created_ns),
            }
            for account in self.exchange.sub_accounts
            if account_id in ("", account.id)
        ]
        if account_id and not accounts:
            raise Refused(404, 40410000, f"account not found for {account_id}")
        return Reply(200, accounts[0] if account_id else accounts)

    # Assets, clock, calendar.

    def assets(self, request: Request, _: str) -> Reply:
        wanted = request.first("asset_class")
        status = request.first("status")
        assets = [a.shown() for a in self.exchange.market.assets.values() if wanted in (None, a.asset_class)]
        return Reply(200, assets if status in (None, "active") else [])

    def asset(self, request: Request, name: str) -> Reply:
        asset = self.exchange.market.asset(name)
        if asset is None:
            raise Refused(404, 40410000, f"asset not found for {name}")
        return Reply(200, asset.shown())

    def clock(self, request: Request, _: str) -> Reply:
        now = self.exchange.now()
        is_open = self.exchange.session() == "regular"
        day = self.exchange.calendar.day_for(now)
        begun = is_open or day.open <= now
        following = self.exchange.calendar.day_for(day.close + timedelta(hours=12)) if begun else day
        body = {
            "timestamp": now.astimezone(NEW_YORK).isoformat(),
            "is_open": is_open,
            "next_open": following.open.astimezone(NEW_YORK).isoformat(),
            "next_close": day.close.astimezone(NEW_YORK).isoformat(),
        }
        return Reply(200, body)

    def calendar(self, request: Request, _: str) -> Reply:
        today = self.exchange.now().astimezone(NEW_YORK).date()
        day = date.fromisoformat((request.first("start") or str(today))[:10])
        end = date.fromisoformat((request.first("end") or str(today + timedelta(days=30)))[:10])
        out: list[dict[str, str]] = []
        while day <= end and len(out) < 1000:
            noon = datetime.combine(day, time(0, 1), NEW_YORK)
            trading = self.exchange.calendar.day_for(noon)
            opens, closes = trading.open.astimezone(NEW_YORK), trading.close.astimezone(NEW_YORK)
            if opens.date() == day:
                line = {"date": str(day), "open": opens.strftime("%H:%M"), "close": closes.strftime("%H:%M")}
                out.append(line | {"session_open": "0400", "session_close": "2000", "settlement_date": str(day)})
            day += timedelta(days=1)
        return Reply(200, out)


def _broker_fields(account: Account) -> dict[str, Any]:
    """What alpaca-py's BrokerClient demands of an account besides."""
    cash = text(account.money.cash)
    return {
        "cash_withdrawable": cash,
        "cash_transferable": cash,
        "previous_close": stamp(account.created_ns),
        "last_long_market_value": "0",
        "last_short_market_value": "0",
        "last_cash": text(account.money.last_equity),
        "last_initial_margin": "0",
        "last_regt_buying_power": text(account.money.last_equity),
        "last_buying_power": text(account.money.last_equity),
        "clearing_broker": "ALPACA_APCA",
    }


def _page(request: Request, lines: list[Line], only: str) -> list[dict[str, Any]]:
    """Filtered, sorted and cut as account activities are; page_token is the last id of the page before."""
    first = request.first
    types = {only} if only else set(request.many("activity_types")) or set(request.many("activity_type"))
    since, until, day = first("after"), first("until"), first("date")
    low = moment_ns(since, "after") if since else None
    high = moment_ns(until, "until") if until else None
    if day:
        low = moment_ns(day[:10], "date") - 1
        high = low + _DAY_NS + 1
    size = int(first("page_size") or (10_000 if day else _ACTIVITY_PAGE))
    if not day and size > _ACTIVITY_PAGE:
        raise bad(f"page_size must be no more than {_ACTIVITY_PAGE}")
    begin = bisect_left(lines, low + 1, key=_when) if low is not None else 0
    end = bisect_left(lines, high, key=_when) if high is not None else len(lines)
    ordered = lines[begin:end]
    if (first("direction") or "desc") != "asc":
        ordered.reverse()
    token = first("page_token")
    start = next((i + 1 for i, (_, line) in enumerate(ordered) if line["id"] == token), len(ordered)) if token else 0
    out: list[dict[str, Any]] = []
    for _, line in ordered[start:]:
        if len(out) >= size:
            break
        if not types or line["activity_type"] in types:
            out.append(line)
    return out


def _when(line: Line) -> int:
    return line[0]
