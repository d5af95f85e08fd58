"""Features as they were: Feast's point-in-time join, in the arrays that the models take.

A request at ``t`` is joined just before ``t`` (one microsecond), so no row sees the event it
predicts nor another of the same moment.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import columns as c
from feature_repo.arrays import Float64Array, Int64Array
from feature_repo.dataset import DatasetSpec
from feature_repo.stores.feature_store import feature_store
from feature_repo.stores.registry import registry_state
from feature_repo.workspace import MissingStage, Workspace
from pipelines.features.feast_session import start_feast_session
from pipelines.features.whole_tables import require_whole_tables
from serving.recommender.codec import Codec
from serving.recommender.item_attributes import ItemAttributes, attributes_from
from serving.recommender.item_table import Activity, activity_from

DAY_S = 86_400
_CHUNK_ROWS = 20_000
_ROW = "funnel_row"
_ITEM_ROWS = 400_000
_NUMBERS_PER_ROW = 8
"""Numbers of vectors that take about as much memory as the other features of a row."""


class PointInTime:
    """Historical feature reads of one workspace."""

    def __init__(self, workspace: Workspace) -> None:
        """Open the workspace's feature store.

        Raises:
            MissingStage: the features are not registered.
            DamagedTable: a file of the offline tables cannot be read.

        """
        if registry_state(workspace) is None:
            raise MissingStage(
                f"no Feast registry in {workspace.root}: run 'funnel materialize' first"
            )
        require_whole_tables(workspace)
        start_feast_session(workspace)
        self.store = feature_store(workspace)

    def users(
        self, service: str, users: npt.NDArray[Any], times: Float64Array
    ) -> Iterator[tuple[slice, dict[str, list[Any]]]]:
        """Yield feature columns of requests, a slice of them at a time, in their order.

        Args:
            service: name of a feature service of user views; its on-demand features are left to the
                reader.
            users: ids ``[n]``.
            times: float64 ``[n]`` epoch seconds; each row is joined just before.

        """
        table = self.user_values(self._features_of(service), users, times)
        for start in range(0, len(table), _CHUNK_ROWS):
            part = table.slice(start, _CHUNK_ROWS)
            yield (
                slice(start, start + len(part)),
                {name: part[name].to_pylist() for name in part.column_names},
            )

    def user_values(
        self, pairs: Sequence[tuple[str, str]], users: npt.NDArray[Any], times: Float64Array
    ) -> pa.Table:
        """Return features of users just before times, a row each in their order.

        Args:
            pairs: views and names of the features.
            users: ids ``[n]``.
            times: float64 ``[n]`` epoch seconds.

        """
        frame = pd.DataFrame({c.USER: users, c.EVENT_TIMESTAMP: just_before(times)})
        return self._join(frame, pairs)

    def item_activity(self, codec: Codec, days: Int64Array) -> Iterator[tuple[int, Activity]]:
        """Yield each day (since the epoch, ascending) and all items' activity at its midnight.

        Attributes that have a history are those of the midnight as well.
        """
        items = codec.items.values
        numbers = 1 + sum(size for _, _, size in codec.vectors) // _NUMBERS_PER_ROW
        per_call = max(1, _ITEM_ROWS // len(items) // numbers)
        pairs = [*codec.built_in_activity, *codec.item_reads]
        others = [name for _, name, _ in (*codec.vectors, *codec.item_categories)]
        dated = _DatedAttributes(codec)
        names = [name for _, name in pairs if name not in (*others, *dated.names)]
        for start in range(0, len(days), per_call):
            chunk = days[start : start + per_call]
            table = self.items(items, pairs, chunk)
            matrix = {
                name: table[name].cast(pa.float64()).to_numpy(zero_copy_only=False)
                for name in names
            }
            for index, day in enumerate(chunk):
                rows = slice(index * len(items), (index + 1) * len(items))
                columns: dict[str, Any] = {
                    name: np.concatenate([[np.nan], values[rows]])
                    for name, values in matrix.items()
                }
                for name in others:
                    of_day = table[name].slice(rows.start, len(items))
                    columns[name] = [None, *of_day.to_pylist()]
                attributes = dated.of(table.slice(rows.start, len(items)))
                yield int(day), replace(activity_from(columns, codec), attributes=attributes)

    def items(
        self, items: Sequence[str], pairs: Sequence[tuple[str, str]], days: Int64Array
    ) -> pa.Table:
        """Return features of all items at midnights, the items of each day in their order.

        Args:
            items: ids.
            pairs: views and names of the features.
            days: since the epoch.

        """
        times = pd.to_datetime(np.repeat(days * DAY_S, len(items)), unit="s", utc=True)
        ids = np.tile(np.array(items, dtype=object), len(days))
        return self._join(pd.DataFrame({c.ITEM: ids, c.EVENT_TIMESTAMP: times}), pairs)

    def _features_of(self, service: str) -> list[tuple[str, str]]:
        """Return views and names of a service's features of users, on-demand ones left out."""
        feature_service = self.store.get_feature_service(service)
        return [
            (view.name, feature.name)
            for view in feature_service.feature_view_projections
            for feature in view.features
            if not view.name.startswith("item_") and view.name != "request_time"
        ]

    def _join(self, frame: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> pa.Table:
        """Return the joined rows in the order of ``frame``, which Spark does not keep."""
        numbered = frame.assign(**{_ROW: np.arange(len(frame))})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Feast's own deprecations
            joined = self.store.get_historical_features(
                entity_df=numbered, features=[f"{view}:{name}" for view, name in pairs]
            ).to_arrow()
        if len(joined) != len(frame):
            raise RuntimeError(
                f"the point-in-time join returned {len(joined)} rows for {len(frame)}"
            )
        return joined.sort_by(_ROW).drop_columns([_ROW])


class _DatedAttributes:
    """Items' attributes as of one day after the other: days without a change share their arrays."""

    def __init__(self, codec: Codec) -> None:
        self.names = codec.spec.dated_item_attributes
        self._codec = codec
        self._last: tuple[pa.Table, ItemAttributes | None] | None = None

    def of(self, table: pa.Table) -> ItemAttributes | None:
        """Return the attributes in a table of all items in the order of their codes, if any."""
        if not self.names:
            return None
        table = table.select(self.names)
        if self._last is None or not table.equals(self._last[0]):
            columns = {name: [None, *table[name].to_pylist()] for name in self.names}
            self._last = (table, attributes_from(columns, self._codec))
        return self._last[1]


def just_before(times: Float64Array) -> pd.Series:
    """Return the times one microsecond before ``times``, as UTC timestamps."""
    micros = np.round(np.asarray(times) * 1e6).astype(np.int64) - 1
    return pd.Series(micros.view("datetime64[us]")).dt.tz_localize("UTC")


def catalogue_columns(
    spec: DatasetSpec, ingest: Path, events: pd.DataFrame
) -> tuple[list[str], dict[str, list[Any]]]:
    """Return all item ids, sorted, and their attribute and availability columns in that order.

    An item that occurs only in events is available from its first event on, and where an item table
    is described, until the log ends: the table is the catalogue, unless ``recommend_unlisted`` says
    otherwise. An item of the table is available from its ``available_from``, or always.
    """
    first = events.groupby(c.ITEM, sort=False)[c.TIMESTAMP].min()
    table = pd.DataFrame(index=pd.Index([], dtype="object", name=c.ITEM))
    if (ingest / "items.parquet").is_file():
        table = pq.read_table(ingest / "items.parquet").to_pandas().set_index(c.ITEM)
    ids = sorted({*first.index, *table.index})
    rows = table.reindex(ids)
    columns: dict[str, list[Any]] = {}
    for name, kind in spec.item_attributes.items():
        values = rows[name].tolist()
        if kind == "multi_categorical":
            columns[name] = [None if v is None or isinstance(v, float) else list(v) for v in values]
        else:
            columns[name] = [None if v is None or v is pd.NA or v != v else v for v in values]
    # Availability of the n items in epoch seconds [n]; NaN: no limit.
    starts = _epoch(rows.get(c.AVAILABLE_FROM), len(ids))
    ends = _epoch(rows.get(c.AVAILABLE_UNTIL), len(ids))
    unlisted = ~np.isin(np.array(ids, dtype=object), table.index.to_numpy(dtype=object))
    starts = np.where(unlisted, np.nextafter(_epoch(first.reindex(ids), len(ids)), np.inf), starts)
    if spec.items is not None and not spec.items.recommend_unlisted and unlisted.any():
        # The same end for all: one of its own would tell the past which items have no future.
        last = _epoch(events[c.TIMESTAMP], len(events)).max()
        ends = np.where(unlisted, np.nextafter(last, np.inf), ends)
    for name, limits in ((c.AVAILABLE_FROM, starts), (c.AVAILABLE_UNTIL, ends)):
        columns[name] = [None if np.isnan(limit) else float(limit) for limit in limits]
    return ids, columns


def ends_unlisted(spec: DatasetSpec, ingest: Path, events: pd.DataFrame) -> bool:
    """Return whether some items are not recommended because only the log knows them."""
    file = ingest / "items.parquet"
    if spec.items is None or spec.items.recommend_unlisted or not file.is_file():
        return False
    listed = pq.read_table(file, columns=[c.ITEM])[c.ITEM].to_pylist()
    return not set(events[c.ITEM].unique()) <= set(listed)


def _epoch(moments: pd.Series | None, size: int) -> Float64Array:
    if moments is None:
        return np.full(size, np.nan)
    micros = moments.astype("datetime64[us, UTC]").astype("int64").to_numpy().astype(np.float64)
    return np.where(moments.isna().to_numpy(), np.nan, micros / 1e6)
