"""The answer of last resort: its cost does not grow with the catalogue, its list is still right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from feature_repo import columns as c
from serving.recommender.candidates import FEW
from serving.recommender.fallback import fillers, popular_order
from serving.recommender.filters import AttributeRule, FilterRules, Filters, RequestRules
from serving.recommender.item_table import Activity, ItemTable
from tests.support.tiny_release import NOW, Tiny

ITEMS = 60_000


@pytest.fixture(scope="module")
def large(tiny: Tiny) -> ItemTable:
    """The tiny release's items again and again, with counts of their own."""
    rng = np.random.default_rng(5)
    source = np.r_[0, rng.integers(1, len(tiny.items), ITEMS)]
    counts = tiny.items.activity.counts[source].copy()
    counts[:, tiny.codec.item_activity.index(c.EVENTS_30D)] = rng.permutation(ITEMS + 1)
    return replace(
        tiny.items,
        encoded=tiny.items.encoded[source],
        categories=tiny.items.categories[source],
        available_from=np.full(ITEMS + 1, -np.inf),
        available_until=np.full(ITEMS + 1, np.inf),
        activity=Activity(counts, np.full(ITEMS + 1, NOW), np.full(ITEMS + 1, NOW)),
    )


def popularity(items: ItemTable) -> np.ndarray:
    return items.count(c.EVENTS_30D)


def test_the_order_is_of_what_can_be_had(large: ItemTable) -> None:
    until = large.available_until.copy()
    best = np.argsort(-popularity(large), kind="stable")[:1_000]
    until[best] = NOW - 1.0
    items = replace(large, available_until=until)
    order = popular_order(items, NOW)
    assert order is popular_order(items, NOW), "computed once for a table"
    assert not np.isin(order[:FEW], best).any() and 0 not in order
    assert (np.diff(popularity(items)[order]) <= 0).all()


@pytest.mark.parametrize("seen_count", [0, 10, FEW, 3 * FEW])
def test_who_has_seen_the_most_popular_gets_the_next_ones(
    large: ItemTable, seen_count: int
) -> None:
    """Whatever one has seen, there are always as many more to look at."""
    filters = Filters(FilterRules(), large)
    order = popular_order(large, NOW)
    seen = {"view": order[:seen_count]}
    request = RequestRules(50)
    left = filters.fillers(large, request, seen=seen, time=NOW)
    assert left[:50].tolist() == order[seen_count : seen_count + 50].tolist()
    assert len(left) <= FEW + 50 + seen_count


def test_a_request_looks_at_a_bounded_part(large: ItemTable) -> None:
    assert len(fillers(large, None, NOW, 70)) == FEW + 70
    rare = Filters(FilterRules(), large).prefilter(
        large, RequestRules(5, (), {"genre": AttributeRule.model_validate({"in": ["War"]})}), NOW
    )
    assert rare is None or rare.codes is None or len(rare.codes) <= FEW


def test_a_narrow_filter_is_filled_from_all_that_it_leaves(tiny: Tiny) -> None:
    genre = {"genre": AttributeRule.model_validate({"in": ["War"]})}
    filters = Filters(FilterRules(), tiny.items)
    request = RequestRules(5, (), genre)
    prefilter = filters.prefilter(tiny.items, request, NOW)
    assert prefilter is not None and prefilter.codes is not None
    left = filters.fillers(tiny.items, request, seen={}, time=NOW)
    fits = filters.allowed(tiny.items, request, seen={}, time=NOW)
    assert sorted(left.tolist()) == np.flatnonzero(fits).tolist()
    listed = left[:2]
    others = filters.fillers(tiny.items, request, seen={}, time=NOW, listed=listed)
    assert sorted(others.tolist()) == sorted(left[2:].tolist())


@pytest.mark.parametrize(
    "bad", ['{"min": 5, "max": NaN}', '{"min": Infinity}', '{"max": -Infinity}']
)
def test_a_condition_has_no_bound_that_is_no_number(bad: str) -> None:
    """NaN and 'no bound' were the same key of the cache, and everybody got the empty list."""
    with pytest.raises(ValueError, match="finite number"):
        AttributeRule.model_validate_json(bad)
