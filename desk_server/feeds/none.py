"""No feed at all: nothing is listed, no line comes, and every order is refused for want of an asset."""

import asyncio
from datetime import datetime

from desk_server.domain import Asset
from desk_server.feeds import Publish


class NoFeed:
    name = "none"

    def assets(self) -> list[Asset]:
        return []

    async def run(self, publish: Publish, after: datetime | None) -> None:
        await asyncio.Event().wait()

    def problem(self) -> str:
        return ""
