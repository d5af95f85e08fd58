"""Ranking metrics of lists with one right item each, and what the lists are like as a whole.

With one relevant item, at 1-based place ``r`` of the list (or not in it): recall@k = hit@k = [r <=
k]; NDCG@k = 1 / log2(1 + r) if r <= k (Jarvelin and Kekalainen, 2002; the ideal is 1); MRR = MAP =
1 / r within the list (average precision of one relevant item is its reciprocal rank).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from feature_repo.encoding import Codes, Floats

Ranks = npt.NDArray[np.int64]
"""0-based place of the right item in each list, int64 ``[n]``; -1: not in it."""

Values = npt.NDArray[np.float64]

K = 10
DEPTHS = (100, 500)
_CHUNK = 4_096


def gains(ranks: Ranks, k: int = K) -> dict[str, Values]:
    """Return each list's recall, NDCG and MRR at ``k``, float64 ``[n]``."""
    hit = (ranks >= 0) & (ranks < k)
    rank = np.maximum(ranks, 0) + 1.0
    return {
        f"recall@{k}": hit.astype(np.float64),
        f"ndcg@{k}": np.where(hit, 1.0 / np.log2(rank + 1.0), 0.0),
        f"mrr@{k}": np.where(hit, 1.0 / rank, 0.0),
    }


def deep_gains(ranks: Ranks) -> dict[str, Values]:
    """Return each list's recall at greater depths, float64 ``[n]``."""
    return {f"recall@{k}": gains(ranks, k)[f"recall@{k}"] for k in DEPTHS}


def accuracy(ranks: Ranks, k: int = K) -> dict[str, float]:
    """Return hit rate, NDCG, MRR and MAP at ``k`` over all lists; 0 for no lists."""
    means = {
        name: float(values.mean()) if len(values) else 0.0
        for name, values in gains(ranks, k).items()
    }
    return {f"hit_rate@{k}": means[f"recall@{k}"], **means, f"map@{k}": means[f"mrr@{k}"]}


def recall(ranks: Ranks, k: int) -> float:
    """Return the share of lists whose right item is among the first ``k``."""
    return float(((ranks >= 0) & (ranks < k)).mean()) if len(ranks) else 0.0


@dataclass(frozen=True)
class Catalogue:
    """What lists are measured by; row 0 is no item.

    ``popularity`` float64 ``[N]``: positive events before the cut; ``vectors`` float32 ``[N, D]``
    unit vectors; ``categories`` int32 ``[N, G]``, 0: none.
    """

    popularity: Values
    vectors: Floats
    categories: Codes


def list_figures(lists: Codes, catalogue: Catalogue) -> dict[str, float]:
    """Return what lists (int32 ``[n, K]``, 0: the list is shorter) are like as a whole.

    - ``coverage``: share of the items ever shown.
    - ``novelty``: mean self-information in bits (Zhou et al., PNAS 2010).
    - ``diversity``: 1 - mean pairwise cosine of the release's own item vectors within a list (Smyth
        and McClave, 2001).
    - ``category_diversity``: share of a list's pairs with no category in common; left out where
        there are none.
    - ``popularity``: mean popularity percentile of what is shown (0.5: as popular as the median
        item).
    - ``gini``: Gini index of exposure over all items (0: all equally often, 1: one item only).

    """
    shown = np.bincount(lists.ravel(), minlength=len(catalogue.popularity))[1:].astype(np.float64)
    count = catalogue.popularity[1:]
    surprise = -np.log2((count + 1.0) / (count.sum() + len(count) + 1.0))
    percentile = (rankdata(count) - 0.5) / max(len(count), 1)
    total = max(float(shown.sum()), 1.0)
    figures = {
        f"coverage@{K}": float((shown > 0).mean()),
        f"novelty@{K}": float(shown @ surprise / total),
        f"diversity@{K}": _over_lists(
            lists, lambda part: _vector_diversity(part, catalogue.vectors)
        ),
        f"popularity@{K}": float(shown @ percentile / total),
        f"gini@{K}": gini(shown),
    }
    if catalogue.categories.any():
        figures[f"category_diversity@{K}"] = _over_lists(
            lists, lambda part: _unlike(part, catalogue.categories)
        )
    return figures


def gini(amounts: Values) -> float:
    """Return the Gini index of amounts that are not negative; 0 if all are 0."""
    total, size = amounts.sum(), len(amounts)
    if not total:
        return 0.0
    return float((2 * np.arange(1, size + 1) - size - 1) @ np.sort(amounts) / (size * total))


def _over_lists(lists: Codes, measure: Any) -> float:
    """Return the mean of what ``measure`` gives for each list, NaN: the list has no pair."""
    parts = [measure(lists[start : start + _CHUNK]) for start in range(0, len(lists), _CHUNK)]
    values = np.concatenate([*parts, np.zeros(0)])
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else 0.0


def _vector_diversity(lists: Codes, vectors: Floats) -> Values:
    shown = np.asarray(vectors[lists] * (lists > 0)[:, :, None], dtype=np.float64)
    size = (lists > 0).sum(axis=1)
    pairs = np.where(size > 1, size * (size - 1.0), np.nan)
    whole, own = (shown.sum(axis=1) ** 2).sum(axis=1), (shown**2).sum(axis=(1, 2))
    return np.asarray(1.0 - (whole - own) / pairs)


def _unlike(lists: Codes, categories: Codes) -> Values:
    """Return the share of each list's pairs that have no category in common."""
    of, there = categories[lists], lists > 0
    unlike, pairs = np.zeros(len(lists)), np.zeros(len(lists))
    for one, other in combinations(range(lists.shape[1]), 2):
        both = there[:, one] & there[:, other]
        first, second = of[:, one, :, None], of[:, other, None, :]
        unlike += both & ~((first == second) & (first > 0)).any(axis=(1, 2))
        pairs += both
    return np.asarray(unlike / np.where(pairs > 0, pairs, np.nan))
