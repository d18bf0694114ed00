"""What an epoch left behind, seen from outside: the broker's book, the ledger's rows, what clients were told.

Nothing here comes from the desk's own code. Times are integers: nanoseconds of the machine's clock (time.time_ns),
which the virtual clock steps of a desk do not touch.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

PREFIX = "d1."


@dataclass(frozen=True, slots=True)
class Row:
    """An event as it stands in the ledger: `body` is its JSON, read again by other code than the desk's."""

    seq: int
    kind: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Posting:
    """One side of the journal entry of event `seq`."""

    seq: int
    account: str
    asset: str
    amount: Decimal


@dataclass(frozen=True, slots=True)
class Limits:
    """What the desks of this epoch were told to allow each user."""

    allotment: Decimal = Decimal(100_000)
    qty_max: Decimal = Decimal(100)
    notional_max: Decimal = Decimal(60_000)
    open_orders_max: int = 12


@dataclass(slots=True)
class History:
    """One epoch. The fields are what their writers give: see the comments."""

    # The ledger (ledger_rows.py).
    rows: list[Row] = field(default_factory=list)
    postings: list[Posting] | None = None
    integrity: list[str] = field(default_factory=list)
    # /control/dump of the misbehaving Alpaca, at rest, before the desk was told to stop.
    broker: dict[str, Any] = field(default_factory=dict)
    # Lines that clients wrote (clients.py), in each one's order.
    said: list[dict[str, Any]] = field(default_factory=list)
    # Lines of the desks' witnesses (child.py): commits and requests sent, each with its time and the desk's number.
    witnessed: list[dict[str, Any]] = field(default_factory=list)
    # Whom the harness stopped, and when: [from, to].
    stopped: list[tuple[int, int]] = field(default_factory=list)
    # What the desk itself shows at rest, over HTTP.
    shown_orders: list[dict[str, Any]] = field(default_factory=list)
    shown_positions: list[dict[str, Any]] = field(default_factory=list)
    shown_accounts: list[dict[str, Any]] = field(default_factory=list)
    # What the wait for rest, and the executioner's checks, found wrong: (number of the invariant, sentence).
    noticed: list[tuple[int, str]] = field(default_factory=list)
    limits: Limits = Limits()

    def told(self) -> Iterator[dict[str, Any]]:
        """Definite answers to orders and replaces."""
        return (line for line in self.said if line["k"] == "told" and line["code"] != "INTERNAL")

    def asked(self) -> dict[tuple[str, str], dict[str, Any]]:
        """What was asked for, by (user, request id)."""
        return {(line["user"], line["rid"]): line for line in self.said if line["k"] == "ask"}

    @property
    def accounts(self) -> Iterable[dict[str, Any]]:
        return self.broker.get("accounts", {}).values()

    def broker_orders(self) -> list[dict[str, Any]]:
        return [order for account in self.accounts for order in account["orders"]]

    def arrivals(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(client_order_id, the broker's record) of every order and replacement that arrived there."""
        for post in self.broker.get("posts", ()):
            yield post["client_order_id"] or "", post
        for change in self.broker.get("changes", ()):
            if change["method"] == "PATCH":
                try:
                    body = json.loads(change["body"] or "{}")
                except ValueError:
                    continue
                yield body.get("client_order_id") or "", change

    def executions(self) -> list[dict[str, Any]]:
        """Those that stand: neither undone nor corrected by another."""
        return [
            one
            for account in self.accounts
            for one in account["executions"]
            if not one["busted"] and not one["corrected_by"]
        ]

    def was_taken_back(self) -> set[str]:
        """Symbols in which the broker undid or changed an execution."""
        return {
            one["symbol"]
            for account in self.accounts
            for one in account["executions"]
            if one["busted"] or one["corrected_by"]
        }


def is_ours(client_order_id: str) -> bool:
    return client_order_id.startswith(PREFIX)


def user_of(client_order_id: str) -> str:
    return client_order_id.split(".")[1]


def ns_of(at: str) -> int:
    """Nanoseconds of an RFC 3339 time, whatever its number of decimals."""
    whole, _, rest = at.replace("Z", "+00:00").partition(".")
    if not rest:
        return int(datetime.fromisoformat(whole).timestamp()) * 1_000_000_000
    digits = rest.split("+")[0].split("-")[0]
    zone = rest[len(digits) :]
    moment = datetime.fromisoformat(whole + zone).astimezone(UTC)
    return int(moment.timestamp()) * 1_000_000_000 + int(digits.ljust(9, "0")[:9])


def read_lines(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """The JSON lines of the files. A last line without its end is what its writer was killed in: left out."""
    lines = []
    for path in paths:
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                lines.append(json.loads(line))
    return lines
