"""The definition of streaming features: worked cases; the order of arrival does not matter."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo import columns as c
from feature_repo import facts
from feature_repo.facts import (
    PANE_S,
    Counts,
    Event,
    EventKinds,
    UserFacts,
    counts_at,
    dump,
    event_micros,
    item_features_at,
    load,
    panes_of,
    row_of,
    session_at,
    trends_at,
    user_features_at,
)

TYPES = ("view", "buy")
KINDS = EventKinds(TYPES, (False, True))
T0 = 1_700_000_000  # the start of a pane of ten seconds and of none of the longer ones


def happened(second, item="i", kind=0, event_id=None):
    return Event(int(second * 1_000_000), event_id or f"e{second}{item}{kind}", item, kind)


def test_a_window_is_the_pane_of_now_and_the_59_before():
    counts = Counts()
    counts.add(T0 * 1_000_000, 0, 2)
    assert counts_at(T0, counts.panes, 2)[0] == [1, 0]
    assert counts_at(T0 + 599, counts.panes, 2)[0] == [1, 0]
    assert counts_at(T0 + 600, counts.panes, 2)[0] == [0, 0]
    assert counts_at(T0 - 1, counts.panes, 2)[0] == [0, 0]
    assert counts_at(T0 + 600, counts.panes, 2)[1:] == [[1, 0], [1, 0]]
    assert counts_at(T0 + 86_400, counts.panes, 2) == [[0, 0], [0, 0], [0, 0]]


def test_the_trend_halves_in_a_quarter_of_the_window():
    counts = Counts()
    for _ in range(4):
        counts.add(T0 * 1_000_000, 1, 2)
    assert trends_at(T0, counts.panes)[0] == 4.0
    assert trends_at(T0 + 150, counts.panes)[0] == pytest.approx(2.0)
    assert trends_at(T0 + 300, counts.panes)[0] == pytest.approx(1.0)
    assert trends_at(T0 + 600, counts.panes)[0] == 0.0


def test_history_keeps_the_newest_positive_event_of_each_item():
    facts = UserFacts()
    facts.fold(
        [happened(3, "a", 1), happened(1, "b", 1), happened(2, "a", 1), happened(9, "seen", 0)],
        KINDS,
    )
    row = row_of(facts, TYPES, {"a": "red"}.get)
    assert row[c.HISTORY_ITEMS] == ["b", "a"]
    assert row[c.HISTORY_TIMES] == [1, 3]
    assert row[c.RECENT_ITEMS] == ["b", "a", "a", "seen"]
    assert row[c.RECENT_TYPES] == ["buy", "buy", "buy", "view"]
    assert row[c.RECENT_CATEGORIES] == [None, "red", "red", None]


def test_a_session_ends_with_a_pause_of_more_than_half_an_hour():
    times, categories = [T0, T0 + 5_000, T0 + 6_800, T0 + 6_900], ["old", "a", "", "b"]
    assert session_at(T0 + 6_900, times, categories) == (3, 1_900, ["a", "b"])
    assert session_at(T0 + 6_900 + 1_800, times, categories) == (3, 1_900, ["a", "b"])
    assert session_at(T0 + 6_900 + 1_801, times, categories) == (0, 0, [])
    assert session_at(T0, [], []) == (0, 0, [])


def test_what_has_arrived_has_happened():
    assert event_micros(100.0, "99000-0") == 99_000_999
    assert event_micros(98.5, "99000-0") == 98_500_000


def test_missing_rows_count_nothing():
    user = user_features_at(T0, {}, TYPES)
    assert user["view_count_10m"] == 0 and user[c.SESSION_EVENTS] == 0
    assert item_features_at(T0, {"panes_10m": None}, TYPES)["trend_24h"] == 0.0


events = st.lists(
    st.tuples(
        st.integers(0, 200_000),
        st.sampled_from("abcdefgh"),
        st.integers(0, 1),
        st.integers(0, 10**6),
    ),
    max_size=120,
    unique_by=lambda event: event[3],
)


@settings(max_examples=60, deadline=None)
@given(events, st.randoms(use_true_random=False), st.integers(1, 5))
def test_facts_depend_on_no_order_and_on_no_batches(drawn, shuffle: random.Random, batches):
    listed = [
        happened(T0 + second, item, kind, f"e{number:07d}") for second, item, kind, number in drawn
    ]
    at_once, in_parts = UserFacts(), UserFacts()
    at_once.fold(sorted(listed), KINDS)
    shuffle.shuffle(listed)
    for part in range(batches):
        in_parts.fold(listed[part::batches], KINDS)
        in_parts = load(dump(in_parts))  # as between two batches of the stream
    assert row_of(in_parts, TYPES, str) == row_of(at_once, TYPES, str)


@settings(max_examples=60, deadline=None)
@given(events, st.integers(200_000, 300_000))
def test_counts_are_a_plain_count(drawn, later):
    facts = UserFacts()
    facts.fold(
        [happened(T0 + second, item, kind, str(number)) for second, item, kind, number in drawn],
        KINDS,
    )
    row = row_of(facts, TYPES, str)
    found = counts_at(T0 + later, panes_of(row, 2), 2)
    for place, pane in enumerate(PANE_S.values()):
        inside = [
            kind
            for second, _, kind, _ in drawn
            if (T0 + later) // pane - (T0 + second) // pane < 60
        ]
        assert found[place] == [inside.count(0), inside.count(1)]


def test_facts_as_97f4b5b_stored_them_are_read():
    stored = (
        '{"position":"1700000000000-0","panes":[[[170000000,[1,0]]],[[28333333,[1,0]]],[]],'
        '"events":[[1700000000000000,"e1","a",0]],"history":[["a",1700000000000000,"e1"]]}'
    )
    facts = load(stored)
    assert facts.events == [Event(1_700_000_000_000_000, "e1", "a", 0)]
    assert dump(facts) == stored


@pytest.mark.parametrize("name", ["user_sliding", "item_sliding"])
def test_views_in_an_older_registry_still_run(name):
    source = f"def {name}(inputs):\n    from feature_repo.recent import {name} as sliding\n"
    scope = {}
    exec(source + "    return sliding", scope)
    assert scope[name]({}) is getattr(facts, name)
