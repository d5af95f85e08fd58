"""Warm start: the codes, weights and past events that a training takes from the current release."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor

from feature_repo import columns as c
from feature_repo.arrays import Int64Array
from feature_repo.dataset import SpecError
from feature_repo.encoding import AttributeEncoder, Vocabulary
from feature_repo.errors import FunnelError
from feature_repo.files import read_json
from feature_repo.workspace import MissingStage, Workspace
from pipelines.training.config import RetrievalConfig
from pipelines.training.release_pointer import current_release
from pipelines.training.reports import RetrievalReport
from pipelines.training.split import Split, epoch_seconds
from ranking.config import RankerConfig, WarmStart
from retrieval.towers.config import TowerTrainingConfig
from retrieval.towers.model import TwoTowers
from serving.recommender.candidates import CandidateQuota
from serving.recommender.codec import Codec
from serving.releases.manifest import verify_files


class NothingNew(FunnelError):
    """The release has learned from all events already."""


@dataclass(frozen=True)
class WarmStartConfig:
    """How much a warm start learns; never more than a training from scratch.

    Attributes:
        epochs: maximum epochs of the towers.
        learning_rate: maximum step size of the towers.
        rounds: maximum boosting rounds on top of the ranker's trees.
        steps: maximum steps of a ranking network.
        network_learning_rate: maximum step size of a ranking network.

    """

    epochs: int = 5
    learning_rate: float = 1e-3
    rounds: int = 100
    steps: int = 100
    network_learning_rate: float = 1e-3

    def towers(self, config: TowerTrainingConfig) -> TowerTrainingConfig:
        """Return how the towers are trained, from the settings of a training from scratch."""
        return replace(
            config,
            epochs=min(self.epochs, config.epochs),
            learning_rate=min(self.learning_rate, config.learning_rate),
        )

    def ranker(self, base: BaseRelease) -> WarmStart:
        """Return the ranker to continue from, and how far."""
        return WarmStart(
            base.folder / "ranker", self.rounds, self.steps, self.network_learning_rate
        )


@dataclass(frozen=True)
class BaseRelease:
    """The release that a warm start continues from.

    Attributes:
        folder: its folder, named by its id.
        codec: its codes.
        retrieval: how its candidate generator was made.
        rankers: the settings of its ranker, the only kind that can continue.
        learned_until: its towers have learned from events before this time, epoch seconds.

    """

    folder: Path
    codec: Codec
    retrieval: RetrievalConfig
    rankers: RankerConfig
    learned_until: float

    @classmethod
    def of(cls, workspace: Workspace) -> BaseRelease:
        """Return the current release of a workspace.

        Raises:
            MissingStage: there is no release, it is of an earlier version, or there are no data.
            SpecError: the release is of another data set.
            BadRelease: it is damaged.

        """
        spec = workspace.spec().model_copy(update={"features": None})  # the codec has its columns
        folder = current_release(workspace)
        manifest = verify_files(folder)

        codec = Codec.from_dict(read_json(folder / "codec.json"))
        if codec.spec != spec:
            raise SpecError(
                f"release {folder.name} is of another data set than {workspace.ingest}: "
                "run 'funnel train' without --warm-start"
            )
        metrics = read_json(folder / "metrics.json")
        if "config" not in metrics["ranking"]:
            raise MissingStage(
                f"release {folder.name} is of an earlier version: "
                "run 'funnel train' without --warm-start"
            )

        report = RetrievalReport.model_validate(metrics["retrieval"])
        kind = str(read_json(folder / "ranker" / "model.json")["kind"])
        return cls(
            folder=folder,
            codec=codec,
            retrieval=RetrievalConfig(
                towers=replace(report.settings, device=None),
                shape=report.shape,
                quota=CandidateQuota.model_validate(read_json(folder / "shares.json")),
            ),
            rankers=replace(RankerConfig.from_dict(metrics["ranking"]["config"]), kinds=(kind,)),
            learned_until=Split.from_dict(manifest.split).ranker,
        )

    def with_moments(self, codec: Codec) -> Codec:
        """Return a codec whose declared features of the towers are standardised as the release's.

        Raises:
            SpecError: the towers of the release read other features.

        """
        for mine, new in ((self.codec.user_tower, codec.user_tower),
                          (self.codec.item_tower, codec.item_tower)):  # fmt: skip
            if [feature[:3] for feature in mine] != [feature[:3] for feature in new]:
                raise SpecError(
                    f"the towers of release {self.folder.name} read other features than "
                    "features.py declares: run 'funnel train' without --warm-start"
                )
        return replace(codec, user_tower=self.codec.user_tower, item_tower=self.codec.item_tower)

    def examples(self, known: pd.DataFrame, split: Split, seed: int) -> pd.DataFrame:
        """Return the events to learn from: the new ones, and a sample of as many older ones.

        Towers that see only new events forget what they knew of users and items that are not among
        them (McCloskey and Cohen 1989). Rehearsing a random sample of the old, as large as the new
        part, is the simplest cure and a strong one (Rolnick et al., "Experience replay for
        continual learning", NeurIPS 2019).

        Args:
            known: all events before ``split.ranker``, in order of time.
            split: of the new training.
            seed: random seed of the sample.

        Raises:
            NothingNew: there is no positive event since ``learned_until``.

        """
        positive = known[known[c.POSITIVE]]
        new = epoch_seconds(positive[c.TIMESTAMP]) >= self.learned_until
        if not new.any() or split.ranker <= self.learned_until:
            raise NothingNew(
                f"release {self.folder.name} has learned from all events up to the cut already: "
                "bring new ones with 'funnel ingest', or run 'funnel train' without --warm-start"
            )

        older = np.flatnonzero(~new)
        sample = np.random.default_rng(seed).permutation(older)[: int(new.sum())]
        return positive.iloc[np.sort(np.concatenate([sample, np.flatnonzero(new)]))]

    def initialise(self, towers: TwoTowers, codec: Codec) -> None:
        """Give towers of a grown ``codec`` the release's weights; new values stay random."""
        weights = load_file(
            self.folder / "towers.safetensors", device=str(towers.log_temperature.device)
        )
        rows = table_rows(self.codec, codec)
        state: dict[str, Tensor] = towers.state_dict()
        for name, value in weights.items():
            state[name] = carry_rows(value, state[name], rows[name]) if name in rows else value
        towers.load_state_dict(state)


def table_rows(old: Codec, new: Codec) -> dict[str, Int64Array]:
    """Return, by the name of each embedding table, the old row of each new row.

    Each is int64 ``[rows]``; -1: the value is new.
    """
    return {
        "users.ids.weight": _rows(old.users, new.users),
        "items.ids.weight": _rows(old.items, new.items),
        "users.attribute_table.weight": _attribute_rows(old.user_attributes, new.user_attributes),
        "items.attribute_table.weight": _attribute_rows(old.item_attributes, new.item_attributes),
    }


def carry_rows(old: Tensor, fresh: Tensor, rows: Int64Array) -> Tensor:
    """Return ``fresh`` with the known rows of ``old``.

    Args:
        old: trained table ``[m, D]``.
        fresh: untrained table ``[n, D]``.
        rows: int64 ``[n]``, the row of ``old`` for each row; -1: keep the fresh one.

    """
    source = torch.from_numpy(rows).to(old.device)
    return torch.where((source >= 0).unsqueeze(1), old[source.clamp(min=0)], fresh)


def _rows(old: Vocabulary, new: Vocabulary) -> Int64Array:
    codes = old.encode(new.values).astype(np.int64)
    return np.concatenate([[0], np.where(codes > 0, codes, -1)])  # code 0 is unknown in both


def _attribute_rows(old: AttributeEncoder, new: AttributeEncoder) -> Int64Array:
    parts: list[Any] = [np.zeros(1, dtype=np.int64)]
    for name in new.coded:
        codes = _rows(old.vocabularies[name], new.vocabularies[name])[1:]
        parts.append(np.where(codes > 0, codes + old.offsets[name] - 1, -1))
    return np.concatenate(parts)
