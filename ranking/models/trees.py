"""Gradient-boosted trees: one LightGBM booster per head, or one for the order of a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from feature_repo.arrays import Float32Array, Float64Array, Int32Array
from feature_repo.files import read_json
from ranking.models.base import Contributions, PairScorer, largest, save_description
from ranking.models.forest import Forest, UnsupportedTrees
from ranking.models.lightgbm_library import lightgbm
from ranking.row_schema import RowSchema
from ranking.rows import ItemRows
from ranking.sigmoid import sigmoid


@dataclass(frozen=True)
class TreeRanker:
    """Boosters (LightGBM, Ke et al. 2017) and the sigmoids that make probabilities of their scores.

    ``lightgbm`` has a booster per head, trained on log loss, with the identity as slope and
    intercept. ``lambdarank`` has one booster (Burges 2010, "From RankNet to LambdaRank to
    LambdaMART") whose score each head reads through an increasing sigmoid.

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
        if not len(numeric):  # LightGBM refuses zero rows
            return np.empty((0, len(self.schema.heads)), dtype=np.float32)
        matrix = joined_matrix(numeric, categorical, self.schema)
        return self._probabilities([raw_scores(booster, matrix) for booster in self.boosters])

    def for_items(self, items: ItemRows) -> PairScorer:
        """See ``Ranker.for_items``: trees of up to 64 leaves give the same bits without a join."""
        cardinalities = np.asarray(self.schema.cardinalities, dtype=np.int32)
        forests = self._forests
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
        rows = joined_matrix(numeric[None, :], categorical[None, :], self.schema)
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
        """Return each column's share of the total split gain, averaged over the boosters."""
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


def joined_matrix(
    numeric: Float32Array, categorical: Int32Array, schema: RowSchema
) -> Float32Array:
    """Return LightGBM's input, float32 [n, F + C]; codes below 2^24 are exact in it."""
    return np.hstack([numeric, schema.known_codes(categorical).astype(np.float32)])


def raw_scores(booster: lightgbm.Booster, rows: Float32Array) -> Float64Array:
    """Return raw scores, float64 [n], of ``joined_matrix`` rows [n, F + C]."""
    # One thread: a server answers several requests at once, and each is small.
    return np.asarray(booster.predict(rows, raw_score=True, num_threads=1), dtype=np.float64)
