"""A request as it came, and the reply that is to go."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from tests.alpaca.faults import Kind, Pick
from tests.alpaca.orders import Order

if TYPE_CHECKING:
    from tests.alpaca.account import Account


@dataclass(slots=True)
class Request:
    method: str
    path: str
    query_string: str
    headers: Mapping[str, str]
    body: bytes
    kind: Kind = Kind.READ
    account: "Account | None" = None
    rest: str = ""
    pick: Pick | None = None
    _query: dict[str, list[str]] | None = None

    def first(self, name: str) -> str | None:
        """A query parameter; None where it is absent."""
        if self._query is None:
            self._query = parse_qs(self.query_string)
        found = self._query.get(name)
        return found[0] if found else None

    def many(self, name: str) -> list[str]:
        """A query parameter given as a comma-separated list, or more than once."""
        self.first(name)
        return [part for value in (self._query or {}).get(name, []) for part in value.split(",") if part]

    @property
    def book(self) -> "Account":
        """The account it is about, where there must be one."""
        assert self.account is not None
        return self.account

    def flag(self, name: str) -> bool:
        return (self.first(name) or "").lower() == "true"


@dataclass(slots=True)
class Reply:
    status: int
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    # Set where the answer is one order or a list of them, for the faults that garble those.
    order: Order | None = None
