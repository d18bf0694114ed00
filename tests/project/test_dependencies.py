"""What pyproject.toml asks for is pinned, with hashes, and the images install the same versions."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parents[2]
LISTS = ["constraints.txt", "deploy/server-requirements.txt", "deploy/strategy-requirements.txt"]


def pins(list_file: str) -> dict[str, str]:
    """name → version; fails on a line that is neither a pin with hashes nor a comment."""
    found = {}
    text = (PROJECT / list_file).read_text()
    for line in text.replace("\\\n", " ").splitlines():
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        pin = re.fullmatch(r"(\S+?)==(\S+)( +; [^#]*?)?((?: +--hash=sha256:[0-9a-f]{64})+)", entry)
        assert pin, f"{list_file}: not a pin with hashes: {entry[:100]}"
        found[canonicalize_name(pin[1])] = pin[2]
    return found


def asked_for() -> list[Requirement]:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return [
        Requirement(line)
        for line in project["dependencies"] + [r for extra in extras.values() for r in extra]
    ]


@pytest.mark.parametrize("requirement", asked_for(), ids=str)
def test_every_dependency_is_pinned_to_a_version_that_it_allows(requirement):
    """constraints.txt answers every line of pyproject.toml (else: make lock)."""
    version = pins("constraints.txt").get(canonicalize_name(requirement.name))
    assert version is not None, f"{requirement.name} is not in constraints.txt; run: make lock"
    assert requirement.specifier.contains(version), f"{requirement} is pinned to {version}; run: make lock"


@pytest.mark.parametrize("list_file", LISTS[1:])
def test_the_images_install_what_is_tested(list_file):
    """Every pin of an image's list is the one in constraints.txt."""
    tested = pins("constraints.txt")
    image = pins(list_file)
    assert image
    assert {name: tested.get(name) for name in image} == image


def test_the_strategy_image_is_lean():
    """Strategies get protobuf, numpy and pandas with what these need, and nothing else."""
    assert set(pins("deploy/strategy-requirements.txt")) == {
        "numpy",
        "pandas",
        "protobuf",
        "python-dateutil",
        "six",
    }


@pytest.mark.parametrize("list_file", LISTS)
def test_installing_builds_nothing(list_file):
    """No list names a file, a repository or an option: only pins."""
    assert pins(list_file)


def test_the_environment_is_the_pinned_one():
    """What runs these tests is what constraints.txt says (else: make install)."""
    installed = {name: importlib.metadata.version(name) for name in pins("constraints.txt")}
    assert installed == pins("constraints.txt")
