"""alpaca-py's REST clients, defended. Importing this module imports the SDK (0.5 s, 88 MiB).

The SDK gives authentication, headers, URLs and the session. Everything between the request and its answer is
done here instead: alpaca-py 0.44.0 has no timeout, sends a POST again on 429 and 504, raises on error bodies that
are not its own, and makes floats of numbers.
"""

import contextlib
import socket
from collections.abc import Callable
from typing import Any

import urllib3
from alpaca.broker.client import BrokerClient
from alpaca.trading.client import TradingClient
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from desk_server.brokers.alpaca.answers import Answer, NoAnswer

BODY_BYTES_MAX = 64 * 2**20
_CHUNK = 2**16
_WORDS = {
    "NameResolutionError": "the name of its host cannot be resolved",
    "NewConnectionError": "no connection to its host",
    "ConnectTimeout": "no connection to its host in time",
    "ConnectTimeoutError": "no connection to its host in time",
    "ReadTimeout": "it said nothing in time",
    "ReadTimeoutError": "it said nothing in time",
    "SSLError": "its certificate is not trusted",
}


class Line:
    """One SDK client with one connection of its own: `ask` in one thread at a time, `cut` from any."""

    def __init__(self, client: Any, *, connect_s: float, read_s: float) -> None:
        self._client = client
        self._timeout = (connect_s, read_s)
        self._socket: socket.socket | None = None
        client._retry = 0
        client._one_request = self._one_request
        # Credentials stand in the SDK's headers; without this, a .netrc would replace them.
        client._session.auth = lambda request: request
        for scheme in ("http://", "https://"):
            client._session.get_adapter(scheme).poolmanager.pool_classes_by_scheme = _watched(self._opened)

    def ask(self, method: str, path: str, data: dict[str, Any] | None = None, version: str | None = None) -> Answer:
        """One request, sent once. `data` is the query of GET and DELETE, else the JSON body; `path` is under the
        API's version. Raises NoAnswer, whose text holds no secrets."""
        answer: Answer = self._client._request(method, path, data, api_version=version)
        return answer

    def cut(self) -> None:
        """Whoever waits for an answer on this line stops waiting."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._client._session.close()

    def _opened(self, opened: socket.socket) -> None:
        self._socket = opened

    def _one_request(self, method: str, url: str, opts: dict[str, Any], retry: int) -> Answer:
        """In the place of the SDK's method of that name, which all its verbs go through."""
        try:
            response = self._client._session.request(method, url, timeout=self._timeout, stream=True, **opts)
            with response:
                body = b""
                for chunk in response.iter_content(_CHUNK):
                    body += chunk
                    if len(body) > BODY_BYTES_MAX:
                        raise NoAnswer(f"an answer of more than {BODY_BYTES_MAX} bytes")
                headers = {name.lower(): value for name, value in response.headers.items()}
                return Answer(response.status_code, headers, body)
        # Those of requests are OSErrors; ValueError: what it makes of bad URLs, redirects and headers.
        except (OSError, urllib3.exceptions.HTTPError, ValueError) as error:
            raise NoAnswer(_reason(error)) from None


def trading_line(key_id: str, secret_key: str, base_url: str, *, connect_s: float, read_s: float) -> Line:
    client = TradingClient(key_id, secret_key, url_override=base_url, raw_data=True)
    return Line(client, connect_s=connect_s, read_s=read_s)


def broker_line(key: str, secret: str, base_url: str, *, connect_s: float, read_s: float) -> Line:
    client = BrokerClient(key, secret, url_override=base_url, raw_data=True)
    return Line(client, connect_s=connect_s, read_s=read_s)


def event_headers(key: str, secret: str, base_url: str) -> dict[str, str]:
    """What the SDK sends to open a stream of server-sent events."""
    headers: dict[str, str] = BrokerClient(key, secret, url_override=base_url)._get_sse_headers()
    return headers


def _watched(opened: Callable[[socket.socket], None]) -> dict[str, type[HTTPConnectionPool]]:
    """Connection pools that show each socket they open: only so can a request be ended while it waits."""

    class Plain(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            opened(self.sock)

    class Secure(HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            opened(self.sock)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}


def _reason(error: BaseException) -> str:
    """In words where the kind has any, else the error's kind and that of its cause. Not its text: this may quote a
    URL or a header."""
    cause = error.args[0] if error.args and isinstance(error.args[0], BaseException) else error.__context__
    reason = getattr(cause, "reason", None)
    kinds = [type(one).__name__ for one in (error, cause, reason) if isinstance(one, BaseException)]
    words = next((_WORDS[kind] for kind in reversed(kinds) if kind in _WORDS), "")
    return words or " / ".join(dict.fromkeys(kinds))
