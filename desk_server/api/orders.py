"""`POST /order` and `POST /v1/orders`: one handler behind two doors, FastAPI's and the fast one."""

from http import HTTPStatus

from desk.v1 import orders_pb2 as pb

from desk_server.api import exchange
from desk_server.api.auth import Door
from desk_server.api.exchange import Answer, Head
from desk_server.api.verbs import Verbs

# Where the original client posts: protobuf, whether or not it says so.
ORIGINAL_PATH = "/order"
PATHS = frozenset({ORIGINAL_PATH, "/v1/orders"})


class OrderRoute:
    def __init__(self, verbs: Verbs, door: Door) -> None:
        self._verbs = verbs
        self._door = door

    async def handle(self, path: str, head: Head, body: bytes, peer: str) -> Answer:
        """Never raises but CancelledError. Run it in a task of its own: a caller who hangs up cancels no order."""
        if path == ORIGINAL_PATH and not head.content_type:
            head.content_type = exchange.PROTOBUF
        exchange.start_log(head)
        try:
            who = exchange.identify(self._door, head, peer)
            message = exchange.message_of(head, body, pb.OrderRequest)
            answer = exchange.answer_of(head, await self._verbs.place_order(who, message), HTTPStatus.CREATED)
        except Exception as error:  # the boundary of a request
            answer = exchange.failure(head, error)
        exchange.log.debug("http", method="POST", path=path, status=answer.status)
        return answer
