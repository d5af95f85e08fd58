"""What a training of the towers reports: the model behind its ``report.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from feature_repo.files import read_json, write_json

_FILE = "report.json"


class TowerTrainingReport(BaseModel):
    """Recall of the best epoch, the curves, and the checks.

    Attributes:
        best_epoch: the epoch whose weights are kept, from 1.
        recall: recall@k of that epoch on the validation examples.
        recall_at: its k.
        curve: metrics of every epoch.
        one_batch_loss: loss before and after one batch was overfitted.
        shuffled_auc: AUC on shuffled items and the tolerance about .5; empty: too few examples.

    """

    model_config = ConfigDict(frozen=True)

    best_epoch: int
    recall: float
    recall_at: int
    curve: list[dict[str, float]]
    one_batch_loss: list[float]
    shuffled_auc: list[float]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return self.model_dump()

    def save(self, folder: Path, version: str) -> None:
        """Write the report; that it exists says that the training of ``version`` has finished."""
        write_json(folder / _FILE, {**self.to_dict(), "version": version})

    @classmethod
    def load(cls, folder: Path, version: str) -> TowerTrainingReport | None:
        """Return the report of a finished training of ``version``; None: there is none."""
        path = folder / _FILE
        if not path.is_file():
            return None
        values = read_json(path)
        return cls.model_validate(values) if values["version"] == version else None
