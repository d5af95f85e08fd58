"""Gradient-boosted trees: one LightGBM booster per head, or one for the order of a request."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from feature_repo.arrays import Float32Array, Float64Array, Int32Array
from feature_repo.files import read_json
from feature_repo.sanity import Guard
from ranking.config import TreeConfig
from ranking.data import RankingData, RowSchema, group_starts
from ranking.models.base import Contributions, Log, PairScorer, largest, save_description
from ranking.models.forest import Forest, UnsupportedTrees
from ranking.rows import ItemRows
from ranking.sigmoid import fit_sigmoid, sigmoid


def _load_openmp() -> None:
    """Make libgomp.so.1 known to the process before LightGBM asks for it.

    LightGBM's wheel expects the system to have GCC's OpenMP runtime, which a bare Debian has not.
    torch's wheel carries one under the same SONAME; it is loaded from the file, because importing
    torch would cost a server a second and 200 MB.
    """
    try:
        ctypes.CDLL("libgomp.so.1", mode=ctypes.RTLD_GLOBAL)
    except OSError:
        torch = importlib.util.find_spec("torch")
        for place in (torch.submodule_search_locations or ()) if torch else ():
            library = Path(place) / "lib" / "libgomp.so.1"
            if library.is_file():
                ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


_load_openmp()

_MOST_LEVELS = 128

import lightgbm  # noqa: E402  (needs the library above)

Report = Callable[[float, float], None]
"""Told while boosting: the share of the rounds that are done, and the figure that stops them."""

_REPORTS = 10


@dataclass(frozen=True)
class TreeRanker:
    """Boosters (LightGBM, Ke et al. 2017) and the sigmoids that make probabilities of their scores.

    ``lightgbm`` has a booster per head, trained on log loss, with the identity as slope and
    intercept. ``lambdarank`` has one booster (Burges 2010, "From RankNet to LambdaRank to
    LambdaMART") whose score each head reads through a rising sigmoid.

    Attributes:
        kind: ``lightgbm`` or ``lambdarank``.
        schema: columns of a row.
        boosters: T of them, or one.
        slope: one per head.
        intercept: one per head.

    """

    kind: str
    schema: RowSchema
    boosters: tuple[lightgbm.Booster, ...]
    slope: tuple[float, ...]
    intercept: tuple[float, ...]

    def predict(self, numeric: Float32Array, categorical: Int32Array) -> Float32Array:
        """See ``Ranker.predict``."""
        if not len(numeric):
            return np.empty(
                (0, len(self.schema.heads)), dtype=np.float32
            )  # LightGBM refuses zero rows
        matrix = _matrix(numeric, categorical, self.schema)
        return self._probabilities([_raw(booster, matrix) for booster in self.boosters])

    def for_items(self, items: ItemRows) -> PairScorer:
        """See ``Ranker.for_items``: trees of up to 64 leaves need no joined table and give the same to the bit."""
        forests, cardinalities = (
            self._forests,
            np.asarray(self.schema.cardinalities, dtype=np.int32),
        )
        if forests is None:
            return lambda rows: self.predict(*rows.join(items))
        return lambda rows: self._probabilities(
            [forest(rows, items, cardinalities) for forest in forests]
        )

    @cached_property
    def _forests(self) -> list[Forest] | None:
        try:
            return [Forest.read(booster.model_to_string()) for booster in self.boosters]
        except UnsupportedTrees:
            return None

    def _probabilities(self, raw: Sequence[Float64Array]) -> Float32Array:
        return sigmoid(np.stack(raw, axis=1) * self.slope + self.intercept).astype(np.float32)

    def explain(
        self, numeric: Float32Array, categorical: Int32Array, top: int | None = None
    ) -> Contributions:
        """See ``Ranker.explain``: SHAP values of the trees (Lundberg et al. 2020).

        They add up to the row's weighted log-odds minus the mean over the training rows.
        """
        rows = _matrix(numeric[None, :], categorical[None, :], self.schema)
        # The last column is the expected value, which belongs to no feature.
        parts = [
            booster.predict(rows, pred_contrib=True, num_threads=1) for booster in self.boosters
        ]
        by_head = np.broadcast_to(
            np.concatenate(parts)[:, :-1], (len(self.schema.heads), rows.shape[1])
        )
        values = (self.schema.weights * self.slope) @ by_head
        return largest(self.schema.numeric + self.schema.categorical, values, top)

    def gain(self) -> dict[str, float]:
        """Return each column's share of what all splits gained in training, the mean over boosters."""
        gains = np.stack([booster.feature_importance("gain") for booster in self.boosters])
        shares = (gains / np.maximum(gains.sum(axis=1, keepdims=True), 1e-300)).mean(axis=0)
        return dict(
            zip(self.schema.numeric + self.schema.categorical, shares.tolist(), strict=True)
        )

    def save(self, folder: Path) -> None:
        """See ``Ranker.save``: each booster as LightGBM's own text."""
        save_description(
            folder,
            self.kind,
            self.schema,
            boosters=len(self.boosters),
            slope=self.slope,
            intercept=self.intercept,
        )
        for number, booster in enumerate(self.boosters):
            (folder / f"booster_{number}.txt").write_text(
                booster.model_to_string(), encoding="utf-8"
            )

    @classmethod
    def load(cls, folder: Path, schema: RowSchema) -> TreeRanker:
        """Return the ranker saved in ``folder``."""
        values = read_json(folder / "model.json")
        texts = [
            (folder / f"booster_{n}.txt").read_text(encoding="utf-8")
            for n in range(values["boosters"])
        ]
        boosters = tuple(lightgbm.Booster(model_str=text) for text in texts)
        return cls(
            values["kind"], schema, boosters, tuple(values["slope"]), tuple(values["intercept"])
        )


def fit_lightgbm(
    train: RankingData,
    watch: RankingData,
    schema: RowSchema,
    config: TreeConfig,
    seed: int,
    guard: Guard,
    log: Log,
    earlier: TreeRanker | None = None,
) -> TreeRanker:
    """Train a booster per head; ``watch``, held-out rows, says when to stop.

    Labels of ``train`` may lie between 0 and 1: probabilities that another model gave. With
    ``earlier``, of this kind and heads, its trees stay and the rounds are added to them.
    """
    data, held_out = _datasets(train, watch, schema, config)
    soft = not np.isin(train.labels, (0.0, 1.0)).all()
    goal = {
        "objective": "cross_entropy" if soft else "binary",
        "metric": "cross_entropy" if soft else "binary_logloss",
    }
    boosters = []
    for column, head in enumerate(schema.heads):
        if earlier:  # what the earlier trees say of the rows is kept in the data set
            data, held_out = _datasets(train, watch, schema, config)
        data.set_weight(train.weight)
        held_out.set_weight(watch.weight)
        # Bins do not depend on labels, so one binned matrix serves every head.
        data.set_label(np.ascontiguousarray(train.labels[:, column]))
        held_out.set_label(np.ascontiguousarray(watch.labels[:, column]))
        start = earlier.boosters[column] if earlier else None
        boosters.append(
            _boost(
                {**_parameters(config, seed), **goal}, data, held_out, config, guard, start=start
            )
        )
        log("lightgbm", {f"{head}_trees": float(boosters[-1].num_trees())})
    ones, zeros = (1.0,) * len(boosters), (0.0,) * len(boosters)
    return TreeRanker("lightgbm", schema, tuple(boosters), ones, zeros)


def fit_lambdarank(
    train: RankingData,
    watch: RankingData,
    schema: RowSchema,
    config: TreeConfig,
    seed: int,
    k: int,
    guard: Guard,
    log: Log,
    earlier: TreeRanker | None = None,
) -> TreeRanker:
    """Train one booster for NDCG@k; the gain of a row is its weighted label, 0 for rows without any.

    With ``earlier``, of this kind, its trees stay and the rounds are added to them. Each head's
    sigmoid is fitted
    on ``watch``: on rows that the trees have seen, scores are too sure.
    """
    worth, watch_worth = (_levels(part.worth(schema)) for part in (train, watch))
    gains = np.unique(np.r_[np.float32(0.0), worth, watch_worth])
    data, held_out = _datasets(train, watch, schema, config)
    for rows, of, gain in ((data, train, worth), (held_out, watch, watch_worth)):
        rows.set_label(np.searchsorted(gains, gain)).set_group(of.group_sizes()).set_weight(
            _row_weights(of)
        )
    parameters = {
        **_parameters(config, seed),
        "objective": "lambdarank",
        "metric": "ndcg",
        "eval_at": [k],
        "lambdarank_truncation_level": k + 5,  # LightGBM's advice: a little above k
        "label_gain": [float(gain) for gain in gains],
    }

    empty = _empty_share(watch_worth, watch)

    def report(done: float, ndcg: float) -> None:
        # LightGBM counts a request without any gain as 1; what other kinds report leaves it out.
        log(
            "lambdarank",
            {"done": done, "watch_ndcg": (ndcg - empty) / (1 - empty) if empty < 1 else 0.0},
        )

    start = earlier.boosters[0] if earlier else None
    booster = _boost(parameters, data, held_out, config, guard, report, start)
    log("lambdarank", {"trees": float(booster.num_trees())})
    scores = _raw(booster, _matrix(watch.numeric, watch.categorical, schema))
    fits = [fit_sigmoid(scores, watch.labels[:, head]) for head in range(len(schema.heads))]
    slope, intercept = zip(*fits, strict=True)
    return TreeRanker("lambdarank", schema, (booster,), slope, intercept)


def _row_weights(data: RankingData) -> Float32Array | None:
    """Return the weight of each row's request, float32 [n]: LightGBM weighs pairs of rows by their rows."""
    weights = data.request_weights()
    return None if weights is None else np.repeat(weights, data.group_sizes()).astype(np.float32)


def _empty_share(worth: Float32Array, data: RankingData) -> float:
    """Return the share of requests, by weight, of which no row is worth anything."""
    empty = np.maximum.reduceat(worth, group_starts(data.request)) == 0
    return float(np.average(empty, weights=data.request_weights()))


def _levels(worth: Float32Array) -> Float32Array:
    """Return gains of few levels: LambdaRank compares labels, which are whole numbers."""
    if len(np.unique(worth)) <= _MOST_LEVELS:
        return worth
    step = worth.max() / np.float32(_MOST_LEVELS)
    return np.round(worth / step) * step


def _matrix(numeric: Float32Array, categorical: Int32Array, schema: RowSchema) -> Float32Array:
    """Return float32 [n, F + C]; codes below 2^24 are exact in it."""
    return np.hstack([numeric, schema.known_codes(categorical).astype(np.float32)])


def _raw(booster: lightgbm.Booster, rows: Float32Array) -> Float64Array:
    # One thread: a server answers several requests at once, and each is small.
    return np.asarray(booster.predict(rows, raw_score=True, num_threads=1), dtype=np.float64)


def _datasets(
    train: RankingData, watch: RankingData, schema: RowSchema, config: TreeConfig
) -> tuple[lightgbm.Dataset, lightgbm.Dataset]:
    width = len(schema.numeric)
    data = lightgbm.Dataset(
        _matrix(train.numeric, train.categorical, schema),
        categorical_feature=list(range(width, width + len(schema.categorical))),
        params={
            "max_bin": config.bins,
            "verbosity": -1,
            "num_threads": config.threads,
            "force_row_wise": True,
        },
        free_raw_data=True,
    )
    return data, data.create_valid(_matrix(watch.numeric, watch.categorical, schema))


def _parameters(config: TreeConfig, seed: int) -> dict[str, Any]:
    return {
        "learning_rate": config.learning_rate,
        "num_leaves": config.leaves,
        "min_data_in_leaf": config.min_rows_in_leaf,
        "feature_fraction": config.feature_share,
        "lambda_l2": config.l2,
        "max_bin": config.bins,
        "num_threads": config.threads,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }


def _boost(
    parameters: dict[str, Any],
    data: lightgbm.Dataset,
    held_out: lightgbm.Dataset,
    config: TreeConfig,
    guard: Guard,
    report: Report = lambda *_: None,
    start: lightgbm.Booster | None = None,
) -> lightgbm.Booster:
    every = max(1, config.rounds // _REPORTS)

    def note(state: Any) -> None:
        for _, _, value, *_ in state.evaluation_result_list:
            guard(value)
        done = state.iteration - state.begin_iteration + 1
        if done % every == 0:
            report(done / config.rounds, float(state.evaluation_result_list[0][2]))

    callbacks = [note, lightgbm.early_stopping(config.patience, verbose=False)]
    booster = lightgbm.train(
        parameters,
        data,
        config.rounds,
        valid_sets=[held_out],
        callbacks=callbacks,
        init_model=start,
    )
    # Read back from its own text, so that what is measured now is what will be served.
    return lightgbm.Booster(model_str=booster.model_to_string(num_iteration=booster.best_iteration))
