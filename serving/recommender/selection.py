"""Selection of the final list from allowed items: category quotas and diversity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from feature_repo.arrays import Float32Array, Int32Array
from serving.recommender.filters import FilterRules
from serving.recommender.item_table import ItemTable


class Selection:
    """The items selected for one request so far, by the release's quota and diversity.

    With ``diversity`` d > 0 each choice maximises (1 - d) x score (scaled to 0..1) - d x the
    highest cosine to the items of the same call chosen before it: maximal marginal relevance
    (Carbonell and Goldstein, SIGIR 1998).
    """

    def __init__(self, rules: FilterRules, items: ItemTable, vectors: Float32Array) -> None:
        """Start an empty selection.

        Args:
            rules: quota and diversity.
            items: the item table.
            vectors: unit item vectors, float32 ``[N, D]``.

        """
        self._rules = rules
        self._items = items
        self._vectors = vectors
        self._by_category: Counter[int] = Counter()

        self.over_quota = 0
        """How many items were skipped because their category was full."""

    def select(self, count: int, codes: Int32Array, scores: Float32Array) -> list[int]:
        """Select up to ``count`` more items.

        Args:
            count: how many.
            codes: int32 ``[n]``, allowed items, best first.
            scores: float32 ``[n]``.

        Returns:
            indices into ``codes`` of the selected items, in their final order.

        """
        quota = self._rules.max_per_category
        if self._rules.diversity == 0.0 and quota is None:
            return list(range(min(count, len(codes))))
        if count == 0 or not len(codes):
            return []

        chosen: list[int] = []
        for index in self._order(codes, scores, chosen):
            category = int(self._items.categories[codes[index], 0])
            if quota is not None and category and self._by_category[category] >= quota:
                self.over_quota += 1
                continue
            self._by_category[category] += 1
            chosen.append(index)
            if len(chosen) == count:
                break
        return chosen

    def _order(self, codes: Int32Array, scores: Float32Array, chosen: list[int]) -> Iterable[int]:
        """Return indices of ``codes`` in the order in which they are tried."""
        if self._rules.diversity:
            vectors = self._vectors[codes]
            return _most_diverse(vectors, scores, chosen, diversity=self._rules.diversity)
        return range(len(codes))


def _most_diverse(
    vectors: Float32Array, scores: Float32Array, chosen: list[int], *, diversity: float
) -> Iterator[int]:
    """Yield indices of items ``[n, D]``, each the best beside those that are ``chosen`` by then.

    The caller appends to ``chosen`` between two steps.
    """
    spread = float(scores.max() - scores.min()) or 1.0
    relevance = (1.0 - diversity) * (scores - scores.min()) / spread

    nearest: Float32Array | None = None  # [n], highest cosine to a chosen item
    compared = 0
    left = np.ones(len(vectors), dtype=np.bool_)

    for _ in range(len(vectors)):
        if len(chosen) > compared:
            cosine = vectors @ vectors[chosen[-1]]
            nearest = cosine if nearest is None else np.maximum(nearest, cosine)
            compared = len(chosen)

        value = relevance if nearest is None else relevance - diversity * nearest
        best = int(np.where(left, value, -np.inf).argmax())
        left[best] = False
        yield best
