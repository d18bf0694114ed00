"""The import rules of pyproject.toml hold, and a break of them is noticed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PACKAGES = ["desk_client", "desk_manager", "desk_server"]


def lint_imports(project: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [PROJECT / ".venv" / "bin" / "lint-imports", "--no-cache", "--config", project / "pyproject.toml"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": f"{project}:{project / 'proto'}"},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def copy(tmp_path):
    """The project's packages, elsewhere."""
    for package in PACKAGES:
        shutil.copytree(
            PROJECT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "tapes")
        )
    shutil.copytree(PROJECT / "proto", tmp_path / "proto", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    return tmp_path


def test_imports_go_one_way():
    """Every contract of pyproject.toml is kept."""
    outcome = lint_imports(PROJECT)
    assert outcome.returncode == 0, outcome.stdout[-3000:] + outcome.stderr[-1000:]


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("desk_manager/settings.py", "import desk_server.settings", "speaks to the server over HTTP"),
        ("desk_client/settings.py", "import numpy", "What a strategy imports is thin"),
        ("desk_server/risk.py", "import desk_server.desk", "import downwards only"),
        ("desk_server/domain.py", "import desk_server.book", "import downwards only"),
        ("desk_server/desk.py", "import desk_server.brokers.paper", "Only app.py names a concrete broker"),
        ("desk_server/app.py", "import alpaca", "A vendor's SDK"),
        ("desk_server/app.py", "import docker", "Only the Docker runtime talks to Docker"),
        ("desk_server/a_new_room.py", "", "import downwards only"),
    ],
)
def test_a_break_is_noticed(copy, module, line, contract):
    """A forbidden import, or a module without a place among the layers, breaks that contract."""
    with (copy / module).open("a") as file:
        file.write(f"\n{line}\n")
    outcome = lint_imports(copy)
    assert outcome.returncode == 1
    broken = [row for row in outcome.stdout.splitlines() if " BROKEN" in row]
    assert any(contract in row for row in broken), outcome.stdout[-2000:]
