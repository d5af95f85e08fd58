"""The overlay merged into a stored row gives what the stream will write.

It counts nothing twice.
"""

import json

import pytest

from feature_repo import columns as c
from feature_repo.aggregates.key_state import KeyState
from feature_repo.aggregates.reading import EventReader
from feature_repo.aggregates.state import position_of
from feature_repo.dataset import load_spec
from feature_repo.declarations.aggregate_views import definition_of
from feature_repo.declarations.built_in import built_in_aggregates
from feature_repo.units import MICROS
from pipelines.workflow.data_sets import SPECS
from serving.online.overlay import Overlay, parse_overlay

SPEC = load_spec(SPECS / "synthetic.toml")
TYPES = SPEC.event_types
EVENTS = EventReader.of(SPEC)
VIEWS = [view for v in built_in_aggregates(SPEC) if not (view := definition_of(v)).daily]
STATES = [view.state_column for view in VIEWS]
OVERLAY = Overlay(EVENTS, VIEWS)
T0 = 1_700_000_000
POSITIVE = SPEC.positive_types[0]


def body(n, kind=TYPES[0], item=None, event_id=None, micros=0):
    return {
        "event_id": event_id or f"e{n:03d}", "user_id": "u", "item_id": item or f"i{n % 7}",
        "type": kind, "timestamp": T0 + 10 * n + micros / 1e6,
    }  # fmt: skip


def position(n):
    return f"{(T0 + 10 * n) * 1_000}-{n}"


def entry(n, event):
    return f"{position(n)}|{json.dumps(event)}".encode()


def stored_row(events, at):
    """Return the row that the stream writes of some events, with the states."""
    state = KeyState.empty(VIEWS, at)
    state.add(
        EVENTS.read(
            round(event["timestamp"] * MICROS), event["event_id"], event["type"],
            user="u", item=event["item_id"], value=None,
        )
        for event in events
    )  # fmt: skip
    return {name: [value] for name, value in state.row().items()}


def merged(columns, overlay, time):
    """Return the features of a stored row as of a time, and both positions."""
    positions = OVERLAY.merge(columns, parse_overlay(overlay), int(time * MICROS))
    assert not any(name in columns for name in STATES)
    return columns, positions


def features(events, time):
    """Return the features of all events as of a time."""
    return merged(stored_row(events, position(10**6)), [], time)[0]


@pytest.mark.parametrize("streamed", [0, 1, 5, 30, 60])
def test_a_row_and_its_overlay_are_the_row_of_all_events(streamed):
    events = [body(n, TYPES[n % len(TYPES)]) for n in range(60)]
    columns = stored_row(events[:streamed], position(streamed - 1)) if streamed else {}
    overlay = [entry(n, event) for n, event in enumerate(events)][::-1]
    found, (row_position, newest) = merged(columns, overlay, T0 + 601)
    assert row_position == (position(streamed - 1) if streamed else None)
    assert newest == position(59)
    assert found == features(events, T0 + 601)


@pytest.mark.parametrize("streamed", range(6))
def test_events_of_one_second_are_in_the_order_of_their_moments_and_ids(streamed):
    events = [
        body(0, POSITIVE, item=event_id, event_id=event_id, micros=micros)
        for micros, event_id in [(700, "d"), (100, "c"), (100, "a"), (400, "e"), (400, "b")]
    ]
    columns = stored_row(events[:streamed], position(streamed)) if streamed else {}
    overlay = [entry(n, event) for n, event in enumerate(events, 1)][::-1]
    found, _ = merged(columns, overlay, T0 + 60)
    assert found[c.HISTORY_ITEMS] == [["a", "c", "b", "e", "d"]]


def test_a_window_forgets_without_a_write():
    events = [body(0, POSITIVE)]
    found = {
        seconds: merged(stored_row(events, position(0)), [], T0 + seconds)[0]
        for seconds in (30, 700)
    }
    assert [row[f"{POSITIVE}_count_10m"] for row in found.values()] == [[1], [0]]
    assert [row[f"{POSITIVE}_count_1h"] for row in found.values()] == [[1], [1]]
    assert found[700][c.HISTORY_ITEMS] == [["i0"]]


def test_a_user_of_whom_nothing_is_stored_has_their_clicks():
    names = stored_row([], "0-0")
    columns = {name: [None] for name in names}
    found, positions = merged(columns, [entry(1, body(1, POSITIVE))], T0 + 20)
    assert found[c.HISTORY_ITEMS] == [["i1"]] and positions == (None, position(1))
    assert found[f"{POSITIVE}_count_10m"] == [1]
    nothing, positions = merged({name: [None] for name in names}, [], T0)
    assert nothing[c.HISTORY_ITEMS] == [None] and positions == (None, None)


def test_a_state_of_another_definition_is_missing_with_and_without_new_events():
    for overlay in ([], [entry(2, body(2, POSITIVE))]):
        columns = stored_row([body(0, POSITIVE)], position(0))
        name = VIEWS[0].state_column
        assert position_of(columns[name][0]) == position(0)
        columns[name][0] = columns[name][0].replace(VIEWS[0].version, "00000000")
        found, _ = merged(columns, overlay, T0 + 60)
        assert found[c.HISTORY_ITEMS] == [None]
        assert found[f"{POSITIVE}_count_10m"] == [1 + len(overlay)]


def test_seen_lists_take_every_event():
    columns = {c.seen(TYPES[0]): [["old"]]}
    merged(columns, [entry(2, body(2)), entry(1, body(1) | {"type": "gone"})], T0 + 60)
    assert columns[c.seen(TYPES[0])] == [["old", "i2"]]
