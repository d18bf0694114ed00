"""What can go wrong between a strategy and its desk.

DeskClientError
├── ConfigurationError    DESK_SERVER_URL, the token or an argument cannot be right; nothing was sent
├── AuthenticationError   the desk does not know this token, or it may not do this
├── DeskUnavailable       the desk could not be reached, or is not ready; it has not got the request
├── OutcomeUnknown        the desk may or may not have the request: ask again with the same request_id
│   └── DeskTimeout       ... because it did not answer in time
├── ProtocolError         what answered does not speak as a desk does
└── Refused               the desk said no, and why (code, message, limit, observed)
    ├── OrderRefused      to an order (only with raise_on_error=True); `response` is its answer
    └── NotFound          to an id it does not know, or that is somebody else's
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from desk.v1.orders_pb2 import OrderResponse


class DeskClientError(Exception):
    """The base of all. `request_id` is the id of the order or replacement it is about, else empty."""

    def __init__(self, message: str, *, request_id: str = "") -> None:
        super().__init__(message)
        self.request_id = request_id


class ConfigurationError(DeskClientError, ValueError):
    """A setting or an argument cannot be right. Nothing was sent."""


class AuthenticationError(DeskClientError):
    """The desk does not know this token, or the token may not do this. Nothing was done."""

    def __init__(self, message: str, *, code: str = "", status: int = 0, request_id: str = "") -> None:
        super().__init__(message, request_id=request_id)
        self.code = code
        self.status = status


class DeskUnavailable(DeskClientError):
    """The desk could not be reached, or said that it is not ready. It has not got the request."""


class OutcomeUnknown(DeskClientError):
    """The desk may or may not have done what was asked.

    The same call with `request_id=error.request_id` tells: the desk answers with the order it has, or
    places it now. A call with another id may place it twice.
    """


class DeskTimeout(OutcomeUnknown, TimeoutError):
    """The desk did not answer in time."""


class ProtocolError(DeskClientError):
    """The answer is not one of a desk. Of an order, the outcome is unknown: see OutcomeUnknown."""


class Refused(DeskClientError):
    """The desk understood and said no."""

    def __init__(
        self,
        message: str,
        *,
        code: str = "",
        status: int = 0,
        limit: str = "",
        observed: str = "",
        order_id: str = "",
        request_id: str = "",
    ) -> None:
        super().__init__(message, request_id=request_id)
        self.code = code
        self.status = status
        self.limit = limit
        self.observed = observed
        self.order_id = order_id


class OrderRefused(Refused):
    """An order was refused, and the caller asked for an exception. `response` is the desk's answer."""

    def __init__(self, response: OrderResponse, *, status: int = 0, request_id: str = "") -> None:
        super().__init__(
            f"{response.code or 'REFUSED'}: {response.message}",
            code=response.code,
            status=status,
            limit=response.limit,
            observed=response.observed,
            order_id=response.order_id,
            request_id=request_id,
        )
        self.response = response


class NotFound(Refused):
    """The desk has nothing under this id that this user may see."""
