"""Rows for people: the tables of `status` and `list` on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from desk_manager import logs
from desk_manager.errors import ManagerError
from desk_manager.folders import Found
from desk_manager.runtimes import State
from desk_manager.status import Row

_STYLES = {
    State.RUNNING: "green",
    State.RESTARTING: "yellow",
    State.QUARANTINED: "bold red",
    State.EXITED: "cyan",
    State.STOPPED: "dim",
    State.NOT_DEPLOYED: "dim",
}
PLAIN_WIDTH = 200


def render(rows: Sequence[Row], notice: str = "") -> RenderableType:
    """The table of `status`, under `notice` where there is one; below it the last errors, each in full."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("STRATEGY", "USER", "STATE"):
        table.add_column(heading, no_wrap=True)
    for heading in ("UP", "RST", "EXIT", "LINES", "AGE", "ORD", "FILL", "MiB", "CPU%"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            _name(row),
            row.user,
            Text(row.state, _STYLES[row.state]),
            span(row.uptime_s),
            str(row.restarts or ""),
            _number(row.exit_code),
            _number(row.lines_read),
            span(row.last_line_age_s),
            _number(row.orders),
            _number(row.fills),
            "" if row.memory_bytes is None else f"{row.memory_bytes / 2**20:.1f}",
            "" if row.cpu_percent is None else f"{row.cpu_percent:.1f}",
        )
    # Text, not markup: the strategy wrote it.
    errors = [Text.assemble(_name(row), ": ", (row.last_error, "red")) for row in rows if row.last_error]
    shown: list[RenderableType] = [table, Text(), *errors] if errors else [table]
    return Group(Text(notice, "bold white on red"), *shown) if notice else Group(*shown)


def render_folders(found: Sequence[Found]) -> RenderableType:
    """The table of `list`."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("STRATEGY", "USER", "VERSION", "SYMBOLS"):
        table.add_column(heading, no_wrap=True)
    table.add_column("", overflow="fold")
    for one in found:
        name = Text(logs.printable(one.name.encode("utf-8", "replace")))
        if one.config:
            symbols = ",".join(one.config.symbols) or "all"
            about = Text(one.config.description or one.config.name)
            table.add_row(name, one.config.user_id, Text(one.config.version), Text(symbols[:40]), about)
        else:
            assert one.error is not None
            table.add_row(name, "", "", "", Text(f"refused: {one.error.cause}", "red"))
    return table


def show(shown: object) -> None:
    """Print a table, or text as it is."""
    if isinstance(shown, str):
        print(shown)
        return
    console = Console()
    Console(width=None if console.is_terminal else PLAIN_WIDTH).print(shown)


def show_live(look: Callable[[], tuple[object, str]], every_s: float, plain: bool) -> None:
    """Show it again and again until Ctrl-C; on a pipe, or when `plain`, one after another."""
    console = Console()
    if plain or not console.is_terminal:
        while True:
            shown, _ = look()
            show(shown)
            time.sleep(every_s)
    with Live(console=console, screen=False, auto_refresh=False) as live:
        while True:
            try:
                shown, trouble = look()
                parts = [shown, Text(trouble, "red")] if trouble else [shown]
                live.update(Group(*parts), refresh=True)  # type: ignore[arg-type]
            except ManagerError as error:
                live.update(Text(str(error), "red"), refresh=True)
            time.sleep(every_s)


def span(seconds: float | None) -> str:
    """A length of time in its largest two units."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f}s" if seconds < 10 else f"{seconds:.0f}s"
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86_400)
    if minutes < 60:
        return f"{minutes}m{int(seconds % 60):02}s"
    return f"{hours}h{minutes % 60:02}m" if hours < 48 else f"{days}d{hours % 24:02}h"


def _name(row: Row) -> Text:
    return Text(logs.printable(row.strategy.encode("utf-8", "replace")))


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
