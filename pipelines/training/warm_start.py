"""What a training takes over from the current release: codes, weights, and how much of the past it sees again."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor

from feature_repo import columns as c
from feature_repo.dataset import SpecError
from feature_repo.encoding import AttributeEncoder, Vocabulary
from feature_repo.workspace import MissingStage, Workspace, read_json
from pipelines.training.release import current_release
from pipelines.training.split import Split, epoch_seconds
from ranking.config import RankerConfig, WarmStart
from retrieval.towers.model import TowerShape, TwoTowers
from retrieval.towers.training import TowerTrainingConfig
from serving.recommender.candidates import Shares
from serving.recommender.codec import Codec
from serving.releases.release import verify


class NothingNew(RuntimeError):
    """The release has learned from all there is already."""


@dataclass(frozen=True)
class WarmStartConfig:
    """How much less than a full training: epochs and their step size, rounds of boosting, steps of the network."""

    epochs: int = 5
    learning_rate: float = 1e-3
    rounds: int = 100
    steps: int = 100
    network_learning_rate: float = 1e-3

    def towers(self, config: TowerTrainingConfig) -> TowerTrainingConfig:
        """Return how the towers are trained."""
        epochs, rate = (
            min(self.epochs, config.epochs),
            min(self.learning_rate, config.learning_rate),
        )
        return replace(config, epochs=epochs, learning_rate=rate)

    def ranker(self, base: Base) -> WarmStart:
        """Return where the ranker goes on, and how far."""
        return WarmStart(
            base.folder / "ranker", self.rounds, self.steps, self.network_learning_rate
        )


@dataclass(frozen=True)
class Base:
    """The release that a warm start begins from.

    Attributes:
        folder: where it lies; its name is its id.
        codec: its codes.
        shape: of its towers.
        config: its towers were trained so.
        shares: how many candidates each source may propose in it.
        rankers: the settings of its ranker; no other kind has anything to go on from.
        cut: its towers have learned from events before this moment, epoch seconds.

    """

    folder: Path
    codec: Codec
    shape: TowerShape
    config: TowerTrainingConfig
    shares: Shares
    rankers: RankerConfig
    cut: float

    @classmethod
    def of(cls, workspace: Workspace) -> Base:
        """Return the current release of a workspace.

        Raises:
            MissingStage: there is no release, it is of an earlier version, or there are no data.
            SpecError: the release is of another data set.
            BadRelease: it is damaged.

        """
        spec, folder = workspace.spec(), current_release(workspace)
        manifest = verify(folder)
        codec = Codec.from_dict(read_json(folder / "codec.json"))
        if codec.spec != spec:
            raise SpecError(
                f"release {folder.name} is of another data set than {workspace.ingest}: "
                "run 'funnel train' without --warm-start"
            )
        metrics = read_json(folder / "metrics.json")
        if "config" not in metrics["ranking"]:
            raise MissingStage(
                f"release {folder.name} is of an earlier version: run 'funnel train' without --warm-start"
            )
        report, kind = (
            metrics["retrieval"],
            str(read_json(folder / "ranker" / "model.json")["kind"]),
        )
        shape = TowerShape(
            **{field.name: report["sizes"][field.name] for field in fields(TowerShape)}
        )
        config = TowerTrainingConfig(**report["settings"] | {"device": None})
        shares = Shares.model_validate(read_json(folder / "shares.json"))
        rankers = replace(RankerConfig.from_dict(metrics["ranking"]["config"]), kinds=(kind,))
        return cls(
            folder, codec, shape, config, shares, rankers, float(manifest["split"]["ranker"])
        )

    def examples(self, known: pd.DataFrame, split: Split, seed: int) -> pd.DataFrame:
        """Return the events to learn from: those since the release's cut, and as many older ones.

        Towers that see only new events forget what they knew of users and items that are not among
        them (McCloskey and Cohen 1989). Rehearsing a random sample of the old, as large as the new
        part, is the simplest cure and a strong one (Rolnick et al., "Experience replay for
        continual learning", NeurIPS 2019).

        Args:
            known: all events before ``split.ranker``, in order of time.
            split: of the new training.
            seed: of the sample.

        Raises:
            NothingNew: there is no positive event since the cut.

        """
        positive = known[known[c.POSITIVE]]
        new = epoch_seconds(positive[c.TIMESTAMP]) >= self.cut
        if not new.any() or split.ranker <= self.cut:
            raise NothingNew(
                f"release {self.folder.name} has learned from all events up to the cut already: "
                "bring new ones with 'funnel ingest', or run 'funnel train' without --warm-start"
            )
        older = np.flatnonzero(~new)
        chosen = np.random.default_rng(seed).permutation(older)[: int(new.sum())]
        return positive.iloc[np.sort(np.concatenate([chosen, np.flatnonzero(new)]))]

    def begin(self, towers: TwoTowers, codec: Codec) -> None:
        """Give towers of a grown ``codec`` the release's weights; rows of what it did not know stay as they are."""
        weights = load_file(
            self.folder / "towers.safetensors", device=str(towers.log_temperature.device)
        )
        rows = table_rows(self.codec, codec)
        state: dict[str, Tensor] = towers.state_dict()
        for name, value in weights.items():
            state[name] = carried(value, state[name], rows[name]) if name in rows else value
        towers.load_state_dict(state)


def table_rows(old: Codec, new: Codec) -> dict[str, npt.NDArray[np.int64]]:
    """Return, for each embedding table by its name, the old row of each new row: int64 ``[rows]``, -1 for none."""
    return {
        "users.ids.weight": _rows(old.users, new.users),
        "items.ids.weight": _rows(old.items, new.items),
        "users.attribute_table.weight": _attribute_rows(old.user_attributes, new.user_attributes),
        "items.attribute_table.weight": _attribute_rows(old.item_attributes, new.item_attributes),
    }


def carried(old: Tensor, fresh: Tensor, rows: npt.NDArray[np.int64]) -> Tensor:
    """Return ``fresh`` ``[n, D]`` with the rows of ``old`` ``[m, D]`` that ``rows`` int64 ``[n]`` names (-1: none)."""
    chosen = torch.from_numpy(rows).to(old.device)
    return torch.where((chosen >= 0).unsqueeze(1), old[chosen.clamp(min=0)], fresh)


def _rows(old: Vocabulary, new: Vocabulary) -> npt.NDArray[np.int64]:
    codes = old.encode(new.values).astype(np.int64)
    return np.concatenate([[0], np.where(codes > 0, codes, -1)])  # code 0 is unknown in both


def _attribute_rows(old: AttributeEncoder, new: AttributeEncoder) -> npt.NDArray[np.int64]:
    parts: list[Any] = [np.zeros(1, dtype=np.int64)]
    for name in new.coded:
        codes = _rows(old.vocabularies[name], new.vocabularies[name])[1:]
        parts.append(np.where(codes > 0, codes + old.offsets[name] - 1, -1))
    return np.concatenate(parts)
