"""Fits gradient-boosted trees with LightGBM: a booster per head, or one for the order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from feature_repo.arrays import Float32Array
from feature_repo.sanity import Guard
from ranking.data import RankingData, group_starts
from ranking.models.base import RankerLog
from ranking.models.lightgbm_library import lightgbm
from ranking.models.trees import TreeRanker, joined_matrix, raw_scores
from ranking.sigmoid import fit_sigmoid
from ranking.training.task import FitTask

Report = Callable[[float, float], None]
"""Called while boosting with the share of rounds done and the early-stopping metric."""

_REPORTS = 10
_MOST_LEVELS = 128


def fit_lightgbm(
    task: FitTask, guard: Guard, log: RankerLog, earlier: TreeRanker | None = None
) -> TreeRanker:
    """Fit a booster per head to its log loss; ``held_out`` rows stop each early.

    Args:
        task: rows and settings.
        guard: shown the metric of every round.
        log: called with each head's number of trees.
        earlier: of the same kind and heads; its trees stay and the rounds are added to them.

    """
    schema = task.schema
    soft = not np.isin(task.train.labels, (0.0, 1.0)).all()
    objective = {
        "objective": "cross_entropy" if soft else "binary",
        "metric": "cross_entropy" if soft else "binary_logloss",
    }
    boosting = _Boosting(task, guard)
    boosters: list[lightgbm.Booster] = []
    for column, head in enumerate(schema.heads):
        if earlier:  # a data set keeps the earlier trees' scores, which are another head's
            boosting = _Boosting(task, guard)
        boosting.label(_head_labels(task.train, column), _head_labels(task.held_out, column))
        boosting.weigh(task.train.weight, task.held_out.weight)
        start = earlier.boosters[column] if earlier else None
        boosters.append(boosting.run(objective, start=start))
        log("lightgbm", {f"{head}_trees": float(boosters[-1].num_trees())})
    return TreeRanker(
        kind="lightgbm",
        schema=schema,
        boosters=tuple(boosters),
        slope=(1.0,) * len(boosters),
        intercept=(0.0,) * len(boosters),
    )


def fit_lambdarank(
    task: FitTask, guard: Guard, log: RankerLog, earlier: TreeRanker | None = None
) -> TreeRanker:
    """Fit one booster to NDCG@k of each request, then a sigmoid of its score per head.

    The gain of a row is its weighted label. The sigmoids are fitted on ``held_out``: on rows that
    the trees have seen, scores are overconfident.

    Args:
        task: rows and settings.
        guard: shown the metric of every round.
        log: called with the held-out NDCG while boosting and with the number of trees.
        earlier: of the same kind; its trees stay and the rounds are added to them.

    """
    schema, held_out = task.schema, task.held_out
    gain = _levels(task.train.gain(schema))
    held_out_gain = _levels(held_out.gain(schema))
    levels = np.unique(np.r_[np.float32(0.0), gain, held_out_gain])

    boosting = _Boosting(task, guard)
    boosting.label(np.searchsorted(levels, gain), np.searchsorted(levels, held_out_gain))
    boosting.group(task.train.group_sizes(), held_out.group_sizes())
    boosting.weigh(_row_weights(task.train), _row_weights(held_out))

    k = task.config.ndcg_k
    objective = {
        "objective": "lambdarank",
        "metric": "ndcg",
        "eval_at": [k],
        "lambdarank_truncation_level": k + 5,  # LightGBM's advice: a little above k
        "label_gain": [float(level) for level in levels],
    }
    empty = _empty_share(held_out_gain, held_out)

    def report(done: float, ndcg: float) -> None:
        # LightGBM counts a request without any gain as 1; the other kinds leave it out.
        known = (ndcg - empty) / (1 - empty) if empty < 1 else 0.0
        log("lambdarank", {"done": done, "watch_ndcg": known})

    booster = boosting.run(objective, report, earlier.boosters[0] if earlier else None)
    log("lambdarank", {"trees": float(booster.num_trees())})

    scores = raw_scores(booster, joined_matrix(held_out.numeric, held_out.categorical, schema))
    heads = range(len(schema.heads))
    fits = [fit_sigmoid(scores, held_out.labels[:, head]) for head in heads]
    slope, intercept = zip(*fits, strict=True)
    return TreeRanker("lambdarank", schema, (booster,), slope=slope, intercept=intercept)


def _head_labels(data: RankingData, column: int) -> Float32Array:
    return np.ascontiguousarray(data.labels[:, column])


def _row_weights(data: RankingData) -> Float32Array | None:
    """Return the weight of each row's request, float32 [n]: LightGBM weighs pairs by their rows."""
    weights = data.request_weights()
    return None if weights is None else np.repeat(weights, data.group_sizes()).astype(np.float32)


def _empty_share(gain: Float32Array, data: RankingData) -> float:
    """Return the share of requests, by weight, whose rows have no gain."""
    empty = np.maximum.reduceat(gain, group_starts(data.request)) == 0
    return float(np.average(empty, weights=data.request_weights()))


def _levels(gain: Float32Array) -> Float32Array:
    """Return gains of few levels: LambdaRank compares labels, which are whole numbers."""
    if len(np.unique(gain)) <= _MOST_LEVELS:
        return gain
    step = gain.max() / np.float32(_MOST_LEVELS)
    return np.round(gain / step) * step


class _Boosting:
    """Binned training and held-out rows, and the boosting on them.

    Bins do not depend on labels, so one binned matrix serves every head.
    """

    def __init__(self, task: FitTask, guard: Guard) -> None:
        self._config = task.config.trees
        self._seed = task.config.seed
        self._guard = guard
        width = len(task.schema.numeric)
        self._train = lightgbm.Dataset(
            joined_matrix(task.train.numeric, task.train.categorical, task.schema),
            categorical_feature=list(range(width, width + len(task.schema.categorical))),
            params={
                "max_bin": self._config.bins,
                "verbosity": -1,
                "num_threads": self._config.threads,
                "force_row_wise": True,
            },
            free_raw_data=True,
        )
        held_out = joined_matrix(task.held_out.numeric, task.held_out.categorical, task.schema)
        self._held_out = self._train.create_valid(held_out)

    def label(self, train: Any, held_out: Any) -> None:
        """Set the labels, [n] each."""
        self._train.set_label(train)
        self._held_out.set_label(held_out)

    def weigh(self, train: Float32Array | None, held_out: Float32Array | None) -> None:
        """Set the weights, float32 [n] each; None: equal."""
        self._train.set_weight(train)
        self._held_out.set_weight(held_out)

    def group(self, train: Any, held_out: Any) -> None:
        """Set the number of rows of each request, int64 [R] each."""
        self._train.set_group(train)
        self._held_out.set_group(held_out)

    def run(
        self,
        objective: dict[str, Any],
        report: Report = lambda *_: None,
        start: lightgbm.Booster | None = None,
    ) -> lightgbm.Booster:
        """Return a booster of ``objective``, stopped early on the held-out rows.

        Raises:
            CannotLearn: the metric is not finite.

        """
        rounds = self._config.rounds
        every = max(1, rounds // _REPORTS)

        def watch(state: Any) -> None:
            for _, _, value, *_ in state.evaluation_result_list:
                self._guard(value)
            done = state.iteration - state.begin_iteration + 1
            if done % every == 0:
                report(done / rounds, float(state.evaluation_result_list[0][2]))

        booster = lightgbm.train(
            {**self._parameters(), **objective},
            self._train,
            rounds,
            valid_sets=[self._held_out],
            callbacks=[watch, lightgbm.early_stopping(self._config.patience, verbose=False)],
            init_model=start,
        )
        # Read back from its own text, so that what is measured now is what will be served.
        text = booster.model_to_string(num_iteration=booster.best_iteration)
        return lightgbm.Booster(model_str=text)

    def _parameters(self) -> dict[str, Any]:
        config = self._config
        return {
            "learning_rate": config.learning_rate,
            "num_leaves": config.leaves,
            "min_data_in_leaf": config.min_rows_in_leaf,
            "feature_fraction": config.feature_share,
            "lambda_l2": config.l2,
            "max_bin": config.bins,
            "num_threads": config.threads,
            "seed": self._seed,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        }
