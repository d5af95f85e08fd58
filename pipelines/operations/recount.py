"""``funnel stream --check``: all online features of the stream against a recount of the events.

The recount shares no code with the stream: it sorts and filters all events at once with pandas, as
somebody would who read the definitions.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from feast import FeatureStore

from feature_repo import columns as c
from feature_repo.aggregates.definition import AggregateView
from feature_repo.aggregates.state import AggregateState
from feature_repo.aggregates.units import MICROS
from feature_repo.dataset import DatasetSpec
from feature_repo.declarations.reading import declared_in
from feature_repo.errors import FunnelError
from feature_repo.stores.feature_store import feature_store, redis_client
from feature_repo.stores.online_store import RowReader
from feature_repo.stores.pipelined_reads import PipelinedReads
from feature_repo.workspace import Workspace
from pipelines import display
from pipelines.features.stream_facts import main_categories
from pipelines.ingest.ingested import log_position, read_events
from pipelines.streaming.offline import read_archive

_WINDOWS = {"10m": (10, 600), "1h": (60, 3_600), "24h": (1_440, 86_400)}
_KEYS_A_READ = 500
_EXAMPLES = 5
_MICROS = "_micros"
_FUNCTIONS: dict[str, Callable[[pd.Series], float]] = {
    "count": len,
    "sum": lambda values: float(values.sum()),
    "mean": lambda values: float(values.mean()),
    "min": lambda values: float(values.min()),
    "max": lambda values: float(values.max()),
    "last": lambda values: float(values.iloc[-1]),
}
"""Functions of an aggregate, of the values of its events in order."""


@dataclass
class Recount:
    """The result; ``lost`` and ``doubled`` are events missing or repeated in 24-hour counts."""

    users: int = 0
    items: int = 0
    events: int = 0
    differing: int = 0
    lost: int = 0
    doubled: int = 0
    examples: list[str] = field(default_factory=list)

    def compare(self, key: str, online: dict[str, Any], expected: dict[str, Any]) -> None:
        """Compare one key's features, and count what differs."""
        different = [
            name for name, value in expected.items() if not _equal(online.get(name), value)
        ]
        if not different:
            return
        self.differing += 1
        for name in different:
            if name.endswith("_count_24h"):
                surplus = int(online.get(name) or 0) - int(expected[name])
                self.lost += max(0, -surplus)
                self.doubled += max(0, surplus)
            if len(self.examples) < _EXAMPLES:
                self.examples.append(
                    f"{key} {name}: {online.get(name)} instead of {expected[name]}"
                )


def _equal(online: Any, expected: Any) -> bool:
    if expected is None:
        return online is None
    if isinstance(expected, float):
        return online is not None and abs(online - expected) <= 1e-9 * max(1.0, abs(expected))
    return bool((online or type(expected)()) == expected)


def all_events(workspace: Workspace) -> pd.DataFrame:
    """Return every event that the features should include: ingested ones, and later streamed ones.

    An archived event that was ingested as well is included once.
    """
    ingested = read_events(workspace, [c.EVENT_ID, c.USER, c.ITEM, c.TYPE, c.TIMESTAMP, c.VALUE])
    streamed = read_archive(workspace, log_position(workspace)).to_pandas()
    ingested = pd.concat([ingested, streamed[list(ingested.columns)]], ignore_index=True)
    return ingested.assign(
        **{_MICROS: ingested[c.TIMESTAMP].astype("datetime64[us, UTC]").astype("int64")}
    )


def check(workspace: Workspace, now: float) -> Recount:
    """Compare online features with a recount as of ``now`` (epoch s, after the newest event)."""
    spec = workspace.spec()
    store = feature_store(workspace)
    events = all_events(workspace).sort_values([_MICROS, c.EVENT_ID], kind="stable")
    result = Recount(events=len(events))
    categories = main_categories(workspace.ingest, spec)
    declared = declared_in(workspace)
    for key, service in ((c.USER, "user_streaming_v1"), (c.ITEM, "item_streaming_v1")):
        groups = dict(iter(events.groupby(key, sort=False)))
        counts = _counts(events, key, spec, now)
        trends = _trends(events, now) if key == c.ITEM else {}
        for name, row in _read(store, service, key, names=list(groups), now=now):
            expected: dict[str, Any] = {
                column: values.get(name, 0) for column, values in counts.items()
            }
            expected |= {column: values.get(name, 0.0) for column, values in trends.items()}
            if key == c.USER:
                expected |= expected_user(groups[name], spec, categories, now)
            result.compare(name, row, expected)
        for view in (view for view in declared.streamed if view.key == key):
            for name, row in _read_states(workspace, store, view, list(groups), now=now):
                result.compare(name, row, expected_aggregates(view, groups[name], now))
        setattr(result, "users" if key == c.USER else "items", len(groups))
    return result


def _read(
    store: FeatureStore, service: str, key: str, *, names: Sequence[str], now: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    features = store.get_feature_service(service)
    for start in range(0, len(names), _KEYS_A_READ):
        rows = [
            {key: name, c.REQUEST_TIME: int(now)} for name in names[start : start + _KEYS_A_READ]
        ]
        columns = store.get_online_features(features=features, entity_rows=rows).to_dict()
        for index, row in enumerate(rows):
            yield str(row[key]), {column: values[index] for column, values in columns.items()}


def _read_states(
    workspace: Workspace, store: FeatureStore, view: AggregateView, names: list[str], *, now: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each key's features of a declared view as of ``now``, from its state online."""
    reader = RowReader(store.config, view.key, {view.name: [view.state_column]})
    read = PipelinedReads(redis_client(workspace))
    for start in range(0, len(names), _KEYS_A_READ):
        part = names[start : start + _KEYS_A_READ]
        replies = read([("HMGET", reader.key(name), *reader.fields) for name in part])
        for name, reply in zip(part, replies, strict=True):
            stored = reader.decode(reply)[0][view.state_column]
            state = AggregateState.load(view, stored) or AggregateState(view)
            yield name, state.values(round(now * MICROS))


def expected_aggregates(view: AggregateView, events: pd.DataFrame, now: float) -> dict[str, Any]:
    """Return a key's features of a declared view as of ``now``, from all its events in order."""
    expected: dict[str, Any] = {}
    for aggregate in view.aggregates:
        counted = events
        if aggregate.types:
            counted = counted[counted[c.TYPE].isin(aggregate.types)]
        if aggregate.column == c.VALUE:
            counted = counted[counted[c.VALUE].notna()]
        if aggregate.window is not None:
            # The window slides by a sixtieth of its length, at least by a minute.
            pane = max(60_000_000, aggregate.window // 60)
            panes = -(-aggregate.window // pane)
            inside = counted[_MICROS] // pane > round(now * MICROS) // pane - panes
            counted = counted[inside]
        values = counted[c.VALUE].round(6)
        of_nothing = {"count": 0, "sum": 0.0}.get(aggregate.function)
        count = _FUNCTIONS[aggregate.function]
        expected[aggregate.name] = count(values) if len(values) else of_nothing
    return expected


def expected_user(
    events: pd.DataFrame, spec: DatasetSpec, categories: dict[str, str], now: float
) -> dict[str, Any]:
    """Return a user's lists and session as of ``now``, from all their events in time order."""
    # The newest events, and the newest positive event of each item.
    newest = events.tail(c.HISTORY_LENGTH)
    liked = events[events[c.TYPE].isin(spec.positive_types)]
    history = liked.drop_duplicates(c.ITEM, keep="last").tail(c.HISTORY_LENGTH)

    # The session: the events after the last gap of more than half an hour, if it is still open.
    gaps = newest[_MICROS].floordiv(1_000_000).diff()
    session = newest[(gaps > 1_800).cumsum() == (gaps > 1_800).sum()]
    if int(now) - session[_MICROS].iloc[-1] // 1_000_000 > 1_800:
        session = session.iloc[:0]
    seconds = session[_MICROS] // 1_000_000
    names = [name for name in (categories.get(item, "") for item in session[c.ITEM]) if name]

    return {
        c.RECENT_ITEMS: newest[c.ITEM].tolist(),
        c.RECENT_TYPES: newest[c.TYPE].tolist(),
        c.RECENT_TIMES: (newest[_MICROS] // 1_000_000).tolist(),
        c.HISTORY_ITEMS: history[c.ITEM].tolist(),
        c.HISTORY_TIMES: (history[_MICROS] // 1_000_000).tolist(),
        c.SESSION_EVENTS: len(session),
        c.SESSION_SECONDS: int(seconds.iloc[-1] - seconds.iloc[0]) if len(session) else 0,
        c.SESSION_CATEGORIES: pd.Series(names, dtype=object).drop_duplicates(keep="last").tolist(),
    }


def _counts(
    events: pd.DataFrame, key: str, spec: DatasetSpec, now: float
) -> dict[str, dict[str, int]]:
    """Return, for each count column, the counts by user or item that are not zero."""
    counts: dict[str, dict[str, int]] = {}
    for window, (pane, length) in _WINDOWS.items():
        start = (int(now) // pane + 1) * pane - length
        inside = events[events[_MICROS] >= start * 1_000_000]
        for kind in spec.event_types:
            counts[f"{kind}_count_{window}"] = (
                inside.loc[inside[c.TYPE] == kind, key].value_counts().to_dict()
            )
    return counts


def _trends(events: pd.DataFrame, now: float) -> dict[str, dict[str, float]]:
    """Return, for each trend column, the trends by item that are not zero."""
    trends: dict[str, dict[str, float]] = {}
    for window, (pane, _) in _WINDOWS.items():
        ages = int(now) // pane - events[_MICROS] // (pane * 1_000_000)
        inside = (ages >= 0) & (ages < 60)
        trends[c.trend(window)] = (
            (0.5 ** (ages[inside] / 15)).groupby(events.loc[inside, c.ITEM]).sum().to_dict()
        )
    return trends


class FeaturesDiffer(FunnelError):
    """Online features differ from a recount of the events."""


def show_check(workspace: Workspace) -> None:
    """Print the result of the check as a line of JSON.

    Raises:
        FeaturesDiffer: a feature of a user or item differs from the recount of its events.

    """
    with display.stage("Recount"):
        recount = check(workspace, time.time())
    display.result(json.dumps(vars(recount)))
    if recount.differing:
        raise FeaturesDiffer(
            f"{recount.differing} users or items differ; wait until 'funnel stream --status' "
            "shows pending 0"
        )
