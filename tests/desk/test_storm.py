"""Many users, a wire that loses and repeats, restarts and crashes: the books and the exchange agree all the same.

DESK_STORM_SEEDS (like 1-200) and DESK_STORM_ACTIONS (of one user in a round) make it last longer.
"""

import os

import pytest

from tests.desk.storm import Storm

_FIRST, _, _LAST = os.environ.get("DESK_STORM_SEEDS", "1-6").partition("-")
ACTIONS = int(os.environ.get("DESK_STORM_ACTIONS", "40"))


@pytest.mark.parametrize("seed", range(int(_FIRST), int(_LAST or _FIRST) + 1))
async def test_the_books_and_the_exchange_agree_after_a_storm(tmp_path, seed):
    """Every order once, every execution once, nothing spent or sold twice, nothing left in doubt."""
    storm = Storm(tmp_path, seed, actions=ACTIONS)
    await storm.run()
    counts = (len(storm.now.desk.book.orders), len(storm.now.desk.book.fills))
    print(f"seed {seed}: {counts[0]} orders, {counts[1]} fills, {storm.runs} restarts", storm.ends, storm.faults)
