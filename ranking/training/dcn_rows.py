"""Rows as the tensors that the network reads, and their batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ranking.config import DcnConfig
from ranking.data import RankingData
from ranking.training.task import FitTask


@dataclass(frozen=True)
class DcnRows:
    """Transformed rows on one device.

    Attributes:
        numeric: float32 [n, F'].
        buckets: int32 [n, F].
        categorical: int32 [n, C].
        labels: float32 [n, T].
        weight: float32 [n].

    """

    numeric: Tensor
    buckets: Tensor
    categorical: Tensor
    labels: Tensor
    weight: Tensor

    @classmethod
    def of(cls, data: RankingData, task: FitTask, device: torch.device) -> DcnRows:
        """Return rows behind the transform of a task."""

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        return cls(
            numeric=tensor(task.transform(data.numeric)),
            buckets=tensor(task.transform.buckets(data.numeric)),
            categorical=tensor(task.schema.known_codes(data.categorical)),
            labels=tensor(np.asarray(data.labels, dtype=np.float32)),
            weight=tensor(data.weights()),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor) -> DcnRows:
        """Return some rows, int64 [m]."""
        return DcnRows(
            numeric=self.numeric[rows],
            buckets=self.buckets[rows],
            categorical=self.categorical[rows],
            labels=self.labels[rows],
            weight=self.weight[rows],
        )


def batches(rows: DcnRows, config: DcnConfig, seed: int) -> Iterator[DcnRows]:
    """Yield shuffled batches without end, a few categories of each set to unknown.

    Hiding codes trains the embedding of unknown, which is what a new item or user will have.
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        for chosen in torch.split(torch.randperm(len(rows), generator=generator), config.batch):
            batch = rows.take(chosen.to(rows.labels.device))
            visible = torch.rand(batch.categorical.shape, generator=generator)
            visible = (visible >= config.unknown_rate).to(batch.categorical.device)
            yield replace(batch, categorical=batch.categorical * visible)
