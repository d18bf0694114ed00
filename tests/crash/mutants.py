"""Eight bugs, put into a desk on purpose; `python -m tests.crash.mutants` (make mutants) shows that each is caught.

Each is a change of the desk's own source, made in the forked process before it starts. Where the text that it
changes is no longer there, it fails, and so does the test: then the bug must be put in anew, where its place is now.
"""

import argparse
import inspect
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from msgspec.structs import replace as changed

from desk_server import book_queries, desk, resolve, settle
from desk_server.book_queries import BookQueries
from desk_server.desk import Desk
from desk_server.ids import new_ulid
from desk_server.ledger import sqlite
from desk_server.ledger.sqlite import SqliteLedger
from desk_server.resolve import Resolver

CAUGHT_WITHIN_S = 60.0


class CannotMutate(Exception):
    """The desk's source is not what the mutant was made for."""


def rewrite(module: ModuleType, owner: Any, name: str, *changes: tuple[str, str], **helpers: Any) -> None:
    """Replace text in the source of `owner.name`; each text must be there exactly once."""
    source = textwrap.dedent(inspect.getsource(getattr(owner, name)))
    for old, new in changes:
        if source.count(old) != 1:
            raise CannotMutate(f"{owner.__name__}.{name} has {source.count(old)} times: {old!r}")
        source = source.replace(old, new)
    made: dict[str, Any] = {}
    exec(compile(source, f"<mutant of {name}>", "exec"), {**vars(module), **helpers}, made)
    setattr(owner, name, made[name])


def new_id_on_retry() -> None:
    """An order that was not answered is sent again under another client_order_id."""

    def renamed(order: Any) -> Any:
        stem = order.client_order_id.rpartition(".")[0]
        return changed(order, client_order_id=f"{stem}.{new_ulid()}")

    old = "await desk.broker.submit(order, desk.book.legs(order))"
    new = "await desk.broker.submit(renamed(order), desk.book.legs(order))"
    rewrite(resolve, Resolver, "_send_again", (old, new), renamed=renamed)


def timeout_is_a_rejection() -> None:
    """No answer counts as a no."""
    old = "return await self._in_doubt(order.order_id, str(silence))"
    rejected = 'OrderRejected(at=self.clock.now(), order_id=order.order_id, code="TIMEOUT", message=str(silence))'
    rewrite(desk, Desk, "send", (old, f"return await self._outcome({rejected})"))


def not_found_is_a_rejection() -> None:
    """One 404 of a lookup counts as a proof."""
    old = "    if case.missing_since_s is None:\n"
    rejected = 'OrderRejected(at=desk.clock.now(), order_id=order.order_id, code="404", message="order not found")'
    rewrite(resolve, Resolver, "_look_up", (old, f"    await self._record({rejected})\n    return\n{old}"))


def no_fill_dedupe() -> None:
    """An execution is booked as often as the broker tells of it."""
    old = "if is_known(said, booked) or _was_taken_back(said, booked):\n        return None\n"
    part = "part = covered(said, booked)\n"
    name = "execution_id = said.execution_id or place_name(said, booked)"
    rewrite(
        settle,
        settle,
        "_executed",
        (old, "pass\n"),
        (part, "part = ZERO\n"),
        (name, "execution_id = os.urandom(8).hex()"),
        os=os,
    )


def fill_in_two_transactions() -> None:
    """The execution is committed, then what it moves."""
    old = "    insert(self._connection, rows, moved)\n"
    new = """    insert(self._connection, rows, [])
    if moved:
        self._connection.execute("COMMIT")
        self._connection.execute("BEGIN IMMEDIATE")
        insert(self._connection, [], moved)
"""
    rewrite(sqlite, SqliteLedger, "_insert_together", (old, new))


def answer_before_commit() -> None:
    """Whoever waits for the commit is told before it has happened."""
    commit = 'self._connection.execute("COMMIT")'
    told = f"self._tell(chain.stored, outcomes)\n    time.sleep(0.02)\n    {commit}"
    done = "return chain.stored, outcomes"
    rewrite(sqlite, SqliteLedger, "_commit", (commit, told), (done, "return [], []"), time=time)


def risk_forgets_open_orders() -> None:
    """What open orders hold back counts as free."""
    cash, qty = "return self._reservations.cash(user)", "open_qty = self._reservations.qty(user, symbol, Side.SELL)\n"
    rewrite(book_queries, BookQueries, "reserved_cash", (cash, "return ZERO"))
    rewrite(book_queries, BookQueries, "reserved_qty", (qty, "return ZERO\n"))


def no_restart_recovery() -> None:
    """What a crash caught on its way to the broker is left as it is."""
    source = textwrap.dedent(inspect.getsource(Desk._caught_by_the_crash))
    body = source[source.index("return [") :]
    rewrite(desk, Desk, "_caught_by_the_crash", (body, "return []\n"))
    taken = "self._resolver.take(order.order_id)"
    rewrite(desk, Desk, "_get_ready", (taken, "pass"))


MUTANTS: dict[str, Callable[[], None]] = {
    one.__name__: one
    for one in (
        new_id_on_retry,
        timeout_is_a_rejection,
        not_found_is_a_rejection,
        no_fill_dedupe,
        fill_in_two_transactions,
        answer_before_commit,
        risk_forgets_open_orders,
        no_restart_recovery,
    )
}


def apply(name: str) -> None:
    """Raises CannotMutate, or AttributeError, where the desk has changed."""
    MUTANTS[name]()


@dataclass(frozen=True, slots=True)
class Verdict:
    mutant: str
    seconds: float
    kills: int
    # Breaches by the number of their invariant; what the harness itself could not do.
    broken: dict[int, int]
    failed: str
    directory: str

    @property
    def is_caught(self) -> bool:
        return bool(self.broken) and not self.failed and self.seconds <= CAUGHT_WITHIN_S

    def __str__(self) -> str:
        numbers = ", ".join(f"{number} ({count})" for number, count in sorted(self.broken.items()))
        what = f"caught after {self.seconds:3.0f} s and {self.kills} kills by invariant {numbers}"
        if self.failed or not self.broken:
            what = f"NOT CAUGHT: {self.failed or 'every invariant held'}"
        elif not self.is_caught:
            what = f"TOO LATE: {what}"
        return f"{self.mutant:26} {what}"


def judge(mutant: str, seed: str, *, kills: int = 12, epochs: int = 3) -> Verdict:
    """Run the loop with the mutant until an invariant breaks; "" is the desk as it is."""
    from tests.crash.loop import Plan, run  # noqa: PLC0415  (the loop imports the desk's child, which imports this)

    began = time.monotonic()
    plan = Plan(
        kills=kills * epochs, seed=seed, epoch_kills=kills, mutant=mutant, pause_s=0.03, first_only=True, hurry=True
    )
    result = run(plan, quiet=True)
    broken: dict[int, int] = {}
    for number, _ in result.violations:
        broken[number] = broken.get(number, 0) + 1
    failed = "; ".join(why for _, why in result.failed)
    if mutant and broken and not failed:
        shutil.rmtree(result.directory, ignore_errors=True)  # nothing in it need be looked into
    return Verdict(mutant, time.monotonic() - began, result.kills, broken, failed, str(result.directory))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.mutants", description=__doc__)
    parser.add_argument("--seed", default="7")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    parser.add_argument("mutants", nargs="*", default=list(MUTANTS))
    options = parser.parse_args()
    missed = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for verdict in pool.map(lambda name: judge(name, options.seed), options.mutants):
            print(verdict, flush=True)
            missed += not verdict.is_caught
        clean = judge("", options.seed)
    is_clean = not (clean.broken or clean.failed)
    says = "every invariant holds" if is_clean else f"BROKEN: {clean.broken} {clean.failed}, see {clean.directory}"
    print(f"{'(no mutant)':26} {says}")
    return 0 if is_clean and not missed else 1


if __name__ == "__main__":
    sys.exit(main())
