"""All faults at random, many orders at once: whatever the adapter claims, the broker's own book says the same."""

import asyncio
import random
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from paper_samples import limit, make_order
from rigs import FAST, AlpacaRig, SubAccountRig, connected

from desk_server.brokers import BrokerHasIt, BrokerRejected, BrokerThrottled, BrokerUnknown

ORDERS = 80


@pytest.mark.parametrize(("rig_class", "seed"), [(AlpacaRig, 1), (SubAccountRig, 3)])
async def test_no_claim_is_wrong(rig_class, seed):
    """Acknowledged: there, once, under that id. Rejected or throttled: not there. Nothing else is ever raised."""
    async with connected(rig_class(FAST)) as rig:
        start, chance = datetime.now(UTC), random.Random(seed)
        rig.control.faults({"*": 0.02}, seed=seed)
        claims = {}

        async def trade(number: int) -> None:
            order = make_order("buy", "1") if number % 3 else limit("buy", "50", "2")
            claims[order.client_order_id] = "unknown"
            try:
                ack = await rig.submit(order)
                claims[order.client_order_id] = ack.broker_order_id
                if chance.random() < 0.5:
                    await rig.broker.cancel(rig.known(order))
            except BrokerHasIt:
                raise
            except (BrokerRejected, BrokerThrottled) as no:
                if claims[order.client_order_id] == "unknown":
                    claims[order.client_order_id] = type(no).__name__
            except BrokerUnknown:
                pass

        for first in range(0, ORDERS, 10):
            await asyncio.gather(*(trade(number) for number in range(first, first + 10)))
        rig.control.heal()
        truth = rig.truth()
        there = {one["client_order_id"]: one["id"] for one in truth["orders"]}
        assert len(there) == len(truth["orders"])
        for name, claim in claims.items():
            if claim in ("BrokerRejected", "BrokerThrottled"):
                assert name not in there
            elif claim != "unknown":
                assert there[name] == claim
        assert sum(claim not in ("unknown", "BrokerThrottled") for claim in claims.values()) > ORDERS / 2
        await _agree(rig, start)


async def _agree(rig, start) -> None:
    """What was told of executions really happened, and the healed records tell all that stands."""
    executions = {one["execution_id"]: one for one in rig.truth()["executions"]}
    for fill in rig.fills():
        real = executions[fill.broker_execution_id]
        assert (fill.qty, fill.price, fill.broker_order_id) == (
            Decimal(real["qty"]),
            Decimal(real["price"]),
            real["order_id"],
        )
    await rig.eventually(lambda: not rig.broker.problem(), rig.broker.problem)
    # What the faults set going (late landings, busts) comes to rest first.
    for _ in range(100):
        before = rig.truth()
        recorded = await rig.broker.executions(start)
        listed = await rig.broker.orders(start)
        if rig.truth() == before:
            break
        await asyncio.sleep(0.1)
    standing = {one["activity_id"] for one in before["executions"] if not one["busted"]}
    assert {one.execution_id for one in recorded if one.account in ("", rig.account)} == standing
    assert {one.broker_order_id: one.filled_qty for one in listed} == {
        one["id"]: Decimal(one["filled_qty"]) for one in before["orders"]
    }
