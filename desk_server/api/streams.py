"""Streams: market lines and order updates, over either door and over gRPC.

A stream ends in good order when its token is revoked or the desk drains; whoever read it resumes by sequence.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextvars import Context
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl

from desk.v1 import market_pb2, orders_pb2
from google.protobuf.message import Message

from desk_server import rules
from desk_server.api import as_json, errors, exchange, strict, wire
from desk_server.api.auth import Door, chosen_user
from desk_server.api.exchange import Answer, Head
from desk_server.desk import Desk
from desk_server.domain import Identity
from desk_server.errors import Code, DeskError
from desk_server.sinks import ChunkedSink, QueueSink, Sink, StreamProtocol
from desk_server.subscriptions import Subscription, Symbols
from desk_server.updates import Update

Start = Callable[[asyncio.Transport, asyncio.BaseProtocol], "MarketStream"]
T = TypeVar("T")
M = TypeVar("M", bound=Message)

KEEP_ALIVE_S = 15.0
SYMBOLS_MAX = 1000
NDJSON = b"application/x-ndjson"
_QUERY_FIELDS_MAX = 50


class Opening(NamedTuple):
    """Write `headers`, then call `start` with the connection and the protocol that had it."""

    headers: list[tuple[bytes, bytes]]
    start: Start


class MarketStream:
    """A subscription of the hub and what it is accounted under."""

    def __init__(self, desk: Desk, who: Identity, symbols: Symbols, after: int | None, sink: Sink) -> None:
        self.revoked = revocation(desk, who)
        # In a context of its own: the hub's timers outlive this request and must not log under its ids.
        self.subscription: Subscription = Context().run(desk.hub.subscribe, symbols, after, sink)
        self._forget = desk.registry.stream_opened(who, lambda: self.subscription.lines_sent)

    def end(self, reason: str) -> None:
        """No more lines. Ending twice is no error."""
        self.subscription.close(reason)
        self._forget()


class Streams:
    def __init__(self, desk: Desk, door: Door) -> None:
        self._desk = desk
        self._door = door
        self.ending = asyncio.Event()
        # Streams that the fast door has handed to the hub.
        self.raw: set[MarketStream] = set()

    def end_revoked(self) -> None:
        """Called now and then: a revoked token's streams end."""
        for stream in list(self.raw):
            if stream.revoked is not None and stream.revoked.is_set():
                stream.end("the token was revoked")

    # Market lines

    def open_raw(self, head: Head, query: bytes, peer: str) -> "Answer | Opening":
        """An error's answer, or the headers to write and what to call then."""
        exchange.start_log(head)
        try:
            who = exchange.identify(self._door, head, peer)
            wish = message_of_query(query, market_pb2.StreamMarketRequest)
            symbols, after = market_wish(wish)
            headers = self.market_headers(head, wish)
        except DeskError as error:
            return exchange.refusal(head, error)
        except Exception:  # the boundary of a request: logged, and the caller told no more than its id
            exchange.log.exception("request failed")
            return exchange.refusal(head, errors.internal(head.request_id.decode()))

        def start(transport: asyncio.Transport, protocol: asyncio.BaseProtocol) -> MarketStream:
            sink = ChunkedSink(transport)
            transport.set_protocol(StreamProtocol(sink, protocol))
            stream = MarketStream(self._desk, who, symbols, after, sink)
            self.raw.add(stream)
            return stream

        return Opening(headers, start)

    def market_headers(self, head: Head, wish: market_pb2.StreamMarketRequest) -> list[tuple[bytes, bytes]]:
        first_seq = self._desk.hub.first_seq(market_wish(wish)[1])
        return [*stream_headers(head, NDJSON), (b"desk-first-seq", b"%d" % first_seq)]

    def closed_raw(self, stream: MarketStream) -> None:
        self.raw.discard(stream)
        stream.end("the reader has gone")

    async def market_lines(self, who: Identity, wish: market_pb2.StreamMarketRequest) -> AsyncIterator[bytes | None]:
        """Lines without their newline; None is a sign of life."""
        symbols, after = market_wish(wish)
        sink = QueueSink()
        stream = MarketStream(self._desk, who, symbols, after, sink)
        try:
            async for line in self._follow(sink.lines(), stream.revoked):
                yield line
        finally:
            stream.end("the reader has gone")

    # Order updates

    def updates(self, who: Identity, wish: orders_pb2.StreamUpdatesRequest) -> AsyncIterator[Update | None]:
        """None is a sign of life. Raises DeskError at once, and GONE later for a reader who fell too far behind."""
        user = chosen_user(who, wish.user_id)
        after = wish.after if wish.HasField("after") else None
        return self._follow(self._desk.updates.subscribe(user, after), revocation(self._desk, who))

    def last_update(self, who: Identity, wish: orders_pb2.StreamUpdatesRequest) -> int:
        """The seq behind which the stream starts."""
        if wish.HasField("after"):
            return wish.after
        return self._desk.updates.last_seq(chosen_user(who, wish.user_id))

    async def _follow(self, source: AsyncIterator[T], revoked: asyncio.Event | None) -> AsyncIterator[T | None]:
        """The source's items, with None where nothing came for KEEP_ALIVE_S; until the desk drains."""
        ends = [asyncio.ensure_future(event.wait()) for event in (self.ending, revoked) if event is not None]
        coming: asyncio.Task[T] | None = None
        try:
            while True:
                coming = coming or asyncio.create_task(_next(source))
                waiting: set[asyncio.Future[Any]] = {coming, *ends}
                done, _ = await asyncio.wait(waiting, timeout=KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED)
                if any(end in done for end in ends):
                    return
                if not done:
                    yield None
                    continue
                try:
                    item = coming.result()
                except StopAsyncIteration:
                    return
                coming = None
                yield item
        finally:
            for future in (*ends, *([coming] if coming else [])):
                future.cancel()
            if coming is not None:
                await asyncio.wait({coming})
            await source.aclose()  # type: ignore[attr-defined]


def stream_headers(head: Head, kind: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"content-type", kind), (b"cache-control", b"no-store"), (b"x-request-id", head.request_id)]


def revocation(desk: Desk, who: Identity) -> asyncio.Event | None:
    """Set when the caller's token is revoked; None for those who came without one."""
    return desk.registry.revocation(who.token_id) if who.token_id else None


def market_wish(wish: market_pb2.StreamMarketRequest) -> tuple[Symbols, int | None]:
    """Raises DeskError INVALID."""
    return symbols_of(wish.symbols) or None, wish.after if wish.HasField("after") else None


def symbols_of(names: Iterable[str]) -> frozenset[str]:
    """At most SYMBOLS_MAX well-formed symbols. Raises DeskError INVALID."""
    wanted = list(names)
    if len(wanted) > SYMBOLS_MAX:
        raise DeskError(
            Code.INVALID,
            f"{len(wanted)} symbols are too many: name at most {SYMBOLS_MAX}, or none for all",
            limit=str(SYMBOLS_MAX),
            observed=str(len(wanted)),
        )
    return frozenset(rules.symbol_of(name) for name in wanted)


def message_of_query(query: bytes, kind: type[M]) -> M:
    """Raises DeskError INVALID."""
    try:
        pairs = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_QUERY_FIELDS_MAX
        )
    except ValueError as error:
        raise DeskError(Code.INVALID, "the query string cannot be read: percent-encode UTF-8") from error
    return strict.message_of_query(pairs, kind)


def update_frame(update: Update | None, *, protobuf: bool) -> bytes:
    """One update on the wire: a JSON line, or a message behind its length as a varint."""
    if update is None:
        return b"\x00" if protobuf else b"\n"
    message = wire.update_message(update)
    if not protobuf:
        return as_json.json_bytes(message) + b"\n"
    body = message.SerializeToString()
    return _varint(len(body)) + body


async def _next(source: AsyncIterator[T]) -> T:
    return await anext(source)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
