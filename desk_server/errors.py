"""What can go wrong, by name. `api/errors.py` maps each code to HTTP and gRPC, once."""

from enum import StrEnum


class Code(StrEnum):
    """Why a request was not carried out. docs/errors.md says what to do about each."""

    # The request itself
    MALFORMED = "MALFORMED"
    TOO_LARGE = "TOO_LARGE"
    UNSUPPORTED_MEDIA = "UNSUPPORTED_MEDIA"
    INVALID = "INVALID"
    # Who asks
    UNAUTHENTICATED = "UNAUTHENTICATED"
    FORBIDDEN = "FORBIDDEN"
    NOT_FOUND = "NOT_FOUND"
    # The desk's rules, in the order they are checked
    KEY_REUSED = "KEY_REUSED"
    MAX_QTY = "MAX_QTY"
    MAX_NOTIONAL = "MAX_NOTIONAL"
    COLLAR = "COLLAR"
    STALE_DATA = "STALE_DATA"
    BUYING_POWER = "BUYING_POWER"
    NOT_OWNED = "NOT_OWNED"
    SELF_TRADE = "SELF_TRADE"
    THROTTLED = "THROTTLED"
    OPEN_LIMIT = "OPEN_LIMIT"
    CLOSED = "CLOSED"
    HALTED = "HALTED"
    NOT_READY = "NOT_READY"
    # The order's state
    NOT_CANCELABLE = "NOT_CANCELABLE"
    NOT_REPLACEABLE = "NOT_REPLACEABLE"
    NOT_SENT = "NOT_SENT"
    GONE = "GONE"
    # The broker's word
    REJECTED = "REJECTED"
    # The machine
    LEDGER = "LEDGER"
    OVERLOADED = "OVERLOADED"
    DEADLINE = "DEADLINE"
    INTERNAL = "INTERNAL"


# Refusals that a later try with the same request id may pass: they are answered, not recorded.
TRANSIENT = frozenset({Code.STALE_DATA, Code.THROTTLED, Code.NOT_READY, Code.LEDGER, Code.OVERLOADED})


class DeskError(Exception):
    """A request was not carried out: `code` for programs, `message` for people (what to do about it).

    `limit` and `observed` are set where a limit was hit; `order_id` where an order was recorded;
    `retry_after_s` where trying again later helps.
    """

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        limit: str = "",
        observed: str = "",
        order_id: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.limit = limit
        self.observed = observed
        self.order_id = order_id
        self.retry_after_s = retry_after_s
