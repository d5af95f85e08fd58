import pytest

from tests.support.ingest_folder import World
from tests.support.tiny_world import tiny_world


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.fixture
def tiny(copy, tmp_path):
    """A copy of the tiny world with features, models and a release, without Redis."""
    with copy(tiny_world(), tmp_path / "w") as workspace:
        yield workspace
