"""The stateful part of the stream: the facts of each user and item, kept by Spark in RocksDB."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
from pyspark.sql.streaming import StatefulProcessor, StatefulProcessorHandle

from feature_repo import columns as c
from feature_repo.aggregates.definition import AggregateView
from feature_repo.facts import Event, EventKinds, dump, load, position_key
from pipelines.features.stream_facts import FACTS, ITEM_KEY, KEY, USER_KEY, no_facts
from pipelines.streaming.decode import POISON_KEY
from pipelines.streaming.state import StateMap

OUTPUT = (
    "what string, key string, position string, micros long, event_id string, item string, "
    "kind int, value double, request_id string, context string, payload string"
)
"""``what``: event, user or item (``payload``: facts as JSON), or poison (reason and entry)."""

_EVENT = ["key", "position", "micros", "event_id", "item", "kind", "value", "request_id", "context"]
_COLUMNS = ["what", *_EVENT, "payload"]
_KEYS_PER_CALL = 1_000

Entries = list[tuple[tuple[int, int], str, Event]]
"""The events of a key: the position in a form that sorts, the position, the event."""


class FoldProcessor(StatefulProcessor):
    """Folds the events of one shard of keys into their facts, which are in a map by key.

    A shard is a group to Spark, so that a batch costs one call per shard and not one per key. Facts
    hold the newest position that they include: an entry that comes again changes nothing.
    """

    def __init__(self, kinds: EventKinds, views: Sequence[AggregateView]) -> None:
        """``kinds``: the event types; ``views``: the declared views."""
        self._kinds = kinds
        self._views = {
            prefix: [view for view in views if view.key == key]
            for prefix, key in ((USER_KEY, c.USER), (ITEM_KEY, c.ITEM))
        }

    def init(self, handle: StatefulProcessorHandle) -> None:
        """Open the state."""
        self._facts = StateMap(handle, FACTS)

    def handleInitialState(self, key: Any, initialState: pd.DataFrame, timerValues: Any) -> None:  # noqa: N802, N803, ARG002
        """Take over the facts of ingested events."""
        self._facts.put(zip(initialState[KEY], initialState[FACTS], strict=True))

    def handleInputRows(  # noqa: N802
        self,
        key: Any,  # noqa: ARG002
        rows: Iterator[pd.DataFrame],
        timerValues: Any,  # noqa: ARG002, N803
    ) -> Iterator[pd.DataFrame]:
        """Fold a batch's rows; yield the entries, then the changed facts."""
        by_key: dict[str, Entries] = {}
        for frame in rows:
            events = frame[frame["key"].str.startswith(USER_KEY)]  # one row an event
            poison = frame[frame["key"] == POISON_KEY]
            yield _output(events[_EVENT].assign(what="event"))
            yield _output(poison.assign(what="poison", payload=poison["poison"]))
            columns = (
                frame[name].tolist()
                for name in ("key", "position", "micros", "event_id", "item", "kind", "value")
            )
            for name, position, micros, event_id, item, kind, value in zip(*columns, strict=True):
                if name != POISON_KEY:
                    known = None if value is None or math.isnan(value) else value
                    event = Event(micros, event_id, item, kind, known)
                    entry = (position_key(position), position, event)
                    by_key.setdefault(name, []).append(entry)
        names = list(by_key)
        for start in range(0, len(names), _KEYS_PER_CALL):
            yield self._fold({name: by_key[name] for name in names[start : start + _KEYS_PER_CALL]})

    def _fold(self, by_key: dict[str, Entries]) -> pd.DataFrame:
        changed: list[tuple[str, str]] = []
        out: list[tuple[str, str, str, str]] = []
        for (name, entries), stored in zip(
            by_key.items(), self._facts.get(list(by_key)), strict=True
        ):
            views = self._views[name[:1]]
            facts = load(stored, views) if stored else no_facts(name, views=views)
            included = position_key(facts.position)
            new = [entry for entry in entries if entry[0] > included]
            if new:
                facts.position = max(new)[1]
                facts.fold([event for _, _, event in new], self._kinds)
                text = dump(facts)
                changed.append((name, text))
                out.append(
                    (
                        "user" if name.startswith(USER_KEY) else "item",
                        name[1:],
                        facts.position,
                        text,
                    )
                )
        self._facts.put(changed)
        return _output(pd.DataFrame(out, columns=["what", "key", "position", "payload"]))

    def close(self) -> None:
        """Nothing to close."""


def _output(frame: pd.DataFrame) -> pd.DataFrame:
    """Return rows with every column of ``OUTPUT``, as objects, which Spark converts itself."""
    return frame.reindex(columns=_COLUMNS).astype(object)
