"""Distillation: a smaller ranker learns from a larger one's probabilities and from the labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from feature_repo.arrays import Float32Array, Float64Array
from feature_repo.sanity import Guard
from ranking.config import RankerConfig
from ranking.models import Ranker
from ranking.models.base import RankerLog
from ranking.models.scorer import CalibratedRanker
from ranking.sigmoid import logit, sigmoid
from ranking.training.fit import fit
from ranking.training.task import FitTask

SOFT = 0.5
"""The teacher's share of a target; the rest is the label."""


def student_config(config: RankerConfig) -> RankerConfig:
    """Return settings of a student.

    It has a quarter of the trees with half of the leaves, or one cross layer beside one narrow
    hidden layer.
    """
    trees = replace(
        config.trees,
        rounds=config.trees.rounds // 4,
        leaves=max(2, config.trees.leaves // 2),
        learning_rate=min(0.3, 3 * config.trees.learning_rate),  # fewer trees need larger steps
    )
    dcn = replace(
        config.dcn, cross_layers=1, hidden=(32,), embedding=max(1, config.dcn.embedding // 2)
    )
    return replace(config, trees=trees, dcn=dcn)


def distil(teacher: CalibratedRanker, task: FitTask, log: RankerLog) -> Ranker:
    """Train a ranker of the teacher's kind on its probabilities and the labels.

    Targets lie between both (Hinton et al. 2015). The teacher was calibrated on all candidates, the
    training rows have fewer negatives: its log-odds are moved, head by head, until their mean
    probability is the training rows' rate, as after any sampling of one class (He et al. 2014,
    "Practical lessons from predicting clicks on ads at Facebook").

    Args:
        teacher: the calibrated larger ranker.
        task: the rows that the teacher was fitted to, and the student's settings.
        log: called with the student's figures.

    """
    _, p = teacher.score(task.train.numeric, task.train.categorical)
    hard = task.train.labels

    # Soft targets at each head's base rate, then the mixture with the labels: [n, T].
    rates = [float(hard[:, head].mean()) for head in range(hard.shape[1])]
    soft = np.stack([at_rate(p[:, head], rate) for head, rate in enumerate(rates)], axis=1)
    targets = (SOFT * soft + (1 - SOFT) * hard).astype(np.float32)

    task = replace(task, train=replace(task.train, labels=targets))
    return fit(teacher.kind, task, Guard("student"), log)


def at_rate(p: Float32Array, rate: float) -> Float64Array:
    """Return probabilities, float64 [n], with log-odds moved alike so that their mean is ``rate``.

    Args:
        p: probabilities, float32 [n].
        rate: the mean, from 0 to 1.

    """
    if not 0.0 < rate < 1.0:
        return np.full(len(p), rate)
    logits = logit(p)
    low, high = -40.0, 40.0
    for _ in range(40):  # bisection: the mean rises with the shift
        middle = (low + high) / 2
        if sigmoid(logits + middle).mean() < rate:
            low = middle
        else:
            high = middle
    return sigmoid(logits + low)
