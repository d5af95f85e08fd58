"""``funnel stream --check``: all online features of the stream against a recount of the events.

The recount shares no code with the stream: it sorts and filters all events at once with pandas, as
somebody would who read the definitions.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson
import pandas as pd
from feast import FeatureStore

from feature_repo import columns as c
from feature_repo.aggregates.definition import AggregateView
from feature_repo.aggregates.functions import EXACT, Name
from feature_repo.aggregates.state import AggregateState
from feature_repo.declarations.reading import declared_in
from feature_repo.errors import FunnelError
from feature_repo.events.context import usable_context
from feature_repo.stores.feature_store import feature_store, redis_client
from feature_repo.stores.online_store import RowReader
from feature_repo.stores.pipelined_reads import PipelinedReads
from feature_repo.units import DAY_MICROS, MICROS
from feature_repo.workspace import Workspace
from pipelines import display
from pipelines.ingest.ingested import log_position, read_events
from pipelines.streaming.offline import read_archive

_KEYS_A_READ = 500
_EXAMPLES = 5
_MICROS = "_micros"


class _Counted(NamedTuple):
    """The events of a window in order: values, times, and weights; and the length of a list."""

    values: pd.Series
    micros: pd.Series
    weights: pd.Series
    limit: int

    def newest(self) -> pd.Series:
        """Return the times in seconds of the newest distinct values, by value, newest last."""
        times = (self.micros // MICROS).groupby(self.values).last()
        order = self.values.drop_duplicates(keep="last").tail(self.limit)
        return times.loc[order]

    def top(self) -> pd.Series:
        """Return the shares of the values that weigh most, by value."""
        weight = self.weights.groupby(self.values).sum().reset_index(name="weight")
        name = weight.columns[0]
        shares = weight.sort_values(["weight", name], ascending=[False, True]).set_index(name)
        return shares["weight"].head(self.limit) / self.weights.sum()


_FUNCTIONS: dict[Name, Callable[[_Counted], Any]] = {
    "count": lambda of: len(of.values),
    "sum": lambda of: float(of.values.sum()),
    "mean": lambda of: float(of.values.mean()),
    "min": lambda of: of.values.min().item(),
    "max": lambda of: of.values.max().item(),
    "last": lambda of: float(of.values.iloc[-1]),
    "count_distinct": lambda of: of.values.nunique(),
    "last_distinct": lambda of: of.newest().index.tolist(),
    "last_distinct_times": lambda of: of.newest().tolist(),
    "top": lambda of: of.top().index.tolist(),
    "top_shares": lambda of: of.top().tolist(),
}
"""Functions of an aggregate but ``trend``; those of nothing follow."""

_OF_NOTHING: dict[Name, Any] = {
    "count": 0,
    "count_distinct": 0,
    "sum": 0.0,
    **dict.fromkeys(("last_distinct", "last_distinct_times", "top", "top_shares"), []),
}


@dataclass
class Recount:
    """The result; ``lost`` and ``doubled`` are events missing or repeated in counts of a day."""

    users: int = 0
    items: int = 0
    events: int = 0
    differing: int = 0
    lost: int = 0
    doubled: int = 0
    examples: list[str] = field(default_factory=list)

    def compare(
        self, key: str, view: AggregateView, online: dict[str, Any], expected: dict[str, Any]
    ) -> None:
        """Compare one key's features of a view, and count what differs."""
        counts = {
            one.name
            for one in view.aggregates
            if one.function == "count" and one.window == DAY_MICROS
        }
        different = [
            name for name, value in expected.items() if not _equal(online.get(name), value)
        ]
        if not different:
            return
        self.differing += 1
        for name in different:
            if name in counts:
                surplus = int(online.get(name) or 0) - int(expected[name])
                self.lost += max(0, -surplus)
                self.doubled += max(0, surplus)
            if len(self.examples) < _EXAMPLES:
                self.examples.append(
                    f"{key} {view.name} {name}: {online.get(name)} instead of {expected[name]}"
                )


def _equal(online: Any, expected: Any) -> bool:
    if expected is None:
        return online is None
    if isinstance(expected, list) and expected and isinstance(expected[0], float):
        return len(online or ()) == len(expected) and all(map(_equal, online, expected))
    if isinstance(expected, float):
        return online is not None and abs(online - expected) <= 1e-9 * max(1.0, abs(expected))
    return bool((online or type(expected)()) == expected)


def all_events(workspace: Workspace) -> pd.DataFrame:
    """Return every event that the features should include: ingested ones, and later streamed ones.

    An archived event that was ingested as well is included once.
    """
    context = workspace.spec().context
    names = [c.EVENT_ID, c.USER, c.ITEM, c.TYPE, c.TIMESTAMP, c.VALUE, *context]
    ingested = read_events(workspace, names)
    streamed = read_archive(workspace, log_position(workspace)).to_pandas()
    given = [usable_context(orjson.loads(text or "{}"), context) for text in streamed["context"]]
    streamed = streamed.assign(**{name: [of.get(name) for of in given] for name in context})
    # Of the same types: pandas guesses those of a column that has missing values only.
    streamed = streamed[list(ingested.columns)].astype(ingested.dtypes)
    ingested = pd.concat([ingested, streamed], ignore_index=True)
    micros = ingested[c.TIMESTAMP].astype("datetime64[us, UTC]").astype("int64")
    return ingested.assign(**{_MICROS: micros, c.DAY: micros // DAY_MICROS})


def check(workspace: Workspace, now: float) -> Recount:
    """Compare online features with a recount as of ``now`` (epoch s, after the newest event)."""
    store = feature_store(workspace)
    weights = {name: kind.weight for name, kind in workspace.spec().events.types.items()}
    events = all_events(workspace).sort_values([_MICROS, c.EVENT_ID], kind="stable")
    result = Recount(events=len(events))
    streamed = declared_in(workspace).streamed
    for key in (c.USER, c.ITEM):
        groups = dict(iter(events.groupby(key, sort=False)))
        for view in (view for view in streamed if view.key == key):
            for name, row in _read_states(workspace, store, view, list(groups), now=now):
                expected = expected_aggregates(view, groups[name], now, weights)
                result.compare(name, view, row, expected)
        setattr(result, "users" if key == c.USER else "items", len(groups))
    return result


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


def expected_aggregates(
    view: AggregateView, events: pd.DataFrame, now: float, weights: Mapping[str, float]
) -> dict[str, Any]:
    """Return a key's features of a view as of ``now``, from all its events in order.

    ``weights``: of the event types.
    """
    expected: dict[str, Any] = {}
    for aggregate in view.aggregates:
        counted = events[events[aggregate.column].notna()]
        if aggregate.types:
            counted = counted[counted[c.TYPE].isin(aggregate.types)]
        if aggregate.where:
            counted = counted[[_holds(aggregate.where, row) for row in counted.to_dict("records")]]
        if aggregate.window is not None:
            # The window slides by a sixtieth of its length, at least by a minute.
            pane = max(60_000_000, aggregate.window // 60)
            panes = -(-aggregate.window // pane)
            inside = counted[_MICROS] // pane > round(now * MICROS) // pane - panes
            counted = counted[inside]
        values = counted[aggregate.column]
        if aggregate.column == c.TIMESTAMP:
            values = counted[_MICROS] // MICROS
        elif pd.api.types.is_float_dtype(values):
            values = values.round(6)
        if aggregate.function == "trend":
            assert aggregate.window is not None
            age = round(now * MICROS) // pane - counted[_MICROS] // pane
            rates = (age < panes // 4).sum() / (panes // 4), len(age) / panes
            expected[aggregate.name] = math.log((rates[0] + 0.1) / (rates[1] + 0.1))
            continue
        if aggregate.function == "count_distinct" and values.nunique() >= EXACT:
            continue  # the stream estimates it
        given = _Counted(values, counted[_MICROS], counted[c.TYPE].map(weights), aggregate.limit)
        of_nothing = _OF_NOTHING.get(aggregate.function)
        count = _FUNCTIONS[aggregate.function]
        expected[aggregate.name] = count(given) if len(values) else of_nothing
    return expected


class _Missing:
    """A missing value in a condition: every comparison with it is false."""

    __hash__ = None  # type: ignore[assignment]

    def _never(self, _other: object) -> bool:
        return False

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _never


def _holds(condition: str, event: Mapping[Any, Any]) -> bool:
    """Return whether an event fulfils a condition of a ``features.py``, which is trusted code."""
    values = {str(name): _Missing() if pd.isna(value) else value for name, value in event.items()}
    return bool(eval(condition, {}, values))  # noqa: S307


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
