"""Windows of sequences to learn from, in batches of similar length."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from feature_repo.arrays import Int64Array
from retrieval.sequences.dataset import Sequences


class Window(NamedTuple):
    """First rows of a batch's windows and the number of items in each, int64 ``[B]``."""

    begin: Int64Array
    size: Int64Array


def windows(
    sequences: Sequences,
    *,
    held: int,
    window: int,
    batch_items: int,
    generator: np.random.Generator,
    latest: bool = False,
) -> list[Window]:
    """Take a window of at most ``window`` + 1 training items from every user, and batch them.

    Windows of a batch are of similar length.

    Args:
        sequences: of all users.
        held: items held out at the end of each sequence.
        window: longest history.
        batch_items: items of a batch, padding included.
        generator: of the windows' positions, and of the order of batches.
        latest: take the newest window of each user, not one at random.

    """
    # The window of each user, [users]: its first row and number of items.
    first = sequences.start[:-1]
    end = sequences.training_ends(held)
    size = np.minimum(end - first, window + 1)
    room = end - first - size
    offset = room if latest else (generator.random(len(room)) * (room + 1)).astype(np.int64)
    begin = first + offset

    # Users by length, the longest first, with some noise; a window needs an item and a target.
    order = np.argsort(-size * np.exp(generator.normal(0.0, 0.05, len(size))))
    order = order[size[order] >= 2]

    # Cut where the padded batch would have too many items.
    cuts = [0]
    longest = 0
    for index, length in enumerate(size[order] - 1):
        longest = max(longest, int(length))
        if longest * (index + 1 - cuts[-1]) > batch_items and index > cuts[-1]:
            cuts.append(index)
            longest = int(length)
    batches = [order[a:b] for a, b in zip(cuts, [*cuts[1:], len(order)], strict=True)]
    shuffled = generator.permutation(len(batches))
    return [Window(begin[batches[n]], size[batches[n]]) for n in shuffled]


def inputs_and_targets(sequences: Sequences, batch: Window) -> tuple[Tensor, Tensor]:
    """Return histories and the item after each of their items, int64 ``[B, L]``, padded with 0."""
    filled = padded(sequences, batch)
    targets = filled[:, 1:]
    histories = np.where(targets > 0, filled[:, :-1], 0)
    return torch.from_numpy(histories), torch.from_numpy(targets.copy())


def padded(sequences: Sequences, batch: Window) -> Int64Array:
    """Return the items of windows, int64 ``[B, L]``, zeros behind the end."""
    column = np.arange(batch.size.max())
    inside = column < batch.size[:, None]
    rows: Int64Array = np.where(inside, batch.begin[:, None] + column, 0)
    return np.where(inside, sequences.items[rows], 0)
