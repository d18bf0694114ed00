"""What the demo shows: strategies, newest orders and fills, and each user's book, in one picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from desk_manager import logs, table
from desk_manager.admin import DeskAdmin
from desk_manager.errors import ManagerError
from desk_manager.runtimes import State
from desk_manager.settings import Settings
from desk_manager.status import Board, Row

PLAIN_WIDTH = 160
NOT_SANDBOXED = "NOT SANDBOXED: the strategies run as plain processes, with all your rights"
_SHOWN = 8
_ERRORS_SHOWN = 3
_CUT_IS_TOLD = ("strategies", "users")
_COLUMN_MAX = 32
# How wide the terminal must be for what is not essential.
_WIDTH_MIN = {"long names": 100, "ORDERS": 90, "CPU": 90, "RESTARTS": 100, "FEES": 100, "buying_power": 100}

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
    def __init__(self, desk: DemoDesk, board: Board, *, sandboxed: bool, heading: str = "") -> None:
        self._desk = desk
        self._board = board
        self._sandboxed = sandboxed
        self._heading = heading

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

    def render(self, seen: Seen, width: int, height: int | None = None) -> RenderableType:
        return render(seen, width, height, self._heading)

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


def render(seen: Seen, width: int, height: int | None = None, heading: str = "") -> RenderableType:
    """One picture that fits `width` columns and `height` lines; without a height, all there is to show."""
    parts: list[RenderableType] = [_one_line(heading, "bold")] if heading else []
    if not seen.sandboxed:
        parts.append(Text(f" {NOT_SANDBOXED} ", "bold white on red"))
    if seen.trouble:
        parts.append(Text(seen.trouble, "red"))
    errors = [_one_line(f"{row.strategy}: {row.last_error}", "red") for row in seen.rows if row.last_error]
    parts += errors[:_ERRORS_SHOWN]
    sections: Sequence[tuple[str, Sequence[Any], Callable[[Any], Table]]] = (
        ("strategies", sorted(seen.rows, key=_is_well), partial(_strategies, width=width)),
        ("users", seen.accounts, partial(_users, positions=seen.positions, width=width)),
        ("orders", seen.orders[:_SHOWN], _orders),
        ("fills", seen.fills[:_SHOWN], _fills),
    )
    wanted = [len(section) for _, section, _ in sections]
    # Each section has its line of headings and an empty line above.
    room = None if height is None else height - len(parts) - seen.trouble.count("\n") - 2 * len(sections)
    for (name, section, draw), shown in zip(sections, _shares(wanted, room), strict=True):
        cut = name in _CUT_IS_TOLD and shown < len(section)
        parts += [Text(), draw(section[: shown - cut])]
        if cut:
            parts.append(Text(f"… and {len(section) - shown + 1} more {name}", "dim"))
    return Group(*parts)


def _shares(wanted: Sequence[int], room: int | None) -> list[int]:
    """Divide so many lines among sections: the small ones get what they want, the others share what is left."""
    if room is None:
        return list(wanted)
    shares = [min(one, 1) for one in wanted]
    while sum(shares) < room and (hungry := [n for n, one in enumerate(wanted) if shares[n] < one]):
        shares[min(hungry, key=lambda n: shares[n])] += 1
    return shares


def _is_well(row: Row) -> tuple[bool, str]:
    return row.state is State.RUNNING and not row.last_error, row.strategy


def _strategies(rows: Sequence[Row], width: int) -> Table:
    made = _table(("STRATEGY", "USER", "STATE"))
    if width < _WIDTH_MIN["long names"]:
        made.columns[0].max_width, made.columns[1].max_width = 16, 8
    numbers = ["UPTIME", "LINES", "LAST LINE", "ORDERS", "FILLS", "MEMORY", "CPU", "RESTARTS"]
    kept = [name for name in numbers if width >= _WIDTH_MIN.get(name, 0)]
    for name in kept:
        made.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        cells = {
            "UPTIME": table.span(row.uptime_s),
            "LINES": _count(row.lines_read),
            "LAST LINE": f"{table.span(row.last_line_age_s)} ago" if row.last_line_age_s is not None else "",
            "ORDERS": _count(row.orders),
            "FILLS": _count(row.fills),
            "MEMORY": "" if row.memory_bytes is None else f"{row.memory_bytes / 2**20:.1f} MiB",
            "CPU": "" if row.cpu_percent is None else f"{row.cpu_percent:.1f}%",
            "RESTARTS": str(row.restarts),
        }
        style = "green" if row.state is State.RUNNING else "bold red"
        made.add_row(_name(row), row.user, Text(row.state, style), *(cells[name] for name in kept))
    return made


def _name(row: Row) -> Text:
    """As text, not markup: a folder that is refused may have any name."""
    return Text(logs.printable(row.strategy.encode("utf-8", "replace")))


def _users(accounts: Sequence[Json], positions: Sequence[Json], width: int) -> Table:
    amounts = [name for name in ("cash", "buying_power", "equity") if width >= _WIDTH_MIN.get(name, 0)]
    fees = ["FEES"] if width >= _WIDTH_MIN["FEES"] else []
    made = _table(("USER",))
    for name in (*(name.upper().replace("_", " ") for name in amounts), "REALISED P&L", "UNREALISED", *fees):
        made.add_column(name, justify="right", no_wrap=True)
    _elastic(made, "POSITIONS")
    for account in accounts:
        user = account["user_id"]
        held = [
            f"{_qty(position['qty'])} {position['symbol']} @ {_money(position['avg_entry_price'])}"
            for position in positions
            if position["user_id"] == user and position["qty"] not in ("0", "")
        ]
        made.add_row(
            user,
            *(_money(account[name]) for name in amounts),
            _profit(account["realized_pl"]),
            _profit(account["unrealized_pl"]),
            *(_money(account["fees"]) for _ in fees),
            ", ".join(held) or "none",
        )
    return made


def _orders(orders: Sequence[Json]) -> Table:
    made = _table(("USER", "NEWEST ORDERS", "STATUS", "FILLED", "AT (UTC)"))
    _elastic(made, "WHY")
    for order in orders:
        size = _qty(order["qty"]) if order["qty"] else f"${order['notional']}"
        made.add_row(
            order["user_id"],
            f"{order['side']} {size} {order['symbol']} {order['order_type']}" + _limit(order["limit_price"]),
            order["status"],
            f"{_qty(order['filled_qty'])} @ {_money(order['filled_avg_price'])}" if order["filled_avg_price"] else "",
            order["created_at"][11:19],
            Text(order["message"]),
        )
    return made


def _fills(fills: Sequence[Json]) -> Table:
    made = _table(("USER", "NEWEST FILLS", "MARKET TIME"))
    _elastic(made, "STRATEGY")
    for fill in fills:
        made.add_row(
            fill["user_id"],
            f"{fill['side']} {_qty(fill['qty'])} {fill['symbol']} @ {_money(fill['price'])}",
            fill["at"][:19].replace("T", " "),
            fill["strategy"],
        )
    return made


def _table(texts: Sequence[str]) -> Table:
    made = Table(box=None, pad_edge=False, header_style="bold")
    for name in texts:
        made.add_column(name, no_wrap=True, overflow="ellipsis", max_width=_COLUMN_MAX)
    return made


def _elastic(made: Table, name: str) -> None:
    """A last column that takes what room is left, on one line."""
    made.expand = True
    made.add_column(name, no_wrap=True, overflow="ellipsis", ratio=1)


def _one_line(text: str, style: str) -> Text:
    return Text(" ".join(text.split()), style, no_wrap=True, overflow="ellipsis")


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _limit(price: str) -> str:
    return f" @ {_money(price)}" if price else ""


def _qty(text: str) -> str:
    """At most four decimals: enough for the eye."""
    return f"{Decimal(text or 0):,.4f}".rstrip("0").rstrip(".")


def _money(text: str) -> str:
    """Two decimals; four where it is less than a dollar."""
    if not text:
        return ""
    value = Decimal(text)
    return f"{value:,.4f}" if 0 < abs(value) < 1 else f"{value:,.2f}"


def _profit(text: str) -> Text:
    value = Decimal(text or 0)
    return Text(f"{value:+,.2f}", "green" if value > 0 else "red" if value < 0 else "")
