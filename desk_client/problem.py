"""What the desk says is wrong: the same five fields, as protobuf or as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from desk.v1.orders_pb2 import OrderResponse
from google.protobuf.message import DecodeError

from desk_client.errors import AuthenticationError, NotFound, ProtocolError, Refused

if TYPE_CHECKING:
    from desk_client.http1 import Response


class Problem(NamedTuple):
    """An error of the desk. `code` is empty where the answer is not one of a desk."""

    status: int
    code: str
    message: str
    limit: str = ""
    observed: str = ""
    order_id: str = ""
    response: OrderResponse | None = None

    def order_response(self) -> OrderResponse:
        """The answer as an order's, whichever way it came."""
        if self.response is not None:
            return self.response
        return OrderResponse(
            status="error",
            code=self.code,
            message=self.message,
            limit=self.limit,
            observed=self.observed,
            order_id=self.order_id,
        )

    def error(self, request_id: str = "") -> AuthenticationError | Refused | ProtocolError:
        """The exception for it."""
        if self.status == 401 or (self.status == 403 and self.code in ("", "FORBIDDEN")):
            return AuthenticationError(
                f"the desk refused this token or user ({self.status}): {self.message}",
                code=self.code,
                status=self.status,
                request_id=request_id,
            )
        if not self.code:
            return ProtocolError(
                f"not an answer of a desk ({self.status}): {self.message}. Is DESK_SERVER_URL right?",
                request_id=request_id,
            )
        kind = NotFound if self.status == 404 else Refused
        return kind(
            f"{self.code}: {self.message}",
            code=self.code,
            status=self.status,
            limit=self.limit,
            observed=self.observed,
            order_id=self.order_id,
            request_id=request_id,
        )


def problem_of(response: Response) -> Problem:
    """Reads an answer of 4xx or 5xx; never raises."""
    if response.content_type == "application/x-protobuf":
        try:
            answer = OrderResponse.FromString(response.body)
        except DecodeError:
            return Problem(response.status, "", "its body cannot be read")
        return Problem(
            response.status,
            answer.code,
            answer.message,
            answer.limit,
            answer.observed,
            answer.order_id,
            answer,
        )
    if response.content_type == "application/json":
        return _from_json(response)
    return Problem(response.status, "", response.body[:200].decode("utf-8", "replace").strip() or "no reason given")


def _from_json(response: Response) -> Problem:
    import json  # noqa: PLC0415  (only where something between us and the desk answers in JSON)

    try:
        fields = json.loads(response.body)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        return Problem(response.status, "", "its body cannot be read")

    def text(name: str) -> str:
        value = fields.get(name)
        return value if isinstance(value, str) else ""

    message = text("message") or text("detail") or "no reason given"
    return Problem(response.status, text("code"), message, text("limit"), text("observed"), text("order_id"))
