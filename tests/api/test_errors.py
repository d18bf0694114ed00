"""One table of errors, complete, and the same in the documentation."""

import re
from pathlib import Path

from desk_server.api.errors import TABLE
from desk_server.errors import Code

DOC = Path(__file__).resolve().parents[2] / "docs" / "errors.md"


def test_every_code_has_its_statuses():
    """A code without a row would be an error 500 on the day it is first raised."""
    assert set(TABLE) == set(Code)


def test_the_documentation_has_every_code_as_it_is():
    """docs/errors.md shows each code once, with the HTTP and gRPC status of the table, and what to do."""
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (\w+) \| .+ \| .+ \|$", DOC.read_text(), re.MULTILINE)
    assert rows == [(code.value, str(row.http.value), row.grpc.name) for code, row in TABLE.items()]
