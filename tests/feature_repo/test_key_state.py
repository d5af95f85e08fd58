"""The state of a key: the order of arrival does not matter, nor how it is cut into batches."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo import columns as c
from feature_repo.aggregates.definition import Aggregate, AggregateView
from feature_repo.aggregates.key_state import KeyState
from feature_repo.aggregates.reading import EventReader
from feature_repo.aggregates.state import is_of, position_of
from feature_repo.dataset import DatasetSpec
from feature_repo.declarations.aggregate_views import definition_of
from feature_repo.declarations.built_in import built_in_aggregates
from feature_repo.events.log_position import event_micros
from feature_repo.units import MICROS

SPEC = DatasetSpec.model_validate({
    "name": "small",
    "events": {
        "path": "e.csv", "user": "u", "item": "i", "timestamp": "t", "type": "k", "value": "v",
        "types": {"view": {}, "buy": {"positive": True, "weight": 3}},
        "context": {"page": "categorical", "price": "numeric"},
    },
})  # fmt: skip
VIEWS = [view for v in built_in_aggregates(SPEC) if not (view := definition_of(v)).daily]
EVENTS = EventReader.of(SPEC)
T0 = 1_700_000_000


def happened(second, item="i", kind="view", number=0, context=None):
    micros = int((T0 + second) * MICROS)
    return EVENTS.read(
        micros, f"e{number:07d}", kind, user="u", item=item, value=1.5, context=context
    )


def test_the_history_has_the_newest_positive_event_of_each_item():
    state = KeyState.empty(VIEWS)
    state.add([
        happened(3, "a", "buy", 1), happened(1, "b", "buy", 2), happened(2, "a", "buy", 3),
        happened(9, "seen", "view", 4),
    ])  # fmt: skip
    state.position = f"{(T0 + 9) * 1_000}-0"
    row = state.row()
    assert row[c.HISTORY_ITEMS] == ["b", "a"]
    assert row[c.HISTORY_TIMES] == [T0 + 1, T0 + 3]
    assert (row["buy_count_10m"], row["view_count_10m"], row["view_count_24h"]) == (3, 1, 1)


def test_what_has_arrived_has_happened():
    assert event_micros(100.0, "99000-0") == 99_000_999
    assert event_micros(98.5, "99000-0") == 98_500_000


drawn_events = st.lists(
    st.tuples(
        st.integers(0, 200_000),
        st.sampled_from("abcdefgh"),
        st.sampled_from(["view", "buy"]),
        st.integers(0, 10**6),
    ),
    max_size=120,
    unique_by=lambda event: event[3],
)


@settings(max_examples=60, deadline=None)
@given(drawn_events, st.randoms(use_true_random=False), st.integers(1, 5))
def test_no_order_and_no_batches_change_a_state(drawn, shuffle: random.Random, batches):
    listed = [happened(*event) for event in drawn]
    at_once, in_parts = KeyState.empty(VIEWS), KeyState.empty(VIEWS)
    at_once.add(sorted(listed, key=lambda event: event.event_id))
    shuffle.shuffle(listed)
    for part in range(batches):
        in_parts.add(listed[part::batches])
        in_parts = KeyState.load(in_parts.dump(), VIEWS)  # as between two batches of the stream
    assert in_parts.row() == at_once.row()


def test_aggregates_read_the_context_and_the_weight_of_types():
    aggregates = (
        Aggregate("pages", "count_distinct", "page"),
        Aggregate("main_pages", "top", "page", limit=2),
        Aggregate("seen_worth", "sum", "price", 3_600 * MICROS),
    )
    definition = AggregateView("pages", c.USER, aggregates)
    state = KeyState.empty([definition])
    state.add([
        happened(0, context={"page": "home", "price": 2.5}),
        happened(1, context={"page": "deals", "other": 1}, kind="buy", number=1),
        happened(2, context={"page": 7, "price": "dear"}, number=2),
        happened(3, number=3),
    ])  # fmt: skip
    state.position = f"{(T0 + 9) * 1_000}-0"
    row = state.row()
    assert row["pages"] == 2 and row["main_pages"] == ["deals", "home"]
    assert row["seen_worth"] == 2.5
    stored = row[definition.state_column]
    assert position_of(stored) == state.position and is_of(definition, stored)
    assert not is_of(VIEWS[0], stored)
