"""Similar items: who was taken up soon after what (item-to-item co-visitation).

For each ordered pair within ten steps of one user's positive history the pair gains 1 / distance;
the sum is divided by the geometric mean of both items' totals, with shrinkage for rare pairs. After
Linden et al., "Amazon.com recommendations" (2003), with the distance weights of session kNN.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from feature_repo.arrays import Float32Array, Int32Array, Int64Array

REACH = 10
_SHRINKAGE = 5.0
_BACKWARD = 0.5  # what came before says less of what comes next


def similar_items(
    users: Int64Array, items: Int32Array, catalogue: int, k: int = 100
) -> tuple[Int32Array, Float32Array]:
    """Return the ``k`` most similar items of each item and their similarity, best first.

    Args:
        users: int64 ``[n]``, whose event it is; the events are in order of user, then time.
        items: int32 ``[n]`` codes; 0 is nobody's neighbour.
        catalogue: number of codes, 0 (no item) included.
        k: neighbours per item.

    Returns:
        codes int32 ``[catalogue, k]`` (0: none) and similarities float32 ``[catalogue, k]``.

    """
    counts = sparse.csr_matrix((catalogue, catalogue), dtype=np.float64)
    for distance in range(1, REACH + 1):
        same = users[:-distance] == users[distance:]
        first, second = items[:-distance][same], items[distance:][same]
        keep = (first != second) & (first > 0) & (second > 0)
        weight = np.full(int(keep.sum()), 1.0 / distance)
        counts = counts + sparse.csr_matrix(
            (weight, (first[keep], second[keep])), shape=counts.shape
        )
    counts = (counts + _BACKWARD * counts.T).tocsr()
    totals = np.asarray(counts.sum(axis=1)).ravel()
    codes = np.zeros((catalogue, k), dtype=np.int32)
    similarities = np.zeros((catalogue, k), dtype=np.float32)
    for item in range(catalogue):
        row = slice(counts.indptr[item], counts.indptr[item + 1])
        other, weight = counts.indices[row], counts.data[row]
        if not len(other):
            continue
        score = weight / (np.sqrt(totals[item] * totals[other]) + _SHRINKAGE)
        best = np.lexsort((other, -score))[:k]
        codes[item, : len(best)] = other[best]
        similarities[item, : len(best)] = score[best]
    return codes, similarities
