"""What config.json may say, and how it is told what is wrong with it."""

import json
from pathlib import Path

import pytest

from desk_manager import config, folders
from desk_manager.errors import InvalidStrategy, UsageError


def folder(tmp_path: Path, text: str | None, name: str = "momentum") -> Path:
    made = tmp_path / name
    made.mkdir()
    (made / "strategy.py").write_text("pass\n")
    if text is not None:
        (made / "config.json").write_text(text)
    return made


def test_without_a_config_the_folder_is_the_user(tmp_path):
    """A folder with a strategy.py alone runs under its own name, with defaults."""
    found = config.load(folder(tmp_path, None))
    assert (found.user_id, found.symbols, found.stdin) == ("momentum", (), "stream")
    assert (found.resources.memory_bytes, found.resources.cpus, found.resources.pids) == (256 * 2**20, 0.5, 64)
    assert (found.restart.policy, found.restart.max_crashes, found.restart.window_s) == ("on-failure", 5, 600)


def test_everything_can_be_said(tmp_path):
    """Each key of the schema is read."""
    content = {
        "user_id": "Alice_1",
        "name": "Momentum",
        "description": "Buys what rises.",
        "version": "1.2",
        "env": {"LOOKBACK": "20"},
        "symbols": ["AAPL", "BTC/USD", "AAPL"],
        "stdin": "stream",
        "resources": {"memory": "512m", "cpus": 1, "pids": 32},
        "restart": {"policy": "no", "max_crashes": 3, "window_s": 60},
    }
    found = config.load(folder(tmp_path, json.dumps(content)))
    assert found.user_id == "Alice_1"
    assert found.env == {"LOOKBACK": "20"}
    assert found.symbols == ("AAPL", "BTC/USD")
    assert found.resources == config.Resources(512 * 2**20, 1.0, 32)
    assert found.restart.retries == 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "not sound JSON"),
        ("[]", "not a JSON object"),
        ('{"user_id": "a", "user_id": "b"}', "'user_id' stands there twice"),
        ('{"resources": {"cpus": NaN}}', "NaN is not JSON"),
        ('{"user": "alice"}', "user is not a known key"),
        ('{"symbol": ["AAPL"]}', "symbol is not a known key"),
        ('{"resources": {"mem": "1g"}}', "resources.mem is not a known key"),
        ('{"restart": {"retries": 1}}', "restart.retries is not a known key"),
        ('{"user_id": ""}', "user_id is ''"),
        ('{"user_id": "a/b"}', "user_id is 'a/b'"),
        ('{"user_id": 7}', "user_id is a number"),
        ('{"user_id": null}', "user_id is a null"),
        ('{"name": "' + "x" * 200 + '"}', "name is too long"),
        ('{"name": "a\\u001b[31m"}', "control characters"),
        ('{"stdin": "file"}', "stdin is 'file'"),
        ('{"symbols": "AAPL"}', "no list of strings"),
        ('{"symbols": ["aapl"]}', "symbols has 'aapl'"),
        ('{"symbols": ["A,B"]}', "symbols has 'A,B'"),
        ('{"env": ["A"]}', "env is a list"),
        ('{"env": {"A": 1}}', "env.A is a number"),
        ('{"env": {"A B": "1"}}', "env name 'A B'"),
        ('{"env": {"A": "x\\u0000"}}', "NUL"),
        ('{"resources": {"memory": "1m"}}', "resources.memory is '1m'"),
        ('{"resources": {"memory": "9999g"}}', "resources.memory is '9999g'"),
        ('{"resources": {"memory": "many"}}', "resources.memory is 'many'"),
        ('{"resources": {"memory": true}}', "resources.memory is True"),
        ('{"resources": {"memory": -5}}', "resources.memory is -5"),
        ('{"resources": {"cpus": 0}}', "resources.cpus is 0"),
        ('{"resources": {"cpus": "all"}}', "resources.cpus is 'all'"),
        ('{"resources": {"cpus": true}}', "resources.cpus is True"),
        ('{"resources": {"pids": 1.5}}', "resources.pids is 1.5"),
        ('{"resources": {"pids": 100000}}', "resources.pids is 100000"),
        ('{"resources": []}', "resources is a list"),
        ('{"restart": {"policy": "always"}}', "restart.policy is 'always'"),
        ('{"restart": {"max_crashes": 0}}', "restart.max_crashes is 0"),
        ('{"restart": {"window_s": 1}}', "restart.window_s is 1"),
        ('{"description": "' + "x" * 70_000 + '"}', "larger than 64 KiB"),
        ("[" * 5000, "not sound JSON"),
    ],
)
def test_every_mistake_is_told(tmp_path, text, told):
    """The message names the file, the key and the cause, and there is a next step."""
    with pytest.raises(InvalidStrategy) as refused:
        config.load(folder(tmp_path, text))
    assert told in refused.value.cause
    assert "config.json" in refused.value.cause
    assert refused.value.next_step


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ('{"userid": "a"}', "user_id"),
        ('{"symbol": []}', "symbols"),
        ('{"resources": {"cpu": 1}}', "resources.cpus"),
        ('{"resources": {"Memory": 1}}', "resources.memory"),
        ('{"restart": {"window": 60}}', "restart.window_s"),
    ],
)
def test_an_unknown_key_suggests_the_right_one(tmp_path, text, meant):
    """A slip of the pen is met with what was meant."""
    with pytest.raises(InvalidStrategy) as refused:
        config.load(folder(tmp_path, text))
    assert f"did you mean {meant}?" in refused.value.next_step


def test_a_config_that_is_not_text_is_told(tmp_path):
    """Bytes that are no UTF-8 end in a message."""
    made = folder(tmp_path, None)
    (made / "config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(InvalidStrategy, match="not sound JSON"):
        config.load(made)


def test_a_name_too_long_for_a_user_asks_for_a_config(tmp_path):
    """A folder may have a longer name than a user may."""
    with pytest.raises(InvalidStrategy) as refused:
        config.load(folder(tmp_path, None, "m" * 40))
    assert "set user_id" in refused.value.next_step


def test_the_same_name_from_two_places_is_refused(tmp_path):
    """Two folders of one name would be one container."""
    for parent in ("one", "two"):
        (tmp_path / parent).mkdir()
        folder(tmp_path / parent, None)
    with pytest.raises(UsageError, match="same name"):
        folders.choose([str(tmp_path / "one" / "momentum"), str(tmp_path / "two" / "momentum")], tmp_path)


def test_paths_names_and_whole_directories_can_be_chosen(tmp_path):
    """NAME, PATH, PATH/strategy.py and a directory of strategies all mean folders."""
    base = tmp_path / "strategies"
    base.mkdir()
    one, two = folder(base, None, "one"), folder(base, None, "two")
    (base / "readme.txt").touch()
    (base / ".hidden").mkdir()
    assert folders.choose([], base) == [one, two]
    assert folders.choose(["one"], base) == [one]
    assert folders.choose([f"{one}/"], base) == [one]
    assert folders.choose([f"{two}/strategy.py"], base) == [two]
    assert folders.choose([str(base)], tmp_path) == [one, two]
