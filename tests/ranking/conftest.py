from __future__ import annotations

import pytest

from ranking.training.train_rankers import train_rankers
from tests.support.planted_rows import CONFIG, SCHEMA, Trained, silent, splits


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Every kind, trained once on the planted rows."""
    folder = tmp_path_factory.mktemp("ranking")
    train, calibrate, validate = splits()
    report = train_rankers(train, calibrate, validate, SCHEMA, folder, CONFIG, silent)
    return Trained(folder, report, validate)
