"""The stateful part of the stream: the state of each user and item, kept by Spark in RocksDB."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any

import orjson
import pandas as pd
from pyspark.sql.streaming import StatefulProcessor, StatefulProcessorHandle

from feature_repo import columns as c
from feature_repo.aggregates.definition import AggregateView, Occurrence
from feature_repo.aggregates.key_state import KeyState
from feature_repo.aggregates.reading import EventReader
from feature_repo.events.log_position import position_key
from pipelines.features.stream_state import ITEM_KEY, KEY, STATE_COLUMN, USER_KEY
from pipelines.streaming.decode import POISON_KEY
from pipelines.streaming.state import StateMap

OUTPUT = (
    "what string, key string, position string, micros long, event_id string, user string, "
    "item string, kind int, value double, request_id string, context string, payload string"
)
"""``what``: event, user or item (``payload``: state as JSON), or poison (reason and entry)."""

_READ = ["key", "position", "micros", "event_id", "user", "item", "kind", "value", "context"]
_EVENT = [*_READ, "request_id"]
_COLUMNS = ["what", *_EVENT, "payload"]
_KEYS_PER_CALL = 1_000

Entries = list[tuple[tuple[int, int], str, Occurrence]]
"""The events of a key: the position in a form that sorts, the position, the event."""


class FoldProcessor(StatefulProcessor):
    """Adds the events of one shard of keys to their states, which are in a map by key.

    A shard is a group to Spark, so that a batch costs one call per shard and not one per key. A
    state has the newest position that it includes: an entry that comes again changes nothing.
    """

    def __init__(self, events: EventReader, views: Sequence[AggregateView]) -> None:
        """``events``: reads the data set's events; ``views``: what the stream computes."""
        self._events = events
        self._types = events.types
        self._views = {
            prefix: [view for view in views if view.key == key]
            for prefix, key in ((USER_KEY, c.USER), (ITEM_KEY, c.ITEM))
        }

    def init(self, handle: StatefulProcessorHandle) -> None:
        """Open the state."""
        self._states = StateMap(handle, STATE_COLUMN)

    def handleInitialState(self, key: Any, initialState: pd.DataFrame, timerValues: Any) -> None:  # noqa: N802, N803, ARG002
        """Take over the states of ingested events."""
        self._states.put(zip(initialState[KEY], initialState[STATE_COLUMN], strict=True))

    def handleInputRows(  # noqa: N802
        self,
        key: Any,  # noqa: ARG002
        rows: Iterator[pd.DataFrame],
        timerValues: Any,  # noqa: ARG002, N803
    ) -> Iterator[pd.DataFrame]:
        """Add a batch's rows; yield the entries, then the changed states."""
        by_key: dict[str, Entries] = {}
        for frame in rows:
            events = frame[frame["key"].str.startswith(USER_KEY)]  # one row an event
            poison = frame[frame["key"] == POISON_KEY]
            yield _output(events[_EVENT].assign(what="event"))
            yield _output(poison.assign(what="poison", payload=poison["poison"]))
            for row in zip(*(frame[name].tolist() for name in _READ), strict=True):
                name, position = row[:2]
                if name != POISON_KEY:
                    entry = (position_key(position), position, self._event(*row[2:]))
                    by_key.setdefault(name, []).append(entry)
        names = list(by_key)
        for start in range(0, len(names), _KEYS_PER_CALL):
            yield self._fold({name: by_key[name] for name in names[start : start + _KEYS_PER_CALL]})

    def _event(self, micros: int, event_id: str, *rest: Any) -> Occurrence:
        user, item, kind, value, context = rest
        return self._events.read(
            micros,
            event_id,
            self._types[kind],
            user=user,
            item=item,
            value=None if value is None or math.isnan(value) else value,
            context=orjson.loads(context) if context else None,
        )

    def _fold(self, by_key: dict[str, Entries]) -> pd.DataFrame:
        changed: list[tuple[str, str]] = []
        out: list[tuple[str, str, str, str]] = []
        stored_states = self._states.get(list(by_key))
        for (name, entries), stored in zip(by_key.items(), stored_states, strict=True):
            views = self._views[name[:1]]
            state = KeyState.load(stored, views) if stored else KeyState.empty(views)
            included = position_key(state.position)
            new = [entry for entry in entries if entry[0] > included]
            if new:
                state.position = max(new, key=itemgetter(0))[1]
                state.add(event for _, _, event in new)
                text = state.dump()
                changed.append((name, text))
                what = "user" if name.startswith(USER_KEY) else "item"
                out.append((what, name[1:], state.position, text))
        self._states.put(changed)
        return _output(pd.DataFrame(out, columns=["what", "key", "position", "payload"]))

    def close(self) -> None:
        """Nothing to close."""


def _output(frame: pd.DataFrame) -> pd.DataFrame:
    """Return rows with every column of ``OUTPUT``, as objects, which Spark converts itself."""
    return frame.reindex(columns=_COLUMNS).astype(object)
