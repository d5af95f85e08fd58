"""Distillation: a smaller ranker learns from a larger one's probabilities and from the labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from feature_repo.arrays import Float32Array, Float64Array
from feature_repo.sanity import Guard
from ranking.config import RankerConfig
from ranking.models import Ranker
from ranking.models.base import Log
from ranking.models.scorer import CalibratedRanker
from ranking.sigmoid import logit, sigmoid
from ranking.training.fit import Task, fit

SOFT = 0.5
"""How much of a target is the teacher's; the rest is the label."""


def student_config(config: RankerConfig) -> RankerConfig:
    """Return settings for a quarter of the trees with half of the leaves, or a network of one narrow layer a side."""
    trees = replace(
        config.trees, rounds=config.trees.rounds // 4, leaves=max(2, config.trees.leaves // 2)
    )
    # The fewer the trees, the longer their steps.
    trees = replace(trees, learning_rate=min(0.3, 3 * config.trees.learning_rate))
    dcn = replace(
        config.dcn, cross_layers=1, hidden=(32,), embedding=max(1, config.dcn.embedding // 2)
    )
    return replace(config, trees=trees, dcn=dcn)


def distil(teacher: CalibratedRanker, task: Task, log: Log) -> Ranker:
    """Train a ranker of the teacher's kind on targets between its probabilities and the labels (Hinton et al. 2015).

    The teacher was calibrated on all candidates, the training rows have fewer negatives: its
    log-odds are moved, head by head, until their mean probability is the training rows' rate, as
    after any sampling of one class (He et al. 2014, "Practical lessons from predicting clicks on
    ads at Facebook").

    Args:
        teacher: whose probabilities are learnt.
        task: the rows that the teacher learnt from, and the student's settings.
        log: called with the student's figures.

    """
    _, p = teacher.score(task.train.numeric, task.train.categorical)
    hard = task.train.labels
    soft = np.stack(
        [at_rate(p[:, head], float(hard[:, head].mean())) for head in range(hard.shape[1])], axis=1
    )
    targets = (SOFT * soft + (1 - SOFT) * hard).astype(np.float32)
    return fit(
        teacher.kind,
        replace(task, train=replace(task.train, labels=targets)),
        Guard("student"),
        log,
    )


def at_rate(p: Float32Array, rate: float) -> Float64Array:
    """Return probabilities [n] whose log-odds are moved by one number, so that their mean is ``rate``."""
    if not 0.0 < rate < 1.0:
        return np.full(len(p), rate)
    logits, low, high = logit(p), -40.0, 40.0
    for _ in range(40):  # halving: the mean rises with the shift
        middle = (low + high) / 2
        low, high = (middle, high) if sigmoid(logits + middle).mean() < rate else (low, middle)
    return sigmoid(logits + low)
