"""Aggregates of events: as a history, as a state, and counted by hand they are the same."""

import random
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.aggregates.definition import (
    MICROS,
    Aggregate,
    AggregateView,
    Occurrence,
    units_of,
)
from feature_repo.aggregates.state import AggregateState, values_of
from pipelines.features.aggregate_history import Occurrences, history

MINUTE, HOUR, DAY = 60 * MICROS, 3_600 * MICROS, 86_400 * MICROS
T0 = 1_700_000_000 * MICROS
FUNCTIONS = ("count", "sum", "mean", "min", "max", "last")


@dataclass(frozen=True)
class Happened:
    user: int
    event: Occurrence


def recount(aggregate, events, micros):
    """Return an aggregate's value as of a time, by its definition in words."""
    pane = None if aggregate.window is None else max(MINUTE, aggregate.window // 60)
    inside = [
        event
        for event in sorted(events)
        if event.micros <= micros
        and (not aggregate.types or event.type in aggregate.types)
        and (event.units is not None or not aggregate.of_value)
        and (pane is None or micros // pane - event.micros // pane < -(-aggregate.window // pane))
    ]
    units = [event.units for event in inside]
    return {
        "count": lambda: len(inside),
        "sum": lambda: sum(units) / MICROS,
        "mean": lambda: sum(units) / (len(units) * MICROS) if units else None,
        "min": lambda: min(units) / MICROS if units else None,
        "max": lambda: max(units) / MICROS if units else None,
        "last": lambda: units[-1] / MICROS if units else None,
    }[aggregate.function]()


aggregates = st.builds(
    Aggregate,
    name=st.just("x"),
    function=st.sampled_from(FUNCTIONS),
    of_value=st.just(True),
    window=st.sampled_from([None, MINUTE, 90 * MICROS, HOUR, HOUR + 7, DAY, 7 * DAY]),
    types=st.sampled_from([(), ("a",), ("a", "b")]),
)
units = st.one_of(st.none(), st.integers(-5, 5), st.integers(-(10**17), 10**17))
moments = st.one_of(
    st.integers(0, HOUR), st.integers(0, 20 * DAY), st.integers(0, 300).map(lambda n: n * MINUTE)
)
happened = st.lists(
    st.tuples(st.integers(0, 2), moments, st.sampled_from("abc"), units), min_size=1, max_size=40
)


@settings(max_examples=150, deadline=None)
@given(happened, aggregates, st.booleans(), st.randoms(use_true_random=False))
def test_history_state_and_a_recount_agree_at_every_change(drawn, aggregate, counted, shuffle):
    if aggregate.function == "count":
        aggregate = Aggregate("x", "count", counted, aggregate.window, aggregate.types)
    view = AggregateView("view", "user_id", (aggregate,))
    all_events = sorted(
        (
            Happened(user, Occurrence(T0 + at, f"e{number:02}", kind, value))
            for number, (user, at, kind, value) in enumerate(drawn)
        ),
        key=lambda h: (h.user, h.event.micros, h.event.event_id),
    )
    rows = history(view, occurrences(all_events))
    for user, micros, value in zip(rows.key, rows.micros, rows.values["x"], strict=True):
        mine = [h.event for h in all_events if h.user == user]
        past = [event for event in mine if event.micros <= micros]
        shuffle.shuffle(past)
        state = AggregateState(view)
        for part in (past[::2], past[1::2]):
            state.add(part)
            state = AggregateState.load(view, state.dump())
        expected = recount(aggregate, mine, int(micros))
        assert state.values(int(micros))["x"] == expected
        assert np.isnan(value) if expected is None else value == expected


def occurrences(events):
    values = [h.event.units for h in events]
    return Occurrences(
        key=np.array([h.user for h in events]),
        micros=np.array([h.event.micros for h in events]),
        type=np.array([h.event.type for h in events], dtype=object),
        units=np.array([value or 0 for value in values], dtype=object),
        has_value=np.array([value is not None for value in values]),
    )


@settings(max_examples=100, deadline=None)
@given(happened, aggregates, moments)
def test_between_two_rows_of_the_history_no_value_changes(drawn, aggregate, later):
    view = AggregateView("view", "user_id", (aggregate,))
    listed = sorted(
        Occurrence(T0 + at, f"e{number:02}", kind, value)
        for number, (_, at, kind, value) in enumerate(drawn)
    )
    rows = history(view, occurrences([Happened(0, event) for event in listed]))
    asked = T0 + later
    before = np.searchsorted(rows.micros, asked, side="right")
    if before == 0:
        return
    value = rows.values["x"][before - 1]
    expected = recount(aggregate, listed, asked)
    assert np.isnan(value) if expected is None else value == expected


def test_a_window_forgets_without_a_write():
    spend = Aggregate("spend_1h", "sum", window=HOUR)
    state = AggregateState(AggregateView("spend", "user_id", (spend,)))
    state.add([Occurrence(T0, "e1", "buy", 5 * MICROS), Occurrence(T0 + HOUR // 2, "e2", "buy", 1)])
    at = {minutes: state.values(T0 + minutes * MINUTE)["spend_1h"] for minutes in (30, 61, 91)}
    assert at == {30: 5.000001, 61: 0.000001, 91: 0.0}


def test_the_state_keeps_no_more_panes_than_the_window_has():
    rng = random.Random(5)
    view = AggregateView("v", "user_id", (Aggregate("n", "count", window=HOUR),))
    state = AggregateState(view)
    state.add(
        Occurrence(T0 + rng.randrange(DAY), f"e{number}", "a", None) for number in range(3_000)
    )
    assert state.panes == [{}]  # of events without a value nothing is kept
    state.add(Occurrence(T0 + rng.randrange(DAY), f"e{n}", "a", 1) for n in range(3_000))
    assert 50 < len(state.panes[0]) <= 60


@pytest.mark.parametrize(
    "changed", [{"window": 2 * HOUR}, {"types": ("a",)}, {"function": "max"}, {"name": "m"}]
)
def test_a_state_of_another_definition_is_none(changed):
    aggregate = Aggregate("n", "count", window=HOUR)
    view = AggregateView("v", "user_id", (aggregate,))
    stored = AggregateState(view, position="7-0").dump()
    assert AggregateState.load(view, stored).position == "7-0"
    other = replace(view, aggregates=(replace(aggregate, **changed),))
    assert AggregateState.load(other, stored) is None
    assert values_of(other, stored, T0) == {other.aggregates[0].name: None}
    assert values_of(other, None, T0) == {} and values_of(view, stored, T0) == {"n": 0}


@pytest.mark.parametrize(
    ("value", "units"),
    [(None, None), (0.0, 0), (12.5, 12_500_000), (-0.0000005, -1), (0.0000004, 0), (1e15, 10**21)],
)
def test_values_become_millionths(value, units):
    assert units_of(value) == units
