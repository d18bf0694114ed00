"""The misbehaving Alpaca as a process: `python -m tests.alpaca --port 0 --seed 7`."""

import argparse
import asyncio
import json
import os
import signal
import sys
from decimal import Decimal
from pathlib import Path

import msgspec
import uvloop

from tests.alpaca.exchange import Exchange, Keys
from tests.alpaca.server import Server


async def main(options: argparse.Namespace) -> None:
    keys = Keys(*options.keys.split(":")) if options.keys else Keys()
    exchange = Exchange(options.seed, Decimal(options.cash), options.accounts, keys)
    server = Server(exchange)
    port = await server.start(options.port)
    address = f"127.0.0.1:{port}"
    told = {
        "url": f"http://{address}",
        "stream_url": f"ws://{address}/stream",
        "control": f"http://{address}/control",
        **msgspec.to_builtins(keys),
        "accounts": [account.id for account in exchange.sub_accounts],
        "pid": os.getpid(),
        "seed": options.seed,
    }
    print(json.dumps(told), flush=True)
    end = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end.set)
    await end.wait()
    if options.state is not None:
        # Small and last: nobody is served any more.
        options.state.write_bytes(msgspec.json.encode(server.controls.dump()))
    server.stop()


def options_of(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.alpaca", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--seed", type=int, default=1, help="of prices, partial fills and faults")
    parser.add_argument("--cash", default="100000", help="dollars each account starts with")
    parser.add_argument("--accounts", type=int, default=0, help="how many sub-accounts the Broker API has")
    parser.add_argument("--keys", default="", help="key:secret:broker key:broker secret; as documented unless given")
    parser.add_argument("--state", type=Path, help="where the dump is written at the end")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    uvloop.run(main(options_of(sys.argv[1:])))
