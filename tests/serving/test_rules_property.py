"""Whatever the catalogue, the rules and the request.

Nothing disallowed, nothing twice, and k items where k exist.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_repo import columns as c
from serving.recommender.filters import AttributeRule, FilterRules, RequestRules
from serving.recommender.item_table import build_items
from serving.recommender.recommender import Recommender
from serving.recommender.results import Recommendation
from tests.support.tiny_release import DAY, GENRES, ITEMS, NOW, TAGS, Tiny, item_columns, item_id

KINDS = ["view", "buy", "hide"]
IDS = st.lists(st.integers(1, ITEMS + 5).map(item_id), max_size=ITEMS, unique=True)
MOMENTS = st.one_of(st.none(), st.sampled_from([NOW - DAY, NOW - 1.0, NOW, NOW + 1.0, NOW + DAY]))


def rule(values: list[str]) -> st.SearchStrategy[AttributeRule]:
    some = st.lists(st.sampled_from([*values, "nowhere"]), max_size=4)
    both = st.fixed_dictionaries({}, optional={"in": some, "not_in": some})
    return both.map(AttributeRule.model_validate)


FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "genre": rule(GENRES),
        "tags": rule(TAGS),
        "price": st.fixed_dictionaries(
            {}, optional={"min": st.floats(0, 50), "max": st.floats(0, 50)}
        ).map(AttributeRule.model_validate),
    },
)
RULES = st.builds(
    FilterRules,
    exclude_seen=st.one_of(st.just("all"), st.lists(st.sampled_from(KINDS), unique=True)),
    blocklist=IDS,
    max_per_category=st.one_of(st.none(), st.integers(1, 3)),
    diversity=st.sampled_from([0.0, 0.3]),
)


@st.composite
def catalogues(draw: st.DrawFn, tiny: Tiny) -> dict[str, list[Any]]:
    """Attributes of all items; few or many of them may be had."""
    columns = item_columns(tiny.codec, draw(st.integers(0, 5)))
    share = draw(st.sampled_from([0.0, 0.1, 0.9, 1.0]))
    gone = np.random.default_rng(draw(st.integers(0, 9))).random(ITEMS) > share
    columns[c.AVAILABLE_UNTIL] = [NOW - 5.0 if out else None for out in gone]
    for name in (c.AVAILABLE_FROM, c.AVAILABLE_UNTIL):
        for row, moment in draw(
            st.dictionaries(st.integers(0, ITEMS - 1), MOMENTS, max_size=6)
        ).items():
            columns[name][row] = moment
    return columns


def fits(value: Any, rule: AttributeRule) -> bool:
    if rule.at_least is not None or rule.at_most is not None:
        low = rule.at_least is None or (value is not None and value >= rule.at_least)
        return low and (rule.at_most is None or (value is not None and value <= rule.at_most))
    if rule == AttributeRule():
        return True
    values = set([value] if isinstance(value, str) else value or [])
    wanted = rule.any_of is None or bool(values & set(rule.any_of))
    return wanted and not values & set(rule.none_of or ())


def allowed(
    columns: dict[str, list[Any]],
    rules: FilterRules,
    request: RequestRules,
    seen: dict[str, list[str]],
) -> set[str]:
    """Return the ids that may be shown, from the words of the rules and not from any array."""
    met = {
        item
        for kind, items in seen.items()
        for item in items
        if rules.exclude_seen == "all" or kind in rules.exclude_seen
    }
    out = met | set(rules.blocklist) | set(request.exclude)
    found = set()
    for row in range(ITEMS):
        begin, end = columns[c.AVAILABLE_FROM][row], columns[c.AVAILABLE_UNTIL][row]
        there = (begin is None or begin <= NOW) and (end is None or end > NOW)
        if (
            there
            and item_id(row + 1) not in out
            and all(fits(columns[n][row], r) for n, r in request.filters.items())
        ):
            found.add(item_id(row + 1))
    return found


def most(ids: set[str], columns: dict[str, list[Any]], quota: int | None, k: int) -> int:
    """Return how many of some ids a list may hold."""
    genres = Counter(columns["genre"][int(one[1:]) - 1] for one in ids)
    return min(
        k,
        sum(n if quota is None or genre is None else min(n, quota) for genre, n in genres.items()),
    )


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), rules=RULES, filters=FILTERS, exclude=IDS, k=st.integers(1, ITEMS + 10))
def test_never_a_disallowed_item_and_always_k_when_k_exist(
    tiny: Tiny,
    data: st.DataObject,
    rules: FilterRules,
    filters: dict[str, AttributeRule],
    exclude: list[str],
    k: int,
) -> None:
    columns = data.draw(catalogues(tiny))
    seen = {
        kind: data.draw(IDS) for kind in data.draw(st.lists(st.sampled_from(KINDS), unique=True))
    }
    history = data.draw(IDS)
    users = tiny.users(
        ["u1"],
        history_item_ids=[history],
        history_timestamps=[[NOW - DAY] * len(history)],
        **{f"seen_{kind}": [items] for kind, items in seen.items()},
    )
    made, items = tiny.release.recommender, build_items(tiny.codec, columns)
    funnel = Recommender(
        tower=made.tower,
        vectors=made.vectors,
        retriever=made.retriever,
        ranker=made.ranker,
        rules=rules,
        items=items,
    )
    request = RequestRules(k, tuple(exclude), filters)
    may = allowed(columns, rules, request, seen)
    (found,) = funnel.recommend(users, [request], items)
    for result in (found, funnel.popular(users, 0, request, items)):
        check(tiny, result, may, most(may, columns, rules.max_per_category, k))


def check(tiny: Tiny, result: Recommendation, may: set[str], count: int) -> None:
    ids = tiny.codec.items.names(result.items)
    assert set(ids) <= may
    assert len(set(ids)) == len(ids) == len(result.scores) == len(result.sources) == count
    assert np.isfinite(result.scores).all()
