"""Settings of the towers' training; no heavy import, so that a command line can read them."""

from __future__ import annotations

from dataclasses import dataclass

RECALL_AT = 100
"""Default k of recall@k, by which towers are compared."""


@dataclass(frozen=True)
class TowerTrainingConfig:
    """How to train.

    Attributes:
        epochs: maximum number of epochs.
        batch: examples of a step.
        uniform_negatives: items drawn uniformly as negatives of a batch.
        logq: whether the bias of in-batch negatives towards popular items is corrected.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        clip: largest gradient norm.
        patience: epochs without a better recall before training stops.
        seed: random seed.
        recall_at: training stops by recall at this k; None: 100, of a small catalogue a quarter of
            its items, since nearly all would be among 100 from the first epoch on.
        validation_sample: maximum number of validation examples.
        device: of torch; None: CUDA if there is one, else the CPU.

    """

    epochs: int = 20
    batch: int = 512
    uniform_negatives: int = 256
    logq: bool = True
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    clip: float = 1.0
    patience: int = 2
    seed: int = 7
    recall_at: int | None = None
    validation_sample: int = 4_000
    device: str | None = None
