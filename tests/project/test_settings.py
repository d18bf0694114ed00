"""The settings' page, the compose file and the program's own help tell of every setting."""

import subprocess
import sys

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
