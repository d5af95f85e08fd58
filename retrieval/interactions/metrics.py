"""Recall@k and NDCG@k over all items, as defined by the code of LightGCN (He et al. 2020)."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from feature_repo.arrays import Int64Array


@torch.no_grad()
def recall_and_ndcg(
    users: Tensor,
    items: Tensor,
    known: sparse.csr_matrix,
    wanted: sparse.csr_matrix,
    *,
    k: int = 20,
    rows: Int64Array | None = None,
    chunk: int = 1_024,
) -> tuple[float, float]:
    """Rank all items that a user does not know by dot product; average over users with a target.

    Args:
        users: float32 ``[users, D]``.
        items: float32 ``[items, D]``.
        known: CSR ``[users, items]``, never recommended.
        wanted: CSR ``[users, items]``, what is to be found.
        k: length of the list.
        rows: only these users [all with an item in ``wanted``].
        chunk: users ranked at once.

    Returns:
        Recall@k, hits / items wanted; NDCG@k, with the ideal list's DCG of min(items wanted, k)
        hits.

    """
    rows = np.flatnonzero(np.diff(wanted.indptr)) if rows is None else rows
    k = min(k, len(items))
    gain = 1 / torch.log2(torch.arange(2, k + 2, dtype=torch.float64))
    ideal = gain.cumsum(0)
    recall = ndcg = 0.0
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]
        scores = users[torch.from_numpy(part).to(users.device)] @ items.T
        scores[_places(known[part], scores.device)] = float("-inf")
        relevant = torch.zeros_like(scores, dtype=torch.bool)
        relevant[_places(wanted[part], scores.device)] = True
        best = scores.topk(k, dim=1)
        hits = (relevant.gather(1, best.indices) & best.values.isfinite()).cpu().double()
        count = torch.from_numpy(np.diff(wanted[part].indptr)).long()
        recall += float((hits.sum(1) / count).sum())
        ndcg += float((hits @ gain / ideal[count.clamp(max=k) - 1]).sum())
    return recall / len(rows), ndcg / len(rows)


def _places(matrix: sparse.csr_matrix, device: torch.device) -> tuple[Tensor, Tensor]:
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    return torch.from_numpy(row).to(device), torch.from_numpy(matrix.indices.astype(np.int64)).to(
        device
    )
