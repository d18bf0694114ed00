"""The two images: small, without rights, and able to run read-only, without network, as any user."""

import json
import os
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
STRATEGY = os.environ.get("DOCKER_IMAGE", "desk-strategy:latest")
SERVER = "desk-server:latest"
HARDENED = [
    "--rm", "--network=none", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges",
    "--tmpfs=/tmp:noexec,nosuid,nodev,size=16m", "--pids-limit=64", "--memory=256m", "--memory-swap=256m",
]  # fmt: skip

pytestmark = pytest.mark.docker


def docker(*arguments: str) -> str:
    outcome = subprocess.run(["docker", *arguments], check=False, capture_output=True, text=True, timeout=60)
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout.strip()


def python(image: str, user: str, code: str) -> str:
    return docker("run", *HARDENED, f"--user={user}", "--entrypoint=python3", image, "-I", "-c", code)


def config(image: str) -> dict:
    return json.loads(docker("image", "inspect", image))[0]


@pytest.fixture(scope="module", autouse=True)
def images():
    """Built by the project's own script, which does nothing where they are up to date."""
    subprocess.run([PROJECT / "deploy" / "build-images.sh"], check=True, capture_output=True, timeout=600)


def test_a_strategy_can_compute_in_its_cage():
    """numpy, pandas with time zones and the contract work read-only and offline, as any user."""
    code = (
        "import desk_client, desk.v1.orders_pb2, numpy, pandas, os;"
        "at = pandas.Timestamp('2026-01-02T14:30:00Z').tz_convert('America/New_York');"
        "mean = pandas.Series([1, 2, 4]).rolling(2).mean().sum();"
        "print(os.getuid(), at.hour, mean, numpy.linalg.inv(numpy.eye(2)).sum())"
    )
    assert python(STRATEGY, "20017:20017", code) == "20017 9 4.5 2.0"


def test_the_strategy_image_starts_the_clients_entry_without_rights():
    """Not root, and the command is desk_client.run on the mounted strategy."""
    settings = config(STRATEGY)["Config"]
    assert settings["User"] == "20001:20001"
    assert settings["Entrypoint"] == ["python3", "-I", "-m", "desk_client.run"]
    assert settings["Cmd"] == ["/strategy/strategy.py"]


def test_the_strategy_image_has_neither_server_nor_installer():
    """What a strategy does not need is not there: the server, the manager, grpc, pip."""
    code = (
        "from importlib.util import find_spec;"
        "names = 'desk_server desk_manager grpc fastapi alpaca pip setuptools'.split();"
        "print([name for name in names if find_spec(name)])"
    )
    assert python(STRATEGY, "20001:20001", code) == "[]"


@pytest.mark.parametrize(("image", "limit_mb"), [(STRATEGY, 300), (SERVER, 400)])
def test_the_images_are_small(image, limit_mb):
    """The whole image, base included."""
    assert config(image)["Size"] < limit_mb * 1_000_000


@pytest.mark.parametrize("image", [STRATEGY, SERVER])
def test_no_program_in_an_image_can_gain_rights(image):
    """No setuid or setgid program is left, should a container ever run without no-new-privileges."""
    found = docker(
        "run", *HARDENED, "--user=0", "--cap-add=DAC_READ_SEARCH", "--entrypoint=find", image,
        "/", "-xdev", "-type", "f", "-perm", "/6000",
    )  # fmt: skip
    assert found == ""


@pytest.mark.parametrize(("image", "module"), [(STRATEGY, "desk_client"), (SERVER, "desk_server.settings")])
def test_modules_are_compiled_ahead(image, module):
    """A read-only container never compiles: the standard library, packages and our modules come compiled."""
    code = (
        f"import json, google.protobuf.message, {module}, os, sys;"
        "specs = [getattr(module, '__spec__', None) for module in list(sys.modules.values())];"
        "files = [spec.cached for spec in specs if spec and spec.cached];"
        "print(len(files) > 20, [f for f in files if not os.path.exists(f)])"
    )
    assert python(image, "20001:20001", code) == "True []"


def test_the_server_image_runs_without_rights():
    """The server is user 10001 in the strategies' socket group, and keeps its state in one directory."""
    settings = config(SERVER)["Config"]
    assert settings["User"] == "10001:20000"
    assert "DESK_RUN_DIR=/var/lib/desk" in settings["Env"]


def test_building_again_does_nothing():
    """With nothing changed both images are found up to date."""
    outcome = subprocess.run(
        [PROJECT / "deploy" / "build-images.sh"], check=True, capture_output=True, text=True, timeout=60
    )
    assert outcome.stdout.count("is up to date") == 2
