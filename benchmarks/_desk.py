"""The whole desk as a process to be measured: real ledger, every check, every door.

`--broker ack` puts a broker in the place of the paper exchange that acknowledges at once and never executes: what is
measured then is the desk alone. `--slow` sends orders through FastAPI. Tells where it listens on standard output.
"""

import argparse
import asyncio
import json
import signal
from collections.abc import Awaitable, Callable, Iterable, Sequence

import uvloop

from desk_server import app, interpreter, logs
from desk_server.api.serve import Doors
from desk_server.brokers import Ack, BrokerEvent, BrokerOrder, Capabilities
from desk_server.domain import Asset, Order, OrderChange, Symbol
from desk_server.settings import Settings


class AckBroker:
    """Takes every order at once, remembers its name, and says nothing more of it."""

    capabilities = Capabilities(name="ack")

    def __init__(self, assets: Iterable[Asset]) -> None:
        self._assets = {asset.symbol: asset for asset in assets}
        self._names: dict[str, str] = {}

    async def connect(self, on_event: Callable[[BrokerEvent], Awaitable[None]]) -> None:
        pass

    def problem(self) -> str:
        return ""

    async def submit(self, order: Order, legs: Sequence[Order] = ()) -> Ack:
        name = self._names[order.client_order_id] = f"ack-{order.order_id}"
        return Ack(name, "new")

    async def cancel(self, order: Order) -> None:
        pass

    async def replace(self, order: Order, new: Order, change: OrderChange) -> Ack:
        return await self.submit(new)

    async def find(self, client_order_id: str) -> BrokerOrder | None:
        return None

    async def asset(self, symbol: Symbol) -> Asset | None:
        return self._assets.get(symbol)

    async def positions(self) -> dict[Symbol, object]:
        return {}

    async def close(self) -> None:
        pass

    def restore(self, orders: Iterable[Order]) -> None:
        pass


async def main(broker: str, *, fast: bool) -> None:
    settings = Settings()
    logs.configure(settings)
    desk = app.build(settings)
    if broker == "ack":
        desk.hub.taps.remove(desk.broker.on_quote)
        desk.broker = desk.desk.broker = AckBroker(desk.feed.assets())
    await desk.start()
    interpreter.settle()
    doors = Doors(desk.desk, settings, fast_door=fast)
    addresses = await doors.open()
    while desk.hub.latest("AAPL") is None:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    _, token = await desk.desk.registry.create_user_token("alice", "trade", "benchmark")
    where = {
        "port": addresses.http_port,
        "socket": str(addresses.http_socket),
        "grpc": f"127.0.0.1:{addresses.grpc_port}",
        "grpc_socket": f"unix:{addresses.grpc_socket}",
        "token": token,
    }
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print(json.dumps(where), flush=True)
    await stop.wait()
    await doors.close()
    await desk.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--broker", choices=("paper", "ack"), default="paper")
    parser.add_argument("--slow", action="store_true")
    options = parser.parse_args()
    uvloop.run(main(options.broker, fast=not options.slow))
