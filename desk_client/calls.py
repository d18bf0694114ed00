"""One call to the desk: its connection, its credential, and trying again as long as that is safe.

Everything a Caller sends may be sent twice: a reading call changes nothing, a cancel is the same the
second time, and an order or a replacement carries a request id under which the desk knows it.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping

from desk_client.errors import (
    ConfigurationError,
    DeskTimeout,
    DeskUnavailable,
    OutcomeUnknown,
    ProtocolError,
)
from desk_client.http1 import Closed, ConnectFailed, Connection, Response
from desk_client.problem import Problem, problem_of
from desk_client.settings import Settings

PROTOBUF = "application/x-protobuf"
IDLE_CONNECTIONS_MAX = 8
# A desk that answers 500 four times will do so a fifth time.
BROKEN_ANSWERS_MAX = 4
BACKOFF_FIRST_S = 0.05
BACKOFF_MAX_S = 1.0


class Backoff:
    """Waits that double, each shortened by up to half at random so that callers do not march in step."""

    def __init__(self, first_s: float = BACKOFF_FIRST_S, max_s: float = BACKOFF_MAX_S) -> None:
        self._first_s = first_s
        self._next_s = first_s
        self._max_s = max_s

    def next_s(self) -> float:
        # Not the random module: it costs a millisecond to import and nothing else here needs it.
        wait_s = self._next_s * (0.5 + os.urandom(1)[0] / 512)
        self._next_s = min(self._next_s * 2, self._max_s)
        return wait_s

    def reset(self) -> None:
        self._next_s = self._first_s


class Caller:
    """Calls the desk, from any thread."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        # Taken from and given back to by any thread: a deque's append and pop are atomic.
        self._idle: deque[Connection] = deque()
        self._pid = os.getpid()

    def call(self, method: str, path: str, body: bytes = b"", *, timeout_s: float, request_id: str = "") -> Response:
        """The desk's answer: 2xx, or a 4xx or 503 that another try would not better.

        Raises AuthenticationError, ConfigurationError, DeskUnavailable, DeskTimeout, OutcomeUnknown or
        ProtocolError; each says whether the desk may have the request.
        """
        attempt = _Attempts(method, path, str(self.settings.address), timeout_s, request_id)
        while True:
            token = self.settings.token.value()
            try:
                response = self._exchange(self.request(method, path, body, token), attempt, attempt.deadline)
            except ConnectFailed as error:
                attempt.pause(str(error))
                continue
            except Closed as error:
                attempt.unsure = True
                attempt.pause(str(error))
                continue
            except TimeoutError:
                raise attempt.gave_up("it did not answer") from None
            except ProtocolError as error:
                attempt.broken(str(error), ProtocolError)
                continue
            if response.status == 401 and self.settings.token.changed(token):
                continue
            if not self._again(response, attempt):
                return response

    def request(self, method: str, path: str, body: bytes, token: str, accept: str = PROTOBUF) -> bytes:
        """The request's bytes."""
        settings = self.settings
        head = [f"{method} {path} HTTP/1.1\r\nHost: {settings.address.host_header}\r\nAccept: {accept}\r\n"]
        if token:
            head.append(f"Authorization: Bearer {token}\r\n")
        if settings.user_id:
            head.append(f"X-User-ID: {settings.user_id}\r\n")
        if body or method in ("POST", "PATCH"):
            head.append(f"Content-Type: {PROTOBUF}\r\nContent-Length: {len(body)}\r\n")
        head.append("\r\n")
        return "".join(head).encode("ascii") + body

    def stream(self, path: str, accept: str, *, connect_s: float) -> tuple[Connection, Response]:
        """One try at a stream, on a connection of its own: the connection, and an answer with status 200.

        Raises AuthenticationError, Refused or ProtocolError where trying again is useless, and OSError or
        DeskUnavailable where it is not.
        """
        deadline = time.monotonic() + connect_s
        token = self.settings.token.value()
        connection = Connection(self.settings.address, deadline)
        try:
            connection.send(self.request("GET", path, b"", token, accept), deadline)
            response = connection.head(deadline)
            if response.status == 200:
                return connection, response
            while piece := connection.read_some(deadline):
                response.body += piece
                if len(response.body) > 64 * 1024:
                    break
        except BaseException:
            connection.close()
            raise
        connection.close()
        problem = problem_of(response)
        if response.status == 401 and self.settings.token.changed(token):
            raise DeskUnavailable("the token has been renewed")
        if response.status >= 500 or response.status in (408, 429):
            raise DeskUnavailable(f"the desk answered {response.status}: {problem.message}")
        raise problem.error()

    def _exchange(self, request: bytes, attempt: _Attempts, deadline: float) -> Response:
        connection = self._idle_connection() or Connection(self.settings.address, deadline)
        attempt.sent = True
        try:
            connection.send(request, deadline)
            response = connection.response(deadline)
        except BaseException:
            connection.close()
            raise
        if connection.reusable and len(self._idle) < IDLE_CONNECTIONS_MAX:
            self._idle.append(connection)
        else:
            connection.close()
        return response

    def _idle_connection(self) -> Connection | None:
        pid = os.getpid()
        if self._pid != pid:
            # After a fork the connections are the parent's. Closing our copies does not end its own.
            self._pid = pid
            inherited, self._idle = self._idle, deque()
            for connection in inherited:
                connection.close()
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if connection.idle_and_alive():
                return connection
            connection.close()

    def _again(self, response: Response, attempt: _Attempts) -> bool:
        """True after a wait, where another try may be answered better. Raises for what is no answer."""
        if response.status < 400:
            return False
        problem = problem_of(response)
        if response.status == 401 or (response.status == 403 and problem.code in ("", "FORBIDDEN")):
            raise problem.error(attempt.request_id)
        if response.status in (429, 503):
            return self._again_later(response, problem, attempt)
        if response.status >= 500:
            attempt.broken(f"it answered {response.status}: {problem.message}", OutcomeUnknown)
            return True
        return False

    def _again_later(self, response: Response, problem: Problem, attempt: _Attempts) -> bool:
        # A refusal with an order id is a decision on record: the same request is refused the same way.
        if problem.order_id:
            return False
        wait_s = _retry_after_s(response)
        if wait_s is None and problem.code not in ("", "NOT_READY"):
            return False
        wait_s = attempt.backoff_s() if wait_s is None else wait_s
        reason = f"{problem.code or response.status}: {problem.message}"
        if attempt.can_wait(wait_s):
            attempt.pause(reason, wait_s)
            return True
        if attempt.unsure or not problem.code:
            raise attempt.gave_up(reason)
        return False


class _Attempts:
    """What the tries of one call have come to so far."""

    def __init__(self, method: str, path: str, address: str, timeout_s: float, request_id: str) -> None:
        if not timeout_s > 0:
            raise ConfigurationError(f"timeout is {timeout_s}: give the seconds to wait, more than 0")
        self.deadline = time.monotonic() + timeout_s
        self.request_id = request_id
        # The present try went out; an earlier one did, and nothing is known of it.
        self.sent = False
        self.unsure = False
        self._what = f"{method} {path.partition('?')[0]}"
        self._address = address
        self._timeout_s = timeout_s
        self._backoff = Backoff()
        self._broken = 0

    def backoff_s(self) -> float:
        return self._backoff.next_s()

    def can_wait(self, wait_s: float) -> bool:
        return time.monotonic() + wait_s < self.deadline

    def pause(self, reason: str, wait_s: float | None = None) -> None:
        """Waits before the next try. Raises where no time is left for one."""
        wait_s = self.backoff_s() if wait_s is None else wait_s
        if not self.can_wait(wait_s):
            self.sent = False
            # What was tried before is in the reason; its traceback would hide the one that matters.
            raise self.gave_up(reason) from None
        time.sleep(wait_s)
        self.sent = False

    def broken(self, reason: str, kind: type[ProtocolError] | type[OutcomeUnknown]) -> None:
        """The desk answered, but not so that one could tell what it did."""
        self.unsure = True
        self._broken += 1
        if self._broken >= BROKEN_ANSWERS_MAX:
            raise kind(
                f"{self._what} at {self._address}: {reason}.{self._advice()}", request_id=self.request_id
            ) from None
        self.pause(reason)

    def gave_up(self, reason: str) -> DeskTimeout | DeskUnavailable:
        where = "" if self._address in reason else f" at {self._address}"
        text = f"{self._what}{where}: {reason}; gave up after {self._timeout_s:g} s."
        if self.sent or self.unsure:
            return DeskTimeout(text + self._advice(), request_id=self.request_id)
        return DeskUnavailable(
            text + " The desk has not got the request. Does it run, and is DESK_SERVER_URL right?",
            request_id=self.request_id,
        )

    def _advice(self) -> str:
        if not self.request_id:
            return ""
        return (
            " The desk may or may not have it. Call again with the same arguments and"
            f" request_id={self.request_id!r}: it is then placed at most once."
        )


def _retry_after_s(response: Response) -> float | None:
    """Seconds of Retry-After; None where there is none, or a date (which a desk does not send)."""
    text = response.headers.get("retry-after", "")
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if 0 <= seconds < 86_400 else None


def path_with(path: str, query: Mapping[str, str]) -> str:
    """A path with those of the parameters that are not empty."""
    pairs = "&".join(f"{name}={quote(value)}" for name, value in query.items() if value)
    return f"{path}?{pairs}" if pairs else path


def quote(text: str) -> str:
    """Percent-encodes all but RFC 3986's unreserved characters. (urllib.parse takes 3 ms to import.)"""
    return "".join(
        chr(byte) if byte < 128 and (chr(byte).isalnum() or byte in b"-_.~") else f"%{byte:02X}"
        for byte in text.encode("utf-8")
    )
