"""The reconciler's report in the contract's words."""

from desk.v1 import admin_pb2

from desk_server.api.wire import decimal_text, time_text
from desk_server.book import Book
from desk_server.compare import Difference
from desk_server.domain import UserId, is_house
from desk_server.events import ForeignOrderSeen
from desk_server.reconcile import Report

FOREIGN_MAX = 100


def reconciliation_message(report: Report, book: Book) -> admin_pb2.Reconciliation:
    return admin_pb2.Reconciliation(
        problem=report.problem,
        last_pass_at=time_text(report.last_pass_at),
        differences=[_difference(one) for one in report.differences],
        houses=[_house(name, book) for name in sorted(book.accounts) if is_house(name)],
        foreign_orders=[_foreign(order) for order in book.foreign_orders()[: -FOREIGN_MAX - 1 : -1]],
        foreign_orders_seen=len(book.foreign_orders()),
        passes=report.passes,
        failures=report.failures,
        recovered=report.recovered,
        posted=report.posted,
        adopted=report.adopted,
    )


def _difference(one: Difference) -> admin_pb2.Difference:
    found = one.found
    return admin_pb2.Difference(
        kind=found.kind,
        account=found.account,
        symbol=found.symbol,
        order_id=found.subject,
        ours=found.ours,
        theirs=found.theirs,
        since=time_text(one.since),
        explanation=found.explanation,
        counts=one.counts,
    )


def _house(name: UserId, book: Book) -> admin_pb2.HouseBook:
    holdings = [
        admin_pb2.HouseHolding(symbol=position.symbol, qty=decimal_text(position.qty))
        for position in book.positions_of(name)
    ]
    return admin_pb2.HouseBook(name=name, cash=decimal_text(book.accounts[name].cash), holdings=holdings)


def _foreign(order: ForeignOrderSeen) -> admin_pb2.ForeignOrder:
    return admin_pb2.ForeignOrder(
        broker_order_id=order.broker_order_id,
        client_order_id=order.client_order_id,
        symbol=order.symbol,
        side=order.side.value,
        qty=decimal_text(order.qty),
        account=order.account,
        seen_at=time_text(order.at),
    )
