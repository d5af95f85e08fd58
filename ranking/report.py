"""What a training of rankers reports: the models behind ``report.json`` and ``manifest.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from feature_repo.files import read_json
from feature_repo.workspace import MissingStage
from ranking.config import RankerConfig


class _Report(BaseModel):
    """Stored as JSON; unknown keys are errors, so that a misspelt one is found."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-like values."""
        return self.model_dump()


class HeadReport(_Report):
    """Metrics of one head on the selection rows; None where they are undefined.

    ``raw``: before calibration.
    """

    auc: float | None
    log_loss: float
    log_loss_raw: float
    ece: float
    ece_raw: float
    calibration: str


class KindReport(_Report):
    """Metrics of one kind on the selection rows.

    Attributes:
        version: fingerprint of data and settings.
        ndcg: NDCG@k of the score with the relevance as gain, by which kinds are compared.
        weighted_ndcg: NDCG@k with the weighted label as gain.
        heads: metrics of each head.
        sanity: figures of ``ranking.training.sanity``'s checks and of the training's guard.

    """

    version: str
    ndcg: float | None
    weighted_ndcg: float | None
    heads: dict[str, HeadReport]
    sanity: dict[str, float] = Field(default_factory=dict)


class NdcgGap(NamedTuple):
    """How far a kind's NDCG is below the highest, and the standard error over users of that."""

    below: float
    standard_error: float


class RankerReport(_Report):
    """The content of ``report.json``; it has no times, so equal runs write equal bytes.

    Attributes:
        best: the kind to serve.
        config: the settings of a cold start.
        kinds: metrics of every kind.
        behind: each kind's distance from the highest NDCG.
        positions: for impressions, how often each position was shown and clicked; else None.
        trained_on: id of the candidate generator whose candidates the rankers learned to order;
            None: not known.

    """

    best: str
    config: RankerConfig
    kinds: dict[str, KindReport]
    behind: dict[str, NdcgGap]
    positions: list[dict[str, int | float]] | None = None
    trained_on: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-like values, without ``trained_on`` where it is not known."""
        return self.model_dump(exclude={"trained_on"} if self.trained_on is None else None)

    @classmethod
    def load(cls, folder: Path) -> RankerReport:
        """Return the report of a finished run.

        Raises:
            FileNotFoundError: the run has not finished.
            MissingStage: an earlier version of Funnel wrote it.

        """
        values = read_json(folder / "report.json")
        if "config" not in values:
            raise MissingStage(f"{folder} is of an earlier version: run 'funnel train' again")
        return cls.model_validate(values)
