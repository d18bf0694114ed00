"""What the documents say is so: links lead somewhere, commands exist, and the README's strategy trades."""

import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
DOCUMENTS = [PROJECT / "README.md", PROJECT / "CHANGELOG.md", *sorted((PROJECT / "docs").glob("**/*.md"))]


def each_document():
    return pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(PROJECT)))


@each_document()
def test_links_lead_to_files(document):
    """Every relative link of a document names a file or folder of the project."""
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text())
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert [link for link in local if not (document.parent / link).exists()] == []


@each_document()
def test_make_targets_exist(document):
    """Every `make something` in a document is a target of the Makefile."""
    targets = re.search(r"^\.PHONY: (.*)$", (PROJECT / "Makefile").read_text(), re.MULTILINE)[1].split()
    command = re.compile(r"(?:^|`)(?:[A-Z_]+=\S+ )*make ([a-z][a-z-]*)", re.MULTILINE)
    named = set(command.findall(document.read_text()))
    assert named - set(targets) == set()


@each_document()
def test_files_named_in_code_spans_exist(document):
    """A script or source file that a document names by its path is there."""
    spans = re.findall(r"`((?:deploy|desk_\w+|proto|tests|benchmarks)/[\w./-]+)", document.read_text())
    assert [span for span in spans if not (PROJECT / span.rstrip(".")).exists()] == []


def test_the_readme_lists_every_page():
    """Whoever reads the README finds every page of docs/."""
    linked = set(re.findall(r"\]\(docs/([\w.-]+)\)", (PROJECT / "README.md").read_text()))
    assert linked == {path.name for path in (PROJECT / "docs").glob("*.md")}


def until_ready(server: subprocess.Popen, url: str) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/readyz", timeout=1).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    pytest.fail(f"the desk at {url} did not become ready")


@pytest.fixture
def desk_url(tmp_path, unused_tcp_port_factory):
    """A desk as the README starts it: paper exchange, random walk, X-User-ID believed."""
    port = unused_tcp_port_factory()
    settings = {
        "DESK_RUN_DIR": str(tmp_path / "run"),
        "PORT": str(port),
        "GRPC_PORT": str(unused_tcp_port_factory()),
        "DESK_TRUST_USER_HEADER": "1",
        "DESK_FEED": "walk",
    }
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "desk_server"],
            cwd=PROJECT,
            env={**os.environ, **settings},
            stderr=log,
            stdout=log,
        )
    try:
        until_ready(server, f"http://127.0.0.1:{port}")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=20)


def test_the_readmes_strategy_trades(tmp_path, desk_url):
    """The ten lines of the README, fed one line on a pipe, buy one share."""
    code = re.search(r"```python\n(.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)[1]
    strategy = tmp_path / "strategy.py"
    strategy.write_text(code)
    environment = {"DESK_SERVER_URL": desk_url, "USER_ID": "alice", "PATH": os.environ["PATH"]}
    outcome = subprocess.run(
        [sys.executable, strategy],
        input='{"symbol": "AAPL", "price": 140}\n',
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert outcome.returncode == 0, outcome.stderr
    assert re.fullmatch(r"success \S+ the broker has the order\n", outcome.stdout)
