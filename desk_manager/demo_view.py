"""What the demo shows: strategies, newest orders and fills, and each user's book, in one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from desk_manager import table
from desk_manager.admin import DeskAdmin
from desk_manager.errors import ManagerError
from desk_manager.runtimes import State
from desk_manager.settings import Settings
from desk_manager.status import Board, Row

PLAIN_WIDTH = 160
NOT_SANDBOXED = "NOT SANDBOXED: no container engine, so the strategies run as plain processes of this machine"
_SHOWN = 8

Json = Mapping[str, Any]


class DemoDesk(DeskAdmin):
    """The desk, read with the administrator's eyes."""

    def __init__(self, chosen: Settings) -> None:
        super().__init__(chosen)

    def everybody(self, what: str, limit: int = 0) -> Sequence[Json]:
        """Everybody's accounts, positions, orders or fills, newest first."""
        query = "" if what == "accounts" else "?user_id=*" + (f"&limit={limit}" if limit else "")
        answer = self._send("GET", f"/v1/{what}{query}")
        if answer.status_code != 200:
            raise self._refused(answer)
        listed: Sequence[Json] = self._object(answer)[what]
        return listed


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything at one moment."""

    rows: Sequence[Row]
    accounts: Sequence[Json]
    positions: Sequence[Json]
    orders: Sequence[Json]
    fills: Sequence[Json]
    sandboxed: bool
    trouble: str = ""


class View:
    def __init__(self, desk: DemoDesk, board: Board, *, sandboxed: bool) -> None:
        self._desk = desk
        self._board = board
        self._sandboxed = sandboxed

    def look(self) -> Seen:
        rows, trouble = self._board.rows()
        try:
            return Seen(
                rows=rows,
                accounts=self._desk.everybody("accounts"),
                positions=self._desk.everybody("positions"),
                orders=self._desk.everybody("orders", _SHOWN),
                fills=self._desk.everybody("fills", 500),
                sandboxed=self._sandboxed,
                trouble=trouble,
            )
        except ManagerError as error:
            return Seen(rows, (), (), (), (), self._sandboxed, str(error))

    def judge(self, seen: Seen) -> list[str]:
        """What did not work, a sentence each; empty when every strategy traded under its own user."""
        if not seen.rows:
            return ["there was no strategy to run"]
        return [trouble for row in seen.rows if (trouble := _trouble(row, seen.fills))] + (
            [seen.trouble] if seen.trouble else []
        )


def _trouble(row: Row, fills: Sequence[Json]) -> str:
    mine = [fill for fill in fills if fill["strategy"] == row.strategy]
    if row.state is not State.RUNNING:
        return f"{row.strategy} is {row.state}: {row.last_error or 'it gave no reason'}"
    if not row.lines_read:
        return f"{row.strategy} has read no market line"
    if not row.fills:
        return f"{row.strategy} has no fill"
    if any(fill["user_id"] != row.user for fill in mine):
        return f"{row.strategy} has a fill under another user than {row.user}"
    return ""


def render(seen: Seen, height: int | None) -> RenderableType:
    """One picture; `height` lines where the terminal has so many, else all of it."""
    shown = _SHOWN if height is None else max(3, min(_SHOWN, (height - len(seen.rows) - len(seen.accounts) - 14) // 2))
    parts: list[RenderableType] = []
    if not seen.sandboxed:
        parts.append(Text(f" {NOT_SANDBOXED} ", "bold white on red"))
    if seen.trouble:
        parts.append(Text(seen.trouble, "red"))
    parts += [
        Text("Strategies", "bold underline"),
        table.render(seen.rows),
        Text("\nUsers", "bold underline"),
        _users(seen.accounts, seen.positions),
        Text("\nNewest orders", "bold underline"),
        _orders(seen.orders[:shown]),
        Text("\nNewest fills", "bold underline"),
        _fills(seen.fills[:shown]),
    ]
    return Group(*parts)


def _users(accounts: Sequence[Json], positions: Sequence[Json]) -> Table:
    made = _table("USER", ("CASH", "BUYING POWER", "EQUITY", "REALISED P&L", "UNREALISED P&L", "FEES"), "POSITIONS")
    for account in accounts:
        user = account["user_id"]
        held = [
            f"{position['qty']} {position['symbol']} @ {_money(position['avg_entry_price'])}"
            for position in positions
            if position["user_id"] == user and position["qty"] not in ("0", "")
        ]
        amounts = [account[name] for name in ("cash", "buying_power", "equity")]
        profits = [account[name] for name in ("realized_pl", "unrealized_pl")]
        made.add_row(
            user, *map(_money, amounts), *map(_profit, profits), _money(account["fees"]), ", ".join(held) or "none"
        )
    return made


def _orders(orders: Sequence[Json]) -> Table:
    made = _table("USER", (), "ORDER", "STATUS", "FILLED", "AT", "WHY")
    for order in orders:
        price = f" @ {order['limit_price']}" if order["limit_price"] else ""
        size = order["qty"] or f"${order['notional']}"
        made.add_row(
            order["user_id"],
            f"{order['side']} {size} {order['symbol']} {order['order_type']}{price}",
            order["status"],
            f"{order['filled_qty'] or 0} @ {_money(order['filled_avg_price'])}" if order["filled_avg_price"] else "",
            order["created_at"][11:23],
            Text(order["message"][:60]),
        )
    return made


def _fills(fills: Sequence[Json]) -> Table:
    made = _table("USER", (), "STRATEGY", "FILL", "MARKET TIME")
    for fill in fills:
        made.add_row(
            fill["user_id"],
            fill["strategy"],
            f"{fill['side']} {fill['qty']} {fill['symbol']} @ {_money(fill['price'])}",
            fill["at"][:19].replace("T", " "),
        )
    return made


def _table(first: str, numbers: Sequence[str], *rest: str) -> Table:
    made = Table(box=None, pad_edge=False, header_style="bold")
    made.add_column(first, no_wrap=True)
    for name in numbers:
        made.add_column(name, justify="right", no_wrap=True)
    for name in rest:
        made.add_column(name, overflow="ellipsis", no_wrap=True)
    return made


def _money(text: str) -> str:
    return f"{Decimal(text):,.2f}" if text else ""


def _profit(text: str) -> Text:
    value = Decimal(text or 0)
    return Text(f"{value:+,.2f}", "green" if value > 0 else "red" if value < 0 else "")
