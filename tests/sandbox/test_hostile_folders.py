"""Folders that are traps: each is refused before anything runs, with a message that says what and why."""

import json
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from desk_manager import staging
from desk_manager.errors import InvalidStrategy
from tests.manager.ground import READS_LINES


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "strategies" / "evil"
    made.mkdir(parents=True)
    (made / "strategy.py").write_text(READS_LINES)
    return made


def refusal(folder: Path, tmp_path: Path) -> str:
    """Why it is refused; and nothing of it is left behind."""
    staged = tmp_path / "staged"
    with pytest.raises(InvalidStrategy) as refused:
        staging.stage(folder, staged)
    assert list(staged.iterdir()) == []
    assert refused.value.next_step
    return refused.value.cause


def test_a_folder_that_is_a_link_is_refused(tmp_path):
    """strategies/evil → /etc is not followed."""
    evil = tmp_path / "evil"
    evil.symlink_to("/etc")
    assert "is a symbolic link" in refusal(evil, tmp_path)


@pytest.mark.parametrize("name", ["strategy.py", "data", "config.json"])
def test_a_link_inside_is_refused(folder, tmp_path, name):
    """Neither a file nor a directory may be a link, wherever it leads."""
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("/etc/shadow" if "." in name else "/etc")
    assert f"evil/{name} is a symbolic link" in refusal(folder, tmp_path)


def test_a_hard_link_is_refused(folder, tmp_path):
    """A second name of somebody's file would be read with our rights."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    os.link(secret, folder / "data.txt")
    assert "data.txt is a hard link" in refusal(folder, tmp_path)


def test_pipes_sockets_and_devices_are_refused_without_waiting(folder, tmp_path):
    """Opening a pipe that nobody writes to would wait for ever."""
    os.mkfifo(folder / "pipe")
    assert "pipe is a named pipe" in refusal(folder, tmp_path)
    (folder / "pipe").unlink()
    here = os.getcwd()
    os.chdir(folder)
    try:
        with socket.socket(socket.AF_UNIX) as link:
            link.bind("door")
    finally:
        os.chdir(here)
    assert "door is a socket" in refusal(folder, tmp_path)


def test_ten_thousand_files_are_refused(folder, tmp_path):
    """Counting stops at the limit."""
    for number in range(10_000):
        (folder / f"f{number}").touch()
    assert "more than 1,000 files" in refusal(folder, tmp_path)


def test_a_large_folder_is_refused(folder, tmp_path):
    """Its size counts, however it is divided."""
    for number in range(3):
        with open(folder / f"data{number}", "wb") as file:
            file.truncate(30 * 2**20)
    assert "larger than 64 MiB" in refusal(folder, tmp_path)


def test_a_deep_folder_is_refused(folder, tmp_path):
    """Nesting has an end."""
    (folder / "/".join("abcdefghijk")).mkdir(parents=True)
    assert "8 folders deep" in refusal(folder, tmp_path)


@pytest.mark.parametrize("name", [b"new\nline", b"\x1b[31mred", b"back\\slash", b"\xff\xfe", b"x" * 200])
def test_odd_names_are_refused(folder, tmp_path, name):
    """Names that a terminal or a path would take for something else."""
    Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).touch()
    cause = refusal(folder, tmp_path)
    assert "odd name" in cause
    assert cause.isprintable()


@pytest.mark.parametrize("name", ["UPPER", "a b", "-rf", "x" * 64, "semi;colon", "a\nb", "é"])
def test_no_command_takes_an_odd_strategy_name(ground, name):
    """Traversal, options and shell characters are refused as names, for every verb."""
    for verb in ("start", "stop", "logs"):
        done = ground.manager(verb, "--", name)
        assert done.returncode == 2, (verb, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr


def test_a_name_cannot_lead_out_of_the_directory(ground):
    """new ../../x makes nothing anywhere."""
    for name in ("../x", "../../x", "/tmp/x", ".."):
        done = ground.manager("new", name)
        assert done.returncode == 2
        assert "cannot be a strategy's name" in done.stderr


@pytest.mark.parametrize(
    "name", ["PATH", "LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONSTARTUP", "DESK_TOKEN", "DESK_SERVER_URL",
             "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "USER_ID", "HOME", "BASH_ENV", "GCONV_PATH", "ld_preload"]
)  # fmt: skip
def test_reserved_environment_names_are_refused(ground, name):
    """None of the names that steer a process, its interpreter or its desk can be set by config.json."""
    strategy = ground.write("evil", READS_LINES, {"env": {name: "x"}})
    done = ground.manager("validate", strategy)
    assert done.returncode == 2
    assert f"env.{name} is reserved" in done.stderr and strategy in done.stderr and "Next:" in done.stderr


def test_a_config_that_is_a_link_or_a_pipe_is_refused(ground):
    """config.json is read without following links and without waiting."""
    strategy = ground.write("evil")
    path = ground.strategies / strategy / "config.json"
    path.symlink_to("/etc/shadow")
    assert ground.manager("validate", strategy).returncode == 2
    path.unlink()
    os.mkfifo(path)
    assert "no regular file" in ground.manager("validate", strategy, timeout_s=20).stderr


def test_one_bad_folder_does_not_keep_the_others_from_starting(ground):
    """Each refusal stands beside the strategy's name; the rest goes on."""
    ground.write("good")
    ground.write("bad", READS_LINES, {"user": "alice"})
    (ground.strategies / ground.name("linked")).symlink_to("/etc")
    done = ground.manager("validate")
    assert done.returncode == 2
    assert f"{ground.name('good')}: sound" in done.stdout
    assert "did you mean user_id" in done.stderr
    assert "is a symbolic link" in done.stderr


def test_what_is_staged_is_what_was_hashed(folder, tmp_path):
    """The copy is read-only, holds the same bytes, and its name is its content."""
    (folder / "data").mkdir()
    (folder / "data" / "prices.json").write_text(json.dumps([1, 2, 3]))
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "x.pyc").write_bytes(b"junk")
    staged = staging.stage(folder, tmp_path / "staged")
    assert staged.directory.name == staged.code_hash == staging.check(folder)
    assert sorted(path.name for path in staged.directory.rglob("*")) == ["data", "prices.json", "strategy.py"]
    modes = {oct(path.stat().st_mode & 0o777) for path in staged.directory.rglob("*")}
    assert modes == {"0o444", "0o555"}


def test_the_same_content_staged_by_many_at_once_is_one_copy(tmp_path):
    """Thirty strategies may start from the same code at the same moment."""
    for number in range(30):
        made = tmp_path / f"s{number}"
        made.mkdir()
        (made / "strategy.py").write_text(READS_LINES)
    with ThreadPoolExecutor(30) as pool:
        copies = list(pool.map(lambda number: staging.stage(tmp_path / f"s{number}", tmp_path / "staged"), range(30)))
    assert len({copy.directory for copy in copies}) == 1
    assert [path.name for path in (tmp_path / "staged").iterdir()] == [copies[0].code_hash]


def test_a_staged_copy_that_was_tampered_with_is_made_anew(folder, tmp_path):
    """Its name alone is not believed."""
    staged = staging.stage(folder, tmp_path / "staged")
    target = staged.directory / "strategy.py"
    target.chmod(0o644)
    target.write_text("print('other')")
    again = staging.stage(folder, tmp_path / "staged")
    assert again.code_hash == staged.code_hash
    assert target.read_text() == READS_LINES
