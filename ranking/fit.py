"""Fitting of one kind of ranker. Libraries are imported by the kind that needs them: torch alone takes a second."""

from __future__ import annotations

from dataclasses import dataclass

from feature_repo.sanity import Guard
from ranking.config import RankerConfig
from ranking.data import RankingData, RowSchema
from ranking.models import Ranker
from ranking.models.base import Log
from ranking.transform import RowTransform


@dataclass(frozen=True)
class Task:
    """What a ranker is made from.

    Attributes:
        train: rows that it learns from.
        watch: held-out rows that say when to stop.
        transform: of numeric columns, learnt from ``train``.
        schema: columns of both.
        config: settings of every kind.

    """

    train: RankingData
    watch: RankingData
    transform: RowTransform
    schema: RowSchema
    config: RankerConfig


def fit(kind: str, task: Task, guard: Guard, log: Log) -> Ranker:
    """Train one kind.

    Raises:
        CannotLearn: the guard saw a loss or gradient that is not finite, or that exploded.
        ValueError: there is no such kind.

    """
    train, watch, schema, config = task.train, task.watch, task.schema, task.config
    match kind:
        case "popularity":
            from ranking.models.popularity import fit_popularity

            return fit_popularity(train, schema, config.popularity)
        case "logistic":
            from ranking.models.logistic import fit_logistic

            return fit_logistic(train, task.transform, schema, config.logistic, guard)
        case "lightgbm":
            from ranking.models.trees import fit_lightgbm

            return fit_lightgbm(train, watch, schema, config.trees, config.seed, guard, log)
        case "lambdarank":
            from ranking.models.trees import fit_lambdarank

            return fit_lambdarank(train, watch, schema, config.trees, config.seed, config.ndcg_k, guard, log)
        case "dcn":
            from ranking.dcn import fit_dcn

            parts = (train, watch, task.transform, schema, config.dcn, config.seed, config.ndcg_k)
            return fit_dcn(*parts, guard, log)
    raise ValueError(f"unknown kind {kind!r}")
