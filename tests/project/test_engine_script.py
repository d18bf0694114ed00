"""deploy/engine.sh: finds an engine, starts one at most once, and says what to do where it cannot.

The tests give it a world of its own (/proc, /run, /var/log, and stand-ins for docker and dockerd on PATH), so
that no engine of this machine is touched.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ENGINE = Path(__file__).resolve().parents[2] / "deploy" / "engine.sh"
can_unshare = (
    os.geteuid() == 0
    and shutil.which("unshare")
    and subprocess.run(
        ["unshare", "-pfm", "--mount-proc", "true"], check=False, capture_output=True
    ).returncode
    == 0
)
needs_own_world = pytest.mark.skipif(not can_unshare, reason="needs root and the right to make namespaces")

# Answers once /run/answers is there; says a version when asked for one.
DOCKER = """#!/bin/sh
[ -e /run/answers ] || exit 1
[ "$1" != version ] || echo 99.0
"""
DOCKERD_STARTS = """#!/bin/bash
echo started >>/run/starts
sleep 0.3
touch /run/answers
sleep 60
"""
DOCKERD_FAILS = """#!/bin/bash
echo 'failed to start daemon: mounting is not permitted'
exit 1
"""
DOCKERD_HANGS = """#!/bin/bash
echo started >>/run/starts
sleep 60
"""


@pytest.fixture
def path(tmp_path):
    """A folder for stand-ins that comes first on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def put(name: str, content: str) -> None:
        (folder / name).write_text(content)
        (folder / name).chmod(0o755)

    put("docker", DOCKER)
    put.folder = folder
    return put


def run(path, script: str, **settings: str) -> subprocess.CompletedProcess:
    environment = {"PATH": f"{path.folder}:{os.environ['PATH']}", "HOME": "/tmp", **settings}
    world = f"mount -t tmpfs none /run && mount -t tmpfs none /var/log && {{ {script}\n}}"
    return subprocess.run(
        ["unshare", "-pfm", "--mount-proc", "bash", "-c", world],
        check=False, capture_output=True, text=True, timeout=60, env=environment,
    )  # fmt: skip


def test_an_engine_can_be_declined():
    """ENGINE=none exits 3, whatever is installed."""
    outcome = subprocess.run(
        [ENGINE], check=False, capture_output=True, text=True, env={**os.environ, "ENGINE": "none"}
    )
    assert outcome.returncode == 3
    assert "ENGINE=none" in outcome.stdout


@needs_own_world
def test_a_dockerd_is_started_once_and_then_found(path):
    """Without an engine dockerd is started and awaited; the second call finds it."""
    path("dockerd", DOCKERD_STARTS)
    outcome = run(path, f"{ENGINE} && {ENGINE} && cat /run/starts")
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.count("Docker 99.0 answers.") == 2
    assert outcome.stdout.count("started\n") == 1


@needs_own_world
def test_what_a_killed_dockerd_left_is_no_obstacle(path):
    """Its number may be another process's by now, which dockerd would take for itself and give up."""
    path("dockerd", '#!/bin/bash\n[ -e /run/docker.pid ] && { echo "pid file found"; exit 1; }\n' + DOCKERD_STARTS[12:])
    leave = "mkdir -p /run/docker/containerd; echo $$ >/run/docker.pid; echo $$ >/run/docker/containerd/containerd.pid"
    outcome = run(path, f"{leave}; {ENGINE} && ls /run/docker/containerd && echo end")
    assert outcome.returncode == 0, outcome.stderr
    assert "answers.\nend" in outcome.stdout


@needs_own_world
def test_two_calls_at_once_start_one_dockerd(path):
    """The second of two concurrent calls waits for what the first one starts."""
    path("dockerd", DOCKERD_STARTS)
    outcome = run(path, f"{ENGINE} & first=$!; {ENGINE} & wait $first && wait $! && cat /run/starts")
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.count("Docker 99.0 answers.") == 2
    assert outcome.stdout.count("started\n") == 1


@needs_own_world
def test_a_dockerd_that_cannot_start_is_reported_with_its_last_words(path):
    """Exit 5, with the end of dockerd's log."""
    path("dockerd", DOCKERD_FAILS)
    outcome = run(path, str(ENGINE))
    assert outcome.returncode == 5
    assert "mounting is not permitted" in outcome.stderr


@needs_own_world
def test_a_dockerd_that_runs_but_does_not_answer_is_left_alone(path):
    """Exit 5 after waiting; no second dockerd is started beside it."""
    path("dockerd", DOCKERD_HANGS)
    outcome = run(
        path, f"dockerd & sleep 0.2; {ENGINE}; code=$?; cat /run/starts; exit $code", DESK_ENGINE_WAIT_S="2"
    )
    assert outcome.returncode == 5
    assert "has not answered for 2 s" in outcome.stderr
    assert outcome.stdout.count("started\n") == 1


@needs_own_world
@pytest.mark.parametrize(
    ("user", "settings", "code", "says"),
    [
        ("1000", {}, 4, "usermod -aG docker"),
        ("0", {"DOCKER_HOST": "tcp://127.0.0.1:1"}, 4, "DOCKER_HOST=tcp://127.0.0.1:1 does not answer"),
        ("0", {"ENGINE": "found"}, 3, "ENGINE=found allows none to be installed"),
    ],
)
def test_where_it_may_not_start_one_it_says_what_to_do(path, user, settings, code, says):
    """Not root, a foreign engine, or not wanted: a message with the next step, and a code of its own."""
    path("id", f'#!/bin/sh\n[ "$1" = -un ] && echo alice || echo {user}\n')
    path("dockerd", DOCKERD_STARTS)
    outcome = run(path, f"{ENGINE}; code=$?; cat /run/starts 2>/dev/null; exit $code", **settings)
    assert outcome.returncode == code
    assert says in outcome.stderr
    assert "started" not in outcome.stdout
