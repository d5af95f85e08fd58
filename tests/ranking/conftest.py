from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from planted import CONFIG, SCHEMA, silent, splits

from ranking.data import RankingData
from ranking.training.train_rankers import RankerReport, train_rankers


@dataclass(frozen=True)
class Trained:
    folder: Path
    report: RankerReport
    validate: RankingData


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Every kind, trained once on the planted rows."""
    folder = tmp_path_factory.mktemp("ranking")
    train, calibrate, validate = splits()
    report = train_rankers(train, calibrate, validate, SCHEMA, folder, CONFIG, silent)
    return Trained(folder, report, validate)
