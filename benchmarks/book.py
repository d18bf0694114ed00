"""What the book costs: time to fold an order's three events, to rebuild from a ledger, and memory an order.

    python benchmarks/book.py [--orders 50000]

The reference of the same run is decoding alone: what no rebuild can do without.
"""

import argparse
import gc
import itertools
import time
import tracemalloc
from collections.abc import Callable, Iterator
from decimal import Decimal

from ledger import intents

from desk_server.book import Book
from desk_server.domain import UserId
from desk_server.events import AnyEvent, Executed, OrderAccepted, UserOpened, decode, encode


def story(orders: int) -> Iterator[AnyEvent]:
    """An account, then orders: intended, accepted, filled."""
    for number, intent in enumerate(itertools.islice(intents(), orders)):
        if number == 0:
            yield UserOpened(at=intent.at, user=UserId("alice"), allotment=Decimal(10**9))
        order_id = intent.order.order_id
        yield intent
        yield OrderAccepted(at=intent.at, order_id=order_id, broker_order_id=f"b-{number}", status="new")
        yield Executed(
            at=intent.at, order_id=order_id, execution_id=f"e-{number}", qty=Decimal(10), price=Decimal("145.123")
        )


def fold(events: list[AnyEvent]) -> Book:
    book = Book()
    for seq, event in enumerate(events, start=1):
        book.fold(seq, event)
    return book


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--orders", type=int, default=50_000)
    orders = parser.parse_args().orders
    events = list(story(orders))
    bodies = [encode(event) for event in events]
    gc.collect()
    gc.freeze()
    fold_s = min(_seconds(lambda: fold(events)) for _ in range(5))
    decode_s = min(_seconds(lambda: [decode(body) for body in bodies]) for _ in range(3))
    print(f"fold, µs an order (intended, accepted, executed): {fold_s / orders * 1e6:.1f}")
    print(f"decode, µs an order:                              {decode_s / orders * 1e6:.1f}")
    print(f"rebuild, orders a second:                         {orders / (fold_s + decode_s):,.0f}")
    tracemalloc.start()
    book = fold([decode(body) for body in bodies])
    used, _ = tracemalloc.get_traced_memory()
    print(f"memory, bytes an order:                           {used / len(book.orders):,.0f}")


def _seconds(act: Callable[[], object]) -> float:
    start = time.process_time()
    act()
    return time.process_time() - start


if __name__ == "__main__":
    main()
