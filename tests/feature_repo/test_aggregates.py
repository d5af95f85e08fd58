"""Aggregates of events: as a history, as a state, and counted by hand they are the same."""

import math
import random
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.aggregates.condition import BadCondition, columns_of
from feature_repo.aggregates.definition import Aggregate, AggregateView, Occurrence, occurrence
from feature_repo.aggregates.functions import EXACT
from feature_repo.aggregates.state import AggregateState, values_of
from feature_repo.units import MICROS, units_of
from pipelines.features.aggregate_history import Days, history
from pipelines.features.occurrences import Column, Occurrences

MINUTE, HOUR, DAY = 60 * MICROS, 3_600 * MICROS, 86_400 * MICROS
T0 = 1_700_000_000 * MICROS
OF_VALUES = ("count", "sum", "mean", "min", "max", "last")
WEIGHTS = {"a": 1.0, "b": 0.5, "c": 3.0}


@dataclass(frozen=True)
class Happened:
    user: int
    event: Occurrence


def happened_at(micros, number, kind, value=None, item=None):
    others = {"item_id": item}
    weight = WEIGHTS.get(kind, 1.0)
    return occurrence(micros, f"e{number:02}", kind, value=value, others=others, weight=weight)


def inside_of(aggregate, events, micros):
    """Return the events that an aggregate counts as of a time, by its definition in words."""
    pane = max(MINUTE, aggregate.window // 60) if aggregate.window else None
    if aggregate.daily:
        micros -= 1  # the row of a midnight is of the days before it
        pane = pane and DAY
    return [
        event
        for event in sorted(events, key=lambda e: (e.micros, e.event_id))
        if event.micros <= micros
        and (not aggregate.types or event.type in aggregate.types)
        and event.columns[aggregate.column] is not None
        and (not aggregate.where or (event.columns["value"] or -1) >= 2 * MICROS)
        and (pane is None or micros // pane - event.micros // pane < -(-aggregate.window // pane))
    ]


def recount(aggregate, events, micros):
    """Return an aggregate's value as of a time."""
    inside = inside_of(aggregate, events, micros)
    values = [event.columns[aggregate.column] for event in inside]
    latest = {}
    for event, value in zip(inside, values, strict=True):
        latest.pop(value, None)
        latest[value] = event.micros // MICROS
    newest = list(latest)[-aggregate.limit :]
    weights = dict.fromkeys(values, 0)
    for event, value in zip(inside, values, strict=True):
        weights[value] += round(WEIGHTS[event.type] * MICROS)
    top = sorted(weights, key=lambda value: (-weights[value], value))[: aggregate.limit]
    return {
        "count": lambda: len(inside),
        "sum": lambda: sum(values) / MICROS,
        "mean": lambda: sum(values) / (len(values) * MICROS) if values else None,
        "min": lambda: min(values) / MICROS if values else None,
        "max": lambda: max(values) / MICROS if values else None,
        "last": lambda: values[-1] / MICROS if values else None,
        "count_distinct": lambda: len(set(values)),
        "last_distinct": lambda: newest,
        "last_distinct_times": lambda: [latest[value] for value in newest],
        "top": lambda: top,
        "top_shares": lambda: [weights[value] / sum(weights.values()) for value in top],
    }[aggregate.function]()


windows = st.sampled_from([None, MINUTE, 90 * MICROS, HOUR, HOUR + 7, DAY, 7 * DAY])
types = st.sampled_from([(), ("a",), ("a", "b")])
where = st.sampled_from(["", "value >= 2"])
aggregates = st.one_of(
    st.builds(
        Aggregate, st.just("x"), st.sampled_from(OF_VALUES), st.just("value"),
        windows, types, where,
    ),
    st.builds(
        Aggregate, st.just("x"), st.sampled_from(["count", "count_distinct"]),
        st.just("item_id"), windows, types, where,
    ),
    st.builds(
        Aggregate, st.just("x"),
        st.sampled_from(["last_distinct", "last_distinct_times", "top", "top_shares"]),
        st.just("item_id"), windows, types, where, st.integers(1, 3),
    ),
)  # fmt: skip
values = st.one_of(st.none(), st.integers(-5, 5), st.integers(-(10**11), 10**11))
items = st.sampled_from([None, "p", "q", "r", "s", "t"])
moments = st.one_of(
    st.integers(0, HOUR), st.integers(0, 20 * DAY), st.integers(0, 300).map(lambda n: n * MINUTE)
)
happened = st.lists(
    st.tuples(st.integers(0, 2), moments, st.sampled_from("abc"), values, items),
    min_size=1,
    max_size=40,
)


def listed(drawn):
    return sorted(
        (
            Happened(user, happened_at(T0 + at, number, kind, value, item))
            for number, (user, at, kind, value, item) in enumerate(drawn)
        ),
        key=lambda h: (h.user, h.event.micros, h.event.event_id),
    )


def same(found, expected):
    """Return whether a value of a table is as expected; shares are stored as float32."""
    if isinstance(found, list) and found and isinstance(found[0], float):
        return len(found) == len(expected) and np.allclose(found, expected, rtol=1e-6)
    return found == expected


@settings(max_examples=120, deadline=None)
@given(happened, aggregates, st.randoms(use_true_random=False))
def test_history_state_and_a_recount_agree_at_every_change(drawn, aggregate, shuffle):
    view = AggregateView("view", "user_id", (aggregate,))
    all_events = listed(drawn)
    rows = history(view, occurrences(all_events))
    found = zip(rows.key.tolist(), rows.micros.tolist(), rows.values["x"].to_pylist(), strict=True)
    for user, micros, value in found:
        mine = [h.event for h in all_events if h.user == user]
        past = [event for event in mine if event.micros <= micros]
        shuffle.shuffle(past)
        state = AggregateState(view)
        for part in (past[::2], past[1::2]):
            state.add(part)
            state = AggregateState.load(view, state.dump())
        expected = recount(aggregate, mine, micros)
        assert state.values(micros)["x"] == expected
        assert same(value, expected)


@settings(max_examples=80, deadline=None)
@given(happened, aggregates, st.integers(1, 9))
def test_daily_aggregates_are_of_the_days_before_each_midnight(drawn, aggregate, days):
    window = None if aggregate.window is None else days * DAY
    aggregate = replace(aggregate, window=window, daily=True)
    view = AggregateView("view", "user_id", (aggregate,), ttl_days=10)
    all_events = listed(drawn)
    last = max(h.event.micros for h in all_events) // DAY + 1
    rows = history(view, occurrences(all_events), Days(last, heartbeat=4))
    found = {
        (key, micros // DAY): value
        for key, micros, value in zip(
            rows.key.tolist(), rows.micros.tolist(), rows.values["x"].to_pylist(), strict=True
        )
    }
    for user in {h.user for h in all_events}:
        mine = [h.event for h in all_events if h.user == user]
        counted = inside_of(replace(aggregate, window=None), mine, (last + 1) * DAY)
        if not counted:
            assert not any(key == user for key, _ in found)
            continue
        stored, since = None, None
        for midnight in range(counted[0].micros // DAY + 1, last + 1):
            expected = recount(aggregate, mine, midnight * DAY)
            if (user, midnight) in found:
                assert same(found[user, midnight], expected)
                stored, since = expected, midnight
            assert stored == expected, "a value changed without a row"
            assert midnight - since < 4, "a row is too old"
        assert since == last


def occurrences(events):
    columns = {
        name: Column.of([h.event.columns[name] for h in events]) for name in events[0].event.columns
    }
    return Occurrences(
        key=np.array([h.user for h in events]),
        micros=np.array([h.event.micros for h in events]),
        type=np.array([h.event.type for h in events], dtype=object),
        weight=np.array([h.event.weight for h in events]),
        columns=columns,
    )


@settings(max_examples=60, deadline=None)
@given(happened, aggregates, moments)
def test_between_two_rows_of_the_history_no_value_changes(drawn, aggregate, later):
    view = AggregateView("view", "user_id", (aggregate,))
    events = [replace(h, user=0) for h in listed(drawn)]
    events.sort(key=lambda h: (h.event.micros, h.event.event_id))
    rows = history(view, occurrences(events))
    asked = T0 + later
    before = np.searchsorted(rows.micros, asked, side="right")
    if before == 0:
        return
    value = rows.values["x"][before - 1].as_py()
    assert same(value, recount(aggregate, [h.event for h in events], asked))


def test_more_distinct_values_than_are_counted_are_estimated_alike():
    many = 4 * EXACT
    aggregate = Aggregate("x", "count_distinct", "item_id", HOUR)
    view = AggregateView("view", "user_id", (aggregate,))
    events = [happened_at(T0 + n * MICROS // 4, n, "a", None, f"i{n}") for n in range(many)]
    state = AggregateState(view)
    state.add(events)
    rows = history(view, occurrences([Happened(0, event) for event in events]))
    at_end = rows.values["x"][many - 1].as_py()
    assert at_end == state.values(events[-1].micros)["x"]
    assert at_end == pytest.approx(many, rel=0.1) and at_end != many
    assert rows.values["x"][EXACT - 2].as_py() == EXACT - 1


def test_a_trend_is_near_zero_for_few_events_and_grows_with_new_ones():
    trend = Aggregate("x", "trend", "event_id", HOUR)
    view = AggregateView("view", "user_id", (trend,))
    events = [happened_at(T0 + n * MINUTE, n, "a") for n in range(60)]
    rows = history(view, occurrences([Happened(0, event) for event in events]))
    values = rows.values["x"].to_pylist()
    state = AggregateState(view)
    state.add(events)
    assert values[59] == state.values(events[-1].micros)["x"] == pytest.approx(math.log(1.1 / 1.1))
    assert 0 < values[0] == pytest.approx(math.log((1 / 15 + 0.1) / (1 / 60 + 0.1)))
    assert values[-2] < 0  # most of the window's events are old


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("value >", "is not a condition"),
        ("value", "not a comparison"),
        ("value >= x", "a constant"),
        ("1 < value", "of one column"),
        ("0 < value < 3", "of one column"),
        ("type > 'a'", "no order"),
        ("value == [1]", "compare by"),
        ("value in 1", "compare by"),
        ("value == True", "numbers or texts"),
        ("__import__('os').getcwd() == 'a'", "of one column"),
    ],
)
def test_a_bad_condition_is_refused(text, said):
    with pytest.raises(BadCondition, match=said):
        columns_of(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("value >= 2 and type == 'a'", "ac"),
        ("not (type in ('a', 'b'))", "d"),
        ("value < 2 or item_id == 'q'", "bc"),
        ("item_id != 'p'", "c"),
    ],
)
def test_conditions_choose_events(text, expected):
    events = {
        "a": happened_at(T0, 1, "a", 2.0, "p"),
        "b": happened_at(T0, 2, "b", 1.999999, "p"),
        "c": happened_at(T0, 3, "a", 2.5, "q"),
        "d": happened_at(T0, 4, "c", None, None),
    }
    aggregate = Aggregate("x", "count", "event_id", where=text)
    assert [name for name, event in events.items() if aggregate.counts(event)] == list(expected)
    assert set(columns_of(text)) <= {"value", "type", "item_id"}


def test_a_window_forgets_without_a_write():
    spend = Aggregate("spend_1h", "sum", window=HOUR)
    state = AggregateState(AggregateView("spend", "user_id", (spend,)))
    state.add([happened_at(T0, 1, "buy", 5.0), happened_at(T0 + HOUR // 2, 2, "buy", 0.000001)])
    at = {minutes: state.values(T0 + minutes * MINUTE)["spend_1h"] for minutes in (30, 61, 91)}
    assert at == {30: 5.000001, 61: 0.000001, 91: 0.0}


def test_the_state_keeps_no_more_panes_than_the_window_has():
    rng = random.Random(5)
    view = AggregateView("v", "user_id", (Aggregate("n", "count", window=HOUR),))
    state = AggregateState(view)
    state.add(happened_at(T0 + rng.randrange(DAY), number, "a") for number in range(3_000))
    assert state.panes == [{}]  # of events without a value nothing is kept
    state.add(happened_at(T0 + rng.randrange(DAY), n, "a", 1.0) for n in range(3_000))
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
