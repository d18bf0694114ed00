"""What is committed names no package registry, and its scripts are sound."""

import re
import stat
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
# Joined here, so that this file itself names none of them.
REGISTRIES = [
    ".".join(parts)
    for parts in [
        ("pypi", "org"),
        ("python" + "hosted", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("yarnpkg", "com"),
        ("debian", "org"),
        ("archive", "ubuntu", "com"),
        ("security", "ubuntu", "com"),
        ("ports", "ubuntu", "com"),
        ("registry-1", "docker", "io"),
        ("hub", "docker", "com"),
        ("index", "docker", "io"),
        ("proxy", "golang", "org"),
    ]
]
INDEX_OPTION = re.compile(r"^\s*(--)?(extra-)?index-url\b|^\s*--find-links\s+\S*://", re.MULTILINE)


def tracked() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=PROJECT, check=True, capture_output=True, text=True
    )
    return [PROJECT / name for name in listing.stdout.split("\0") if name and (PROJECT / name).is_file()]


def texts() -> list[tuple[Path, str]]:
    found = []
    for file in tracked():
        content = file.read_bytes()
        if b"\0" not in content:
            found.append((file, content.decode()))
    return found


def shell_scripts() -> list[Path]:
    return [file for file, text in texts() if re.match(r"#!.*\b(ba)?sh\b", text)]


def test_no_package_registry_is_named():
    """Where packages come from is the machine's business: no registry's host stands in a committed file."""
    files = texts()
    assert len(files) > 20
    named = [
        f"{file.relative_to(PROJECT)}: {host}" for file, text in files for host in REGISTRIES if host in text
    ]
    assert named == []


def test_no_list_of_dependencies_chooses_an_index():
    """A list of requirements, or the project's settings, never points pip elsewhere."""
    lists = [file for file in tracked() if file.suffix in {".txt", ".toml", ".cfg", ".in"}]
    assert PROJECT / "constraints.txt" in lists
    assert [file.name for file in lists if INDEX_OPTION.search(file.read_text())] == []


def test_nothing_bulky_is_committed():
    """The clone stays small: no file above 4 MiB."""
    assert [(file.name, size) for file in tracked() if (size := file.stat().st_size) > 4 * 2**20] == []


@pytest.mark.parametrize("script", shell_scripts(), ids=lambda path: str(path.relative_to(PROJECT)))
def test_shell_scripts_parse_stop_at_errors_and_can_be_run(script):
    """Each script is executable, ASCII, sets its error handling and is accepted by bash."""
    text = script.read_text()
    assert script.stat().st_mode & stat.S_IXUSR
    assert text.isascii()
    assert re.search(r"^set -e?uo pipefail$", text, re.MULTILINE)
    subprocess.run(["bash", "-n", script], check=True)
