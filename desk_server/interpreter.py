"""What the desk asks of the Python interpreter it runs in, for the whole process: see `settle`."""

import gc
import sys

# The loop and the ledger's thread share one interpreter lock. A commit lets go of it several times, and each time
# would wait 5 ms (Python's default) to get it back while the loop is busy. Shorter than this, commits become small.
_SWITCH_S = 0.001
# How rarely garbage in cycles is looked for. An order leaves a handful of objects that stay for ever, and no cycles:
# a search finds nothing, and one that looks at all of them would stop the desk for a second. So only young objects
# are looked at (in pauses of a few milliseconds), and all of them hardly ever.
_YOUNG_OBJECTS, _MIDDLE, _OLD = 10_000, 20, 1_000


def settle() -> None:
    """Call once, when the ledger is loaded: all that exists by then stays, and is not searched for garbage again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, _MIDDLE, _OLD)
    sys.setswitchinterval(_SWITCH_S)
