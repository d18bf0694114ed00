"""The generated code is what the .proto files give, and the check of it notices when it is not."""

import shutil
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]


def check(project: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [project / "deploy" / "proto.sh", "--check"], check=False, capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def copy(tmp_path):
    """The contract and its generator, elsewhere."""
    shutil.copytree(PROJECT / "proto", tmp_path / "proto")
    (tmp_path / "deploy").mkdir()
    shutil.copy(PROJECT / "deploy" / "proto.sh", tmp_path / "deploy")
    (tmp_path / ".venv").symlink_to(PROJECT / ".venv")
    return tmp_path


def test_the_committed_code_is_what_the_proto_files_give():
    """No drift: `make proto` would change nothing."""
    outcome = check(PROJECT)
    assert outcome.returncode == 0, outcome.stdout[-2000:] + outcome.stderr[-2000:]


def test_a_field_added_to_a_proto_file_alone_is_noticed(copy):
    """The check fails, shows the difference and says what to run; regenerating heals it."""
    orders = copy / "proto" / "desk" / "v1" / "orders.proto"
    orders.write_text(
        orders.read_text().replace("string stop_price = 7;", "string stop_price = 7;\n  string zz = 99;", 1)
    )
    outcome = check(copy)
    assert outcome.returncode == 1
    assert "zz" in outcome.stdout
    assert "make proto" in outcome.stderr
    subprocess.run([copy / "deploy" / "proto.sh"], check=True, capture_output=True, timeout=60)
    assert check(copy).returncode == 0


def test_a_leftover_of_a_removed_proto_file_is_noticed(copy):
    """Generated code that no .proto file stands behind any more fails the check."""
    (copy / "proto" / "desk" / "v1" / "old_pb2.py").write_text("# was generated once\n")
    assert check(copy).returncode == 1
