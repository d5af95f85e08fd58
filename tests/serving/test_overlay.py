"""The overlay merged into a streamed row gives what the stream will write.

It counts nothing twice.
"""

import json

import pytest

from feature_repo import columns as c
from feature_repo.dataset import load_spec
from feature_repo.facts import Event, EventKinds, UserFacts, row_of
from pipelines.workflow.data_sets import SPECS
from serving.online.overlay import merge_overlay, parse_overlay

SPEC = load_spec(SPECS / "synthetic.toml")
TYPES = SPEC.event_types
KINDS = EventKinds.of(SPEC)
T0 = 1_700_000_000


def happened(n, kind=0):
    return Event((T0 + 10 * n) * 1_000_000, f"e{n:03d}", f"i{n % 7}", kind)


def entry(n, event):
    body = {"event_id": event.event_id, "item_id": event.item, "type": TYPES[event.kind]}
    body["timestamp"] = event.micros / 1_000_000
    return f"{(T0 + 10 * n) * 1_000}-0|{json.dumps(body)}".encode()


def streamed_row(events, position):
    facts = UserFacts(position=position)
    facts.fold(events, KINDS)
    return {name: [value] for name, value in row_of(facts, TYPES, str.upper).items()}


@pytest.mark.parametrize("streamed", [0, 1, 5, 30, 60])
def test_a_row_and_its_overlay_are_the_row_of_all_events(streamed):
    events = [happened(n, n % len(TYPES)) for n in range(60)]
    position = f"{(T0 + 10 * (streamed - 1)) * 1_000}-0" if streamed else "0-0"
    columns = streamed_row(events[:streamed], position)
    overlay = [entry(n, event) for n, event in enumerate(events)][::-1]
    newest = merge_overlay(columns, parse_overlay(overlay), SPEC, str.upper)
    assert newest == f"{(T0 + 590) * 1_000}-0"
    assert columns == streamed_row(events, newest)


@pytest.mark.parametrize("streamed", range(6))
def test_events_of_one_second_are_in_the_order_of_their_moments_and_ids(streamed):
    start = T0 * 1_000_000
    events = [
        Event(start + micros, event_id, event_id, KINDS.positive.index(True))
        for micros, event_id in [(700, "d"), (100, "c"), (100, "a"), (400, "e"), (400, "b")]
    ]
    columns = streamed_row(
        events[:streamed], f"{(T0 + 10 * streamed) * 1_000}-0" if streamed else "0-0"
    )
    overlay = [entry(n, event) for n, event in enumerate(events, 1)][::-1]
    newest = merge_overlay(columns, parse_overlay(overlay), SPEC, str.upper)
    assert (
        columns[c.HISTORY_ITEMS]
        == streamed_row(events, newest)[c.HISTORY_ITEMS]
        == [["a", "c", "b", "e", "d"]]
    )


def test_a_user_of_whom_nothing_is_stored_has_their_clicks():
    names = streamed_row([], "0-0")
    columns = {name: [None] for name in names}
    merge_overlay(columns, parse_overlay([entry(1, happened(1))]), SPEC, str.upper)
    assert columns[c.HISTORY_ITEMS] == [["i1"]] and columns[c.RECENT_ITEMS] == [["i1"]]
    assert columns[c.panes("10m")][0][1:] == [1] + [0] * (len(TYPES) - 1)


def test_of_what_is_recent_a_row_may_have_the_position_only():
    columns = {c.HISTORY_ITEMS: [["i0"]], c.HISTORY_TIMES: [[T0 - 9]], c.POSITION: ["0-1"]}
    newest = merge_overlay(columns, parse_overlay([entry(2, happened(2))]), SPEC, str.upper)
    assert newest and columns[c.POSITION] == [newest]
    assert columns[c.HISTORY_ITEMS] == [["i0", "i2"]] and len(columns) == 3


def test_seen_lists_take_every_event():
    columns = {c.HISTORY_ITEMS: [None], c.HISTORY_TIMES: [None], c.seen(TYPES[0]): [["old"]]}
    merge_overlay(columns, parse_overlay([entry(2, happened(2))]), SPEC, str.upper)
    assert columns[c.seen(TYPES[0])] == [["old", "i2"]]
