"""Ranks of target items among all items, and among those that a user has not seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from feature_repo.arrays import Int64Array

_SCORES = 2_000_000
"""Scores held at once."""


@torch.no_grad()
def ranks(users: Tensor, items: Tensor, targets: Int64Array) -> Int64Array:
    """Return the 0-based rank of each user's target among all items by dot product, int64 ``[n]``.

    Args:
        users: float32 ``[n, D]``.
        items: float32 ``[catalogue + 1, D]``; row 0 is no item.
        targets: codes from 1, int64 ``[n]``.

    """
    chunks = score_chunks(len(users), len(items))
    return ranks_by_score((users[chunk] @ items.T for chunk in chunks), targets, None)[0]


def score_chunks(users: int, items: int) -> list[slice]:
    """Cut users into chunks whose scores of all items can be held at once."""
    size = max(1, _SCORES // items)
    return [slice(start, start + size) for start in range(0, users, size)]


def ranks_by_score(
    scores: Iterable[Tensor], targets: Int64Array, histories: Iterator[Int64Array] | None
) -> tuple[Int64Array, Int64Array]:
    """Return the targets' ranks among all items, and among those not in the history, int64 ``[n]``.

    Equal scores share their middle rank: scores that are all the same, or NaN, put nothing first.
    A target that is in the history, and so not among the unseen, has rank -1 there.

    Args:
        scores: float32 ``[chunk, catalogue + 1]`` for consecutive chunks of users; overwritten.
        targets: codes from 1 of all users, int64 ``[n]``.
        histories: codes of each user, int64; None: empty.

    """
    everything, unseen = [], []
    start = 0
    for chunk in scores:
        own = torch.from_numpy(targets[start : start + len(chunk)]).to(chunk.device)

        # 1 for items above the target, -1 below, 0 level: [chunk, catalogue + 1].
        margins = chunk.sub_(chunk.gather(1, own.unsqueeze(1))).sign_()
        margins[:, 0] = -1.0
        balance = margins.sum(dim=1)
        others = torch.full_like(balance, margins.shape[1] - 1)
        everything.append(_middle_rank(balance, others))

        if histories is not None:
            for row, codes in zip(range(len(chunk)), histories, strict=False):
                codes = np.unique(codes)
                seen = torch.from_numpy(codes).to(chunk.device)
                others[row] -= len(seen)
                balance[row] -= margins[row, seen].sum()
                if (codes == targets[start + row]).any():
                    balance[row] = -2.0
                    others[row] = 0.0
        unseen.append(_middle_rank(balance, others))
        start += len(chunk)
    return torch.cat(everything).cpu().numpy(), torch.cat(unseen).cpu().numpy()


def _middle_rank(balance: Tensor, others: Tensor) -> Tensor:
    """Return ranks of how many more of the others are above than below; NaN counts as neither."""
    return ((balance.nan_to_num() + others) / 2).long()
