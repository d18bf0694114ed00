"""Who gets which part of a dividend, a split, a fee or a transfer of the account. Pure, exact to the last digit."""

from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import ROUND_DOWN, Decimal

from desk_server.book import Book
from desk_server.brokers import Activity
from desk_server.domain import ZERO, Symbol, UserId, house_of, is_house
from desk_server.events import Share
from desk_server.positions import FEE_KINDS, MONEY
from desk_server.sessions import NEW_YORK

# What those who hold the symbol get: dividends and what is withheld of them, splits, mergers, spin-offs.
_HOLDERS = ("DIV", "SPLIT", "SSP", "SSO", "SPIN", "SC", "MA", "NC", "REORG", "CIL", "CGD")
_CENT = Decimal("0.01")
_SHARE_GRID = Decimal("1e-9")
# Fills are booked about in the order of their times: this much apart at most.
_OUT_OF_ORDER = timedelta(days=2)


def shares_of(activity: Activity, book: Book, account: str, users: frozenset[UserId] | None) -> tuple[Share, ...]:
    """Parts that sum to the whole: users' in cents (and billionths of a share), the rest the house's.

    `users` are those whose account it is, None for everybody.
    """
    house = house_of(account)
    members = [user for user in book.accounts if not is_house(user) and (users is None or user in users)]
    order = book.by_broker_order_id(activity.broker_order_id)
    if activity.kind in FEE_KINDS and order is not None:
        weights = {order.user: Decimal(1)}
    elif activity.kind in FEE_KINDS:
        weights = _traded(book, [*members, house], activity)
    elif activity.kind.startswith(_HOLDERS) and activity.symbol:
        weights = _held(book, [*members, house], activity)
    else:
        weights = {}
    return _divided(activity, weights, house)


def _divided(activity: Activity, weights: Mapping[UserId, Decimal], house: UserId) -> tuple[Share, ...]:
    total = _sum(weights.values())
    shares = []
    cash_left, qty_left = activity.cash, activity.qty
    for user, weight in sorted(weights.items()):
        if user == house or not weight or not total:
            continue
        cash, qty = (activity.cash, activity.qty) if weight == total else _part(activity, weight, total)
        if cash or qty:
            shares.append(Share(user, cash, qty))
        cash_left, qty_left = MONEY.subtract(cash_left, cash), MONEY.subtract(qty_left, qty)
    if cash_left or qty_left or not shares:
        shares.append(Share(house, cash_left, qty_left))
    return tuple(shares)


def _part(activity: Activity, weight: Decimal, total: Decimal) -> tuple[Decimal, Decimal]:
    """Dollars and shares of who holds `weight` of `total`, rounded towards zero; by the share where that is told."""
    if activity.per_share is not None:
        cash = MONEY.multiply(weight, activity.per_share.copy_abs().copy_sign(activity.cash))
    else:
        cash = MONEY.divide(MONEY.multiply(activity.cash, weight), total)
    qty = MONEY.divide(MONEY.multiply(activity.qty, weight), total)
    return cash.quantize(_CENT, ROUND_DOWN, MONEY), qty.quantize(_SHARE_GRID, ROUND_DOWN, MONEY)


def _held(book: Book, users: Iterable[UserId], activity: Activity) -> dict[UserId, Decimal]:
    """What each held then. Where that was nothing (an activity is often dated by its day, which begins before all
    that was traded on it): what each holds now."""
    then = {user: held_at(book, user, activity.symbol, activity.at) for user in users}
    return then if any(then.values()) else {user: book.position(user, activity.symbol).qty for user in then}


def held_at(book: Book, user: UserId, symbol: Symbol, at: datetime) -> Decimal:
    """What the user held then: what is held now, less what came since."""
    qty = book.position(user, symbol).qty
    for place in reversed(book.fill_places(user)):
        fill = book.fills[place]
        if fill.at < at - _OUT_OF_ORDER:
            break
        if fill.symbol == symbol and fill.at > at and not fill.is_busted:
            qty = MONEY.subtract(qty, MONEY.multiply(fill.qty, Decimal(fill.side.sign)))
    for event in reversed(book.activities):
        if event.symbol == symbol and event.at > at:
            qty = MONEY.subtract(qty, _sum(share.qty for share in event.shares if share.user == user))
    return qty


def _traded(book: Book, users: Iterable[UserId], activity: Activity) -> dict[UserId, Decimal]:
    """Dollars that each executed on the activity's day; in its symbol, where it names one."""
    day = day_of(activity.at)
    traded: dict[UserId, Decimal] = {}
    for user in users:
        for place in reversed(book.fill_places(user)):
            fill = book.fills[place]
            if fill.at < activity.at - _OUT_OF_ORDER - timedelta(days=1):
                break
            is_named = not activity.symbol or fill.symbol == activity.symbol
            if is_named and not fill.is_busted and fill.at.astimezone(NEW_YORK).date() == day:
                value = MONEY.multiply(fill.qty, fill.price)
                traded[user] = MONEY.add(traded.get(user, ZERO), value)
    return traded


def day_of(at: datetime) -> date:
    """New York's date; what is dated by day alone (midnight UTC) means that day."""
    utc = at.astimezone(UTC)
    return utc.date() if utc.time() == time() else at.astimezone(NEW_YORK).date()


def _sum(amounts: Iterable[Decimal]) -> Decimal:
    total = ZERO
    for amount in amounts:
        total = MONEY.add(total, amount)
    return total
