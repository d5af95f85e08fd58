"""Checks before a sequence tower is trained: it learns a batch by heart, and nothing from items dealt out at random."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from feature_repo.sanity import Guard, check_chance, check_learnt
from retrieval.sanity import chance_tolerance, own_first
from retrieval.sequence import SequenceTower

_ROWS, _LENGTH = 64, 20
_STEPS = 40
_RATE = 1e-2

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of users' vectors ``[n, D]``, the table of items and the next items' codes ``[n]``."""


def check_sequences(build: Callable[[], SequenceTower], loss: Loss, histories: Tensor, targets: Tensor) -> None:
    """Train towers of their own for a moment.

    Args:
        build: makes untrained towers.
        loss: to be learned by.
        histories: int64 ``[B, L]``, zeros behind the last item; some rows and places are enough.
        targets: int64 ``[B, L]``, the item after each of theirs, 0 where there is none.

    Raises:
        CannotLearn: one batch could not be overfitted, or shuffled items were learnt.

    """
    histories, targets = histories[: 2 * _ROWS, :_LENGTH], targets[: 2 * _ROWS, :_LENGTH]
    half = len(histories) // 2
    if not half:
        return
    _, losses = _learned(build(), loss, histories[:half], targets[:half], "sequence tower, one batch")
    check_learnt("sequence tower", losses[0], losses[-1])
    known = targets > 0
    dealt = targets.clone()
    for part in (slice(None, half), slice(half, None)):
        items = targets[part][known[part]]
        order = torch.randperm(len(items), generator=torch.Generator().manual_seed(0)).to(items.device)
        dealt[part][known[part]] = items[order]
    tower, _ = _learned(build(), loss, histories[:half], dealt[:half], "sequence tower, shuffled items")
    tower.eval()
    with torch.no_grad():
        users = tower(histories[half:])[known[half:]].float()
        items = tower.items[dealt[half:][known[half:]]].float()
    if len(users) > 1:
        check_chance("sequence tower", own_first(users, items), chance_tolerance(len(users)))


def _learned(
    tower: SequenceTower, loss: Loss, histories: Tensor, targets: Tensor, name: str
) -> tuple[SequenceTower, list[float]]:
    tower.eval()  # without dropout
    optimizer, guard = torch.optim.AdamW(tower.parameters(), lr=_RATE), Guard(name)
    known, losses = targets > 0, []
    for _ in range(_STEPS):
        value = loss(tower(histories)[known], tower.items, targets[known])
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        losses.append(float(value.detach()))
        guard(losses[-1], float(torch.nn.utils.clip_grad_norm_(tower.parameters(), 1.0)))
        optimizer.step()
    return tower, losses
