"""Checks before a kind is trained: it can learn a batch by heart, and it learns nothing from shuffled labels."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from feature_repo.arrays import Float32Array
from feature_repo.sanity import Guard, check_chance, check_learnt
from ranking.config import RankerConfig
from ranking.data import RankingData, RowSchema
from ranking.metrics import auc
from ranking.training.fit import Task, fit
from ranking.transform import RowTransform

GRADIENT_KINDS = ("logistic", "dcn")
"""Kinds that learn by following a gradient, and so can fail to."""

_BATCH = 64
_SHUFFLED = 6_000
_GROUP = 20
_STANDARD_ERRORS = 4.0


def check_kind(
    kind: str, train: RankingData, transform: RowTransform, schema: RowSchema, config: RankerConfig
) -> dict[str, float]:
    """Run the checks that a kind has to pass, on a few thousand rows, and return their figures.

    Popularity passes without: it has one slope, which cannot fail. Without rows of both classes
    there is nothing to check.

    Raises:
        CannotLearn: a check failed.

    """
    positive = train.happened()
    if kind == "popularity" or positive.all() or not positive.any():
        return {}
    figures = _overfit(kind, train, transform, schema, config) if kind in GRADIENT_KINDS else {}
    return figures | _shuffled(kind, train, schema, config)


def _overfit(
    kind: str, train: RankingData, transform: RowTransform, schema: RowSchema, config: RankerConfig
) -> dict[str, float]:
    """Learn 64 rows by heart, half of them positive."""
    batch = train.take(train.balanced_rows(_BATCH))
    if kind == "dcn":
        from ranking.training.fit_dcn import overfit_dcn

        guard = Guard("dcn, one batch")
        settings = replace(config.dcn, threads=1)
        before, after = overfit_dcn(
            replace(batch, weight=None), transform, schema, settings, config.seed, guard
        )
    else:
        from ranking.models.logistic import overfit_logistic

        before, after = overfit_logistic(batch, transform, schema)
    check_learnt(kind, before, after)
    return {"one_batch_loss_before": before, "one_batch_loss_after": after}


def _shuffled(
    kind: str, train: RankingData, schema: RowSchema, config: RankerConfig
) -> dict[str, float]:
    """Learn a third of some rows, stop by another, and order the last; every third's labels shuffled by themselves.

    Held-out labels that are shuffled apart from all that was learnt make every order of positives
    and negatives equally likely, so the AUC is .5 with the standard error of Mann and Whitney
    (1947), whatever the model does.
    """
    learn, stop, held_out = _shuffled_parts(train, config.seed)
    p = _predicted(kind, learn, stop, held_out, schema, _small(config))
    positive = held_out.happened()
    found = auc(positive.astype(np.float32), schema.score(p))
    if math.isnan(found):
        return {}
    tolerance = chance_tolerance(int(positive.sum()), int((~positive).sum()))
    check_chance(kind, found, tolerance)
    return {"shuffled_auc": found, "shuffled_tolerance": tolerance}


def chance_tolerance(positives: int, negatives: int) -> float:
    """Return four standard errors of the AUC of an order that has nothing to do with the labels."""
    return _STANDARD_ERRORS * math.sqrt((positives + negatives + 1) / (12 * positives * negatives))


def _shuffled_parts(train: RankingData, seed: int) -> list[RankingData]:
    random = np.random.default_rng(seed)
    rows = train.take(random.permutation(train.balanced_rows(_SHUFFLED)))
    # Requests fall apart in a sample, and mean nothing to labels that are shuffled: any groups will
    # do.
    rows = replace(rows, request=np.arange(len(rows), dtype=np.int64) // _GROUP, weight=None)
    thirds = np.array_split(np.arange(len(rows)), 3)
    parts = [rows.take(third) for third in thirds]
    return [replace(part, labels=random.permutation(part.labels)) for part in parts]


def _predicted(
    kind: str,
    learn: RankingData,
    stop: RankingData,
    held_out: RankingData,
    schema: RowSchema,
    config: RankerConfig,
) -> Float32Array:
    transform, guard = RowTransform.fit(learn.numeric), Guard(f"{kind}, shuffled labels")
    if kind != "dcn":
        ranker = fit(kind, Task(learn, stop, transform, schema, config), guard, _silent)
        return ranker.predict(held_out.numeric, held_out.categorical)
    from ranking.training.fit_dcn import probabilities, train_network

    # The export of a network takes longer than its training on so few rows.
    parts = (learn, stop, transform, schema, config.dcn, config.seed, config.ndcg_k)
    return probabilities(train_network(*parts, guard, _silent), held_out, transform, schema)


def _small(config: RankerConfig) -> RankerConfig:
    """Return settings that are done in a second or two."""
    # One thread: several would spend more time on waiting for each other.
    trees = replace(
        config.trees, rounds=min(20, config.trees.rounds), min_rows_in_leaf=20, threads=1
    )
    dcn = replace(config.dcn, epochs=1, min_steps=30, batch=256, monitor="log_loss", threads=1)
    return replace(
        config, trees=trees, dcn=dcn, logistic=replace(config.logistic, max_iterations=30)
    )


def _silent(*_: object) -> None:
    """Checks do not appear among a training's curves."""
