"""The verbs on one account at Alpaca, shared by the Trading API and the Broker API: only the paths differ."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

import structlog
from msgspec import Struct

from desk_server.brokers import Ack, BrokerOrder, BrokerRejected, BrokerThrottled, BrokerUnknown, Holding
from desk_server.brokers.alpaca import orders, records
from desk_server.brokers.alpaca.answers import Answer, is_not_found, refusal, result
from desk_server.brokers.alpaca.fields import Json, mapping, rows, stamp, text
from desk_server.brokers.alpaca.rest import Lane, Rest
from desk_server.brokers.alpaca.updates import Updates
from desk_server.domain import Order, OrderChange

log = structlog.get_logger(__name__)

ORDERS_PAGE, ACTIVITIES_PAGE = 500, 100
_NOT_FOUND = "40410000"
# Bounds of lists are exclusive and of unknown precision; what is asked for twice is told apart by its id.
_OVERLAP = timedelta(milliseconds=1)
# Where a whole page lies within that.
_OVERLAP_LEAST = timedelta(microseconds=1)
_PAGES_MAX = 2_000


class AccountState(Struct, frozen=True):
    json: Json
    positions: tuple[Holding, ...]


class Account:
    """`path` is what stands before /orders; `name` is the account's id where users have their own, else ""."""

    def __init__(self, rest: Rest, updates: Updates, *, path: str = "", name: str = "") -> None:
        self._rest = rest
        self._updates = updates
        self._path = path
        self.name = name

    # ---- one order ----

    async def submit(self, order: Order, legs: Sequence[Order], still: Callable[[], bool] | None) -> Ack:
        answer = await self._rest.ask(Lane.ORDERS, "POST", f"{self._path}/orders", orders.sent(order), still=still)
        json = orders.order_in(result(answer))
        self._require_echo(json, order)
        self._remember(json)
        return orders.ack(json, legs) or await self._ack_with_legs(order, legs, text(json, "id"))

    async def _ack_with_legs(self, order: Order, legs: Sequence[Order], broker_order_id: str) -> Ack:
        """Of an order that was taken and answered without its legs. Whatever goes wrong here, the broker has it."""
        try:
            json = await self._by_id(Lane.LOOKUPS, broker_order_id)
        except BrokerThrottled as no:
            raise BrokerUnknown(f"Alpaca took the order and did not tell of its legs: {no}") from None
        self._require_echo(json, order)
        ack = orders.ack(json, legs)
        if ack is None:
            raise BrokerUnknown("Alpaca took the order and does not tell of its legs yet")
        return ack

    async def cancel(self, order: Order) -> None:
        broker_order_id = order.broker_order_id or await self._id_of(order)
        answer = await self._rest.ask(Lane.LOOKUPS, "DELETE", f"{self._path}/orders/{broker_order_id}")
        no = refusal(answer)
        if answer.status == 422 and no is not None and "pending_cancel" in no.message.replace(" ", "_"):
            return  # it is being cancelled already
        if is_not_found(answer):
            raise BrokerRejected(_NOT_FOUND, f"order not found for {order.order_id}")
        result(answer)

    async def replace(self, order: Order, new: Order, change: OrderChange, still: Callable[[], bool] | None) -> Ack:
        broker_order_id = order.broker_order_id or await self._id_of(order)
        path = f"{self._path}/orders/{broker_order_id}"
        answer = await self._rest.ask(Lane.ORDERS, "PATCH", path, orders.sent_change(new, change), still=still)
        if is_not_found(answer):
            raise BrokerRejected(_NOT_FOUND, f"order not found for {order.order_id}")
        json = orders.order_in(result(answer))
        # A leg's replacement has the name that was sent, as any other.
        problem = orders.echo_problem(json, new, qty=False, named=True)
        if problem or text(json, "replaces") not in ("", broker_order_id):
            self._wrong_echo(new, problem or "it replaces another order")
        self._remember(json)
        return orders.replace_ack(json)

    async def find(self, order: Order) -> BrokerOrder | None:
        """By the broker's id where it is known, as legs have no name of ours; else by its name."""
        if order.broker_order_id:
            answer = await self._ask_by_id(Lane.LOOKUPS, order.broker_order_id)
        else:
            answer = await self._ask_by_name(order.client_order_id)
        if is_not_found(answer):
            return None
        json = orders.order_in(looked_up(answer))
        self._require_echo(json, order, qty=False)
        if order.leg_ids and not json.get("legs"):
            json = await self._by_id(Lane.LOOKUPS, text(json, "id"))
            self._require_echo(json, order, qty=False)
        self._remember(json)
        return orders.shown(json, self.name)

    async def _id_of(self, order: Order) -> str:
        """Raises BrokerRejected when the broker does not know the order."""
        answer = await self._ask_by_name(order.client_order_id)
        if is_not_found(answer):
            raise BrokerRejected(_NOT_FOUND, f"order not found for {order.order_id}")
        json = orders.order_in(looked_up(answer))
        self._require_echo(json, order, qty=False)
        return text(json, "id")

    async def _by_id(self, lane: Lane, broker_order_id: str) -> Json:
        return orders.order_in(looked_up(await self._ask_by_id(lane, broker_order_id)))

    async def _ask_by_id(self, lane: Lane, broker_order_id: str) -> Answer:
        return await self._rest.ask(lane, "GET", f"{self._path}/orders/{broker_order_id}", {"nested": "true"})

    async def _ask_by_name(self, client_order_id: str) -> Answer:
        query = {"client_order_id": client_order_id, "nested": "true"}
        return await self._rest.ask(Lane.LOOKUPS, "GET", f"{self._path}/orders:by_client_order_id", query)

    def _require_echo(self, json: Json, order: Order, *, qty: bool = True) -> None:
        if problem := orders.echo_problem(json, order, qty=qty):
            self._wrong_echo(order, problem)

    def _wrong_echo(self, order: Order, problem: str) -> None:
        """What differs may be somebody else's, so only the log says it."""
        log.error("Alpaca's answer describes another order", order_id=order.order_id, differs=problem)
        raise BrokerUnknown("Alpaca's answer describes another order")

    def _remember(self, json: Json) -> None:
        known = orders.shown(json)
        self._updates.remember(known.broker_order_id, known.client_order_id, known.qty)

    # ---- the account's records ----

    async def orders(self, since: datetime) -> list[BrokerOrder]:
        """As BrokerRecords.orders. A leg whose entry is neither open nor listed since then stands alone, without
        a parent_id: its broker_order_id tells whose it is."""
        recent = await self._listed({"status": "all", "nested": "true", "after": stamp(since - _OVERLAP)})
        is_open = await self._listed({"status": "open", "nested": "false"})
        found = {order.broker_order_id: order for order in recent}
        legs = {leg.broker_order_id for order in recent for leg in order.legs}
        unplaced = [one for one in is_open if one.broker_order_id not in found and one.broker_order_id not in legs]
        if any(_may_have_legs(one) for one in unplaced):
            for order in await self._listed({"status": "open", "nested": "true"}):
                found.setdefault(order.broker_order_id, order)
                legs |= {leg.broker_order_id for leg in order.legs}
        for order in unplaced:
            found.setdefault(order.broker_order_id, order)
        alone = [order for order in found.values() if order.broker_order_id not in legs]
        return sorted(alone, key=lambda order: (order.created_at or since, order.broker_order_id))

    async def _listed(self, query: dict[str, Any]) -> list[BrokerOrder]:
        """All pages of a list, ascending by submission."""
        found: dict[str, BrokerOrder] = {}
        overlap = _OVERLAP
        for _ in range(_PAGES_MAX):
            asked = {**query, "limit": str(ORDERS_PAGE), "direction": "asc"}
            answer = await self._rest.ask(Lane.RECORDS, "GET", f"{self._path}/orders", asked)
            page = orders.listed(looked_up(answer), self.name)
            fresh = [order for order in page if order.broker_order_id not in found]
            found |= {order.broker_order_id: order for order in fresh}
            # Whether `limit` counts the legs inside of their entries is not documented: at most two each.
            if len(page) < ORDERS_PAGE // 3 or (not fresh and len(page) < ORDERS_PAGE):
                return list(found.values())
            last = page[-1].created_at if page else None
            if last is None or (not fresh and overlap == _OVERLAP_LEAST):
                raise BrokerUnknown("Alpaca's list of orders cannot be paged through")
            overlap = overlap if fresh else _OVERLAP_LEAST
            query = {**query, "after": stamp(last - overlap)}
        raise BrokerUnknown("Alpaca's list of orders has no end")

    async def state(self) -> AccountState:
        """The account and its positions, in this order: what is spent in between shows in the positions."""
        account = mapping(looked_up(await self._rest.ask(Lane.RECORDS, "GET", f"{self._path}/account")))
        positions = rows(looked_up(await self._rest.ask(Lane.RECORDS, "GET", f"{self._path}/positions")))
        return AccountState(account, tuple(records.holding(row) for row in positions))

    async def json(self) -> Json:
        """The account, without its positions."""
        return mapping(looked_up(await self._rest.ask(Lane.RECORDS, "GET", f"{self._path}/account")))


def looked_up(answer: Answer) -> Any:
    """The answer to a question. A no to a question proves nothing: BrokerUnknown (or BrokerThrottled)."""
    try:
        return result(answer)
    except BrokerRejected as no:
        raise BrokerUnknown(f"Alpaca did not answer: {no}") from None


async def activity_rows(rest: Rest, path: str, query: dict[str, Any]) -> list[Json]:
    """All pages of a list of activities, ascending, each once."""
    found: dict[str, Json] = {}
    token: dict[str, str] = {}
    for _ in range(_PAGES_MAX):
        asked = {**query, **token, "direction": "asc", "page_size": str(ACTIVITIES_PAGE)}
        page = rows(looked_up(await rest.ask(Lane.RECORDS, "GET", path, asked)))
        before = len(found)
        found |= {text(row, "id"): row for row in page}
        if len(page) < ACTIVITIES_PAGE:
            return list(found.values())
        if len(found) == before or not text(page[-1], "id"):
            raise BrokerUnknown("Alpaca's list of activities cannot be paged through")
        token = {"page_token": text(page[-1], "id")}
    raise BrokerUnknown("Alpaca's list of activities has no end")


def _may_have_legs(order: BrokerOrder) -> bool:
    return order.request is None or order.request.order_class != "simple"
