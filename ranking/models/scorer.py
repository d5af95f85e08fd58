"""What a server holds: a trained ranker together with its calibration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from feature_repo.arrays import Float32Array, Int32Array
from feature_repo.files import read_json, write_json
from ranking.calibration import Calibration, fit_calibration
from ranking.data import RankingData
from ranking.metrics import calibration_curve
from ranking.models import Ranker, load
from ranking.models.base import Contributions
from ranking.row_schema import RowSchema
from ranking.rows import ItemRows, PairRows


@dataclass(frozen=True)
class CalibratedRanker:
    """Calibrated probabilities of every head, and the score that candidates are ordered by.

    Attributes:
        ranker: the model.
        calibration: one map per head.

    """

    ranker: Ranker
    calibration: Calibration

    @classmethod
    def fit(cls, ranker: Ranker, data: RankingData) -> CalibratedRanker:
        """Return a trained ranker, calibrated on rows that it was not trained on."""
        probabilities = ranker.predict(data.numeric, data.categorical)
        return cls(ranker, fit_calibration(probabilities, data.labels, data.request))

    @classmethod
    def load(cls, folder: Path) -> CalibratedRanker:
        """Return what ``train_rankers`` saved below ``folder/<kind>``.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: the kind is unknown, or calibration and schema have different heads.

        """
        ranker = load(folder)
        calibration = Calibration.from_dict(read_json(folder / "calibration.json"))
        if len(calibration.heads) != len(ranker.schema.heads):
            raise ValueError(
                f"{folder}: {len(calibration.heads)} calibrations for heads {ranker.schema.heads}"
            )
        return cls(ranker, calibration)

    def save(self, folder: Path) -> None:
        """Write everything that ``load`` reads into an existing folder."""
        self.ranker.save(folder)
        write_json(folder / "calibration.json", self.calibration.to_dict())

    @property
    def kind(self) -> str:
        """Return the kind of the model."""
        return self.ranker.kind

    @property
    def schema(self) -> RowSchema:
        """Return the columns that rows must have, in this order."""
        return self.ranker.schema

    def score(
        self, numeric: Float32Array, categorical: Int32Array
    ) -> tuple[Float32Array, Float32Array]:
        """Return ``sum_t weight_t * p_t``, float32 [n], and the calibrated p, float32 [n, T].

        Args:
            numeric: float32 [n, F], NaN for missing; n may be 0.
            categorical: int32 [n, C]; codes that were not known in training count as unknown.

        Raises:
            ValueError: the rows do not have the schema's shape.

        """
        self.schema.check_rows(numeric, categorical)
        return self._calibrated(self.ranker.predict(numeric, categorical))

    def for_items(self, items: ItemRows) -> Callable[[PairRows], tuple[Float32Array, Float32Array]]:
        """Return a scorer of one request's pairs with these items, prepared in advance.

        It gives the same as ``score`` of the joined rows.
        """
        predict = self.ranker.for_items(items)
        return lambda pairs: self._calibrated(predict(pairs))

    def _calibrated(self, raw: Float32Array) -> tuple[Float32Array, Float32Array]:
        probabilities = self.calibration(raw)
        return self.schema.score(probabilities), probabilities.astype(np.float32)

    def calibration_curves(
        self, data: RankingData, bins: int = 15
    ) -> dict[str, dict[str, list[dict[str, float]]]]:
        """Return each head's calibration curve before and after calibration.

        The keys are ``raw`` and ``calibrated``. A curve is a list of bins of equal mass, the least
        probable first, each with ``rows``, ``predicted`` (mean probability) and ``rate`` (share of
        positive labels).
        """
        raw = self.ranker.predict(data.numeric, data.categorical)
        stages: dict[str, npt.NDArray[Any]] = {"raw": raw, "calibrated": self.calibration(raw)}
        return {
            head: {
                stage: _curve(data.labels[:, column], p[:, column], bins)
                for stage, p in stages.items()
            }
            for column, head in enumerate(self.schema.heads)
        }

    def explain(
        self, numeric: Float32Array, categorical: Int32Array, top: int | None = None
    ) -> Contributions:
        """Return the columns that moved one row, [F] and [C], largest first, in weighted log-odds.

        Raises:
            ValueError: the row does not have the schema's shape.

        """
        self.schema.check_rows(numeric[None, :], categorical[None, :])
        return self.ranker.explain(numeric, categorical, top)


def _curve(
    labels: Float32Array, probabilities: npt.NDArray[np.floating], bins: int
) -> list[dict[str, float]]:
    columns = zip(*calibration_curve(labels, probabilities, bins), strict=True)
    return [{"rows": int(n), "predicted": float(p), "rate": float(rate)} for n, p, rate in columns]
