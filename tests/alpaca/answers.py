"""Each request is given its fault, if any, then its answer, if any; and is noted for the checker."""

import asyncio
import time
from contextlib import suppress
from typing import Any

import msgspec

from tests.alpaca.api import Api
from tests.alpaca.exchange import Exchange
from tests.alpaca.faults import Kind, Pick, Stage
from tests.alpaca.messages import Reply, Request
from tests.alpaca.orders import shown
from tests.alpaca.rules import Refused
from tests.alpaca.wire import Connection, encoded

_HTML = b"<html><head><title>403 Forbidden</title></head><body><center><h1>403 Forbidden</h1></center></body></html>\n"
# A half-open connection is given up after this long, as its peer's keep-alives would.
_FROZEN_S = 120.0


class Answers:
    def __init__(self, exchange: Exchange, api: Api) -> None:
        self.exchange = exchange
        self.api = api
        # Those who get no answer: closed when all is healed.
        self.hung: set[Connection] = set()

    def give(self, request: Request, connection: Connection) -> None:
        """One answer, or what the picked fault gives in its place."""
        self.exchange.requests[request.kind] += 1
        record = self._recorded(request)
        request.pick = self.exchange.faults.pick(request.kind, self._about(request, record))
        if request.pick is not None and request.pick.fault.stage is Stage.BEFORE:
            self._show_before(request, connection, record)
        else:
            self._finish(request, connection, record, self._answered(request, record))

    def heal(self) -> None:
        for connection in list(self.hung):
            connection.transport.abort()
        self.hung.clear()

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
                self.hung.add(connection)
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
            self.hung.add(connection)
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
        if reply.status in (200, 204):
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
                self.exchange.after_ms(pick.params["delay_ms"], connection.reply, reply)
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
                self.hung.add(connection)
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
