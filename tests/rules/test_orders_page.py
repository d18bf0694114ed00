"""docs/orders.md says what the rules do: its tables are run."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from rule_samples import ASSETS, IN_SESSION, make_request

from desk_server import rules
from desk_server.errors import Code, DeskError

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "orders.md").read_text()
PRICES = {
    "market": "",
    "limit": "limit_price=100",
    "stop": "stop_price=100",
    "stop_limit": "stop_price=100 limit_price=100",
    "trailing_stop": "trail_price=1",
}
WHAT = {"equity": "", "equity, fraction of a share": "qty=0.5", "crypto": "symbol=BTC/USD"}
AT_NIGHT = datetime(2026, 11, 20, 1, 0, tzinfo=UTC)


def table_after(heading: str) -> list[list[str]]:
    """The cells of the first table under that heading, without its two head lines."""
    lines = PAGE.split(f"## {heading}\n", 1)[1].splitlines()
    start = next(number for number, text in enumerate(lines) if text.startswith("|"))
    rows = []
    for text in lines[start:]:
        if not text.startswith("|"):
            break
        rows.append([cell.strip() for cell in text.strip("|").split("|")])
    return [rows[0], *rows[2:]]


HEAD, *TIMES = table_after("Type and time in force")
_, *REFUSALS = table_after("What is refused, and how")


@pytest.mark.parametrize("row", TIMES, ids=lambda row: f"{row[0]}-{row[1]}")
def test_the_table_of_times_in_force_is_true(row):
    """Every yes is an order, every no is refused."""
    what, kind, *cells = row
    for tif, cell in zip(HEAD[2:], cells, strict=True):
        request = make_request(f"type={kind} time_in_force={tif} {PRICES[kind]} {WHAT[what]}")
        try:
            rules.check(request, ASSETS[request.symbol], AT_NIGHT)
        except DeskError:
            assert cell == "no", f"{tif} is refused"
        else:
            assert cell == "yes", f"{tif} is an order"


def test_the_table_of_times_in_force_is_complete():
    """Three kinds of asset, five types, six times in force."""
    assert len({(what, kind) for what, kind, *_ in TIMES}) == len(WHAT) * len(PRICES)
    assert HEAD[2:] == ["day", "gtc", "ioc", "fok", "opg", "cls"]


@pytest.mark.parametrize("row", REFUSALS, ids=lambda row: row[0])
def test_the_table_of_refusals_quotes_the_desk(row):
    """Each example gets exactly that answer."""
    order, answer = row
    request = make_request(order.strip("`"))
    with pytest.raises(DeskError) as refused:
        rules.check(request, ASSETS.get(request.symbol), IN_SESSION)
    assert (refused.value.code, refused.value.message) == (Code.INVALID, answer)
