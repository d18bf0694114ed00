"""What moves money or shares is posted in the transaction of its event, and positions rebuild from postings."""

from collections import defaultdict
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

import pytest
from beds import Bed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_story import AT, Open, executed, intended, opened

from desk_server import events
from desk_server.book import Book
from desk_server.domain import HOUSE, Side, house_of
from desk_server.ledger import Ledger
from desk_server.postings import postings, sums

Make = Callable[..., Ledger]


async def test_events_are_posted_with_their_commit(make: Make, bed: Bed):
    """Each event's postings, exact to the last digit; none for what moves nothing."""
    ledger = Open(make()).ledger
    await ledger.append(opened("alice"), intended(1))
    await ledger.append(executed("e1"))
    rows = bed.sql("SELECT seq, n, account, asset, amount FROM desk.postings ORDER BY seq, n")
    assert [(*row[:4], Decimal(row[4])) for row in rows] == [
        (1, 0, "alice", "USD", Decimal(100000)),
        (1, 1, "desk:capital", "USD", Decimal(-100000)),
        (3, 0, "alice", "USD", Decimal("-14.55")),
        (3, 1, "market", "USD", Decimal("14.55")),
        (3, 2, "alice", "AAPL", Decimal("0.1")),
        (3, 3, "market", "AAPL", Decimal("-0.1")),
    ]


async def test_an_execution_that_does_not_say_whose_it_is_is_not_taken(make: Make):
    """It could not be posted; nothing of the call is stored."""
    ledger = Open(make()).ledger
    nameless = events.Executed(at=AT, order_id="o1", execution_id="e1", qty=Decimal(1), price=Decimal(1))
    with pytest.raises(ValueError, match="does not say whose it is"):
        ledger.append(opened("alice"), nameless)
    assert await ledger.append(opened("alice")) == 1


amounts = st.decimals(min_value="-1e9", max_value="1e9", places=9, allow_nan=False)
sizes = st.decimals(min_value="1e-9", max_value="1e9", places=9, allow_nan=False)
fees = st.decimals(min_value=0, max_value=1000, places=9)
users = st.sampled_from(["alice", "bob"])
symbols = st.sampled_from(["AAPL", "BTC/USD", "MSFT"])
sides = st.sampled_from(Side)
accounts = st.sampled_from(["", "sub-1"])
trades = st.tuples(sides, symbols, sizes, sizes, fees)


@st.composite
def histories(draw: st.DrawFn) -> list[events.AnyEvent]:
    """Everything that moves something, as the desk would store it."""
    found: list[events.AnyEvent] = [opened("alice"), opened("bob")]
    for number in range(draw(st.integers(0, 12))):
        what = draw(st.sampled_from(["house", "activity", "adjusted", "bust"]))
        side, symbol, qty, price, fee = draw(trades)
        traded = {"symbol": symbol, "side": side, "qty": qty, "price": price, "fee": fee}
        account = draw(accounts)
        if what == "house":
            found.append(events.HouseExecuted(at=AT, execution_id=f"h{number}", account=account, **traded))
        elif what == "activity":
            parts = draw(st.lists(st.tuples(users | st.just(house_of(account)), amounts, amounts), max_size=3))
            shares = tuple(events.Share(user=user, cash=cash, qty=part) for user, cash, part in parts)
            found.append(
                events.ActivityPosted(at=AT, activity_id=f"a{number}", kind="SPLIT", shares=shares, symbol=symbol)
            )
        elif what == "adjusted":
            found.append(
                events.HouseAdjusted(
                    at=AT,
                    reason="?",
                    symbol=symbol,
                    qty=draw(amounts),
                    price=price,
                    cash=draw(amounts),
                    account=account,
                )
            )
        else:
            houses = [event for event in found if isinstance(event, events.HouseExecuted)]
            busted = {event.execution_id for event in found if isinstance(event, events.ExecutionBusted)}
            for event in [event for event in houses if event.execution_id not in busted][:1]:
                fields = {name: getattr(event, name) for name in (*traded, "execution_id")}
                found.append(events.ExecutionBusted(at=AT, order_id="", user=house_of(event.account), **fields))
    return found


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(histories())
def test_every_entry_sums_to_zero_and_positions_rebuild(history: list[events.AnyEvent]):
    """Whatever happens, cash and shares summed from postings are the book's, to the last digit."""
    book = Book()
    balances: dict[tuple[str, str], Fraction] = defaultdict(Fraction)
    for seq, event in enumerate(history, start=1):
        book.fold(seq, event)
        entry = postings(event)
        assert not any(sums(entry).values())
        for posting in entry:
            balances[posting.account, posting.asset] += Fraction(posting.amount)
    for user in ("alice", "bob", HOUSE, house_of("sub-1")):
        account = book.accounts.get(user)
        assert balances[user, "USD"] == (Fraction(account.cash) if account else 0)
        for symbol in ("AAPL", "BTC/USD", "MSFT"):
            position = book.positions.get(user, {}).get(symbol)
            assert balances[user, symbol] == (Fraction(position.qty) if position else 0)
