"""The server: each request is given its fault, if any, then its answer, if any. Also: one in a thread, for tests."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec
import uvloop

from tests.alpaca.api import Api
from tests.alpaca.control import Controls
from tests.alpaca.control_client import Control
from tests.alpaca.exchange import BROKER_KEY, BROKER_SECRET, TRADING_KEY, TRADING_SECRET, Exchange
from tests.alpaca.faults import Kind, Pick, Stage
from tests.alpaca.messages import Reply, Request
from tests.alpaca.orders import shown
from tests.alpaca.rules import Refused
from tests.alpaca.streams import KEEPALIVE_S, Listener, bounds
from tests.alpaca.wire import Connection, encoded

_HTML = b"<html><head><title>403 Forbidden</title></head><body><center><h1>403 Forbidden</h1></center></body></html>\n"
# A half-open connection is given up after this long, as its peer's keep-alives would.
_FROZEN_S = 120.0
_EVENT_PATHS = {"/v1/events/trades": 1, "/v2/events/trades": 2, "/v2beta1/events/trades": 2}


class Server:
    """Owns the connections. Runs on the loop it was started on."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.api = Api(exchange)
        self.controls = Controls(exchange, self)
        self.connections: set[Connection] = set()
        # Answered never: closed when all is healed.
        self._hung: set[Connection] = set()
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
        for connection in list(self._hung):
            connection.transport.abort()
        self._hung.clear()

    def forget(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self._hung.discard(connection)

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
        self.exchange.requests[request.kind] += 1
        record = self._recorded(request)
        request.pick = self.exchange.faults.pick(request.kind, self._about(request, record))
        if request.pick is not None and request.pick.fault.stage is Stage.BEFORE:
            self._show_before(request, connection, record)
        else:
            self._finish(request, connection, record, self._answered(request, record))

    def _recorded(self, request: Request) -> dict[str, Any] | None:
        """What a checker wants to know later of every request that may change something."""
        if request.method == "GET" or request.account is None:
            return None
        record: dict[str, Any] = {
            "at_ns": time.time_ns(),
            "account": request.account.id,
            "fault": None,
            "answer": None,
            "code": None,
            "order_id": None,
        }
        if request.kind is Kind.SUBMIT:
            body: Any = None
            with suppress(msgspec.DecodeError):
                body = msgspec.json.decode(request.body)
            name = body.get("client_order_id") if isinstance(body, dict) else None
            record |= {"client_order_id": name, "body": body, "landed_at_ns": None}
            self.exchange.posts.append(record)
        else:
            record |= {"method": request.method, "path": request.path, "body": request.body.decode(errors="replace")}
            self.exchange.changes.append(record)
        return record

    def _about(self, request: Request, record: dict[str, Any] | None) -> dict[str, str]:
        """What an armed fault can be aimed by: the order that the request is about."""
        if request.kind is Kind.SUBMIT and record is not None:
            body = record["body"] if isinstance(record["body"], dict) else {}
            return {"client_order_id": str(record["client_order_id"]), "symbol": str(body.get("symbol"))}
        name = request.first("client_order_id")
        if name is not None:
            return {"client_order_id": name}
        order_id = request.rest.partition("/")[2]
        order = request.account.by_id.get(order_id) if request.account is not None else None
        if order is None:
            return {}
        return {"client_order_id": order.client_order_id, "symbol": order.symbol, "order_id": order.id}

    def _answered(self, request: Request, record: dict[str, Any] | None) -> Reply:
        try:
            reply = self.api.answer(request)
        except Refused as refused:
            reply = Reply(refused.status, refused.body)
            if record is not None:
                record["code"] = refused.code
        except ValueError as error:
            reply = Reply(422, {"code": 40010001, "message": str(error)})
        if record is not None:
            record["answer"] = reply.status
            record["order_id"] = reply.order.id if reply.order is not None else None
        return reply

    def _show_before(self, request: Request, connection: Connection, record: dict[str, Any] | None) -> None:
        """Faults of requests that are not accepted, or not now."""
        pick = request.pick
        assert pick is not None
        faults = self.exchange.faults
        faults.use(pick)
        if pick.name != "late_landing":
            faults.count(pick.name)
        answer: Any = None
        match pick.name:
            case "reset":
                answer = "reset"
                connection.reset()
            case "half_open_tcp":
                answer = "never read"
                connection.freeze()
                self._hung.add(connection)
                asyncio.get_running_loop().call_later(_FROZEN_S, connection.reset)
            case "503" | "lookup_503":
                answer = 503
                connection.reply(Reply(503, {"code": 50310000, "message": "service unavailable"}))
            case "429":
                answer = 429
                reset = str(int(time.time()) + 1)
                headers = {"X-RateLimit-Limit": "200", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": reset}
                body = {"code": 42910000, "message": "rate limit exceeded"}
                connection.reply(Reply(429, body, headers if pick.params["headers"] else {}))
            case "html_403":
                answer = 403
                connection.reply(Reply(403, raw=_HTML))
            case "late_landing":
                answer = "landing"
                self._land_later(request, connection, record, pick)
        if record is not None:
            record |= {"fault": pick.name, "answer": answer}

    def _land_later(self, request: Request, connection: Connection, record: dict[str, Any] | None, pick: Pick) -> None:
        if pick.params["how"] == "drop":
            connection.close()
        else:
            self._hung.add(connection)
        self.exchange.pending_landings += 1
        self.exchange.after_ms(pick.params["delay_ms"], self._land, request, record, self.exchange.main)

    def _land(self, request: Request, record: dict[str, Any] | None, life: Any) -> None:
        """What was long in coming arrives; whoever sent it is told nothing."""
        exchange = self.exchange
        if exchange.main is not life:
            return
        exchange.pending_landings -= 1
        request.pick = None
        reply = self._answered(request, record)
        if reply.status == 200:
            exchange.faults.count("late_landing")
        if record is not None:
            record["landed_at_ns"] = time.time_ns()

    def _finish(self, request: Request, connection: Connection, record: dict[str, Any] | None, reply: Reply) -> None:
        """The book has done its part: answer, well or badly."""
        pick = request.pick
        if pick is None:
            connection.reply(reply)
            return
        if pick.used and record is not None:
            record["fault"] = pick.name
        if pick.fault.stage is not Stage.AFTER or not self._can_show(request, reply, pick):
            if pick.name == "fill_before_ack":
                self.exchange.after_ms(10, connection.reply, reply)
            else:
                connection.reply(reply)
            return
        self.exchange.faults.show(pick)
        answer = self._show_after(connection, reply, pick)
        if record is not None:
            record["fault"] = pick.name
            record["answer"] = answer or record["answer"]

    def _can_show(self, request: Request, reply: Reply, pick: Pick) -> bool:
        match pick.name:
            case "accepted_then_dropped" | "accepted_then_504" | "accepted_then_hang":
                return reply.status in (200, 204)
            case "truncated_json" | "byte_by_byte":
                return reply.body is not None
            case "wrong_echo":
                return self._another(request, reply)
            case "unknown_enum":
                return reply.status == 200 and bool(reply.body)
        return True

    def _another(self, request: Request, reply: Reply) -> bool:
        """Put another order in the place of the one asked for, where there is another."""
        account = request.account
        if account is None or reply.order is None or reply.status != 200:
            return False
        others = [order for order in account.orders[-20:] if order is not reply.order]
        if not others:
            return False
        reply.body = shown(others[-1], nested=True)
        return True

    def _show_after(self, connection: Connection, reply: Reply, pick: Pick) -> Any:
        """Faults of the answer alone. Returns what to note as the answer where it is not the status."""
        match pick.name:
            case "accepted_then_dropped":
                connection.close()
                return "dropped"
            case "accepted_then_504":
                connection.reply(Reply(504, {"message": "upstream request timeout"}))
                return 504
            case "accepted_then_hang":
                self._hung.add(connection)
                return "hung"
            case "slow_success":
                self.exchange.after_ms(pick.params["delay_ms"], connection.reply, reply)
            case "truncated_json":
                self._truncate(connection, reply, pick.params["how"])
            case "byte_by_byte":
                connection.trickle(encoded(reply), pick.params["gap_ms"] / 1000)
            case "unknown_enum":
                reply.body[len(reply.body) // 2]["status"] = "pending_settlement_review"
                connection.reply(reply)
            case _:
                connection.reply(reply)
        return None

    def _truncate(self, connection: Connection, reply: Reply, how: str) -> None:
        if how == "wire":
            whole = encoded(reply)
            connection.write(whole[: len(whole) - len(msgspec.json.encode(reply.body)) // 2])
            connection.close()
        else:
            body = msgspec.json.encode(reply.body)
            connection.reply(Reply(reply.status, headers=reply.headers, raw=body[: len(body) // 2]))

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
                authorized = _authentic(data if data else message)
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


def _authentic(data: dict[str, Any]) -> bool:
    key, secret = data.get("key_id", data.get("key")), data.get("secret_key", data.get("secret"))
    return (key, secret) == (TRADING_KEY, TRADING_SECRET)


def _say(connection: Connection, stream: str, data: dict[str, Any]) -> None:
    connection.send(msgspec.json.encode({"stream": stream, "data": data}))


@dataclass(frozen=True, slots=True)
class Running:
    """A misbehaving Alpaca in a thread of its own. Nothing but its addresses is shared with the caller."""

    url: str
    stream_url: str
    accounts: tuple[str, ...]
    control: Control
    key: str = TRADING_KEY
    secret: str = TRADING_SECRET
    broker_key: str = BROKER_KEY
    broker_secret: str = BROKER_SECRET


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
