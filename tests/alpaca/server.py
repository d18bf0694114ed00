"""The server: who comes in at which door, and who listens. Also: a whole one in a thread, for tests."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec
import uvloop

from tests.alpaca.answers import Answers
from tests.alpaca.api import Api
from tests.alpaca.control import Controls
from tests.alpaca.control_client import Control
from tests.alpaca.exchange import Exchange, Keys
from tests.alpaca.messages import Reply, Request
from tests.alpaca.rules import Refused
from tests.alpaca.streams import KEEPALIVE_S, Listener, bounds
from tests.alpaca.wire import Connection

_EVENT_PATHS = {"/v1/events/trades": 1, "/v2/events/trades": 2, "/v2beta1/events/trades": 2}


class Server:
    """Owns the connections. Runs on the loop it was started on."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.api = Api(exchange)
        self.controls = Controls(exchange, self)
        self.connections: set[Connection] = set()
        self._answers = Answers(exchange, self.api)
        self._listening: asyncio.Server | None = None

    async def start(self, port: int = 0) -> int:
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(lambda: Connection(self), "127.0.0.1", port, backlog=1024)
        loop.call_later(KEEPALIVE_S, self._keep_alive)
        return int(self._listening.sockets[0].getsockname()[1])

    def stop(self) -> None:
        if self._listening is not None:
            self._listening.close()
        self.exchange.set_walk(0, 0, None)
        for connection in list(self.connections):
            connection.transport.abort()

    def heal(self) -> None:
        """All faults off; who was left without an answer is told by a closed connection."""
        self.exchange.heal()
        self._answers.heal()

    def forget(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self._answers.hung.discard(connection)

    # Requests.

    def handle(self, request: Request, connection: Connection) -> None:
        if request.path.startswith("/control/"):
            connection.reply(self.controls.answer(request))
            return
        try:
            self.api.place(request)
        except Refused as refused:
            connection.reply(Reply(refused.status, refused.body))
            return
        if request.path in _EVENT_PATHS:
            self._listen_to_events(request, connection)
            return
        self._answers.give(request, connection)

    # Streams.

    def _listen_to_events(self, request: Request, connection: Connection) -> None:
        try:
            since, until = bounds(request.first)
        except (Refused, ValueError) as error:
            connection.reply(Reply(422, {"code": 40010001, "message": str(error)}))
            return
        listener = Listener(connection, None, version=_EVENT_PATHS[request.path], until=until)
        connection.stream_events(lambda: self.exchange.streams.drop(listener))
        self.exchange.streams.listen(listener, since)

    def _keep_alive(self) -> None:
        for listener in self.exchange.streams.listeners:
            if listener.replayable:
                listener.sink.send(b":keepalive\n\n")
        asyncio.get_running_loop().call_later(KEEPALIVE_S, self._keep_alive)

    def upgrade(self, path: str, connection: Connection) -> bool:
        """A websocket is wanted: trade updates, after authentication."""
        if path != "/stream":
            return False
        listener = Listener(connection, self.exchange.main)
        authorized = False

        def heard(message: Any) -> None:
            nonlocal authorized
            action, data = _action(message)
            if action in ("authenticate", "auth"):
                authorized = _authentic(data if data else message, self.exchange.keys)
                status = "authorized" if authorized else "unauthorized"
                _say(connection, "authorization", {"status": status, "action": "authenticate"})
            elif action == "listen" and authorized:
                streams = [name for name in data.get("streams", []) if name == "trade_updates"]
                self.exchange.streams.drop(listener)
                listener.account = self.exchange.main
                if streams:
                    self.exchange.streams.listen(listener)
                _say(connection, "listening", {"streams": streams})
            elif action == "listen":
                _say(connection, "listening", {"error": "unauthorized"})

        connection.on_messages(heard, lambda: self.exchange.streams.drop(listener))
        return True


def _action(message: Any) -> tuple[str, dict[str, Any]]:
    if not isinstance(message, dict):
        return "", {}
    data = message.get("data")
    return str(message.get("action", "")), data if isinstance(data, dict) else {}


def _authentic(data: dict[str, Any], keys: Keys) -> bool:
    key, secret = data.get("key_id", data.get("key")), data.get("secret_key", data.get("secret"))
    return (key, secret) == (keys.key, keys.secret)


def _say(connection: Connection, stream: str, data: dict[str, Any]) -> None:
    connection.send(msgspec.json.encode({"stream": stream, "data": data}))


@dataclass(frozen=True, slots=True)
class Running:
    """A misbehaving Alpaca in a thread of its own. Nothing but its addresses is shared with the caller."""

    url: str
    stream_url: str
    accounts: tuple[str, ...]
    control: Control
    key: str = Keys().key
    secret: str = Keys().secret
    broker_key: str = Keys().broker_key
    broker_secret: str = Keys().broker_secret


@contextmanager
def running_alpaca(seed: int = 1, cash: int = 100_000, accounts: int = 0) -> Iterator[Running]:
    """Start one, and stop it at the end."""
    ready = threading.Event()
    made: dict[str, Any] = {}

    async def main() -> None:
        exchange = Exchange(seed, Decimal(cash), accounts)
        server = Server(exchange)
        made["port"] = await server.start()
        made["accounts"] = tuple(account.id for account in exchange.sub_accounts)
        made["loop"], made["end"] = asyncio.get_running_loop(), asyncio.Event()
        ready.set()
        await made["end"].wait()
        server.stop()
        await asyncio.sleep(0)

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())

    thread = threading.Thread(target=run, name="misbehaving-alpaca", daemon=True)
    thread.start()
    if not ready.wait(20):
        raise RuntimeError("the misbehaving Alpaca did not start within 20 s; see the thread's traceback above")
    address = f"127.0.0.1:{made['port']}"
    try:
        yield Running(f"http://{address}", f"ws://{address}/stream", made["accounts"], Control(f"http://{address}"))
    finally:
        made["loop"].call_soon_threadsafe(made["end"].set)
        thread.join(10)
