"""Fitting of one kind of ranker. Libraries are imported by the kind that needs them: torch alone takes a second."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from feature_repo.sanity import Guard
from ranking.config import RankerConfig
from ranking.data import RankingData, RowSchema
from ranking.models import Ranker
from ranking.models.base import CannotContinue, Log
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


def fit(kind: str, task: Task, guard: Guard, log: Log, earlier: Any = None) -> Ranker:
    """Train one kind, with ``earlier`` from where that ranker was left.

    Raises:
        CannotContinue: this kind cannot go on, or not from that ranker.
        CannotLearn: the guard saw a loss or gradient that is not finite, or that exploded.
        ValueError: there is no such kind.

    """
    train, watch, schema, config = task.train, task.watch, task.schema, task.config
    if earlier and kind not in ("lightgbm", "lambdarank", "dcn"):
        raise CannotContinue("made in one step")
    match kind:
        case "popularity":
            from ranking.models.popularity import fit_popularity

            return fit_popularity(train, schema, config.popularity)
        case "logistic":
            from ranking.models.logistic import fit_logistic

            return fit_logistic(train, task.transform, schema, config.logistic, guard)
        case "lightgbm":
            from ranking.models.trees import fit_lightgbm

            return fit_lightgbm(
                train, watch, schema, config.trees, config.seed, guard, log, earlier
            )
        case "lambdarank":
            from ranking.models.trees import fit_lambdarank

            settings = config.trees, config.seed, config.ndcg_k
            return fit_lambdarank(train, watch, schema, *settings, guard, log, earlier)
        case "dcn":
            from ranking.training.fit_dcn import fit_dcn

            parts = (train, watch, task.transform, schema, config.dcn, config.seed, config.ndcg_k)
            return fit_dcn(*parts, guard, log, earlier)
    raise ValueError(f"unknown kind {kind!r}")
