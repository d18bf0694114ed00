"""docker-compose.yml: the server in a cage, in compose 1.29 and 2."""

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "deploy"))

from compose_settings import with_settings  # noqa: E402


def compose_commands() -> list[list[str]]:
    found = []
    if shutil.which("docker-compose"):
        found.append(["docker-compose"])
    if shutil.which("docker"):
        plugin = subprocess.run(["docker", "compose", "version"], check=False, capture_output=True)
        if plugin.returncode == 0:
            found.append(["docker", "compose"])
    return found


def test_every_setting_of_the_server_is_passed_on():
    """A setting that compose does not name would keep its default (to heal: deploy/compose_settings.py)."""
    text = (PROJECT / "docker-compose.yml").read_text()
    assert with_settings(text) == text


def test_the_settings_block_is_kept_when_rewritten():
    """Rewriting the block twice changes nothing more, and a name missing from it comes back."""
    text = (PROJECT / "docker-compose.yml").read_text()
    without = text.replace("      - DESK_FEED\n", "")
    assert without != text
    assert with_settings(without) == text


@pytest.mark.docker
def test_compose_accepts_the_file_and_keeps_the_cage():
    """Whichever compose is here: no root, read-only, no capabilities, no Docker socket."""
    commands = compose_commands()
    assert commands, "no docker compose here; Debian/Ubuntu: apt-get install docker-compose"
    for command in commands:
        outcome = subprocess.run(
            [*command, "config"], cwd=PROJECT, check=False, capture_output=True, text=True, timeout=30
        )
        assert outcome.returncode == 0, outcome.stderr
        shown = outcome.stdout
        for part in ["user: 10001:20000", "read_only: true", "- ALL", "no-new-privileges:true", "/healthz"]:
            assert part in shown, (command, part)
        assert "docker.sock" not in shown
        assert "privileged: true" not in shown


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def server(tmp_path):
    """`make up` with a run directory, ports and names of its own; yields (settings, container)."""
    name = f"desk-server-test-{tmp_path.name.replace('_', '-')}-{free_port()}"
    settings = {
        "COMPOSE_PROJECT_NAME": name,
        "DESK_SERVER_CONTAINER": name,
        "DESK_HOST_RUN_DIR": str(tmp_path / "run"),
        "PORT": str(free_port()),
        "GRPC_PORT": str(free_port()),
        "DESK_FEED": "walk",
    }
    environment = {**os.environ, **settings}
    script = PROJECT / "deploy" / "compose.sh"
    subprocess.run(
        [PROJECT / "deploy" / "build-images.sh", "server"], check=True, capture_output=True, timeout=600
    )
    try:
        outcome = subprocess.run(
            [script, "up"], check=False, capture_output=True, text=True, env=environment, timeout=110
        )
        assert outcome.returncode == 0, outcome.stdout + outcome.stderr
        yield settings, name
    finally:
        subprocess.run([script, "down"], check=False, capture_output=True, env=environment, timeout=60)


@pytest.mark.docker
def test_the_server_answers_from_its_cage(server, tmp_path):
    """With compose's flags and an empty run directory the server is healthy; sockets and token appear."""
    settings, container = server
    with urllib.request.urlopen(f"http://127.0.0.1:{settings['PORT']}/healthz", timeout=5) as answer:
        assert answer.status == 200
    host = json.loads(subprocess.check_output(["docker", "inspect", container]))[0]["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert not host["Privileged"]
    assert host["CapDrop"] == ["ALL"]
    run_dir = tmp_path / "run"
    assert (run_dir / "desk" / "desk.sock").is_socket()
    assert (run_dir / "desk" / "desk-grpc.sock").is_socket()
    assert stat.S_IMODE((run_dir / "desk").stat().st_mode) == 0o750
    assert (run_dir / "desk").stat().st_gid == 20000
    assert stat.S_IMODE((run_dir / "admin.token").stat().st_mode) == 0o600
    assert (run_dir / "ledger" / "desk.db").stat().st_uid == 10001
