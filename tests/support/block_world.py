"""A world with a known answer: a user takes items of its own block only."""

from __future__ import annotations

import numpy as np
from scipy import sparse

USERS, ITEMS, BLOCKS, TAKEN, HELD = 120, 160, 4, 15, 3
"""Of a block's 40 items, 12 are known, and 20 of the other 28 are shown.

A perfect model finds 20 / 28 of what was held out.
"""

BEST = 20 / (ITEMS // BLOCKS - TAKEN + HELD)


def blocks(seed: int = 0) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Return what is known and what is held out.

    Block ``b`` has the users and items whose code is ``b`` modulo 4.
    """
    generator = np.random.default_rng(seed)
    known, held = np.zeros((2, USERS, ITEMS), np.float32)
    for user in range(USERS):
        taken = generator.permutation(ITEMS // BLOCKS)[:TAKEN] * BLOCKS + user % BLOCKS
        known[user, taken[HELD:]] = held[user, taken[:HELD]] = 1
    return sparse.csr_matrix(known), sparse.csr_matrix(held)


def lines(matrix: sparse.csr_matrix) -> str:
    """Return the matrix in LightGCN's layout."""
    rows = (
        matrix.indices[start:end]
        for start, end in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True)
    )
    return "".join(f"{user} {' '.join(map(str, items))}\n" for user, items in enumerate(rows))
