"""What a ranker is fitted from: its rows, their transform and schema, and the settings."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ranking.config import RankerConfig
from ranking.data import RankingData
from ranking.row_schema import RowSchema
from ranking.transform import RowTransform


@dataclass(frozen=True)
class FitTask:
    """One fit of one kind of ranker.

    Attributes:
        train: rows to learn from; labels may lie between 0 and 1, probabilities of another model.
        held_out: later rows, for early stopping.
        transform: of numeric columns, fitted on ``train``.
        schema: columns of both.
        config: settings of every kind.

    """

    train: RankingData
    held_out: RankingData
    transform: RowTransform
    schema: RowSchema
    config: RankerConfig

    def with_transform(self, transform: RowTransform) -> FitTask:
        """Return the task behind another transform."""
        return replace(self, transform=transform)
