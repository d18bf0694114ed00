"""The state machine driven by a seed: no shrinking, and many more steps in a second. For long runs and for mutants:

`python -m tests.proofs.chance 1-1000` prints what each bad seed broke, and how often each fault was met.
"""

import random
import sys
from collections import Counter
from decimal import Decimal as D

import structlog

from desk_server.brokers import What
from desk_server.domain import Side
from tests.proofs.test_state_machine import LOOKUP_FATES, REQUEST_FATES, STREAM_FATES, Trading
from tests.proofs.world import USERS, World

_PRICES = [None, D(95), D(99), D(100), D(101), D(105)]
_ENDS = [What.CANCELED, What.EXPIRED, What.REJECTED]
_WEIGHTS = {
    "place": 14.0,
    "place_again": 3,
    "replace": 6,
    "cancel": 6,
    "cancel_all": 1,
    "halt": 2,
    "fill": 10,
    "end_at_the_broker": 2,
    "trade_by_hand": 1,
    "cancels_get_stuck": 1,
    "requests_will": 5,
    "lookups_will": 3,
    "lookups_fail_for_long": 1.5,
    "events_will": 4,
    "the_disk_is_full": 1,
    "the_clock_is_set": 0.6,
    "crash": 1.5,
    "another_server_takes_over": 0.6,
    "a_few_turns": 6,
    "time_passes": 10,
    "all_heals": 1,
}


def run(seed: int, steps: int = 50) -> World:
    """Raises AssertionError for what must not be."""
    chance = random.Random(seed)
    machine = Trading()
    machine.begin(holds=chance.random() < 0.5)
    names: list[object] = []
    try:
        for _ in range(steps):
            _step(machine, chance.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0], chance, names)
            machine.world.check()
        machine.world.end()
    finally:
        if not machine.world.loop.is_closed():
            machine.world.close()
    return machine.world


def _step(machine: Trading, name: str, chance: random.Random, names: list[object]) -> None:
    def some(fates: list[str], most: int) -> list[str]:
        return [chance.choice(fates) for _ in range(chance.randint(1, most))]

    arguments = {
        "place": lambda: {
            "who": chance.choice(USERS),
            "side": chance.choice(list(Side)),
            "qty": chance.randint(1, 60),
            "price": chance.choice(_PRICES),
        },
        "replace": lambda: {
            "pick": chance.randrange(50),
            "price": chance.choice(_PRICES),
            "qty": chance.choice([None, chance.randint(1, 60)]),
        },
        "cancel": lambda: {"pick": chance.randrange(50)},
        "cancel_all": lambda: {"who": chance.choice(USERS)},
        "halt": lambda: {"halted": chance.random() < 0.5},
        "fill": lambda: {"pick": chance.randrange(50), "part": chance.choice([1, 2, 3, 1000])},
        "end_at_the_broker": lambda: {"pick": chance.randrange(50), "what": chance.choice(_ENDS)},
        "trade_by_hand": lambda: {"side": chance.choice(list(Side)), "qty": chance.randint(1, 5)},
        "cancels_get_stuck": lambda: {"is_stuck": chance.random() < 0.5},
        "requests_will": lambda: {"fates": some(REQUEST_FATES, 4)},
        "lookups_will": lambda: {"fates": some(LOOKUP_FATES, 6)},
        "lookups_fail_for_long": lambda: {"times": chance.randint(5, 20)},
        "events_will": lambda: {"fates": some(STREAM_FATES, 4)},
        "the_disk_is_full": lambda: {"times": chance.randint(1, 5)},
        "the_clock_is_set": lambda: {"minutes": chance.choice([-120, -1, 1, 120])},
        "a_few_turns": lambda: {"times": chance.randint(1, 6)},
        "time_passes": lambda: {"seconds": chance.choice([0.005, 0.05, 1.0, 5.0, 30.0])},
    }
    if name == "place_again":
        if names:
            machine.place_again(name=chance.choice(names))
    elif name in arguments:
        made = getattr(machine, name)(**arguments[name]())
        if name == "place":
            names.append(made)
    else:
        getattr(machine, name)()


def main() -> int:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    first, _, last = sys.argv[1].partition("-")
    bad, met, outcomes = 0, Counter[str](), Counter[str]()
    for seed in range(int(first), int(last or first) + 1):
        try:
            world = run(seed)
        except Exception as error:
            bad += 1
            print(f"seed {seed}: {type(error).__name__} {error}"[:2000], flush=True)
        else:
            met += world.exchange.network.met
            outcomes += world.outcomes
    print(f"{bad} bad of {int(last or first) - int(first) + 1}", met, outcomes, sep="\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
