from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # the helpers beside the tests

from tiny_release import Tiny, build_tiny

from feature_repo.embedded_redis import release as stop_redis
from feature_repo.workspace import Workspace
from serving.events import RedisStreamLog


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A whole release of forty items, made once."""
    return build_tiny(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A working folder with nothing but its Redis, for the tests of one file."""
    workspace = Workspace(tmp_path_factory.mktemp("w"))
    RedisStreamLog(workspace)  # starts its Redis, which the helpers reach by its socket
    yield workspace
    stop_redis(workspace.redis)
