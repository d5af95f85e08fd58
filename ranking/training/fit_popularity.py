"""Fits the popularity baseline."""

from __future__ import annotations

from ranking.models.popularity import PopularityRanker, log_count
from ranking.sigmoid import fit_sigmoid
from ranking.training.task import FitTask


def fit_popularity(task: FitTask) -> PopularityRanker:
    """Fit one sigmoid per head to the configured count, or to the first numeric column."""
    schema, feature = task.schema, task.config.popularity.feature
    column = schema.numeric.index(feature) if feature in schema.numeric else 0
    evidence = log_count(task.train.numeric[:, column])
    heads = range(len(schema.heads))
    fits = [fit_sigmoid(evidence, task.train.labels[:, head]) for head in heads]
    slope, intercept = zip(*fits, strict=True)
    return PopularityRanker(schema, column, slope, intercept)
