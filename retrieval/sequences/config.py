"""Settings of the sequence towers' training; no heavy import."""

from __future__ import annotations

from dataclasses import dataclass

TEST = 1
"""Position from the end of a sequence of the item that is the test's."""
VALIDATION = 2
"""Position from the end of a sequence of the item that is validation's."""


@dataclass(frozen=True)
class SequenceConfig:
    """How to train; ``minutes`` is for all towers, ``device`` None takes CUDA if there is one."""

    towers: int = 2
    width: int = 128
    heads: int = 1
    layers: int = 2
    window: int = 200
    dropout: float = 0.2
    epochs: int = 30
    batch_items: int = 4_096
    learning_rate: float = 2e-3
    refit_rate: float = 2e-4
    refit_share: float = 0.1
    weight_decay: float = 0.01
    warmup: int = 200
    average: float = 0.995
    exact_items: int = 20_000
    negatives: int = 8_192
    patience: int = 8
    validation_users: int = 3_000
    minutes: float = 40.0
    seed: int = 1
    device: str | None = None
