"""`make` alone lists the targets, and each of them is wired to something that exists."""

import re
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
MAKEFILE = (PROJECT / "Makefile").read_text()
TARGETS = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split()


def make(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["make", *arguments], cwd=PROJECT, check=False, capture_output=True, text=True, timeout=30
    )


def test_make_alone_lists_every_target():
    """Every target appears with a line of help when none is named."""
    listing = make()
    assert listing.returncode == 0, listing.stderr
    listed = re.findall(r"^  make ([a-z-]+) +\S", listing.stdout, re.MULTILINE)
    assert sorted(listed) == sorted(TARGETS)


def test_no_target_is_missing_from_phony():
    """A target of the Makefile is either listed for people or a file's path."""
    defined = re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE)
    assert sorted(defined) == sorted(TARGETS)


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_is_wired(target):
    """make can plan each target, and the scripts it would call are there."""
    plan = make("--dry-run", target)
    assert plan.returncode == 0, plan.stderr
    for script in re.findall(r"deploy/[\w.-]+", plan.stdout):
        assert (PROJECT / script).is_file(), script


def test_the_demos_seconds_are_handed_on():
    """`make demo SECONDS=20` reaches the demo; without it nothing is handed on."""
    assert "deploy/demo.sh --seconds 20" in make("--dry-run", "demo", "SECONDS=20").stdout
    assert "--seconds" not in make("--dry-run", "demo").stdout
