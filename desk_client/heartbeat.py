"""A strategy's sign of life: how far it has read, told to the desk from a thread of its own."""

from __future__ import annotations

import threading
import time

from desk_client.calls import Caller
from desk_client.errors import AuthenticationError, DeskClientError
from desk_client.hand import Hand

EVERY_S = 2.0
UNCHANGED_EVERY_S = 10.0
TIMEOUT_S = 2.0


class Heartbeat:
    """Tells the desk every two seconds what the strategy has read; at least every ten, if it reads nothing.

    It never fails the strategy: what does not get through is made good by the next.
    """

    def __init__(self, caller: Caller, hand: Hand, every_s: float = EVERY_S) -> None:
        self._caller = caller
        self._hand = hand
        self._every_s = every_s
        self._told_lines = -1
        self._told_at = 0.0

    def start(self) -> None:
        threading.Thread(target=self._run, name="desk-heartbeat", daemon=True).start()

    def _run(self) -> None:
        while self._beat():
            time.sleep(self._every_s)

    def _beat(self) -> bool:
        """False where the desk wants no signs of life of this credential (a person's, say)."""
        # Imported here, in the thread: the strategy need not wait for it.
        from desk.v1.admin_pb2 import HeartbeatRequest  # noqa: PLC0415

        lines = self._hand.lines_read
        now = time.monotonic()
        if lines == self._told_lines and now < self._told_at + UNCHANGED_EVERY_S:
            return True
        body = HeartbeatRequest(lines_read=lines, last_seq=self._hand.seq()).SerializeToString()
        try:
            response = self._caller.call("POST", "/v1/heartbeat", body, timeout_s=TIMEOUT_S)
        except AuthenticationError as error:
            return error.status != 403
        except DeskClientError:
            return True
        if response.status < 300:
            self._told_lines, self._told_at = lines, now
        return response.status not in (404, 405)
