"""Fits one kind of ranker; each kind imports the libraries that it needs."""

from __future__ import annotations

from typing import Any

from feature_repo.sanity import Guard
from ranking.models import Ranker
from ranking.models.base import CannotContinue, RankerLog
from ranking.training.task import FitTask

_CONTINUING = ("lightgbm", "lambdarank", "dcn")


def fit(kind: str, task: FitTask, guard: Guard, log: RankerLog, *, earlier: Any = None) -> Ranker:
    """Fit one kind.

    Args:
        kind: one of ``ranking.config.KINDS``.
        task: rows and settings.
        guard: shown losses and gradient norms.
        log: called with the kind and its figures.
        earlier: a ranker of this kind to continue from.

    Raises:
        CannotContinue: this kind cannot continue, or not from that ranker.
        CannotLearn: the guard saw a loss or gradient that is not finite, or that exploded.
        ValueError: the kind is unknown.

    """
    if earlier and kind not in _CONTINUING:
        raise CannotContinue(f"a {kind} ranker is fitted in one step")
    match kind:
        case "popularity":
            from ranking.training.fit_popularity import fit_popularity

            return fit_popularity(task)
        case "logistic":
            from ranking.training.fit_logistic import fit_logistic

            return fit_logistic(task, guard)
        case "lightgbm":
            from ranking.training.fit_trees import fit_lightgbm

            return fit_lightgbm(task, guard, log, earlier)
        case "lambdarank":
            from ranking.training.fit_trees import fit_lambdarank

            return fit_lambdarank(task, guard, log, earlier)
        case "dcn":
            from ranking.training.fit_dcn import fit_dcn

            return fit_dcn(task, guard, log, earlier)
    raise ValueError(f"unknown kind of ranker {kind!r}")
