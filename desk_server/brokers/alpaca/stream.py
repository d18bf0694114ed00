"""Order updates by websocket (`trade_updates` of the Trading API).

Speaks the protocol itself instead of driving alpaca-py's TradingStream (0.44.0), which cannot be defended from
outside: it tries a refused key for ever, does not say whether it is connected, loses the update of a handler
that fails, and reads with the library's deprecated client. The protocol is three messages long.

Alpaca replays nothing: each opening is a gap. Paper sends its JSON in binary frames, live in text frames.
"""

import asyncio
import json
import logging
from collections.abc import Callable
from urllib.parse import urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException

from desk_server.brokers import BrokerUnknown
from desk_server.brokers.alpaca import Tuning
from desk_server.brokers.alpaca.answers import decoded
from desk_server.brokers.alpaca.fields import Json, mapping, text
from desk_server.brokers.alpaca.updates import Updates
from desk_server.brokers.alpaca.watch import StreamBroken, StreamRefused, Watched
from desk_server.clock import Clock

_FRAME_BYTES_MAX = 16 * 2**20
_FRAMES_WAITING_MAX = 1024
_REFUSALS = {
    401: "Alpaca refuses the key on the stream of order updates",
    403: "Alpaca refuses the key on the stream of order updates",
    406: "Alpaca allows no further connection to the stream of order updates: close the others of this account",
    429: "Alpaca allows no further connection to the stream of order updates: close the others of this account",
}
# The library logs the frames it sends, the key among them, at debug level.
_quiet = logging.getLogger("desk_server.alpaca.websocket")
_quiet.setLevel(logging.WARNING)


def stream_url_of(base_url: str) -> str:
    """The trade updates' address beside a REST address."""
    parts = urlsplit(base_url)
    scheme = "ws" if parts.scheme == "http" else "wss"
    return urlunsplit((scheme, parts.netloc, parts.path.rstrip("/") + "/stream", "", ""))


class TradeStream(Watched):
    def __init__(
        self,
        url: str,
        key_id: str,
        secret_key: str,
        *,
        updates: Updates,
        tuning: Tuning,
        clock: Clock,
        on_gap: Callable[[], None],
    ) -> None:
        super().__init__(updates, tuning, clock, on_gap)
        self._url = url
        self._login = {"action": "authenticate", "data": {"key_id": key_id, "secret_key": secret_key}}

    async def _session(self) -> None:
        tuning = self.tuning
        try:
            async with connect(
                self._url,
                open_timeout=tuning.open_s,
                ping_interval=tuning.ping_s,
                ping_timeout=tuning.ping_s,
                close_timeout=1,
                max_size=_FRAME_BYTES_MAX,
                max_queue=_FRAMES_WAITING_MAX,
                logger=_quiet,
            ) as socket:
                async with asyncio.timeout(tuning.open_s):
                    await self._introduce(socket)
                self._is_open()
                async for frame in socket:
                    await self._read(frame)
        except InvalidStatus as no:
            status = no.response.status_code
            if status in _REFUSALS:
                raise StreamRefused(_REFUSALS[status]) from None
            raise StreamBroken(f"HTTP {status}") from None
        except (OSError, TimeoutError, WebSocketException) as error:
            raise StreamBroken(type(error).__name__) from None

    async def _introduce(self, socket: ClientConnection) -> None:
        await socket.send(json.dumps(self._login))
        answer = await self._answer(socket, "authorization")
        if text(answer, "status") != "authorized":
            raise StreamRefused(_REFUSALS[401])
        await socket.send(json.dumps({"action": "listen", "data": {"streams": ["trade_updates"]}}))
        answer = await self._answer(socket, "listening")
        if "trade_updates" not in (answer.get("streams") or ()):
            raise StreamRefused("Alpaca does not let this key listen to order updates")

    async def _answer(self, socket: ClientConnection, stream: str) -> Json:
        """Wait for the broker's word of that kind; updates may come before it."""
        while True:
            frame = await socket.recv()
            message = _message(frame)
            if text(message, "stream") == stream:
                return mapping(message.get("data"))
            await self._read(frame)

    async def _read(self, frame: str | bytes) -> None:
        message = _message(frame)
        if text(message, "stream") == "trade_updates":
            await self._take(mapping(message.get("data")))


def _message(frame: str | bytes) -> Json:
    """Raises StreamBroken: what follows a frame that cannot be read cannot be trusted either."""
    try:
        return mapping(decoded(frame.encode() if isinstance(frame, str) else frame))
    except BrokerUnknown as error:
        raise StreamBroken(f"a message cannot be read: {error}") from None
