"""The report of a candidate generator, written beside its files and into the release's metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from feature_repo.files import read_json, write_json
from feature_repo.hashing import file_hash, fingerprint
from retrieval.index import IndexReport
from retrieval.towers.config import TowerTrainingConfig
from retrieval.towers.model import TowerConfig, TowerShape

_FILE = "report.json"


def generator_id(models: Path) -> str:
    """Return an id of the candidate generator in a folder of trained models, and of its split.

    Rankers that learned from its candidates note it, so that a release can tell whether its parts
    belong together. An erasure does not change it.
    """
    folder = models / "retrieval"
    vectors = file_hash(folder / "item_vectors.npy")
    return fingerprint(read_json(folder / _FILE), vectors, read_json(models / "split.json"))


class TowersReport(BaseModel):
    """How the towers learned: ``retrieval.towers.training.TrainReport``, and what was measured."""

    model_config = ConfigDict(frozen=True)

    best_epoch: int
    recall: float
    recall_at: int
    curve: list[dict[str, int | float]]
    one_batch_loss: list[float]
    shuffled_auc: list[float]
    validation: str


class RetrievalReport(BaseModel):
    """``models/retrieval/report.json``, and ``retrieval`` in a release's ``metrics.json``.

    Attributes:
        version: fingerprint of data and settings.
        towers: how the towers learned.
        index: how the index was tuned.
        examples: number of training examples.
        settings: how the towers were trained.
        sizes: sizes of the towers.
        warm_start: id of the release that the training continued from; None: from scratch.

    """

    model_config = ConfigDict(frozen=True)

    version: str
    towers: TowersReport
    index: IndexReport
    examples: int
    settings: TowerTrainingConfig
    sizes: TowerConfig
    warm_start: str | None = None

    @classmethod
    def load(cls, folder: Path) -> RetrievalReport | None:
        """Return the report of the candidate generator in a folder; None: there is none yet."""
        path = folder / _FILE
        return cls.model_validate(read_json(path)) if path.is_file() else None

    def save(self, folder: Path) -> None:
        """Write the report into a folder."""
        write_json(folder / _FILE, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, without ``warm_start`` where there was none."""
        left_out = {"warm_start"} if self.warm_start is None else set()
        return self.model_dump(mode="json", exclude=left_out)

    @property
    def shape(self) -> TowerShape:
        """Return the part of the sizes that was chosen rather than given by data."""
        return TowerShape(
            **{name: getattr(self.sizes, name) for name in TowerShape.__dataclass_fields__}
        )
