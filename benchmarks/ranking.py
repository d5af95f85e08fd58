"""RecBole's context-aware protocol: five rankers of the same rows, AUC and log loss.

The first four read the protocol's fields; ours reads what the training part's labels say besides
(``ranking.collaborative``). All stop by the validation part, are calibrated on it, and meet the
test part once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.factorization_machine import fit_factorization_machine
from benchmarks.movielens import MovieLens, read_movielens
from benchmarks.seeds import deviation
from feature_repo.arrays import Float32Array
from feature_repo.sanity import Guard
from pipelines import display
from ranking.calibration import fit_calibration
from ranking.collaborative import collaborative_features, out_of_fold
from ranking.config import DcnConfig, LogisticConfig, RankerConfig, TreeConfig
from ranking.data import RankingData
from ranking.metrics import auc, ece, log_loss
from ranking.row_schema import RowSchema
from ranking.training.fit import fit
from ranking.training.task import FitTask
from ranking.transform import RowTransform

PUBLISHED = {"DCN-v2 (RecBole)": (0.8998, 0.3119)}
MOVIELENS_1M = 739_012
"""Rows of the data that the published figures are of."""

OURS = "ours: trees on collaborative features"

_METRICS = ("auc", "logloss", "ece", "ece_uncalibrated")
_SPLIT_SEED, _FOLDS = 2020, 5
_TREES = TreeConfig(rounds=3_000, learning_rate=0.05, leaves=63, bins=255, l2=5.0, patience=50)
_DCN = DcnConfig(
    structure="stacked", hidden=(256, 128), embedding=32, bucket_embedding=1, epochs=10,
    batch=2_048, learning_rate=1e-3, weight_decay=1.0, unknown_rate=0.0, monitor="log_loss",
    patience=2,
)  # fmt: skip

Predict = Callable[[RankingData], Float32Array]


@dataclass(frozen=True)
class _Parts:
    schema: RowSchema
    train: RankingData
    valid: RankingData
    test: RankingData


@dataclass
class _Row:
    """A model's figures, one of each a seed."""

    figures: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in _METRICS})
    seconds: float = 0.0

    def means(self) -> dict[str, float]:
        return {name: float(np.mean(values)) for name, values in self.figures.items()}

    def deviations(self) -> dict[str, float]:
        return {f"{name}_std": deviation(values) for name, values in self.figures.items()}


def run(folder: Path, seeds: int) -> dict[str, Any]:
    """Train and test every model with each seed; the split is the same for all.

    Returns:
        auc, logloss, ece (after calibration) and ece_uncalibrated of ours, means over the seeds
        with ``_std``; the same of all models under ``models``, and the seconds that each took a
        seed.

    Raises:
        SpecError: the folder cannot be used.

    """
    start = time.monotonic()
    with display.stage("Read"):
        data = read_movielens(folder)
        fields = _fields(data)
    table = {name: _Row() for name in (*_MODELS, OURS)}
    for seed in range(seeds):
        for name, fit_model in _MODELS.items():
            _measure(table[name], name, fields, fit_model, seed=seed)
        began = time.monotonic()
        enriched = _enriched(data, fields, seed)
        table[OURS].seconds += time.monotonic() - began
        _measure(table[OURS], OURS, enriched, _MODELS["LightGBM"], seed=seed)
    ours, models = table[OURS], {name: row.means() for name, row in table.items()}
    published = [[name, *figures, "", ""] for name, figures in PUBLISHED.items()]
    rows = [[name, *figures.values()] for name, figures in models.items()]
    title = f"{folder.name}: {len(data.pairs):,} labelled pairs, test part of {len(fields.test):,}"
    columns = ["", "AUC", "log loss", "ECE", "ECE before calibration"]
    display.table(title, columns, (published if len(data.pairs) == MOVIELENS_1M else []) + rows)
    return {
        **ours.means(),
        **ours.deviations(),
        "models": models,
        "seconds_a_seed": {name: round(row.seconds / seeds, 1) for name, row in table.items()},
        **{
            "seeds": seeds,
            "seconds": round(time.monotonic() - start, 1),
            "device": "cpu",
            "selected_on": "validation",
        },
    }


def _fields(data: MovieLens) -> _Parts:
    train, valid, test = (data.rows(rows) for rows in data.split(_SPLIT_SEED))
    return _Parts(data.schema(), train, valid, test)


def _enriched(data: MovieLens, fields: _Parts, seed: int) -> _Parts:
    """Return the fields with collaborative features in place of the codes of user and item."""
    rows = data.split(_SPLIT_SEED)
    train, later = data.pairs[rows[0]], data.pairs[np.concatenate(rows[1:])]
    with display.stage(f"Collaborative features, seed {seed}") as report:
        learned = out_of_fold(
            train,
            data.sides,
            folds=_FOLDS,
            seed=seed,
            progress=lambda fold: report("fold", fold, _FOLDS + 1),
        )
        report("validation and test", _FOLDS, _FOLDS + 1)
        both = collaborative_features(train, later, data.sides)
    ends = slice(len(rows[1])), slice(len(rows[1]), None)
    valid, test = ({name: values[part] for name, values in both.items()} for part in ends)
    old = fields.schema
    kept = [place for place, name in enumerate(old.categorical) if name not in ("user", "item")]
    schema = RowSchema(
        numeric=(*learned, *old.numeric),
        categorical=tuple(old.categorical[place] for place in kept),
        cardinalities=tuple(old.cardinalities[place] for place in kept),
        heads=old.heads,
        head_weights=old.head_weights,
    )
    parts = []
    for part, features in zip(
        (fields.train, fields.valid, fields.test), (learned, valid, test), strict=True
    ):
        numeric = np.column_stack([*features.values(), part.numeric])
        categorical = np.ascontiguousarray(part.categorical[:, kept])
        parts.append(RankingData(numeric, categorical, part.labels, part.request))
    return _Parts(schema, *parts)


def _measure(
    row: _Row, name: str, parts: _Parts, fit: Callable[[_Parts, int], Predict], *, seed: int
) -> None:
    began = time.monotonic()
    with display.stage(f"Train {name}, seed {seed}"):
        predict = fit(parts, seed)
    calibration = fit_calibration(predict(parts.valid), parts.valid.labels, parts.valid.request)
    raw, labels = predict(parts.test), parts.test.labels[:, 0]
    probabilities = calibration(raw)[:, 0]
    figures = (
        auc(labels, probabilities),
        log_loss(labels, probabilities),
        ece(labels, probabilities),
    )
    for metric, value in zip(_METRICS, (*figures, ece(labels, raw[:, 0])), strict=True):
        row.figures[metric].append(value)
    row.seconds += time.monotonic() - began


def _factorization_machine(parts: _Parts, seed: int) -> Predict:
    model = fit_factorization_machine(parts.train, parts.valid, parts.schema, seed)
    return lambda data: model.predict(data)[:, None]


def _ranker(kind: str) -> Callable[[_Parts, int], Predict]:
    """Return what fits a kind of the package's own rankers."""

    def fit_one(parts: _Parts, seed: int) -> Predict:
        logistic = LogisticConfig(
            hash_size=max(parts.schema.cardinalities), max_rows=len(parts.train)
        )
        config = RankerConfig(seed=seed, logistic=logistic, trees=_TREES, dcn=_DCN)
        task = FitTask(
            parts.train, parts.valid, RowTransform.fit(parts.train.numeric), parts.schema, config
        )
        ranker = fit(kind, task, Guard(kind), _unheard)
        return lambda data: ranker.predict(data.numeric, data.categorical)

    return fit_one


def _unheard(kind: str, figures: dict[str, float]) -> None:
    """Figures of training are not kept: the benchmark reports what comes out."""


_MODELS = {
    "logistic regression": _ranker("logistic"),
    "factorization machine": _factorization_machine,
    "LightGBM": _ranker("lightgbm"),
    "DCN-v2": _ranker("dcn"),
}
