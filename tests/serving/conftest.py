from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from feature_repo.stores.embedded_redis import release as stop_redis
from feature_repo.workspace import Workspace
from serving.event_log.redis_stream import RedisStreamLog
from serving.http.keys import KeyRing, Scope, create
from tests.support.access_app import Client, an_app, behind_middleware
from tests.support.tiny_release import Tiny, build_tiny, register


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


@pytest.fixture(scope="module")
def registered_workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A working folder in which the tiny release's features are registered and nobody is known."""
    workspace = Workspace(tmp_path_factory.mktemp("registered"))
    register(workspace)
    RedisStreamLog(workspace)  # starts its Redis here, so that this process also ends it
    yield workspace
    stop_redis(workspace.redis)


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    """Where the keys of one test are."""
    return tmp_path / "keys.json"


@pytest.fixture
def new_key(keys_file: Path) -> Callable[..., str]:
    """Make a key for scopes; the value is its text."""
    return lambda *scopes, **options: (
        create(keys_file, "test", [Scope(s) for s in scopes], **options).text
    )


@pytest.fixture
def door(keys_file: Path) -> Callable[..., Client]:
    """Make a client of a small app behind the middleware, with the keys unless told otherwise."""

    def make(ring: bool = True, **options: Any) -> Client:
        keys = KeyRing(keys_file, check_every_s=0.05) if ring else None
        return Client(behind_middleware(an_app(), keys, **options))

    return make
