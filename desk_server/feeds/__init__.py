"""What a feed is: a source of market lines.

Implementations: `replay.py`, `walk.py`. All pass tests/feeds/conformance.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from desk_server.domain import Asset

# Takes one line: the bytes of a JSON object without "seq" and without a newline, with at least
# symbol, price, type and timestamp. What it returns means nothing to a feed.
Publish = Callable[[bytes], object]


class Feed(Protocol):
    name: str

    def assets(self) -> list[Asset]:
        """What it will send lines of; the paper exchange lists exactly these."""
        ...

    async def run(self, publish: Publish, after: datetime | None) -> None:
        """Publish lines, in the order of their time, until cancelled or the source ends.

        `after` is the timestamp of the last line published before a restart: go on behind it. Yields to the
        event loop at least every few milliseconds, however fast the source is.
        """
        ...

    def problem(self) -> str:
        """Why no lines come now; "" when all is well."""
        ...
