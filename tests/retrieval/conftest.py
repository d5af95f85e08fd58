from __future__ import annotations

import pytest

from tests.support.checkerboard import Solved, World, solve


@pytest.fixture(scope="session")
def histories(tmp_path_factory: pytest.TempPathFactory) -> Solved:
    """Towers that know a history and nothing else: no user ids, no attributes."""
    return solve(World(known_users=False, attributes=False), tmp_path_factory.mktemp("histories"))


@pytest.fixture(scope="session")
def attributes(tmp_path_factory: pytest.TempPathFactory) -> Solved:
    """Towers that know users, attributes and histories."""
    return solve(World(known_users=True, attributes=True), tmp_path_factory.mktemp("attributes"))
