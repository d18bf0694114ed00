"""The command itself, without an engine: words, exit codes, and what it says when things are missing."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.manager.ground import PROJECT, READS_LINES

NO_ENGINE = {"DOCKER_HOST": "unix:///nonexistent/docker.sock"}


def test_it_is_executable_and_finds_its_own_python():
    """Called by any Python, it turns to the project's virtual environment."""
    assert os.access(PROJECT / "strategy_manager.py", os.X_OK)
    bare = next(
        (path for path in ("/usr/bin/python3", "/usr/local/bin/python3") if Path(path).exists()), sys.executable
    )
    done = subprocess.run(
        [bare, PROJECT / "strategy_manager.py", "--help"], capture_output=True, text=True, check=False, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    for word in (
        "start",
        "stop",
        "restart",
        "status",
        "logs",
        "list",
        "validate",
        "new",
        "build",
        "watch",
        "verify-ledger",
        "exit codes",
    ):
        assert word in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["start", "--wrong"], ["logs"], ["logs", "x", "--tail", "-1"], ["--runtime", "x", "list"]],
)
def test_wrong_usage_is_exit_code_2(ground, arguments):
    """Scripts can tell a mistake of theirs from a failure of ours."""
    assert ground.manager(*arguments).returncode == 2


def test_no_engine_is_exit_code_4_and_says_what_to_do(ground):
    """Without an engine nothing pretends to run."""
    ground.write("alpha")
    for verb in ("start", "stop", "status", "watch"):
        done = ground.manager(verb, **NO_ENGINE)
        assert done.returncode == 4, done.stderr
        assert "no Docker engine answers at DOCKER_HOST=" in done.stderr and "Next:" in done.stderr


def test_no_desk_is_exit_code_3_and_says_what_to_do(ground):
    """A start without a desk names the address it tried."""
    ground.write("alpha")
    ground.desk.stop()
    done = ground.manager("start", "--runtime", "process")
    assert done.returncode == 3
    assert "no desk answers" in done.stderr and "python -m desk_server" in done.stderr


def test_a_wrong_admin_token_is_exit_code_3(ground):
    """The desk of another run directory does not take ours."""
    ground.write("alpha")
    (ground.run_dir / "admin.token").write_text("0" * 32)
    done = ground.manager("start", "--runtime", "process")
    assert done.returncode == 3
    assert "does not take the admin token" in done.stderr


def test_what_answers_but_is_no_desk_is_told(ground):
    """An address that something else serves."""
    ground.write("alpha")
    done = ground.manager("start", "--runtime", "process", DESK_SERVER_URL="http://127.0.0.1:1")
    assert done.returncode == 3


def test_nothing_to_start_is_told(ground):
    """An empty directory, and a missing one."""
    assert "there are no strategies" in ground.manager("start").stderr
    done = ground.manager("start", STRATEGIES_DIR="/nonexistent")
    assert done.returncode == 2 and "STRATEGIES_DIR" in done.stderr


def test_a_name_that_is_not_there_is_told(ground):
    """start, stop, logs and status of something unknown."""
    done = ground.manager("start", "nosuch", "--runtime", "process")
    assert done.returncode == 2 and "nosuch: there is no folder" in done.stderr
    done = ground.manager("stop", "nosuch", "--runtime", "process")
    assert done.returncode == 2 and "there is no strategy nosuch" in done.stderr
    assert ground.manager("status", "nosuch", "--runtime", "process").returncode == 2
    assert ground.manager("logs", "nosuch", "--runtime", "process").returncode == 2


def test_validate_reads_the_code(ground):
    """What Python cannot read is told with its line, before anything runs."""
    name = ground.write("typo", "import sys\nfor line in sys.stdin\n    pass\n", {"user_id": "alice"})
    done = ground.manager("validate", name)
    assert done.returncode == 2
    assert f"{name}: strategy.py, line 2: expected ':'" in done.stderr


def test_new_makes_a_folder_that_is_sound(ground):
    """The template passes its own validation, and is not overwritten."""
    name = ground.name("mine")
    assert ground.manager("new", name).returncode == 0
    assert ground.manager("validate", name).stdout.startswith(f"{name}: sound (user {name})")
    done = ground.manager("new", name)
    assert done.returncode == 2 and "there already" in done.stderr


def test_list_shows_sound_and_refused_folders(ground):
    """One line each, with the reason of a refusal."""
    ground.write("good", READS_LINES, {"user_id": "alice", "symbols": ["AAPL"], "description": "Buys low."})
    ground.write("bad", READS_LINES, {"usr_id": "x"})
    shown = ground.manager("list").stdout
    assert "alice" in shown and "AAPL" in shown and "Buys low." in shown
    assert "refused:" in shown and "usr_id is not a known key" in shown


def test_status_without_anything_running_lists_the_folders(ground):
    """JSON for programs, with what could be started."""
    name = ground.write("alpha", READS_LINES, {"user_id": "alice"})
    content = json.loads(ground.manager("status", "--json", "--runtime", "process").stdout)
    assert [(row["strategy"], row["user"], row["state"]) for row in content["strategies"]] == [
        (name, "alice", "not deployed")
    ]
    assert content["sandboxed"] is False


def test_verify_ledger_has_the_server_check_its_ledger(ground):
    """Sound, changed or absent: the exit code and the words are the server's."""
    missing = ground.manager("verify-ledger")
    assert missing.returncode == 1 and "there is no ledger at" in missing.stderr
    path = ground.run_dir / "ledger" / "desk.db"
    path.parent.mkdir(parents=True)
    shutil.copyfile(PROJECT / "tests" / "ledger" / "fixtures" / "version1.db", path)
    sound = ground.manager("verify-ledger")
    assert sound.returncode == 0, sound.stderr
    mark = re.search(r"24 events, the last one is (24:[0-9a-f]{64}), all as they were written", sound.stdout)[1]
    assert ground.manager("verify-ledger", "--expect", mark).returncode == 0
    assert ground.manager("verify-ledger", "--expect", f"25:{mark[3:]}").returncode == 1
    assert ground.manager("verify-ledger", "--expect", "24").returncode == 2
    path.write_bytes(path.read_bytes().replace(b'"145.10"', b'"145.11"'))
    changed = ground.manager("verify-ledger")
    assert changed.returncode == 1 and "is not what was written" in changed.stderr
