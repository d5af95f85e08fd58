"""Features as the server read them at past requests, from the offline tables and the archive.

A user's streamed rows are found by their log position, everything else by the time of the request.
Serving's own code drops values past their TTL, and merges events that the row lacked.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureStore, FeatureView
from pyarrow.dataset import dataset

from feature_repo import columns as c
from feature_repo.aggregates.definition import AggregateView
from feature_repo.aggregates.reading import EventReader
from feature_repo.aggregates.state import position_of, values_of
from feature_repo.events.log_position import position_key
from feature_repo.stores.asof_join import has_table, newest_rows
from feature_repo.units import MICROS
from serving.event_log.redis_stream import RECENT_EVENTS, RECENT_S
from serving.online.features import FeatureReader, activity_reader, no_features, user_reader
from serving.online.overlay import AcceptedEvent, Columns, Overlay
from serving.recommender.item_attributes import attributes_from
from serving.recommender.item_table import ItemTable, activity_from
from serving.releases.release import Release

_REQUESTS_PER_READ = 2_000
_STAMP = pa.timestamp("us", tz="UTC")


class Overlays:
    """Users' overlays as they were when they were read."""

    def __init__(self, archive: pa.Table, users: pa.ChunkedArray) -> None:
        """Select the events of some users from the archive, which is in the order of the log."""
        self._newest = position_key(archive["position"][-1].as_py()) if len(archive) else (0, 0)
        self._events: dict[str, list[AcceptedEvent]] = {}
        names = ("position", c.EVENT_ID, c.USER, c.ITEM, c.TYPE, c.TIMESTAMP, c.VALUE, "context")
        table = archive.filter(pc.is_in(archive[c.USER], users.combine_chunks())).select(names)
        stamps = table.column_names.index(c.TIMESTAMP)
        table = table.set_column(stamps, c.TIMESTAMP, pc.cast(table[c.TIMESTAMP], pa.int64()))
        columns = (column.to_pylist() for column in table.columns)
        for position, event_id, user, item, type_, micros, value, context in zip(
            *columns, strict=True
        ):
            given = orjson.loads(context) if context else {}
            accepted = AcceptedEvent(
                position,
                event_id,
                user,
                item,
                type=type_,
                micros=micros,
                value=value,
                context=given,
            )
            self._events.setdefault(user, []).append(accepted)

    def covers(self, position: str | None) -> bool:
        """Return whether the archive reaches to a log position."""
        return position_key(position) <= self._newest

    def at(self, user: str, position: str | None, time: float) -> list[AcceptedEvent]:
        """Return a user's overlay at a time (epoch s) when ``position`` was the newest event."""
        events = self._events.get(user, [])
        stop = bisect_right(
            events, position_key(position), key=lambda event: position_key(event.position)
        )
        if not stop or time - position_key(events[stop - 1].position)[0] / 1_000 > RECENT_S:
            return []
        return events[max(0, stop - RECENT_EVENTS) : stop]


class ServedUsers:
    """Reads users' features for past requests."""

    def __init__(self, store: FeatureStore, overlays: Overlays) -> None:
        self._store = store
        self._overlays = overlays

    def _use(self, reader: FeatureReader, events: EventReader) -> None:
        self._reader = reader
        self._aggregates = reader.aggregates()
        self._overlay = Overlay(events, self._aggregates)

    def read(self, requests: pa.Table, release: Release) -> Iterator[Columns | None]:
        """Yield the feature row of each request, None if no offline table has the streamed row.

        Args:
            requests: rows of ``IMPRESSION_SCHEMA`` that the archive covers.
            release: the release that answered them.

        """
        codec = release.codec
        self._use(user_reader(self._store, declared=codec.user_reads), EventReader.of(codec.spec))
        names = ("user_id", "time", "position", "row_position", "degraded")
        for start in range(0, len(requests), _REQUESTS_PER_READ):
            part = requests.slice(start, _REQUESTS_PER_READ)
            tables = self._tables(part)
            for row, request in enumerate(part.select(names).to_pylist()):
                if "online_store_unavailable" in request["degraded"]:
                    yield no_features(request["user_id"], release.codec)
                else:
                    yield self._row(tables, row, request)

    def _tables(self, requests: pa.Table) -> dict[str, pa.Table]:
        """Return the newest row of each view that each request could read, in request order."""
        users = requests["user_id"]
        views = self._reader.views
        aggregates = [view.name for view in self._aggregates]
        times = _timestamps(requests["time"].to_numpy())
        tables = {
            name: newest_rows(view, pa.table({c.USER: users, "timestamp": times}), "timestamp")
            for name, view in views.items()
            if name not in aggregates and has_table(view)
        }
        return tables | {
            view.name: _rows_at(view, views[view.name], users, requests["row_position"])
            for view in self._aggregates
            if has_table(views[view.name])
        }

    def _row(
        self, tables: dict[str, pa.Table], row: int, request: dict[str, Any]
    ) -> Columns | None:
        # A view that is declared no more may have lost its table: its values are missing.
        names = (name for view in self._reader.names.values() for name in view)
        columns: Columns = {c.USER: [request["user_id"]], **{name: [None] for name in names}}
        stamps: dict[str, list[int | None]] = {}
        for view, table in tables.items():
            values = table.slice(row, 1)
            columns |= {name: values[name].to_pylist() for name in self._reader.names[view]}
            stamps[view] = _seconds(values, self._reader.views[view])
        for aggregates in self._aggregates:
            state = aggregates.state_column
            if aggregates.name in tables:
                columns[state] = tables[aggregates.name].slice(row, 1)[state].to_pylist()
        states = [columns[view.state_column][0] for view in self._aggregates if view.name in tables]
        if request["row_position"] and not any(states):
            return None
        stamps |= {view: [None] for view in self._reader.views if view not in stamps}
        self._reader.expire(columns, stamps, request["time"])
        overlay = self._overlays.at(request["user_id"], request["position"], request["time"])
        self._overlay.merge(columns, overlay, round(request["time"] * MICROS))
        return columns


def _rows_at(
    view: AggregateView, registered: FeatureView, users: pa.ChunkedArray, positions: pa.ChunkedArray
) -> pa.Table:
    """Return the row of each user whose state was as of a log position; null where none is."""
    some = users.combine_chunks()
    stored = dataset(registered.batch_source.path, format="parquet").to_table(
        filter=pc.field(c.USER).isin(some) & pc.field(view.state_column).is_valid()
    )
    stored = stored.sort_by(c.EVENT_TIMESTAMP)
    keys = zip(stored[c.USER].to_pylist(), stored[view.state_column].to_pylist(), strict=True)
    rows = {(user, position_of(state)): row for row, (user, state) in enumerate(keys)}
    wanted = zip(some.to_pylist(), positions.to_pylist(), strict=True)
    return stored.take(pa.array([rows.get(key) for key in wanted], pa.int64()))


def served_items(store: FeatureStore, release: Release, as_of: str | None) -> ItemTable:
    """Return the item table of a server that read its counts at ``items_as_of``, ISO 8601."""
    if as_of is None:
        return release.items
    codec = release.codec
    reader = activity_reader(store, codec)
    now = datetime.fromisoformat(as_of)
    items = codec.items.values
    entities = pa.table(
        {c.ITEM: pa.array(items, pa.string()), "timestamp": pa.array([now] * len(items), _STAMP)}
    )
    names = dict.fromkeys([*codec.item_activity, *(name for _, name in codec.item_reads)])
    columns: dict[str, list[Any]] = {name: [None] * len(items) for name in names}
    stamps: dict[str, list[int | None]] = {}
    for name, view in reader.views.items():
        if not has_table(view):
            stamps[name] = [None] * len(items)
            continue
        table = newest_rows(view, entities, "timestamp")
        columns |= {feature: table[feature].to_pylist() for feature in reader.names[name]}
        stamps[name] = _seconds(table, view)
    for aggregates in reader.aggregates():
        if not has_table(reader.views[aggregates.name]):
            continue
        states = newest_rows(reader.views[aggregates.name], entities, "timestamp")
        for row, stored in enumerate(states[aggregates.state_column].to_pylist()):
            values = values_of(aggregates, stored, round(now.timestamp() * MICROS))
            for feature, value in values.items():
                columns[feature][row] = value
    reader.expire(columns, stamps, now.timestamp())
    by_code = {feature: [None, *values] for feature, values in columns.items()}
    activity = replace(activity_from(by_code, codec), attributes=attributes_from(by_code, codec))
    return release.items.with_activity(activity)


def _timestamps(times: Any) -> pa.Array:
    return pa.array(np.round(times * MICROS).astype(np.int64)).cast(_STAMP)


def _seconds(rows: pa.Table, view: FeatureView) -> list[int | None]:
    """Return the times of a view's rows in whole seconds, as serving knows them."""
    stamps = pc.cast(pc.cast(rows[view.batch_source.timestamp_field], _STAMP), pa.int64())
    return [None if micros is None else micros // MICROS for micros in stamps.to_pylist()]
