"""Runs a feed until it has published enough."""

import asyncio

import pytest


async def take(feed, count, after=None):
    """The first lines, as many as asked for or a few more: lines of one time come together."""
    lines = []
    enough = asyncio.Event()

    def publish(line):
        lines.append(line)
        if len(lines) >= count:
            enough.set()

    running = asyncio.create_task(feed.run(publish, after))
    async with asyncio.timeout(20):
        await asyncio.wait([running, asyncio.create_task(enough.wait())], return_when=asyncio.FIRST_COMPLETED)
    assert enough.is_set(), f"ended after {len(lines)} lines: {feed.problem()}"
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    return lines
