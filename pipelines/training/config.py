"""Typed settings of a training: the candidate generator, and the rankers' samples."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from retrieval.towers.config import TowerTrainingConfig
from retrieval.towers.model import TowerShape
from serving.recommender.candidates import CandidateQuota

_STORED_NAMES = {"selection_requests": "choose_requests"}
"""Names of settings that files written so far spell differently."""


@dataclass(frozen=True)
class SampleConfig:
    """How many requests each ranking set takes.

    Attributes:
        train_requests: requests to learn from.
        calibrate_requests: requests for early stopping and calibration.
        selection_requests: requests by which kinds are compared.
        negatives: maximum negatives of a training request.
        seed: random seed of the samples.

    """

    train_requests: int = 6_000
    calibrate_requests: int = 1_500
    selection_requests: int = 1_500
    negatives: int = 60
    seed: int = 7

    @classmethod
    def from_dict(cls, values: dict[str, int]) -> SampleConfig:
        """Return the settings that ``to_dict`` described."""
        names = {stored: name for name, stored in _STORED_NAMES.items()}
        return cls(**{names.get(stored, stored): value for stored, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; ``selection_requests`` is stored as ``choose_requests``."""
        return {_STORED_NAMES.get(name, name): value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class RetrievalConfig:
    """How the candidate generator is made.

    Attributes:
        towers: how the towers are trained.
        shape: sizes and dropout of the towers.
        quota: how many candidates each source may propose.

    """

    towers: TowerTrainingConfig = field(default_factory=TowerTrainingConfig)
    shape: TowerShape = field(default_factory=TowerShape)
    quota: CandidateQuota = field(default_factory=CandidateQuota)

    def version_parts(self) -> tuple[dict[str, Any], ...]:
        """Return JSON-like settings: where they are equal, so is the result on the same data."""
        return asdict(self.towers), asdict(self.shape), self.quota.model_dump()
