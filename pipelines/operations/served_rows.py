"""Features as the server read them at past requests, from the offline tables and the archive.

A user's streamed row is found by its log position, everything else by the time of the request.
Serving's own code drops values past their TTL, and merges events that the row lacked.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureStore, FeatureView

from feature_repo import columns as c
from feature_repo.aggregates.state import values_of
from feature_repo.facts import MICROS, position_key
from feature_repo.stores.offline_store import has_table, newest_rows
from feature_repo.views import STREAMED
from serving.event_log.redis_stream import RECENT_EVENTS, RECENT_S
from serving.online.features import FeatureReader, activity_reader, no_features, user_reader
from serving.online.overlay import AcceptedEvent, Columns, compute_aggregates, merge_overlay
from serving.recommender.item_table import ItemTable, activity_from
from serving.releases.release import Release

_REQUESTS_PER_READ = 2_000
_LATEST = datetime(9_000, 1, 1)
_STAMP = pa.timestamp("us", tz="UTC")


class Overlays:
    """Users' overlays as they were when they were read."""

    def __init__(self, archive: pa.Table, users: pa.ChunkedArray) -> None:
        """Select the events of some users from the archive, which is in the order of the log."""
        self._newest = position_key(archive["position"][-1].as_py()) if len(archive) else (0, 0)
        self._events: dict[str, list[AcceptedEvent]] = {}
        names = ("position", c.EVENT_ID, c.ITEM, c.TYPE, c.TIMESTAMP, c.VALUE, c.USER)
        table = archive.filter(pc.is_in(archive[c.USER], users.combine_chunks())).select(names)
        stamps = table.column_names.index(c.TIMESTAMP)
        table = table.set_column(stamps, c.TIMESTAMP, pc.cast(table[c.TIMESTAMP], pa.int64()))
        for *event, user in zip(*(column.to_pylist() for column in table.columns), strict=True):
            self._events.setdefault(user, []).append(AcceptedEvent(*event))

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

    def _use(self, reader: FeatureReader) -> None:
        self._reader = reader
        self._aggregates = reader.aggregates()

    def read(self, requests: pa.Table, release: Release) -> Iterator[Columns | None]:
        """Yield the feature row of each request, None if no offline table has the streamed row.

        Args:
            requests: rows of ``IMPRESSION_SCHEMA`` that the archive covers.
            release: the release that answered them.

        """
        self._use(user_reader(self._store, declared=release.codec.user_reads))
        names = ("user_id", "time", "position", "row_position", "degraded")
        for start in range(0, len(requests), _REQUESTS_PER_READ):
            part = requests.slice(start, _REQUESTS_PER_READ)
            tables = self._tables(part)
            for row, request in enumerate(part.select(names).to_pylist()):
                if "online_store_unavailable" in request["degraded"]:
                    yield no_features(request["user_id"], release.codec)
                else:
                    yield self._row(tables, row, request, release)

    def _tables(self, requests: pa.Table) -> dict[str, pa.Table]:
        """Return the newest row of each view that each request could read, in request order."""
        users = requests["user_id"]
        views = self._reader.views
        aggregates = [view.name for view in self._aggregates]
        times = _timestamps(requests["time"].to_numpy())
        tables = {
            name: newest_rows(view, pa.table({c.USER: users, "timestamp": times}), "timestamp")
            for name, view in views.items()
            if name not in STREAMED and name not in aggregates and has_table(view)
        }
        history, recent, _ = STREAMED
        latest = pa.array([_LATEST] * len(requests), _STAMP)
        read = pa.table({c.USER: users, c.POSITION: requests["row_position"], "timestamp": latest})
        tables[recent] = newest_rows(views[recent], read, "timestamp")
        # All streamed rows are written in one step: without one of them there was no other.
        as_of = pa.table({c.USER: users, "timestamp": tables[recent][c.EVENT_TIMESTAMP]})
        tables[history] = newest_rows(views[history], as_of, "timestamp")
        for name in aggregates:
            if has_table(views[name]):
                tables[name] = newest_rows(views[name], as_of, "timestamp")
        return tables

    def _row(
        self, tables: dict[str, pa.Table], row: int, request: dict[str, Any], release: Release
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
        if columns[c.POSITION] != [request["row_position"]]:
            return None
        stamps |= {view: [None] for view in self._reader.views if view not in stamps}
        self._reader.expire(columns, stamps, request["time"])
        overlay = self._overlays.at(request["user_id"], request["position"], request["time"])
        merge_overlay(columns, overlay, release.codec.spec, release.items.main_category)
        compute_aggregates(columns, overlay, self._aggregates, round(request["time"] * MICROS))
        return columns


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
    return release.items.with_activity(
        activity_from({feature: [None, *values] for feature, values in columns.items()}, codec)
    )


def _timestamps(times: Any) -> pa.Array:
    return pa.array(np.round(times * MICROS).astype(np.int64)).cast(_STAMP)


def _seconds(rows: pa.Table, view: FeatureView) -> list[int | None]:
    """Return the times of a view's rows in whole seconds, as serving knows them."""
    stamps = pc.cast(pc.cast(rows[view.batch_source.timestamp_field], _STAMP), pa.int64())
    return [None if micros is None else micros // MICROS for micros in stamps.to_pylist()]
