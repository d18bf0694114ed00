"""What executions do to money and shares: pure arithmetic, exact to the last digit.

Average-price method. Fees are cash, but not part of realised profit or cost. For every user and symbol,
to the last digit:   cash = allotment + realized_pl - fees - sum of cost   (cost is negative when short).
"""

from collections.abc import Callable
from datetime import datetime
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Context, Decimal

from msgspec import Struct

from desk_server.domain import ZERO, OrderId, Side, Symbol, UserId, is_house

# Prices and quantities have at most 9 decimals, so that a product has at most 18: within 80 digits every
# sum and product is exact, whatever decimal context the caller's thread has.
MONEY = Context(prec=80, rounding=ROUND_HALF_EVEN)
_GRID = Decimal("1e-18")
_PRICE_GRID = Decimal("1e-9")
_CENT = Decimal("0.01")

# What an activity's money is booked as: fees; on the house book, capital that came or went; else profit.
FEE_KINDS = frozenset({"FEE", "CFEE", "PTC", "PTR"})
TRANSFER_KINDS = frozenset({"CSD", "CSW", "CSR", "JNL", "JNLC", "ACATC", "TRANS"})

# The newest price of a symbol, None where nobody knows one.
PriceOf = Callable[[Symbol], Decimal | None]


class Account(Struct, frozen=True, gc=False):
    """A user's money, in dollars. `cash` is the allotment and all that trading added or took away."""

    user: UserId
    allotment: Decimal
    cash: Decimal
    realized_pl: Decimal = ZERO
    fees: Decimal = ZERO


class Position(Struct, frozen=True, gc=False):
    """What a user holds of a symbol: `qty` is negative when short, and so is `cost`, its dollars at entry.

    `realized_pl` (before fees) and `fees` are those of all time; the position stays, flat, for them.
    """

    user: UserId
    symbol: Symbol
    qty: Decimal = ZERO
    cost: Decimal = ZERO
    realized_pl: Decimal = ZERO
    fees: Decimal = ZERO

    @property
    def avg_entry_price(self) -> Decimal:
        """Dollars, rounded to 9 decimals; 0 when flat."""
        return MONEY.divide(self.cost, self.qty).quantize(_PRICE_GRID, context=MONEY) if self.qty else ZERO

    def market_value(self, price: Decimal | None) -> Decimal:
        """Dollars, negative when short; at cost where no price is known."""
        return self.cost if price is None else MONEY.multiply(self.qty, price)

    def unrealized_pl(self, price: Decimal | None) -> Decimal:
        return MONEY.subtract(self.market_value(price), self.cost)


class Fill(Struct, frozen=True, gc=False):
    """An execution as it was booked. `order_id` is "" for the house's. `cum_qty` and `broker_execution_id` as in
    events.Executed; `is_busted` when the broker took it back."""

    seq: int
    execution_id: str
    order_id: OrderId
    user: UserId
    strategy: str
    symbol: Symbol
    side: Side
    qty: Decimal
    price: Decimal
    fee: Decimal
    at: datetime
    cum_qty: Decimal | None = None
    broker_execution_id: str = ""
    is_busted: bool = False


def book_execution(
    account: Account, position: Position, side: Side, qty: Decimal, price: Decimal, *, fee: Decimal
) -> tuple[Account, Position]:
    """Both as they are after the execution; one that goes through zero closes first, then opens the rest."""
    change = qty if side is Side.BUY else qty.copy_negate()
    value = MONEY.multiply(change, price)
    held, cost = position.qty, position.cost
    if not held or (held > 0) == (change > 0):
        realized, new_cost = ZERO, MONEY.add(cost, value)
    elif change.copy_abs() < held.copy_abs():
        removed = MONEY.divide(MONEY.multiply(cost, qty), held.copy_abs()).quantize(_GRID, context=MONEY)
        realized, new_cost = MONEY.minus(MONEY.add(value, removed)), MONEY.subtract(cost, removed)
    else:
        realized = MONEY.subtract(MONEY.multiply(held, price), cost)
        new_cost = MONEY.multiply(MONEY.add(held, change), price)
    return (
        Account(
            account.user,
            account.allotment,
            MONEY.subtract(MONEY.subtract(account.cash, value), fee),
            MONEY.add(account.realized_pl, realized),
            MONEY.add(account.fees, fee),
        ),
        Position(
            position.user,
            position.symbol,
            MONEY.add(held, change),
            new_cost,
            MONEY.add(position.realized_pl, realized),
            MONEY.add(position.fees, fee),
        ),
    )


def book_activity(
    account: Account, position: Position | None, kind: str, *, cash: Decimal, qty: Decimal
) -> tuple[Account, Position | None]:
    """Both after something besides trading gave `cash` and `qty`. Cost stays, spread over the new quantity; what
    leaves nothing, or the other side, realises all of it."""
    fees, allotment, realized = account.fees, account.allotment, ZERO
    if kind in FEE_KINDS:
        fees = MONEY.subtract(fees, cash)
    elif kind in TRANSFER_KINDS and is_house(account.user):
        allotment = MONEY.add(allotment, cash)
    else:
        realized = cash
    if position is not None:
        held = MONEY.add(position.qty, qty)
        is_kept = held * position.qty > 0
        lost = ZERO if is_kept else position.cost
        position = Position(
            position.user,
            position.symbol,
            held,
            position.cost if is_kept else ZERO,
            MONEY.add(position.realized_pl, MONEY.subtract(realized, lost)),
            MONEY.add(position.fees, MONEY.subtract(fees, account.fees)),
        )
        realized = MONEY.subtract(realized, lost)
    money = Account(
        account.user, allotment, MONEY.add(account.cash, cash), MONEY.add(account.realized_pl, realized), fees
    )
    return money, position


def contributed(account: Account, amount: Decimal) -> Account:
    """The account with so many dollars more of capital: neither profit nor fee."""
    return Account(
        account.user,
        MONEY.add(account.allotment, amount),
        MONEY.add(account.cash, amount),
        account.realized_pl,
        account.fees,
    )


def share_of(reserved: Decimal, part: Decimal, whole: Decimal) -> Decimal:
    """`reserved` x `part` / `whole`, rounded up to a cent: a reservation is never a little too small."""
    if part <= 0:
        return ZERO
    if part == whole or whole <= 0 or not reserved:
        return reserved
    return MONEY.divide(MONEY.multiply(reserved, part), whole).quantize(_CENT, ROUND_CEILING, MONEY)
