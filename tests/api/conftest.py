import pytest

from tests.api.running import RunningDesk


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    running = RunningDesk(tmp_path_factory.mktemp("run"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def slow_desk(tmp_path_factory):
    """The same desk with the fast door shut: FastAPI answers everything."""
    running = RunningDesk(tmp_path_factory.mktemp("slow"), fast_door=False)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def alice(desk):
    return desk.token("alice")


@pytest.fixture(scope="module")
def bob(desk):
    return desk.token("bob")
