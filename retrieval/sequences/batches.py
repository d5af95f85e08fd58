"""Windows of sequences to learn from, vectors of users, and the place of the right item among all items."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from feature_repo.arrays import Int64Array
from retrieval.sequences.dataset import Sequences
from retrieval.sequences.model import SequenceTower

_USERS = 64
_SCORED = 2_000_000
"""Users encoded at once, and scores held at once."""

Window = tuple[Int64Array, Int64Array]
"""First rows of a batch's windows and how many items each has."""


def windows(
    sequences: Sequences,
    held: int,
    window: int,
    batch_items: int,
    generator: np.random.Generator,
    latest: bool = False,
) -> list[Window]:
    """Take from every user one stretch of at most ``window`` + 1 training items, and batch stretches of like length.

    Args:
        sequences: where from.
        held: items held out at the end of each sequence.
        window: longest history.
        batch_items: items a batch, padding included.
        generator: of the stretches' places, and of the order of batches.
        latest: the newest stretch of each user, not one at random.

    """
    first, end = sequences.start[:-1], sequences.training_ends(held)
    size = np.minimum(end - first, window + 1)
    room = end - first - size
    begin = first + (
        room if latest else (generator.random(len(room)) * (room + 1)).astype(np.int64)
    )
    order = np.argsort(-size * np.exp(generator.normal(0.0, 0.05, len(size))))
    order = order[size[order] >= 2]
    cuts, longest = [0], 0
    for place, length in enumerate(size[order] - 1):
        longest = max(longest, int(length))
        if longest * (place + 1 - cuts[-1]) > batch_items and place > cuts[-1]:
            cuts.append(place)
            longest = int(length)
    parts = [order[a:b] for a, b in zip(cuts, [*cuts[1:], len(order)], strict=True)]
    return [(begin[parts[n]], size[parts[n]]) for n in generator.permutation(len(parts))]


def inputs_and_targets(sequences: Sequences, batch: Window) -> tuple[Tensor, Tensor]:
    """Return histories ``[B, L]`` and the item after each of their items, int64, zeros behind the end."""
    begin, size = batch
    filled = _filled(sequences, begin, size)
    targets = filled[:, 1:]
    return torch.from_numpy(np.where(targets > 0, filled[:, :-1], 0)), torch.from_numpy(
        targets.copy()
    )


def _filled(sequences: Sequences, begin: Int64Array, size: Int64Array) -> Int64Array:
    place = np.arange(size.max())
    inside = place < size[:, None]
    rows: Int64Array = np.where(inside, begin[:, None] + place, 0)
    return np.where(inside, sequences.items[rows], 0)


@torch.no_grad()
def encode(tower: SequenceTower, sequences: Sequences, users: Int64Array, back: int) -> Tensor:
    """Return float32 ``[len(users), width]``: users as they were just before the item ``back`` places from the end."""
    tower.eval()
    device = tower.items.device
    end = sequences.start[users + 1] - back
    size = np.minimum(end - sequences.start[users], tower.config.window)
    vectors = torch.empty(len(users), tower.config.width, device=device)
    order = np.argsort(size, kind="stable")
    for start in range(0, len(order), _USERS):
        rows = order[start : start + _USERS]
        histories = torch.from_numpy(_filled(sequences, end[rows] - size[rows], size[rows])).to(
            device
        )
        last = torch.from_numpy(size[rows] - 1).to(device)
        vectors[torch.from_numpy(rows).to(device)] = tower(histories)[
            torch.arange(len(rows), device=device), last
        ].float()
    tower.train()
    return vectors


@torch.no_grad()
def places(users: Tensor, items: Tensor, wanted: Int64Array) -> Int64Array:
    """Return the 0-based place of each user's wanted item among all items by dot product.

    Args:
        users: float32 ``[n, D]``.
        items: float32 ``[catalogue + 1, D]``; row 0 is no item.
        wanted: codes from 1, int64 ``[n]``.

    """
    return places_by_score(
        (users[part] @ items.T for part in parts(len(users), len(items))), wanted, None
    )[0]


def parts(users: int, items: int) -> list[slice]:
    """Cut users into parts whose scores of all items can be held at once."""
    size = max(1, _SCORED // items)
    return [slice(start, start + size) for start in range(0, users, size)]


def places_by_score(
    scores: Iterable[Tensor], wanted: Int64Array, histories: Iterator[Int64Array] | None
) -> tuple[Int64Array, Int64Array]:
    """Return the wanted items' places among all items, and among those that are not in the history.

    Args:
        scores: of the first users, of the next, and so on, float32 ``[n, catalogue + 1]`` each;
            they are changed.
        wanted: codes from 1, int64, of all users.
        histories: codes, of each user; None: none.

    Equals share the middle of their places: scores that are all the same, or NaN, put nothing
    first. The place of a wanted item that is in the history, and so not among the unseen, is -1.

    """
    everything, unseen, start = [], [], 0
    for part in scores:
        own = torch.from_numpy(wanted[start : start + len(part)]).to(part.device)
        margins = part.sub_(part.gather(1, own.unsqueeze(1))).sign_()
        margins[:, 0] = -1.0
        balance, others = margins.sum(dim=1), torch.full_like(margins[:, 0], margins.shape[1] - 1)
        everything.append(_middle(balance, others))
        if histories is not None:
            for row, codes in zip(range(len(part)), histories, strict=False):
                codes = np.unique(codes)
                seen = torch.from_numpy(codes).to(part.device)
                others[row] -= len(seen)
                balance[row] -= margins[row, seen].sum()
                if (codes == wanted[start + row]).any():
                    balance[row], others[row] = -2.0, 0.0
        unseen.append(_middle(balance, others))
        start += len(part)
    return torch.cat(everything).cpu().numpy(), torch.cat(unseen).cpu().numpy()


def _middle(balance: Tensor, others: Tensor) -> Tensor:
    """Return the place from how many more of the others are above than below; NaN counts as neither."""
    return ((balance.nan_to_num() + others) / 2).long()
