"""Ranking metrics of lists with one right item each, and what the lists are like as a whole.

With one relevant item, at 1-based place ``r`` of the list (or not in it): recall@k = hit@k = [r <= k];
NDCG@k = 1 / log2(1 + r) if r <= k (Jarvelin and Kekalainen, 2002; the ideal is 1); MRR = MAP = 1 / r
within the list (average precision of one relevant item is its reciprocal rank).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.int64]
"""0-based place of the right item in each list, int64 ``[n]``; -1: not in it."""

K = 10


def accuracy(places: Places, k: int = K) -> dict[str, float]:
    """Return hit rate, NDCG, MRR and MAP at ``k`` over all lists; 0 for no lists."""
    if not len(places):
        return {f"{name}@{k}": 0.0 for name in ("hit_rate", "recall", "ndcg", "mrr", "map")}
    hit = (places >= 0) & (places < k)
    reciprocal = np.where(hit, 1.0 / (np.maximum(places, 0) + 1.0), 0.0).mean()
    recall = float(hit.mean())
    gain = np.where(hit, 1.0 / np.log2(np.maximum(places, 0) + 2.0), 0.0)
    return {
        f"hit_rate@{k}": recall,
        f"recall@{k}": recall,
        f"ndcg@{k}": float(gain.mean()),
        f"mrr@{k}": float(reciprocal),
        f"map@{k}": float(reciprocal),
    }


def recall(places: Places, k: int) -> float:
    """Return the share of lists whose right item is among the first ``k``."""
    return float(((places >= 0) & (places < k)).mean()) if len(places) else 0.0


class ListCensus:
    """What was recommended over all lists: coverage of the catalogue and novelty."""

    def __init__(self, popularity: npt.NDArray[Any]) -> None:
        """Take how many users took up each item before, ``[N]``; row 0 is no item."""
        self._shown = np.zeros(len(popularity), dtype=np.int64)
        share = (popularity + 1.0) / (popularity.sum() + len(popularity))
        self._surprise = -np.log2(share)

    def add(self, items: npt.NDArray[Any]) -> None:
        """Count one list of item codes."""
        np.add.at(self._shown, items, 1)

    def figures(self, k: int = K) -> dict[str, float]:
        """Return coverage (share of items ever shown) and novelty (mean self-information in bits).

        Novelty after Zhou et al., "Solving the apparent diversity-accuracy dilemma" (PNAS 2010).
        """
        total = self._shown.sum()
        novelty = float((self._shown * self._surprise).sum() / total) if total else 0.0
        return {f"coverage@{k}": float((self._shown[1:] > 0).mean()), f"novelty@{k}": novelty}
