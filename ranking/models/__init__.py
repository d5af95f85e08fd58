"""Trained rankers: prediction, explanation and files of each kind; nothing imports torch."""

from __future__ import annotations

from pathlib import Path

from feature_repo.files import read_json
from ranking.models.base import Ranker
from ranking.row_schema import RowSchema

__all__ = ["Ranker", "load"]


def load(folder: Path) -> Ranker:
    """Return the ranker that was saved in a folder.

    Raises:
        FileNotFoundError: the folder lacks a file of the model.
        ValueError: ``model.json`` names a kind that does not exist.

    """
    kind = read_json(folder / "model.json")["kind"]
    schema = RowSchema.from_dict(read_json(folder / "schema.json"))
    # Each kind brings its own library; a server loads the one that it serves.
    match kind:
        case "popularity":
            from ranking.models.popularity import PopularityRanker

            return PopularityRanker.load(folder, schema)
        case "logistic":
            from ranking.models.logistic import LogisticRanker

            return LogisticRanker.load(folder, schema)
        case "lightgbm" | "lambdarank":
            from ranking.models.trees import TreeRanker

            return TreeRanker.load(folder, schema)
        case "dcn":
            from ranking.models.dcn import DcnRanker

            return DcnRanker.load(folder, schema)
    raise ValueError(f"{folder}: unknown kind of ranker {kind!r}")
