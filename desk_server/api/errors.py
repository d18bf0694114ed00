"""Every error code's HTTP status and gRPC status, in one table; docs/errors.md says the same to callers."""

from http import HTTPStatus
from math import ceil
from typing import NamedTuple

from desk.v1 import orders_pb2 as pb
from grpc import StatusCode

from desk_server.errors import Code, DeskError


class Row(NamedTuple):
    http: HTTPStatus
    grpc: StatusCode


TABLE: dict[Code, Row] = {
    Code.MALFORMED: Row(HTTPStatus.BAD_REQUEST, StatusCode.INVALID_ARGUMENT),
    Code.TOO_LARGE: Row(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, StatusCode.RESOURCE_EXHAUSTED),
    Code.UNSUPPORTED_MEDIA: Row(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, StatusCode.INVALID_ARGUMENT),
    Code.INVALID: Row(HTTPStatus.UNPROCESSABLE_ENTITY, StatusCode.INVALID_ARGUMENT),
    Code.UNAUTHENTICATED: Row(HTTPStatus.UNAUTHORIZED, StatusCode.UNAUTHENTICATED),
    Code.FORBIDDEN: Row(HTTPStatus.FORBIDDEN, StatusCode.PERMISSION_DENIED),
    Code.NOT_FOUND: Row(HTTPStatus.NOT_FOUND, StatusCode.NOT_FOUND),
    Code.KEY_REUSED: Row(HTTPStatus.UNPROCESSABLE_ENTITY, StatusCode.INVALID_ARGUMENT),
    Code.MAX_QTY: Row(HTTPStatus.FORBIDDEN, StatusCode.FAILED_PRECONDITION),
    Code.MAX_NOTIONAL: Row(HTTPStatus.FORBIDDEN, StatusCode.FAILED_PRECONDITION),
    Code.COLLAR: Row(HTTPStatus.FORBIDDEN, StatusCode.FAILED_PRECONDITION),
    Code.STALE_DATA: Row(HTTPStatus.SERVICE_UNAVAILABLE, StatusCode.UNAVAILABLE),
    Code.BUYING_POWER: Row(HTTPStatus.FORBIDDEN, StatusCode.FAILED_PRECONDITION),
    Code.NOT_OWNED: Row(HTTPStatus.FORBIDDEN, StatusCode.FAILED_PRECONDITION),
    Code.SELF_TRADE: Row(HTTPStatus.FORBIDDEN, StatusCode.FAILED_PRECONDITION),
    Code.THROTTLED: Row(HTTPStatus.TOO_MANY_REQUESTS, StatusCode.RESOURCE_EXHAUSTED),
    Code.OPEN_LIMIT: Row(HTTPStatus.FORBIDDEN, StatusCode.FAILED_PRECONDITION),
    Code.CLOSED: Row(HTTPStatus.FORBIDDEN, StatusCode.FAILED_PRECONDITION),
    Code.HALTED: Row(HTTPStatus.FORBIDDEN, StatusCode.FAILED_PRECONDITION),
    Code.NOT_READY: Row(HTTPStatus.SERVICE_UNAVAILABLE, StatusCode.UNAVAILABLE),
    Code.NOT_CANCELABLE: Row(HTTPStatus.CONFLICT, StatusCode.ABORTED),
    Code.NOT_REPLACEABLE: Row(HTTPStatus.CONFLICT, StatusCode.ABORTED),
    Code.NOT_SENT: Row(HTTPStatus.CONFLICT, StatusCode.ABORTED),
    Code.GONE: Row(HTTPStatus.GONE, StatusCode.OUT_OF_RANGE),
    Code.REJECTED: Row(HTTPStatus.UNPROCESSABLE_ENTITY, StatusCode.FAILED_PRECONDITION),
    Code.LEDGER: Row(HTTPStatus.SERVICE_UNAVAILABLE, StatusCode.UNAVAILABLE),
    Code.OVERLOADED: Row(HTTPStatus.SERVICE_UNAVAILABLE, StatusCode.UNAVAILABLE),
    Code.DEADLINE: Row(HTTPStatus.GATEWAY_TIMEOUT, StatusCode.DEADLINE_EXCEEDED),
    Code.INTERNAL: Row(HTTPStatus.INTERNAL_SERVER_ERROR, StatusCode.INTERNAL),
}


def as_message(error: DeskError) -> pb.OrderResponse:
    """The error as the protobuf body that every caller of this desk understands."""
    return pb.OrderResponse(
        status="error",
        order_id=error.order_id,
        message=error.message,
        code=error.code,
        limit=error.limit,
        observed=error.observed,
    )


def as_dict(error: DeskError) -> dict[str, str]:
    """The error as the JSON body."""
    return {
        "code": error.code.value,
        "message": error.message,
        "limit": error.limit,
        "observed": error.observed,
        "order_id": error.order_id,
    }


def retry_after(error: DeskError) -> str:
    """Whole seconds for the Retry-After header; "" where trying again does not help by itself."""
    if error.retry_after_s is None and error.code not in (Code.THROTTLED, Code.NOT_READY, Code.OVERLOADED):
        return ""
    return str(max(1, ceil(error.retry_after_s or 1)))


def internal(request_id: str) -> DeskError:
    """What a caller sees of a fault of the desk's own: nothing but the name under which it was logged."""
    return DeskError(
        Code.INTERNAL,
        f"the desk failed on this request: tell its operator X-Request-ID {request_id}; "
        "a request with a request_id of its own may be sent again, it is carried out at most once",
    )
