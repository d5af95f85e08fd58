"""A selective filter still finds k items: the search stays within the items that pass the rules."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval.index import build_index
from serving.recommender.candidates import CandidateQuota, ItemFilter, Retriever
from serving.recommender.filters import AttributeRule, RequestRules
from tests.support.tiny_release import NOW, Tiny

ITEMS = 20_000
QUOTA = CandidateQuota(two_tower=100, similar=0, popular=0, trending=0, new=0)


def unit(seed: int, rows: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, 16)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("kind", ["Flat", "IVF128,SQfp16"])
@pytest.mark.parametrize("share", [0.3, 0.01, 0.0005])
def test_the_nearest_of_what_is_left_are_found(kind: str, share: float) -> None:
    vectors, queries = unit(1, ITEMS), unit(2, 20)
    index, _ = build_index(vectors, queries, kind=kind)
    nothing = np.zeros((ITEMS + 1, 1), dtype=np.int32)
    retriever = Retriever(index, nothing, nothing.astype(np.float32), QUOTA)
    mask = np.concatenate([[False], np.random.default_rng(3).random(ITEMS) < share])
    codes = np.flatnonzero(mask)
    found = retriever._nearest(queries, [ItemFilter(mask)] * len(queries))
    wanted, hits = min(QUOTA.two_tower, len(codes)), 0
    for query, near in zip(queries, found, strict=True):
        near = near[near > 0]
        assert mask[near].all()
        exact = codes[np.argsort(-(vectors[codes - 1] @ query))[:wanted]]
        hits += len(np.intersect1d(near, exact))
    assert hits >= 0.95 * wanted * len(queries)


def test_rules_narrow_the_search_only_where_they_are_selective(tiny: Tiny) -> None:
    filters, items = tiny.release.recommender.filters, tiny.items
    assert filters.prefilter(items, RequestRules(5), NOW) is None
    genre = RequestRules(5, (), {"genre": AttributeRule.model_validate({"in": ["War"]})})
    prefilter = filters.prefilter(items, genre, NOW)
    assert prefilter is not None and prefilter is filters.prefilter(items, genre, NOW)
    assert 0 < prefilter.share < 0.5
