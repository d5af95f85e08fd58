import pytest

from tests.support.ingest_folder import World


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)
