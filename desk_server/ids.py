"""Names for orders: ULIDs (github.com/ulid/spec), made as fast as orders come."""

import time
from random import getrandbits

# 10 bits as two characters of Crockford's base 32.
_PAIRS = [high + low for high in "0123456789ABCDEFGHJKMNPQRSTVWXYZ" for low in "0123456789ABCDEFGHJKMNPQRSTVWXYZ"]


def new_ulid() -> str:
    """26 characters: the time in milliseconds, then 80 random bits. Unique, but not secret: they can be guessed."""
    # Small integers shift faster: the random part is made in halves.
    pairs, ms, high, low = _PAIRS, time.time_ns() // 1_000_000, getrandbits(40), getrandbits(40)
    return (
        f"{pairs[ms >> 40]}{pairs[ms >> 30 & 1023]}{pairs[ms >> 20 & 1023]}{pairs[ms >> 10 & 1023]}{pairs[ms & 1023]}"
        f"{pairs[high >> 30]}{pairs[high >> 20 & 1023]}{pairs[high >> 10 & 1023]}{pairs[high & 1023]}"
        f"{pairs[low >> 30]}{pairs[low >> 20 & 1023]}{pairs[low >> 10 & 1023]}{pairs[low & 1023]}"
    )
