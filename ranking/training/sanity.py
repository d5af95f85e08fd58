"""Checks before a kind is trained: it overfits one batch and learns nothing from noise."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from feature_repo.arrays import Float32Array
from feature_repo.sanity import Guard, check_chance, check_learnt
from ranking.config import RankerConfig
from ranking.data import RankingData
from ranking.metrics import auc
from ranking.training.fit import fit
from ranking.training.task import FitTask
from ranking.transform import RowTransform

GRADIENT_KINDS = ("logistic", "dcn")
"""Kinds that follow a gradient, and so can fail to learn."""

_BATCH = 64
_SHUFFLED = 6_000
_GROUP = 20
_STANDARD_ERRORS = 4.0


def check_kind(kind: str, task: FitTask) -> dict[str, float]:
    """Run the checks of a kind on a few thousand training rows and return their figures.

    Popularity has none: it has one slope, which cannot fail. Without rows of both classes there is
    nothing to check.

    Raises:
        CannotLearn: a check failed.

    """
    positive = task.train.positive()
    if kind == "popularity" or positive.all() or not positive.any():
        return {}
    overfitted = _overfit_one_batch(kind, task) if kind in GRADIENT_KINDS else {}
    return overfitted | _learn_shuffled_labels(kind, task)


def _overfit_one_batch(kind: str, task: FitTask) -> dict[str, float]:
    """Overfit 64 rows, half of them positive."""
    batch = replace(task, train=task.train.take(task.train.balanced_rows(_BATCH)))
    if kind == "dcn":
        from ranking.training.fit_dcn import overfit_dcn

        batch = replace(
            batch,
            train=replace(batch.train, weight=None),
            config=replace(task.config, dcn=replace(task.config.dcn, threads=1)),
        )
        before, after = overfit_dcn(batch, Guard("dcn, one batch"))
    else:
        from ranking.training.fit_logistic import overfit_logistic

        before, after = overfit_logistic(batch)
    check_learnt(kind, before, after)
    return {"one_batch_loss_before": before, "one_batch_loss_after": after}


def _learn_shuffled_labels(kind: str, task: FitTask) -> dict[str, float]:
    """Fit a third of some rows, stop early by another, and order the last.

    The labels of each third are shuffled by themselves. That makes every order of positives and
    negatives in the last equally likely, so the AUC is .5 with the standard error of Mann and
    Whitney (1947), whatever the model does.
    """
    learn, stop, measured = _shuffled_parts(task.train, task.config.seed)
    shuffled = FitTask(
        train=learn,
        held_out=stop,
        transform=RowTransform.fit(learn.numeric),
        schema=task.schema,
        config=_small(task.config),
    )
    score = task.schema.score(_predict(kind, shuffled, measured))
    positive = measured.positive()
    area = auc(positive.astype(np.float32), score)
    if math.isnan(area):
        return {}
    tolerance = chance_tolerance(int(positive.sum()), int((~positive).sum()))
    check_chance(kind, area, tolerance)
    return {"shuffled_auc": area, "shuffled_tolerance": tolerance}


def chance_tolerance(positives: int, negatives: int) -> float:
    """Return four standard errors of the AUC of an order that is independent of the labels."""
    return _STANDARD_ERRORS * math.sqrt((positives + negatives + 1) / (12 * positives * negatives))


def _shuffled_parts(train: RankingData, seed: int) -> list[RankingData]:
    """Return three disjoint samples of rows, each with its labels shuffled."""
    random = np.random.default_rng(seed)
    rows = train.take(random.permutation(train.balanced_rows(_SHUFFLED)))
    # A sample has no whole requests, and shuffled labels do not belong to any: groups are made up.
    rows = replace(rows, request=np.arange(len(rows), dtype=np.int64) // _GROUP, weight=None)
    thirds = np.array_split(np.arange(len(rows)), 3)
    parts = [rows.take(third) for third in thirds]
    return [replace(part, labels=random.permutation(part.labels)) for part in parts]


def _predict(kind: str, task: FitTask, rows: RankingData) -> Float32Array:
    """Return probabilities, float32 [n, T], of a ranker that is fitted for this alone."""
    guard = Guard(f"{kind}, shuffled labels")
    if kind != "dcn":
        ranker = fit(kind, task, guard, _silent)
        return ranker.predict(rows.numeric, rows.categorical)
    from ranking.training.fit_dcn import predict_network, train_network

    # The export of a network takes longer than its training on so few rows.
    network = train_network(task, guard, _silent)
    return predict_network(network, rows, task)


def _small(config: RankerConfig) -> RankerConfig:
    """Return settings that take a second or two; several threads would wait for each other."""
    trees = replace(
        config.trees, rounds=min(20, config.trees.rounds), min_rows_in_leaf=20, threads=1
    )
    dcn = replace(config.dcn, epochs=1, min_steps=30, batch=256, monitor="log_loss", threads=1)
    return replace(
        config, trees=trees, dcn=dcn, logistic=replace(config.logistic, max_iterations=30)
    )


def _silent(*_: object) -> None:
    """Checks do not appear among a training's curves."""
