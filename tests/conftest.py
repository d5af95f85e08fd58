"""Fixtures of the small world.

What costs seconds to import is imported by the fixtures that need it.
"""

from __future__ import annotations

# ruff: noqa: E402 - Feast is imported after its type checks are switched off
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A busy machine must not change what is served; tests of deadlines set their own.
os.environ.setdefault("FUNNEL_DEADLINE_MS", "10000")
os.environ.setdefault("FUNNEL_REDIS_TIMEOUT_MS", "1000")
# Starlette's test client calls the server so; a server without keys answers to few names.
os.environ.setdefault("FUNNEL_ALLOWED_HOSTS", "testserver")
# Spark's jobs are small here: Java's second compiler would cost more than it saves.
os.environ.setdefault("SPARK_SUBMIT_OPTS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")

# Trained bytes depend on it, and workers share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from feature_repo.stores.feast_checks import disable_feast_type_checks

disable_feast_type_checks()  # as the command line does; before Feast is imported

if TYPE_CHECKING:
    from feature_repo.workspace import Workspace
    from tests.support.small_world import Built


SPARK = (
    "tests/pipelines/test_skew.py",
    "tests/pipelines/test_stream_job.py",
    "tests/pipelines/test_erase.py",
    "tests/pipelines/test_features.py",
    "tests/pipelines/test_declared_features.py",
    "tests/pipelines/test_attribute_history.py",
    "tests/pipelines/test_log_adapters.py",
    "tests/pipelines/test_stream_golden.py",
    "tests/feature_repo/test_point_in_time_join.py",
)
"""Files of which one worker takes all, in this order, so that Java starts and warms up once.

The first two build the worlds, while the other worker tests what needs none.
"""

TOGETHER = ("tests/ranking", "tests/retrieval")
"""Folders whose files share what a fixture trains: one worker takes all of them."""

LONGEST = (
    "spark",
    "tests/ranking",
    "tests/retrieval",
    "tests/pipelines/test_notebooks.py",
    "tests/pipelines/test_tune.py",
    "tests/pipelines/test_warm_start.py",
    "tests/pipelines/test_kill.py",
)
"""What takes longest comes first, so that workers end at about the same time."""


def _group(nodeid: str) -> str:
    """Return the name of the tests that run in one worker, since they share what is costly."""
    file = nodeid.partition("::")[0]
    if file in SPARK:
        return "spark"
    return next((folder for folder in TOGETHER if file.startswith(f"{folder}/")), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Return a scheduler that gives a whole group to one worker.

    ``--dist loadgroup`` does not: with pytest 9.2 its marks are lost, and groups are split.
    """
    from xdist.scheduler import LoadScopeScheduling

    class GroupScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    return GroupScheduling(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest groups first; within files any order stays."""
    rank = {group: number for number, group in enumerate(LONGEST)}
    order = {file: number for number, file in enumerate(SPARK)}

    def place(item: pytest.Item) -> tuple[int, int]:
        file = item.nodeid.partition("::")[0]
        return rank.get(_group(file), len(rank)), order.get(file, 0)

    items.sort(key=place)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """The small world after every stage, with its Redis. Tests that change it take a copy."""
    from tests.support.small_world import small_world

    with small_world(tmp_path_factory.mktemp("funnel") / "w") as built:
        yield built


@pytest.fixture(scope="session")
def evaluation(built: Built) -> dict[str, Any]:
    """The whole evaluation of the small world's release."""
    from tests.support.small_world import evaluation_of

    return evaluation_of(built)


@pytest.fixture(scope="session")
def copy() -> Callable[[Workspace, Path], AbstractContextManager[Workspace]]:
    """How a workspace is copied without its Redis."""
    from tests.support.small_world import copy_of

    return copy_of


@pytest.fixture
def copied(built: Built, tmp_path: Path) -> Iterator[Workspace]:
    """A copy of the small world without its Redis, for tests that change things."""
    from tests.support.small_world import copy_of

    with copy_of(built.workspace, tmp_path / "w") as workspace:
        yield workspace


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """The small world with its Redis, for one file's tests: a server may change what it holds."""
    from tests.support.small_world import small_world

    with small_world(tmp_path_factory.mktemp("served") / "w") as built:
        yield built
