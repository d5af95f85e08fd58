"""Recall of trained towers, and the vectors of all items."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from feature_repo.arrays import Float32Array
from retrieval.towers.examples import Examples, user_inputs
from retrieval.towers.model import TwoTowers


@torch.no_grad()
def recall(towers: TwoTowers, examples: Examples, k: int, chunk: int = 512) -> float:
    """Return recall@k: the share of examples whose item is among the ``k`` best of all items.

    Items of the history are left out. An item takes the middle rank of those with its score, so
    towers that collapsed, or whose scores are NaN, do not look perfect.

    Args:
        towers: set to evaluation.
        examples: ``n`` events with the items to find.
        k: length of a list.
        chunk: examples ranked at once.

    """
    towers.eval()
    raw = towers.raw_items()
    items = F.normalize(raw, dim=-1, eps=1e-6)
    hits = 0
    for start in range(0, len(examples), chunk):
        part = examples[start : start + chunk]

        # Scores of all items, [chunk, items]; those of the history and of code 0 never count.
        history = torch.from_numpy(part.context.history.astype(np.int64)).to(raw.device)
        scores = towers.users(*user_inputs(part.context, raw, history).tensors()) @ items.T
        own = torch.from_numpy(part.item.astype(np.int64)).to(raw.device).unsqueeze(1)
        own_score = scores.gather(1, own)
        scores.scatter_(1, history, float("-inf")).scatter_(1, own, own_score)
        scores[:, 0] = float("-inf")

        # The middle of the first and the last rank that a tie could have, [chunk].
        above = (scores > own_score).sum(dim=1)
        not_below = (~(scores < own_score)).sum(dim=1)
        hits += int(((above + not_below - 1) / 2 < k).sum().item())
    return hits / max(len(examples), 1)


@torch.no_grad()
def item_vectors(towers: TwoTowers) -> tuple[Float32Array, Float32Array]:
    """Return raw and unit vectors of all items, float32 ``[items, D]`` each."""
    raw = towers.eval().raw_items()
    return raw.cpu().numpy(), F.normalize(raw, dim=-1, eps=1e-6).cpu().numpy()
