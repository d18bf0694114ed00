"""Orders that go on working at the broker although they are over in the books: told as a difference, and cancelled.

A broker's yes to a replacement is not its last word: Alpaca may reject the new order later and work on the old one
(docs.alpaca.markets, "Replaced orders"). No end is taken back here, so nobody would watch over such an order: it must
not trade. What it executes until then is booked to its user as every execution.
"""

from collections.abc import Callable, Iterable, Sequence

import structlog

from desk_server.attribution import UNSURE, known
from desk_server.bookkeeper import Bookkeeper
from desk_server.brokers import Broker, BrokerOrder, BrokerRejected, BrokerThrottled, BrokerUnknown
from desk_server.compare import Found, Kind
from desk_server.domain import Order, OrderId

log = structlog.get_logger(__name__)

# Statuses of an order that works, or will; `pending_replace` is on its way out.
_WORKS = frozenset({"accepted", "pending_new", "new", "partially_filled", "held"})


class Outlived:
    """`see` what the broker shows; `cancel` when a difference of it has stayed for so long that it counts."""

    def __init__(self, keeper: Bookkeeper, broker: Broker) -> None:
        self._keeper = keeper
        self._broker = broker
        # Those of the last look.
        self._orders: dict[OrderId, Order] = {}

    def see(self, there: Sequence[BrokerOrder], account_of: Callable[[str], str]) -> list[Found]:
        shown = [(order, one) for one in there if (order := known(self._keeper.book, one)) and self._is_one(order, one)]
        self._orders = {order.order_id: order for order, _ in shown}
        return [
            Found(
                Kind.ORDER,
                ours=order.status,
                theirs=one.status,
                account=account_of(one.account),
                symbol=order.request.symbol,
                subject=order.order_id,
                explanation="the broker works on an order that is over here: its cancel is asked for",
            )
            for order, one in shown
        ]

    async def cancel(self, counting: Iterable[Found]) -> None:
        """Asked for again with every look, until the broker does not show it any more."""
        for found in counting:
            order = self._orders.get(OrderId(found.subject))
            if order is None or self._keeper.fenced():
                continue
            try:
                await self._broker.cancel(order)
            except (BrokerRejected, BrokerUnknown, BrokerThrottled) as no:
                reason = str(no)
                log.warning("an order that is over here could not be cancelled", order_id=order.order_id, reason=reason)
            else:
                log.warning("an order that is over here is cancelled at the broker", order_id=order.order_id)

    def _is_one(self, order: Order, there: BrokerOrder) -> bool:
        is_over = not (order.state.is_open or order.state in UNSURE or self._keeper.book.may_reopen(order))
        return is_over and there.is_open and there.status in _WORKS
