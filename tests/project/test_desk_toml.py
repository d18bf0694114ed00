"""desk.toml: whose account at the broker is whose."""

import pytest

from desk_server.desk_toml import BadConfig, account_ids

A, B = "3dcb795c-3ccc-402a-abb9-07e26a1b1326", "927b7d90-9ac8-4a6d-a0a5-59e3b0b4a1a1"


def test_each_user_has_an_account(tmp_path):
    """As the file says it, in any spelling of a UUID."""
    file = tmp_path / "desk.toml"
    file.write_text(f'[users.alice]\nalpaca_account_id = "{A.upper()}"\n[users.bob]\nalpaca_account_id = "{B}"\n')
    assert account_ids(file) == {"alice": A, "bob": B}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "names no user"),
        ("users = 3", "names no user"),
        ("[users.alice", "cannot be read"),
        ("[limits]\na = 1\n", "limits is not known"),
        ("[users.alice]\n", "alpaca_account_id"),
        (f'[users.alice]\nalpaca_account_id = "{A}"\nlimit = 3\n', "nothing else is known"),
        ("[users.alice]\nalpaca_account_id = 5\n", "it is a UUID"),
        ('[users.alice]\nalpaca_account_id = "abc"\n', "it is a UUID"),
        (f'[users."al ice"]\nalpaca_account_id = "{A}"\n', "is named by"),
        (f'[users.alice]\nalpaca_account_id = "{A}"\n[users.bob]\nalpaca_account_id = "{A}"\n', "same account"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_place(tmp_path, text, what):
    """The message names the file and what is wrong there."""
    file = tmp_path / "desk.toml"
    file.write_text(text)
    with pytest.raises(BadConfig, match=what) as refused:
        account_ids(file)
    assert str(file) in str(refused.value)


def test_a_missing_file_is_named(tmp_path):
    """Also where there is none."""
    with pytest.raises(BadConfig, match="no-such"):
        account_ids(tmp_path / "no-such.toml")
