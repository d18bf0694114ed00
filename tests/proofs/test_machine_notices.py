"""The state machine can fail: seeded bugs of the order path are each found by it, and without them it finds none."""

import pytest
from msgspec.structs import replace as changed

from desk_server.bookkeeper import Bookkeeper
from desk_server.brokers import BrokerHasIt, BrokerRejected
from desk_server.desk import Desk
from desk_server.events import OrderRejected
from desk_server.ids import new_ulid
from desk_server.resolve import Resolver
from tests.proofs import chance
from tests.proofs.test_state_machine import quiet

__all__ = ["quiet"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    pytest.mark.timeout(600),
]
_SEEDS = 60
_SEEDS_OF_A_MUTANT = 1500


async def _timeout_is_a_rejection(desk, order_id, reason):
    return await desk._outcome(OrderRejected(at=desk.clock.now(), order_id=order_id, code="timeout", message=reason))


async def _new_id_on_retry(resolver, order, case):
    again = changed(order, client_order_id=order.client_order_id[:-26] + new_ulid())
    try:
        resolver._desk.accept(order, await resolver._desk.broker.submit(again))
    except BrokerHasIt:
        return
    except BrokerRejected as no:
        case.rejected = no


async def _one_404_is_proof(resolver, order, case):
    found = await resolver._desk.broker.find(order)
    if found is not None:
        await resolver._found(order, found, case)
    else:
        await resolver._record(resolver._never_there(order, "404"))


async def _no_reservation_on_the_way(desk, event, hold):
    await desk.keeper.record(event)


def _risk_sees_no_open_orders(desk, who, request, old):
    facts = _facts(desk, who, request, old)
    account = desk.book.accounts.get(who.user)
    return changed(facts, available=facts.position, buying_power=account.cash if account else facts.buying_power)


_facts = Desk._facts
MUTANTS = {
    "a timeout counts as a rejection": (Desk, "_in_doubt", _timeout_is_a_rejection),
    "a new id when it is sent again": (Resolver, "_send_again", _new_id_on_retry),
    "one 404 proves that it is not there": (Resolver, "_look_up", _one_404_is_proof),
    "risk sees no open orders": (Desk, "_facts", _risk_sees_no_open_orders),
    "what is on its way is not reserved for": (Desk, "_intend", _no_reservation_on_the_way),
    "what a crash caught is forgotten": (Desk, "_caught_by_the_crash", lambda _: []),
    "a halt is not looked at again": (Desk, "stopped", lambda *_: ""),
    "the lease is not looked at": (Bookkeeper, "fenced", lambda _: ""),
    "wash trades are not looked for": (Desk, "_meets", lambda *_: None),
    "a granted cancel is not looked after": (Resolver, "_watch", lambda *_: None),
    "sent again however late": (Resolver, "_is_late", lambda *_: False),
}


@pytest.mark.parametrize("bug", MUTANTS)
def test_a_seeded_bug_is_found(monkeypatch, bug):
    """With this bug in, some run breaks an invariant."""
    where, name, instead = MUTANTS[bug]
    monkeypatch.setattr(where, name, instead)
    with pytest.raises(AssertionError):
        for seed in range(_SEEDS_OF_A_MUTANT):
            chance.run(seed)


def test_without_one_none_is_found():
    """The same runs, on the code as it is."""
    for seed in range(_SEEDS):
        chance.run(seed)
