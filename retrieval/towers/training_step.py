"""One step of the towers' training: the loss of a batch, its gradient, and the guard over both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feature_repo.arrays import Int64Array
from feature_repo.sanity import Guard
from retrieval.towers.examples import Examples, user_inputs
from retrieval.towers.losses import sampled_softmax
from retrieval.towers.model import TwoTowers


def gradient_step(
    loss: Tensor,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    clip: float,
    guard: Guard,
) -> tuple[float, float]:
    """Take one gradient step; return the loss and the norm of its gradient before clipping.

    Args:
        loss: a scalar.
        model: whose parameters are changed.
        optimizer: of these parameters.
        clip: largest gradient norm.
        guard: shown the loss and the norm, before the parameters change.

    Raises:
        CannotLearn: one of them is not finite, or the norm exploded.

    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    value = float(loss.item())
    size = float(norm.item())
    guard(value, size)
    optimizer.step()
    return value, size


@dataclass(frozen=True)
class TrainingStep:
    """Learns from one batch after the other.

    Attributes:
        popularity: float32 ``[items]``, each item's share of the training examples, on the device.
        uniform_negatives: number of items drawn as negatives of a batch.
        clip: largest gradient norm.
        guard: shown every loss and norm.
        logq: whether the sampler's bias towards popular items is corrected.

    """

    popularity: Tensor
    uniform_negatives: int
    clip: float
    guard: Guard
    logq: bool = True

    def __call__(
        self,
        towers: TwoTowers,
        optimizer: torch.optim.Optimizer,
        batch: Examples,
        generator: np.random.Generator,
    ) -> tuple[float, float]:
        """Learn from a batch; return its loss and the norm of its gradient before clipping.

        Raises:
            CannotLearn: one of them is not finite, or the norm exploded.

        """
        catalogue, device = towers.config.items - 1, self.popularity.device.type
        uniform = generator.integers(1, catalogue + 1, self.uniform_negatives)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = self._loss(towers, batch, uniform, catalogue)
        return gradient_step(loss, towers, optimizer, clip=self.clip, guard=self.guard)

    def _loss(
        self, towers: TwoTowers, batch: Examples, uniform: Int64Array, catalogue: int
    ) -> Tensor:
        """Return the loss of a batch of ``B`` examples.

        ``uniform``, int64 ``[U]``, has the uniformly sampled negatives.
        """
        device = self.popularity.device

        # Raw vectors, [needed, D], of the items in histories [B, H] and of those scored [B + U].
        history = batch.context.history
        scored = np.concatenate([batch.item, uniform])
        needed, indices = np.unique(np.concatenate([history.ravel(), scored]), return_inverse=True)
        table = towers.items(torch.from_numpy(needed.astype(np.int64)).to(device))
        of_history = torch.from_numpy(indices[: history.size].reshape(history.shape)).to(device)
        of_scored = torch.from_numpy(indices[history.size :]).to(device)

        # Unit vectors of users, [B, D], and of the scored items, [B + U, D].
        users = towers.users(*user_inputs(batch.context, table, of_history).tensors())
        items = F.normalize(F.embedding(of_scored, table), dim=-1, eps=1e-6)

        codes = torch.from_numpy(scored.astype(np.int64)).to(device)
        return sampled_softmax(
            users,
            items,
            codes,
            popularity=self.popularity[codes] if self.logq else None,
            catalogue=catalogue,
            temperature=towers.temperature(),
            weights=torch.from_numpy(batch.weight).to(device),
        )
