"""The stateful part of the stream: what is known of each user and item, kept by Spark in RocksDB."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
from pyspark.sql.streaming import StatefulProcessor, StatefulProcessorHandle

from feature_repo.recent import Counts, Happened, UserFacts, dump, load, position_key
from pipelines.recent import USER_KEY
from pipelines.streaming.decode import POISON_KEY

OUTPUT = "what string, key string, position string, micros long, payload string"
"""``what``: user or item (payload: facts as JSON), event (payload: the entry), poison (payload: reason, entry)."""

Rows = dict[str, list[tuple[str, Happened]]]


class FoldProcessor(StatefulProcessor):
    """Folds the events of one shard of keys into their facts, which lie in a map by key.

    A shard is a group to Spark, so that a batch costs one call a shard and not one a key. Facts hold
    the position that they include: an entry that is met again changes nothing.
    """

    def __init__(self, positive: list[bool]) -> None:
        """``positive[kind]`` says whether an event type enters the history."""
        self._positive = positive

    def init(self, handle: StatefulProcessorHandle) -> None:
        """Open the state."""
        self._facts = handle.getMapState("facts", "key string", "facts string")

    def handleInitialState(self, key: Any, initialState: pd.DataFrame, timerValues: Any) -> None:  # noqa: N802, N803, ARG002
        """Take over the facts of ingested events."""
        for name, facts in zip(initialState["key"], initialState["facts"], strict=True):
            self._facts.updateValue((name,), (facts,))

    def handleInputRows(self, key: Any, rows: Iterator[pd.DataFrame], timerValues: Any) -> Iterator[pd.DataFrame]:  # noqa: N802, N803, ARG002
        """Fold a batch's rows and yield the facts that changed, with the entries behind them."""
        by_key: Rows = {}
        out: list[tuple[str, str, str, int, str]] = []
        for frame in rows:
            columns = (frame[name].tolist() for name in ("key", "position", "micros", "event_id", "item", "kind"))
            for name, position, micros, event_id, item, kind, payload in zip(
                *columns, frame["payload"].tolist(), strict=True
            ):
                if payload is not None:
                    what = "poison" if name == POISON_KEY else "event"
                    out.append((what, name, position, micros, payload))
                if name != POISON_KEY:
                    by_key.setdefault(name, []).append((position, Happened(micros, event_id, item, kind)))
        for name, entries in by_key.items():
            facts = self._fold(name, entries)
            if facts is not None:
                text = dump(facts).decode()
                self._facts.updateValue((name,), (text,))
                out.append(("user" if name.startswith(USER_KEY) else "item", name[1:], facts.position, 0, text))
        yield pd.DataFrame(out, columns=["what", "key", "position", "micros", "payload"])

    def _fold(self, name: str, entries: list[tuple[str, Happened]]) -> Counts | None:
        stored = self._facts.getValue((name,))
        facts = load(stored[0]) if stored else UserFacts()
        included = position_key(facts.position)
        new = [entry for entry in entries if position_key(entry[0]) > included]
        if not new:
            return None
        facts.position = max((position for position, _ in new), key=position_key)
        if name.startswith(USER_KEY):
            facts.fold([event for _, event in new], self._positive)
            return facts
        for _, event in new:
            facts.add(event.micros, event.kind, len(self._positive))
        return Counts(facts.panes, facts.position)

    def close(self) -> None:
        """Nothing to close."""
