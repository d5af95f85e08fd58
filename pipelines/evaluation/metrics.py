"""Ranking metrics of lists with one right item each, and properties of the lists as a whole.

With one relevant item at 1-based rank ``r`` of the list (or not in it): recall@k = hit@k = [r <=
k]; NDCG@k = 1 / log2(1 + r) if r <= k (Jarvelin and Kekalainen, 2002; the ideal is 1); MRR = MAP =
1 / r within the list (average precision of one relevant item is its reciprocal rank).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.stats import rankdata

from feature_repo.arrays import Float32Array, Float64Array, Int32Array, Int64Array

Ranks = Int64Array
"""0-based rank of the right item in each list, int64 ``[n]``; -1: not in it."""

K = 10
DEPTHS = (100, 500)
_CHUNK = 4_096
"""Lists that are measured at once."""


def gains(ranks: Ranks, k: int = K) -> dict[str, Float64Array]:
    """Return each list's recall, NDCG and MRR at ``k``, float64 ``[n]``."""
    hit = (ranks >= 0) & (ranks < k)
    one_based = np.maximum(ranks, 0) + 1.0
    return {
        f"recall@{k}": hit.astype(np.float64),
        f"ndcg@{k}": np.where(hit, 1.0 / np.log2(one_based + 1.0), 0.0),
        f"mrr@{k}": np.where(hit, 1.0 / one_based, 0.0),
    }


def deep_gains(ranks: Ranks) -> dict[str, Float64Array]:
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

    Attributes:
        popularity: positive events before the cut, float64 ``[N]``.
        vectors: unit vectors of the items, float32 ``[N, D]``.
        categories: int32 ``[N, G]``, 0: none.

    """

    popularity: Float64Array
    vectors: Float32Array
    categories: Int32Array


def list_figures(lists: Int32Array, catalogue: Catalogue) -> dict[str, float]:
    """Return properties of lists (int32 ``[n, K]``, 0: the list is shorter) as a whole.

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
    # Impressions and known events of each item, [N - 1] without row 0.
    shown = np.bincount(lists.ravel(), minlength=len(catalogue.popularity))[1:].astype(np.float64)
    events = catalogue.popularity[1:]
    total = max(float(shown.sum()), 1.0)

    # Laplace-smoothed self-information, and mid-rank percentile, of each item.
    self_information = -np.log2((events + 1.0) / (events.sum() + len(events) + 1.0))
    percentile = (rankdata(events) - 0.5) / max(len(events), 1)

    figures = {
        f"coverage@{K}": float((shown > 0).mean()),
        f"novelty@{K}": float(shown @ self_information / total),
        f"diversity@{K}": _mean_over_lists(
            lists, lambda part: _vector_diversity(part, catalogue.vectors)
        ),
        f"popularity@{K}": float(shown @ percentile / total),
        f"gini@{K}": gini(shown),
    }
    if catalogue.categories.any():
        figures[f"category_diversity@{K}"] = _mean_over_lists(
            lists, lambda part: _category_diversity(part, catalogue.categories)
        )
    return figures


def gini(amounts: Float64Array) -> float:
    """Return the Gini index of non-negative amounts; 0 if all are 0."""
    total = amounts.sum()
    size = len(amounts)
    if not total:
        return 0.0
    return float((2 * np.arange(1, size + 1) - size - 1) @ np.sort(amounts) / (size * total))


def _mean_over_lists(lists: Int32Array, measure: Callable[[Int32Array], Float64Array]) -> float:
    """Return the mean of what ``measure`` gives for each list, NaN: the list has no pair."""
    parts = [measure(lists[start : start + _CHUNK]) for start in range(0, len(lists), _CHUNK)]
    values = np.concatenate([*parts, np.zeros(0)])
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else 0.0


def _vector_diversity(lists: Int32Array, vectors: Float32Array) -> Float64Array:
    """Return 1 - mean pairwise cosine of each list, float64 ``[n]``; NaN: no pair."""
    shown = np.asarray(vectors[lists] * (lists > 0)[:, :, None], dtype=np.float64)  # [n, K, D]
    size = (lists > 0).sum(axis=1)
    pairs = np.where(size > 1, size * (size - 1.0), np.nan)

    # The squared norm of the sum is the sum of all products; those of items with themselves go.
    all_products = (shown.sum(axis=1) ** 2).sum(axis=1)
    own_products = (shown**2).sum(axis=(1, 2))
    return np.asarray(1.0 - (all_products - own_products) / pairs)


def _category_diversity(lists: Int32Array, categories: Int32Array) -> Float64Array:
    """Return the share of each list's pairs without a common category, ``[n]``; NaN: no pair."""
    of_item = categories[lists]  # [n, K, G]
    present = lists > 0
    unlike = np.zeros(len(lists))
    pairs = np.zeros(len(lists))
    for one, other in combinations(range(lists.shape[1]), 2):
        both = present[:, one] & present[:, other]
        first = of_item[:, one, :, None]
        second = of_item[:, other, None, :]
        in_common = ((first == second) & (first > 0)).any(axis=(1, 2))
        unlike += both & ~in_common
        pairs += both
    return np.asarray(unlike / np.where(pairs > 0, pairs, np.nan))
