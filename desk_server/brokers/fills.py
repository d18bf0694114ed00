"""At what price and how much: the paper exchange's model of a fill. Pure arithmetic, plus one seeded chance."""

import random
from decimal import ROUND_CEILING, ROUND_DOWN, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal

from msgspec import Struct

from desk_server.domain import ZERO, Quote

NANO = Decimal("1e-9")
_SUB_PENNY = Decimal("0.0001")
_BPS = Decimal(10000)
_ONE = Decimal(1)


class FillModel(Struct, frozen=True):
    """Basis points are 1/100 %. Fees and prices in dollars.

    `partial_percent`: how often a fill is a random part of what could fill. `size_limited`: no more than the
    quoted size fills at once, where a size is quoted (in shares or coins).
    """

    slippage_bps: Decimal = ZERO
    fee_per_share: Decimal = ZERO
    fee_bps: Decimal = ZERO
    crypto_fee_bps: Decimal = Decimal(25)
    partial_percent: float = 0.0
    size_limited: bool = False

    def taken_price(self, touch: Decimal, *, buy: bool, crypto: bool) -> Decimal:
        """What an order without a limit pays or gets: worse than the market by the slippage, in whole ticks."""
        if not self.slippage_bps:
            return touch
        tick = NANO if crypto else _SUB_PENNY
        worse = touch * self.slippage_bps / _BPS
        if buy:
            return (touch + worse).quantize(tick, ROUND_CEILING)
        return max((touch - worse).quantize(tick, ROUND_FLOOR), tick)

    def fee(self, qty: Decimal, price: Decimal, *, crypto: bool) -> Decimal:
        bps = self.crypto_fee_bps if crypto else self.fee_bps
        per_share = ZERO if crypto else self.fee_per_share
        if not bps and not per_share:
            return ZERO
        return (qty * per_share + qty * price * bps / _BPS).quantize(NANO, ROUND_HALF_EVEN)

    def part(self, qty: Decimal, chance: random.Random) -> Decimal:
        """All of `qty`, or now and then a random part of it: whole shares of whole shares, and never nothing."""
        if not self.partial_percent or chance.random() * 100 >= self.partial_percent:
            return qty
        if qty % _ONE:
            share = Decimal(chance.randint(1, 99)) / 100
            return max((qty * share).quantize(NANO, ROUND_DOWN), min(NANO, qty))
        return Decimal(chance.randint(1, max(int(qty) - 1, 1)))


class Touch:
    """What a symbol trades at now: what a buyer pays, a seller gets, and how much is left of the quoted sizes."""

    __slots__ = ("at", "buy", "buy_size", "sell", "sell_size")

    def __init__(self, quote: Quote) -> None:
        bid, ask = quote.bid, quote.ask
        if bid is not None and ask is not None and bid > ask:  # crossed: nobody can be taken at his word
            bid = ask = None
        self.at = quote.at
        self.buy = ask if ask is not None and ask > 0 else quote.price
        self.sell = bid if bid is not None and bid > 0 else quote.price
        self.buy_size = quote.ask_size
        self.sell_size = quote.bid_size

    def keep_sizes(self, before: "Touch") -> None:
        """The same quote as before, still standing: what was taken of it is gone."""
        if self.buy_size is not None and before.buy_size is not None:
            self.buy_size = before.buy_size
        if self.sell_size is not None and before.sell_size is not None:
            self.sell_size = before.sell_size

    def left(self, *, buy: bool, whole: bool) -> Decimal | None:
        """What is left of the quoted size; None where no size was quoted."""
        size = self.buy_size if buy else self.sell_size
        return size.quantize(_ONE, ROUND_FLOOR) if whole and size is not None else size

    def take(self, qty: Decimal, *, buy: bool) -> None:
        if buy and self.buy_size is not None:
            self.buy_size -= qty
        elif not buy and self.sell_size is not None:
            self.sell_size -= qty


def shares_for(notional: Decimal, price: Decimal) -> Decimal:
    """How much `notional` dollars buy at `price`, down to 9 decimals."""
    return (notional / price).quantize(NANO, ROUND_DOWN)
