"""Grounds, and the image that Docker tests run strategies in."""

import pytest

from tests.manager.ground import Ground, make_image


@pytest.fixture
def ground():
    made = Ground()
    yield made
    made.close()


@pytest.fixture(scope="session")
def image():
    make_image()
