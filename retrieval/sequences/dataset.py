"""Sequences: each user's items in order of time, from a text file of ``user item`` lines.

The layout of SASRec's data sets (Kang and McAuley, "Self-attentive sequential recommendation", ICDM
2018).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from feature_repo.arrays import Int64Array
from feature_repo.dataset import SpecError

MIN_ITEMS = 3
"""A user with fewer has nothing left to learn from once the last two items are held out."""


@dataclass(frozen=True)
class Sequences:
    """Users' items in order, one user after the other.

    ``items`` int64 ``[rows]`` has codes from 1 (0 is no item); user ``u`` has
    ``items[start[u]:start[u + 1]]``.
    """

    items: Int64Array
    start: Int64Array
    catalogue: int

    @property
    def lengths(self) -> Int64Array:
        """Number of items of each user, int64 ``[users]``."""
        return np.diff(self.start)

    def histories(self, back: int) -> Iterator[Int64Array]:
        """Yield the items of each testable user before the item ``back`` places from the end."""
        for user in self.testable:
            yield self.items[self.start[user] : self.start[user + 1] - back]

    @property
    def repeats(self) -> float:
        """Share of training rows that take an item up again."""
        owner = np.repeat(np.arange(len(self.lengths)), self.lengths)
        kept = np.arange(len(self.items)) < self.training_ends(2)[owner]
        pairs = owner[kept] * (self.catalogue + 1) + self.items[kept]
        return 1.0 - len(np.unique(pairs)) / max(len(pairs), 1)

    @property
    def testable(self) -> Int64Array:
        """Users whose last two items can be held out, int64."""
        return np.flatnonzero(self.lengths >= MIN_ITEMS)

    def held_out(self, users: Int64Array, back: int) -> Int64Array:
        """Return the item ``back`` places from the end of each user's sequence; 1 is the last."""
        return self.items[self.start[users + 1] - back]

    def training_ends(self, held: int) -> Int64Array:
        """Return where users' training items end, int64 ``[users]``.

        ``held`` are held out of those with enough.
        """
        return self.start[1:] - np.where(self.lengths >= MIN_ITEMS, held, 0)

    def training_counts(self, held: int) -> Int64Array:
        """Return how often each code is a training item, int64 ``[catalogue + 1]``."""
        row = np.arange(len(self.items))
        kept = row < np.repeat(self.training_ends(held), self.lengths)
        return np.bincount(self.items[kept], minlength=self.catalogue + 1)


def read_sequences(path: Path) -> Sequences:
    """Read a file of ``user item`` lines in time order, or the only ``.txt`` file of a folder.

    Raises:
        SpecError: no such file, no rows, a row without exactly two columns, or users with too few
            items.

    """
    file = sequence_file(path)
    users: list[str] = []
    items: list[str] = []
    with file.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            pair = line.split()
            if not pair:
                continue
            if len(pair) != 2:
                raise SpecError(
                    f"{file}:{number}: expected two columns, 'user item', "
                    f"found {len(pair)}: {line[:60].strip()!r}"
                )
            users.append(pair[0])
            items.append(pair[1])
    if not users:
        raise SpecError(
            f"{file} has no rows; write one 'user item' line per interaction, in time order"
        )
    sequences = from_pairs(users, items)
    if not len(sequences.testable):
        raise SpecError(
            f"{file}: no user has {MIN_ITEMS} items, so there is nothing to hold out; "
            "give longer sequences"
        )
    if (sequences.training_ends(2) - sequences.start[:-1]).max() < 2:
        raise SpecError(
            f"{file}: no user has two items besides those held out, to learn from; "
            "give longer sequences"
        )
    return sequences


def from_pairs(users: list[str], items: list[str]) -> Sequences:
    """Group pairs in time order by user."""
    user = pd.factorize(np.array(users, dtype=object))[0].astype(np.int64)
    item, names = pd.factorize(np.array(items, dtype=object))
    order = np.argsort(user, kind="stable")
    start = np.concatenate([[0], np.cumsum(np.bincount(user))]).astype(np.int64)
    return Sequences(item[order].astype(np.int64) + 1, start, len(names))


def sequence_file(path: Path) -> Path:
    """Return the file, or the only ``.txt`` file of a folder; SpecError without one."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise SpecError(
            f"there is no {path}; give a file of 'user item' lines in time order, or its folder"
        )
    found = sorted(path.glob("*.txt"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found[:5]) or "none"
        raise SpecError(
            f"{path} must have exactly one .txt file of 'user item' lines, "
            f"found: {names}; name the file itself"
        )
    return found[0]
