"""Typed settings of every ranker; no heavy import, so that a command line can read them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

KINDS = ("popularity", "logistic", "lightgbm", "lambdarank", "dcn")
"""Every kind of ranker, simplest first."""


@dataclass(frozen=True)
class PopularityConfig:
    """The baseline: one column decides, by default the first numeric one."""

    feature: str = "item_events_30d"


@dataclass(frozen=True)
class LogisticConfig:
    """Logistic regression per head."""

    regularisation: float = 1.0
    class_weight: Literal["balanced"] | None = None
    hash_size: int = 4096
    max_rows: int = 200_000
    max_iterations: int = 100


@dataclass(frozen=True)
class TreeConfig:
    """LightGBM, one booster per head, or one booster for the order (lambdarank)."""

    rounds: int = 400
    learning_rate: float = 0.03
    leaves: int = 31
    min_rows_in_leaf: int = 100
    feature_share: float = 0.5
    bins: int = 127
    l2: float = 1.0
    patience: int = 60
    threads: int = 2


@dataclass(frozen=True)
class DcnConfig:
    """DCN-v2. ``epochs`` is raised until at least ``min_steps`` batches have been seen."""

    structure: Literal["parallel", "stacked"] = "parallel"
    cross_layers: int = 3
    hidden: tuple[int, ...] = (128, 64)
    embedding: int = 8
    bucket_embedding: int = 2
    epochs: int = 2
    min_steps: int = 300
    batch: int = 4096
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    gradient_norm: float = 1.0
    unknown_rate: float = 0.02
    loss: Literal["bce", "focal"] = "bce"
    positive_weight: Literal["balanced"] | None = None
    focal_gamma: float = 2.0
    monitor: Literal["ndcg", "log_loss"] = "ndcg"
    patience: int = 2
    threads: int = 2


@dataclass(frozen=True)
class RankerConfig:
    """What to train and how to compare it.

    Attributes:
        kinds: what to train.
        seed: random seed.
        ndcg_k: length of a list.
        standard_errors: a kind that is cheaper to serve is chosen if its NDCG is at most this many
            standard errors of the difference below the best ...
        tolerance: ... and at most this share of the best.

    Raises:
        ValueError: an unknown kind, or none.

    """

    kinds: tuple[str, ...] = KINDS
    seed: int = 0
    ndcg_k: int = 10
    standard_errors: float = 2.0
    tolerance: float = 0.05
    popularity: PopularityConfig = field(default_factory=PopularityConfig)
    logistic: LogisticConfig = field(default_factory=LogisticConfig)
    trees: TreeConfig = field(default_factory=TreeConfig)
    dcn: DcnConfig = field(default_factory=DcnConfig)

    def __post_init__(self) -> None:
        unknown = set(self.kinds) - set(KINDS)
        if unknown or not self.kinds:
            raise ValueError(f"unknown kinds {sorted(unknown)}: choose from {', '.join(KINDS)}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RankerConfig:
        """Return the settings that ``asdict`` described, also after a trip through JSON."""
        parts: dict[str, Any] = {
            "kinds": tuple(values["kinds"]),
            "popularity": PopularityConfig(**values["popularity"]),
            "logistic": LogisticConfig(**values["logistic"]),
            "trees": TreeConfig(**values["trees"]),
            "dcn": DcnConfig(**values["dcn"] | {"hidden": tuple(values["dcn"]["hidden"])}),
        }
        return cls(**values | parts)

    def part(self, kind: str) -> dict[str, Any]:
        """Return the settings that one kind depends on, JSON-like."""
        settings = self.trees if kind in ("lightgbm", "lambdarank") else getattr(self, kind)
        return {"seed": self.seed, "ndcg_k": self.ndcg_k, **asdict(settings)}


@dataclass(frozen=True)
class WarmStart:
    """An earlier ranker that one of its kind continues from, and for how long.

    A warm start never takes longer than a cold one.

    Attributes:
        folder: of the ranker.
        rounds: boosting rounds on top of its trees.
        steps: steps of the network, or one epoch if that is more.
        learning_rate: of the network.

    """

    folder: Path
    rounds: int
    steps: int
    learning_rate: float

    def shorten(self, config: RankerConfig) -> RankerConfig:
        """Return the settings of a training that continues."""
        dcn = replace(
            config.dcn,
            epochs=1,
            min_steps=min(self.steps, config.dcn.min_steps),
            learning_rate=min(self.learning_rate, config.dcn.learning_rate),
        )
        return replace(
            config,
            trees=replace(config.trees, rounds=min(self.rounds, config.trees.rounds)),
            dcn=dcn,
        )
