"""Rows with a known cause: what every model must find, small enough for two cores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ranking.config import DcnConfig, RankerConfig, TreeConfig
from ranking.data import RankingData
from ranking.report import RankerReport
from ranking.row_schema import RowSchema
from ranking.training.task import FitTask
from ranking.training.train_rankers import RankerSets
from ranking.transform import RowTransform

SCHEMA = RowSchema(
    numeric=("noise", "affinity", "item_events_30d", "recency"),
    categorical=("genre", "device"),
    cardinalities=(6, 4),
    heads=("click", "buy"),
    head_weights=(1.0, 3.0),
)
# One thread: threads that share so little work on a busy machine mostly wait for each other.
CONFIG = RankerConfig(
    trees=TreeConfig(rounds=40, learning_rate=0.1, min_rows_in_leaf=20, threads=1),
    dcn=DcnConfig(batch=512, min_steps=200, hidden=(32,), learning_rate=5e-3, threads=1),
)
GENRE_EFFECT = np.array([0.0, 1.5, -1.5, 0.0, 1.0, -1.0])


def planted(seed: int, requests: int = 200, candidates: int = 20) -> RankingData:
    """Return rows where affinity and genre decide, popularity helps a little, the rest is noise."""
    random = np.random.default_rng(seed)
    n = requests * candidates
    affinity, popularity = random.normal(size=n), np.floor(np.exp(random.normal(2.0, 1.5, size=n)))
    numeric = np.stack(
        [random.normal(size=n), affinity, popularity, random.exponential(size=n)], axis=1
    )
    numeric[random.random(n) < 0.1, 3] = np.nan
    # The last genre never occurs in training rows.
    categorical = np.stack([random.integers(0, 5, n), random.integers(0, 4, n)], axis=1)
    logit = 1.5 * affinity + GENRE_EFFECT[categorical[:, 0]] + 0.3 * np.log1p(popularity)
    chance = np.stack([logit - 2.5, logit - 4.0], axis=1)
    labels = random.random((n, 2)) < 1 / (1 + np.exp(-chance))
    request = np.repeat(np.arange(requests, dtype=np.int64), candidates)
    return RankingData(
        numeric.astype(np.float32), categorical.astype(np.int32), labels.astype(np.float32), request
    )


def splits(schema: RowSchema = SCHEMA) -> RankerSets:
    """Return rows to train on, to calibrate on and to select by."""
    return RankerSets(planted(1, requests=400), planted(2), planted(3), schema)


def sets_of(parts: Sequence[RankingData], schema: RowSchema = SCHEMA) -> RankerSets:
    """Return three parts as sets."""
    train, calibration, selection = parts
    return RankerSets(train, calibration, selection, schema)


def task_of(
    train: RankingData,
    held_out: RankingData | None = None,
    config: RankerConfig = CONFIG,
    schema: RowSchema = SCHEMA,
) -> FitTask:
    """Return a task behind a transform of the training rows, which are also held out by default."""
    transform = RowTransform.fit(train.numeric)
    return FitTask(train, train if held_out is None else held_out, transform, schema, config)


def silent(kind: str, figures: dict[str, float]) -> None:
    """Log nothing."""
    assert kind and figures


@dataclass(frozen=True)
class Trained:
    """Every kind trained on ``splits``: folder, report, and the rows that kinds are selected by."""

    folder: Path
    report: RankerReport
    validate: RankingData
