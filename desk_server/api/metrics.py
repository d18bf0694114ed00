"""GET /metrics: how the desk is, for Prometheus. Sums only: nothing here tells of one user or one symbol's orders.

Figures are read where they are kept, when they are asked for: counting costs the order path nothing.
"""

from collections import Counter
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from desk_server.compare import Kind
from desk_server.desk import Desk
from desk_server.domain import OPEN_STATES
from desk_server.reconcile import Report

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]


class Metrics:
    def __init__(self, desk: Desk, report: Callable[[], Report]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Desk(desk))
        self._registry.register(_Reconciliation(report))

    def page(self) -> bytes:
        """The text format. Call it on the desk's loop."""
        return generate_latest(self._registry)


class _Desk(Collector):
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def describe(self) -> Iterator[Metric]:
        """Nothing is collected only to learn the names."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        desk, book = self._desk, self._desk.book
        capabilities = desk.broker.capabilities
        yield _gauge("desk_ready", "1 while orders are taken, as /readyz.", not desk.problems())
        yield _labelled(
            "desk_broker",
            "Which broker, and whether real money trades.",
            ("name", "live"),
            {(capabilities.name, str(capabilities.live).lower()): 1},
        )
        states = Counter(order.state for order in book.open_orders(None))
        yield _labelled(
            "desk_orders_open",
            "Open orders by state.",
            ("state",),
            {(state.value,): states[state] for state in sorted(OPEN_STATES)},
        )
        changes = CounterMetricFamily(
            "desk_order_changes", "What happened to orders, since the ledger began.", labels=("change",)
        )
        for word, count in sorted(desk.keeper.changes.items()):
            changes.add_metric((word,), count)
        yield changes
        yield _counter("desk_ledger_events", "Events in the ledger.", book.seq)
        yield _gauge("desk_ledger_problem", "1 when the last write failed.", desk.keeper.problem)
        yield _gauge("desk_users", "Users with a book.", len(book.accounts))
        yield _gauge("desk_hub_last_seq", "Number of the newest market line.", desk.hub.last_seq)
        deployments = desk.registry.deployments()
        yield _gauge("desk_deployments", "Deployments that have not been revoked.", len(deployments))
        yield _gauge(
            "desk_deployments_connected",
            "Those that read market lines now.",
            sum(deployment.connected for deployment in deployments),
        )


class _Reconciliation(Collector):
    """How the books and the broker's records compare; all zero for a broker without records."""

    def __init__(self, report: Callable[[], Report]) -> None:
        self._report = report

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        report = self._report()
        kinds = Counter(one.found.kind for one in report.differences if one.counts)
        yield _labelled(
            "desk_differences",
            "Differences between the books and the broker which its lag does not explain.",
            ("kind",),
            {(kind.value,): kinds[kind] for kind in Kind},
        )
        yield _gauge("desk_symbols_frozen", "Symbols that take no new risk for a difference.", len(report.frozen))
        yield _gauge("desk_foreign_orders", "Orders at the broker that nobody here placed.", report.foreign_orders)
        last = report.last_pass_at
        yield _gauge(
            "desk_reconciled_at_seconds",
            "When the books were last compared (Unix time).",
            last.timestamp() if last else 0,
        )
        for name, meaning, count in (
            ("passes", "Comparisons that were carried out", report.passes),
            ("failures", "Comparisons that failed, the broker not answering", report.failures),
            ("orders_recovered", "Orders taken over from the broker's records", report.recovered),
            ("activities_posted", "Dividends, fees and other activities posted", report.posted),
            ("differences_adopted", "Differences that became the house's", report.adopted),
        ):
            yield _counter(f"desk_reconciliation_{name}", f"{meaning}, since the start.", count)


def _gauge(name: str, meaning: str, value: object) -> GaugeMetricFamily:
    """What is neither true nor a number counts as 1 when there is any."""
    number = value if isinstance(value, int | float) else bool(value)
    return GaugeMetricFamily(name, meaning, value=float(number))


def _counter(name: str, meaning: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, meaning, value=value)


def _labelled(
    name: str, meaning: str, labels: tuple[str, ...], values: dict[tuple[str, ...], float]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, meaning, labels=labels)
    for label, value in values.items():
        family.add_metric(label, value)
    return family
