from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # the helpers beside the tests

from tiny_release import Tiny, build_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A whole release of forty items, made once."""
    return build_tiny(tmp_path_factory.mktemp("release"))
