"""A desk of its own for each test, and strategies that run as in a container."""

import pytest
from client_desk import FakeDesk, Strategies


@pytest.fixture(params=["unix", "tcp"])
def any_desk(request, tmp_path):
    """A desk on a unix socket, and then the same on TCP."""
    desk = FakeDesk(f"unix://{tmp_path}/desk.sock" if request.param == "unix" else "http://127.0.0.1:1")
    yield desk
    desk.stop()


@pytest.fixture
def desk(tmp_path):
    """A desk on a unix socket."""
    desk = FakeDesk(f"unix://{tmp_path}/desk.sock")
    yield desk
    desk.stop()


@pytest.fixture
def strategies(tmp_path, desk):
    folder = tmp_path / "momentum"
    folder.mkdir()
    strategies = Strategies(folder, desk)
    yield strategies
    strategies.end()
