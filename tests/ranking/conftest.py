from __future__ import annotations

import pytest

from ranking.training.train_rankers import train_rankers
from tests.support.planted_rows import CONFIG, Trained, silent, splits


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Every kind, trained once on the planted rows."""
    folder = tmp_path_factory.mktemp("ranking")
    sets = splits()
    report = train_rankers(sets, folder, CONFIG, silent)
    return Trained(folder, report, sets.selection)
