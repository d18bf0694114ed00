"""The settings' page, the compose file and the program's own help tell of every setting."""

import os
import re
import signal
import subprocess
import sys

from desk_server.__main__ import NOT_OURS
from desk_server.settings import Settings, page, table
from tests.conftest import PROJECT


def test_the_page_of_settings_is_what_the_code_says():
    """docs/settings.md is made again after a change: python -m desk_server settings > docs/settings.md"""
    assert (PROJECT / "docs" / "settings.md").read_text() == page()


def test_every_setting_has_a_meaning_and_stands_in_the_help():
    """A setting without a sentence is no setting."""
    shown = subprocess.run(
        [sys.executable, "-m", "desk_server", "--help"], capture_output=True, text=True, check=True, cwd=PROJECT
    ).stdout
    assert len(table()) == len(Settings.model_fields)
    for name, _, meaning in table():
        assert meaning.endswith("."), name
        assert name in shown


def test_a_wrong_setting_is_refused_at_start_with_its_name(tmp_path):
    """Exit code 2, the variable, and what is wrong with it; never a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "desk_server"],
        env={"PORT": "many", "DESK_RUN_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        cwd=PROJECT,
    )
    assert done.returncode == 2
    assert "PORT" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_tape_is_said_and_not_thrown(tmp_path):
    """A desk that cannot be built says why in one line."""
    done = subprocess.run(
        [sys.executable, "-m", "desk_server"],
        env={"DESK_FEED": "replay", "DESK_REPLAY_FILE": "/no/such.tape", "DESK_RUN_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        cwd=PROJECT,
    )
    assert done.returncode == 1
    assert "/no/such.tape" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_misspelt_setting_is_warned_of(tmp_path):
    """A limit that is not set because of a typing error is told at start, with the right name."""
    ours = {"DESK_RUN_DIR": str(tmp_path), "PORT": "0", "GRPC_PORT": "0", "DESK_LOG_FORMAT": "json"}
    env = {name: value for name, value in os.environ.items() if not name.startswith("DESK_")}
    with subprocess.Popen(
        [sys.executable, "-m", "desk_server"],
        env=env | ours | {"DESK_NOTIONAL_USD_MX": "100", "DESK_RUNTIME": "docker"},
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as server:
        lines = []
        for line in server.stdout:
            lines.append(line)
            if '"listening"' in line:
                server.send_signal(signal.SIGTERM)
    warned = [line for line in lines if "unknown setting" in line]
    assert len(warned) == 1, lines
    assert "DESK_NOTIONAL_USD_MX" in warned[0] and '"DESK_NOTIONAL_USD_MAX"' in warned[0]


def test_what_the_other_parts_read_is_known():
    """No setting of the client, the manager or the scripts is warned of."""
    places = ("desk_client/*.py", "desk_manager/**/*.py", "deploy/*.sh", "docker-compose.yml", ".ci/*")
    text = "".join(path.read_text() for place in places for path in PROJECT.glob(place) if path.is_file())
    read = set(re.findall(r"\bDESK_[A-Z][A-Z_]*[A-Z]\b", text))
    assert read - {name for name, _, _ in table()} - NOT_OURS == set()
