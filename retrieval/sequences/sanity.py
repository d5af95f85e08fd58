"""Checks before a sequence tower is trained: it overfits a batch and learns nothing from noise."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from feature_repo.sanity import Guard, check_chance, check_learnt
from retrieval.sequences.model import SequenceTower
from retrieval.towers.sanity import chance_tolerance, own_first
from retrieval.towers.training_step import gradient_step

_ROWS, _LENGTH = 64, 20
_STEPS = 40
_RATE = 1e-2
CLIP = 1.0
"""Gradient norm that is not exceeded, here and in training."""

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of users' vectors ``[n, D]``, the table of items and the next items' codes ``[n]``."""


def check_sequences(
    build: Callable[[], SequenceTower], loss: Loss, histories: Tensor, targets: Tensor
) -> None:
    """Train throwaway towers for a few steps.

    Args:
        build: makes untrained towers.
        loss: to be learned by.
        histories: int64 ``[B, L]``, zeros behind the last item; a part of them is used.
        targets: int64 ``[B, L]``, the item after each of theirs, 0 where there is none.

    Raises:
        CannotLearn: one batch could not be overfitted, or shuffled items were learnt.

    """
    histories, targets = histories[: 2 * _ROWS, :_LENGTH], targets[: 2 * _ROWS, :_LENGTH]
    half = len(histories) // 2
    if not half:
        return
    single = _last_of_distinct(histories[:half], targets[:half])
    name = "sequence tower, one batch"
    losses = _learn(build(), loss, histories[:half], single, name=name)
    check_learnt("sequence tower", losses[0], losses[-1])
    known = targets > 0

    # The items of each half, shuffled among its positions.
    shuffled, generator = targets.clone(), torch.Generator().manual_seed(0)
    for part in (slice(None, half), slice(half, None)):
        items = targets[part][known[part]]
        order = torch.randperm(len(items), generator=generator).to(items.device)
        shuffled[part][known[part]] = items[order]
    tower = build()
    name = "sequence tower, shuffled items"
    _learn(tower, loss, histories[:half], shuffled[:half], name=name)
    tower.eval()
    with torch.no_grad():
        users = tower(histories[half:])[known[half:]].float()
        items = tower.items[shuffled[half:][known[half:]]].float()
    if len(users) > 1:
        check_chance("sequence tower", own_first(users, items), chance_tolerance(len(users)))


def _last_of_distinct(histories: Tensor, targets: Tensor) -> Tensor:
    """Return targets with one answer for each distinct history, int64 ``[B, L]``; 0 elsewhere.

    Only the last target of a history is left, and only the first of equal histories.
    """
    columns = torch.arange(histories.shape[1], device=histories.device)
    last = torch.where(targets > 0, columns, 0).amax(dim=1)
    shown = torch.where(columns <= last[:, None], histories, 0)
    groups = torch.unique(shown, dim=0, return_inverse=True)[1]
    rows = torch.arange(len(histories), device=histories.device)
    first = rows.new_full((len(rows),), len(rows)).scatter_reduce(0, groups, rows, "amin")[
        : int(groups.max()) + 1
    ]
    only = torch.zeros_like(targets)
    only[first, last[first]] = targets[first, last[first]]
    return only


def _learn(
    tower: SequenceTower, loss: Loss, histories: Tensor, targets: Tensor, *, name: str
) -> list[float]:
    """Train a tower on one batch and return the loss of each step."""
    tower.eval()  # without dropout
    optimizer, guard = torch.optim.AdamW(tower.parameters(), lr=_RATE), Guard(name)
    known, losses = targets > 0, []
    for _ in range(_STEPS):
        value = loss(tower(histories)[known], tower.items, targets[known])
        losses.append(gradient_step(value, tower, optimizer, clip=CLIP, guard=guard)[0])
    return losses
