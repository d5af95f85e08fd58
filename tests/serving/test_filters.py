"""The promise of the last stage: never a disallowed item, always as many as are allowed."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_repo import columns as c
from feature_repo.dataset import SpecError
from serving.recommender.filters import (
    AttributeRule,
    FilterRules,
    Filters,
    RequestRules,
    UnknownAttribute,
)
from serving.recommender.item_table import ItemTable, build_items
from serving.recommender.recommender import Recommender
from serving.recommender.selection import Selection
from tests.support.tiny_release import (
    GENRES,
    ITEMS,
    NOW,
    QUOTA,
    TAGS,
    Tiny,
    item_columns,
    item_id,
)

QUICK = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

values = st.lists(st.sampled_from([*GENRES, "Unheard"]), max_size=3)
tags = st.lists(st.sampled_from([*TAGS, "unheard"]), max_size=3)
prices = st.one_of(
    st.none(), st.sampled_from([1.0, 9.99, 10.0, 10.000000001, 2.0**24, 2.0**24 + 1])
)


@st.composite
def catalogues(draw: st.DrawFn) -> dict[str, list[Any]]:
    """Draw the columns of forty items; their times are near the moment of the request."""

    def column(each: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(each, min_size=ITEMS, max_size=ITEMS))

    return {
        "tags": column(st.lists(st.sampled_from(TAGS), max_size=10, unique=True)),
        "genre": column(st.sampled_from([*GENRES, None])),
        "price": column(prices),
        c.AVAILABLE_FROM: column(st.sampled_from([None, NOW - 1, NOW, NOW + 1])),
        c.AVAILABLE_UNTIL: column(st.sampled_from([None, None, NOW - 1, NOW, NOW + 1])),
    }


@st.composite
def attribute_rules(draw: st.DrawFn) -> dict[str, AttributeRule]:
    rules: dict[str, AttributeRule] = {}
    optional = st.one_of(st.none(), values), st.one_of(st.none(), tags)
    if draw(st.booleans()):
        rules["genre"] = AttributeRule(any_of=draw(optional[0]), none_of=draw(optional[0]))
    if draw(st.booleans()):
        rules["tags"] = AttributeRule(any_of=draw(optional[1]), none_of=draw(optional[1]))
    if draw(st.booleans()):
        rules["price"] = AttributeRule(at_least=draw(prices), at_most=draw(prices))
    return rules


codes = st.lists(st.integers(1, ITEMS), max_size=15)
release_rules = st.builds(
    FilterRules,
    exclude_seen=st.one_of(
        st.just("all"), st.lists(st.sampled_from(["view", "buy", "hide"]), unique=True)
    ),
    blocklist=st.lists(
        st.sampled_from([*map(item_id, range(1, ITEMS + 1)), "nothing"]), max_size=6
    ),
    max_per_category=st.one_of(st.none(), st.integers(1, 4)),
    diversity=st.sampled_from([0.0, 0.0, 0.3, 0.9]),
)
requests = st.builds(
    RequestRules,
    k=st.sampled_from([1, 5, 10, 25, 60]),
    exclude=st.lists(
        st.sampled_from([*map(item_id, range(1, ITEMS + 1)), "nothing"]), max_size=6
    ).map(tuple),
    filters=attribute_rules(),
)


def allowed_codes(
    columns: dict[str, list[Any]],
    rules: FilterRules,
    request: RequestRules,
    seen: dict[str, list[int]],
) -> set[int]:
    """Return what may be shown, worked out item by item from the columns as given."""
    met = {
        code
        for kind, met in seen.items()
        if rules.exclude_seen == "all" or kind in rules.exclude_seen
        for code in met
    }
    good = set()
    for code in range(1, ITEMS + 1):
        row = {name: values[code - 1] for name, values in columns.items()}
        start, end = row[c.AVAILABLE_FROM], row[c.AVAILABLE_UNTIL]
        if (start is not None and start > NOW) or (end is not None and end <= NOW):
            continue
        if code in met or item_id(code) in rules.blocklist or item_id(code) in request.exclude:
            continue
        if all(fits(row[name], rule) for name, rule in request.filters.items()):
            good.add(code)
    return good


def fits(value: Any, rule: AttributeRule) -> bool:
    if rule.at_least is not None or rule.at_most is not None:
        low = -math.inf if rule.at_least is None else rule.at_least
        high = math.inf if rule.at_most is None else rule.at_most
        return value is not None and low <= value <= high
    has = set(value) if isinstance(value, list) else {value} - {None}
    return (rule.any_of is None or bool(has & set(rule.any_of))) and not has & set(
        rule.none_of or ()
    )


def reachable(allowed: set[int], columns: dict[str, list[Any]], quota: int | None) -> int:
    genres = Counter(columns["genre"][code - 1] for code in allowed)
    return sum(
        n if quota is None or genre is None else min(n, quota) for genre, n in genres.items()
    )


def catalogue(tiny: Tiny, columns: dict[str, list[Any]]) -> ItemTable:
    return build_items(tiny.codec, {**item_columns(tiny.codec), **columns})


@QUICK
@given(
    catalogues(),
    release_rules,
    requests,
    st.fixed_dictionaries({"view": codes, "buy": codes, "hide": codes}),
)
def test_lists_are_allowed_full_and_in_order(
    tiny: Tiny,
    columns: dict[str, list[Any]],
    rules: FilterRules,
    request: RequestRules,
    seen: dict[str, list[int]],
) -> None:
    items = catalogue(tiny, columns)
    retrieval = tiny.release.retrieval
    ranker = tiny.release.recommender.ranker
    recommender = Recommender(
        tower=retrieval.tower,
        vectors=retrieval.vectors,
        retriever=retrieval.retriever,
        ranker=ranker,
        rules=rules,
        items=items,
    )
    users = tiny.clickers(3)
    users = replace(
        users, seen=[{kind: np.array(met, dtype=np.int32) for kind, met in seen.items()}] * 3
    )
    allowed = allowed_codes(columns, rules, request, seen)
    possible = min(request.k, reachable(allowed, columns, rules.max_per_category))
    for result in recommender.recommend(users, [request] * 3, items):
        shown = result.items.tolist()
        assert set(shown) <= allowed and len(set(shown)) == len(shown)
        assert len(shown) == possible == len(result.scores) == len(result.sources)
        assert np.isfinite(result.scores).all()
        if rules.max_per_category is not None:
            genres = Counter(columns["genre"][code - 1] for code in shown)
            del genres[None]
            assert all(n <= rules.max_per_category for n in genres.values())
        if rules.diversity == 0.0:
            assert (np.diff(result.scores) <= 0).all()
        assert ("few_candidates" in result.degraded) == (["backfill"] in result.sources)


def masks(tiny: Tiny, filters: dict[str, dict[str, Any]], **columns: list[Any]) -> set[int]:
    """Return the items that an attribute rule leaves of a catalogue."""
    items = catalogue(
        tiny, {c.AVAILABLE_FROM: [None] * ITEMS, c.AVAILABLE_UNTIL: [None] * ITEMS, **columns}
    )
    request = RequestRules(
        5, filters={name: AttributeRule.model_validate(rule) for name, rule in filters.items()}
    )
    rules = Filters(FilterRules(), items)
    rules.check(request.filters, items)
    return set(
        np.flatnonzero(
            ~rules.removals(items, request, seen={}, time=NOW)["attribute_rule"]
        ).tolist()
    ) - {0}


def test_every_one_of_many_values_counts(tiny: Tiny) -> None:
    """The models look at six values of an attribute at most; a rule must look at all."""
    many = [TAGS if n == 0 else TAGS[:9] if n == 1 else [] for n in range(ITEMS)]
    assert masks(tiny, {"tags": {"in": [TAGS[11]]}}, tags=many) == {1}
    assert masks(tiny, {"tags": {"in": [TAGS[8]]}}, tags=many) == {1, 2}
    assert masks(tiny, {"tags": {"not_in": [TAGS[8]]}}, tags=many) == set(range(3, ITEMS + 1))
    assert masks(tiny, {"tags": {"in": [TAGS[8]], "not_in": [TAGS[10]]}}, tags=many) == {2}


def test_values_that_no_item_has(tiny: Tiny) -> None:
    everything = set(range(1, ITEMS + 1))
    assert masks(tiny, {"genre": {"in": ["Unheard"]}}) == set()
    assert masks(tiny, {"genre": {"in": []}}) == set()
    assert masks(tiny, {"genre": {"not_in": ["Unheard"]}}) == everything
    assert masks(tiny, {"genre": {}}) == everything


def test_numbers_are_compared_as_given(tiny: Tiny) -> None:
    """As float32, 16,777,217 is 16,777,216 and 0.1 is more than 0.1."""
    price = [16_777_216.0, 16_777_217.0, None, 0.1, *[5.0] * (ITEMS - 4)]
    assert masks(tiny, {"price": {"min": 16_777_217}}, price=price) == {2}
    assert masks(tiny, {"price": {"max": 0.1}}, price=price) == {4}
    assert masks(tiny, {"price": {"min": 0.1, "max": 5}}, price=price) == set(range(4, ITEMS + 1))


def test_values_that_the_models_never_met_can_be_filtered_by(tiny: Tiny) -> None:
    genre = ["Western", *["War"] * (ITEMS - 1)]
    assert masks(tiny, {"genre": {"in": ["Western"]}}, genre=genre) == {1}


@pytest.mark.parametrize(
    ("name", "rule", "says"),
    [
        ("colour", {"in": ["red"]}, "items have no attribute 'colour' to filter by; they have"),
        ("title", {"in": ["story"]}, "items have no attribute 'title'"),
        ("genre", {"min": 3}, "'genre' is categorical: use in/not_in"),
        ("price", {"in": ["3"]}, "'price' is numeric: use min/max"),
    ],
)
def test_filters_that_cannot_be_applied_are_refused(
    tiny: Tiny, name: str, rule: dict[str, Any], says: str
) -> None:
    with pytest.raises(UnknownAttribute, match=says):
        masks(tiny, {name: rule})


def test_removals_are_counted_by_reason(tiny: Tiny) -> None:
    rules = FilterRules(blocklist=["i1", "i2", "nothing"])
    request = RequestRules(5, exclude=("i2", "i3"))
    filters, seen = Filters(rules, tiny.items), {"view": np.array([0, 9], dtype=np.int32)}
    codes = np.array([1, 2, 3, 4, 9], dtype=np.int32)
    found = filters.removals(tiny.items, request, seen=seen, time=NOW, codes=codes)
    counts = {reason: int(mask.sum()) for reason, mask in found.items()}
    assert counts == {"blocklist": 2, "excluded": 2, "seen": 1, "unavailable": 1}
    for reason, everything in filters.removals(tiny.items, request, seen=seen, time=NOW).items():
        assert found[reason].tolist() == everything[codes].tolist()


def slow_mmr(k: int, scores: np.ndarray, vectors: np.ndarray, diversity: float) -> list[int]:
    """Choose one item after another by the formula of Carbonell and Goldstein."""
    scaled = (scores - scores.min()) / (scores.max() - scores.min())
    chosen: list[int] = []
    while len(chosen) < k:
        gains = {
            place: (1 - diversity) * scaled[place]
            - diversity
            * max((float(vectors[place] @ vectors[other]) for other in chosen), default=0.0)
            for place in range(len(scores))
            if place not in chosen
        }
        chosen.append(max(gains, key=lambda place: (gains[place], -place)))
    return chosen


@pytest.mark.parametrize("diversity", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(5))
def test_diversity_is_maximal_marginal_relevance(tiny: Tiny, diversity: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    # In three dimensions many cosines are below zero: being far from what is chosen is worth
    # something too.
    vectors = generator.normal(size=(ITEMS + 1, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    allowed = (generator.permutation(ITEMS)[:25] + 1).astype(np.int32)
    scores = -np.sort(-generator.normal(size=25)).astype(np.float32)
    selection = Selection(FilterRules(diversity=diversity), tiny.items, vectors)
    chosen = selection.select(10, allowed, scores)
    assert chosen == slow_mmr(10, scores, vectors[allowed], diversity)
    assert selection.over_quota == 0


def test_nothing_to_choose_from(tiny: Tiny) -> None:
    none, vectors = np.zeros(0, dtype=np.int32), tiny.release.retrieval.vectors
    for rules in (FilterRules(), FilterRules(diversity=0.5), FilterRules(max_per_category=1)):
        selection = Selection(rules, tiny.items, vectors)
        assert selection.select(5, none, np.zeros(0, dtype=np.float32)) == []
        assert selection.over_quota == 0


def test_quota_counts_what_is_chosen_already(tiny: Tiny) -> None:
    items = catalogue(tiny, {"genre": ["War"] * 5 + ["Drama"] * 5 + [None] * (ITEMS - 10)})
    order = np.arange(1, 13, dtype=np.int32)
    scores = np.linspace(1, 0, 12, dtype=np.float32)
    for diversity in (0.0, 1e-9):
        rules = FilterRules(max_per_category=2, diversity=diversity)
        selection = Selection(rules, items, tiny.release.retrieval.vectors)
        assert selection.select(1, order[1:2], scores[1:2]) == [0]
        assert selection.select(20, order, scores) == [0, 5, 6, 10, 11]
        assert selection.over_quota == 7


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("exclude_seen = ", "cannot be read as TOML"),
        ("exclude_seen = 'none'", "exclude_seen"),
        (
            "exclude_seen = ['purchase']",
            r"exclude_seen names \['purchase'\]; the event types are \['view', 'buy', 'hide'\]",
        ),
        ("max_per_category = 0", "max_per_category: .* greater than or equal to 1"),
        ("diversity = 1.0", "diversity: .* less than 1"),
        ("diversity = nan", "diversity"),
        ("block_list = ['7']", "block_list: Extra inputs are not permitted"),
        ("blocklist = [7]", "blocklist.0: .* valid string"),
    ],
)
def test_bad_rules_are_refused_in_a_sentence(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "filters.toml"
    path.write_text(text)
    with pytest.raises(SpecError, match=says) as caught:
        FilterRules.load(path, ["view", "buy", "hide"])
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_missing_rules_are_refused_and_good_ones_read(tmp_path: Path) -> None:
    path = tmp_path / "filters.toml"
    with pytest.raises(SpecError, match="cannot be read"):
        FilterRules.load(path, ["view"])
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SpecError, match="cannot be read"):
        FilterRules.load(path, ["view"])
    path.write_text("exclude_seen = ['view']\nmax_per_category = 3\n")
    assert FilterRules.load(path, ["view"]) == FilterRules(
        exclude_seen=["view"], max_per_category=3
    )


def test_backfill_is_what_the_property_tests_reach() -> None:
    """Fewer candidates than items.

    Otherwise no list above would ever be filled from the catalogue.
    """
    assert sum(QUOTA.model_dump().values()) < ITEMS
