"""Vectors of users from a trained sequence tower."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from feature_repo.arrays import Int64Array
from retrieval.sequences.dataset import Sequences
from retrieval.sequences.model import SequenceTower
from retrieval.sequences.windows import Window, padded

_CHUNK = 64
"""Users encoded at once."""


@torch.no_grad()
def encode(tower: SequenceTower, sequences: Sequences, users: Int64Array, back: int) -> Tensor:
    """Return users just before one of their last items, float32 ``[n, width]``.

    Args:
        tower: left in training mode.
        sequences: of all users.
        users: int64 ``[n]``.
        back: position of that item from the end; 1 is the last.

    """
    tower.eval()
    device = tower.items.device
    end = sequences.start[users + 1] - back
    size = np.minimum(end - sequences.start[users], tower.config.window)
    vectors = torch.empty(len(users), tower.config.width, device=device)
    order = np.argsort(size, kind="stable")
    for start in range(0, len(order), _CHUNK):
        # Histories of similar length, [chunk, L]; the vector after the last item is the user's.
        rows = order[start : start + _CHUNK]
        histories = torch.from_numpy(padded(sequences, Window(end[rows] - size[rows], size[rows])))
        last = torch.from_numpy(size[rows] - 1).to(device)
        every = torch.arange(len(rows), device=device)
        vectors[torch.from_numpy(rows).to(device)] = tower(histories.to(device))[
            every, last
        ].float()
    tower.train()
    return vectors
