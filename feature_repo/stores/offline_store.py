"""Feast's DuckDB offline store with a point-in-time join that stays linear.

Feast's own DuckDB join matches every entity row with every earlier feature row of its key and then
keeps the newest: with a daily snapshot per item and a list of fifty items per event that is
billions of rows. An ``ASOF JOIN`` gives the same rows, which a test holds against Spark's join and
against brute force.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView, OnDemandFeatureView, RepoConfig, StreamFeatureView
from feast.errors import RequestDataNotFoundInEntityDfException
from feast.infra.offline_stores.duckdb import DuckDBOfflineStoreConfig
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.infra.registry.base_registry import BaseRegistry
from feast.saved_dataset import SavedDatasetStorage

from feature_repo.aggregates.state import values_of
from feature_repo.declarations.aggregate_views import definition_of
from feature_repo.stores.asof_join import asof_query, computed, run, state_column
from feature_repo.stores.entity_rows import EntityRows
from feature_repo.stores.monitoring import MonitoredDuckDBOfflineStore
from feature_repo.stores.saved_rows import check_storage, save_rows

_STAMP = pa.timestamp("us", tz="UTC")


class AsofDuckDBOfflineStoreConfig(DuckDBOfflineStoreConfig):
    """The options of Feast's DuckDB store."""

    type: Literal["feature_repo.stores.offline_store.AsofDuckDBOfflineStore"] = (  # type: ignore[assignment]
        "feature_repo.stores.offline_store.AsofDuckDBOfflineStore"
    )


class AsofDuckDBOfflineStore(MonitoredDuckDBOfflineStore):
    """DuckDB over the Parquet tables that Spark wrote; entity rows keep their order."""

    @staticmethod
    def get_historical_features(  # noqa: PLR0913, PLR0917 - Feast's signature
        config: RepoConfig,  # noqa: ARG004
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Join each entity row with the newest feature row that is not after it, nor past its TTL.

        ``entity_df`` may be SQL for DuckDB. Without it there is a row, as of ``end_date``, for each
        key that has a row of a view since ``start_date``.

        Raises:
            ValueError: ``entity_df`` cannot be used.
            FeastEntityDFMissingColumnsError: it lacks a key.
            RequestDataNotFoundInEntityDfException: it lacks what an on-demand view reads.

        """
        entities = _entities(entity_df, feature_views, start_date, end_date)
        entities.check(feature_views)
        on_demand = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
        for view in on_demand:
            for name in view.get_request_data_schema():
                if name not in entities.columns:
                    raise RequestDataNotFoundInEntityDfException(name, view.name)
        query = asof_query(
            entities.columns,
            entities.time_column,
            feature_views=feature_views,
            feature_refs=feature_refs,
            full_feature_names=full_feature_names,
            filter_by_created_timestamp=filter_by_created_timestamp,
        )
        bounds = pc.min_max(entities.table[entities.time_column])
        return _AsofJob(
            query,
            entities,
            aggregates=[
                _AggregatesOf(view, full_feature_names) for view in computed(feature_views)
            ],
            on_demand=on_demand,
            full_feature_names=full_feature_names,
            metadata=RetrievalMetadata(
                features=feature_refs,
                keys=[name for name in entities.columns if name != entities.time_column],
                min_event_timestamp=bounds["min"].as_py(),
                max_event_timestamp=bounds["max"].as_py(),
            ),
        )


def _entities(
    given: pd.DataFrame | str | None,
    views: Sequence[FeatureView],
    start: datetime | None,
    end: datetime | None,
) -> EntityRows:
    """Return the entity rows of a read.

    Raises:
        ValueError: they cannot be used.

    """
    if given is None:
        return EntityRows.of_period(views, start, end)
    if isinstance(given, str):
        return EntityRows.of_sql(given)
    if isinstance(given, pd.DataFrame):
        return EntityRows.of_frame(given)
    raise ValueError(f"entity_df is a pandas data frame or SQL, not {type(given).__name__}")


class _AsofJob(RetrievalJob):
    """A join that runs when its result is read."""

    def __init__(
        self,
        query: str,
        entities: EntityRows,
        *,
        aggregates: list[_AggregatesOf],
        on_demand: list[OnDemandFeatureView],
        full_feature_names: bool,
        metadata: RetrievalMetadata,
    ) -> None:
        self._query = query
        self._entities = entities
        self._aggregates = aggregates
        self._on_demand = on_demand
        self._full_feature_names = full_feature_names
        self._metadata = metadata

    @property
    def full_feature_names(self) -> bool:
        """Whether feature columns carry their view's name."""
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        """Views that Feast computes on the joined rows."""
        return self._on_demand

    @property
    def metadata(self) -> RetrievalMetadata:
        """The requested features and entity rows."""
        return self._metadata

    def to_sql(self) -> str:
        """Return the join as SQL of DuckDB, without on-demand features.

        Raises:
            NotImplementedError: the entity rows are a data frame, or a view has aggregations, which
                are computed from their states after the join.

        """
        if self._entities.query is None:
            raise NotImplementedError("the entity rows are a data frame: give them as SQL")
        if self._aggregates:
            raise NotImplementedError("views with aggregations are not computed by SQL alone")
        return f"WITH entities AS ({self._entities.query}) {self._query}"

    def persist(
        self,
        storage: SavedDatasetStorage,
        allow_overwrite: bool = False,
        timeout: int | None = None,
    ) -> None:
        """Save all that ``to_arrow`` gives, on-demand features too, as a local Parquet file.

        Raises:
            ValueError: the storage is something else, or there is no row.
            SavedDatasetLocationAlreadyExists: it is there, and ``allow_overwrite`` is false.

        """
        path = check_storage(storage, allow_overwrite=allow_overwrite)
        save_rows(self.to_arrow(timeout=timeout), path)

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        del timeout
        rows = run(self._query, self._entities.table)
        for aggregates in self._aggregates:
            rows = aggregates.as_of(rows, self._entities.time_column)
        return rows

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._to_arrow_internal(timeout).to_pandas()


class _AggregatesOf:
    """The aggregates of a view: a joined row with a state has the values as of its entity row.

    Rows before a key's last event have no state, and their values hold until the next row.
    """

    def __init__(self, view: StreamFeatureView, full_feature_names: bool) -> None:
        self._definition = definition_of(view)
        self._prefix = f"{view.projection.name_to_use()}__" if full_feature_names else ""

    def as_of(self, rows: pa.Table, time_column: str) -> pa.Table:
        """Return the rows with these values, and without the state."""
        hidden = state_column(self._definition.name)
        states = rows[hidden].to_pylist()
        micros = pc.cast(pc.cast(rows[time_column], _STAMP), pa.int64()).to_pylist()
        rows = rows.drop_columns([hidden])
        values = {
            row: values_of(self._definition, stored, micros[row])
            for row, stored in enumerate(states)
            if stored
        }
        if not values:
            return rows
        for aggregate in self._definition.aggregates:
            name = f"{self._prefix}{aggregate.name}"
            if name not in rows.column_names:
                continue
            column = rows[name].to_pylist()
            for row, found in values.items():
                column[row] = found[aggregate.name]
            place = rows.column_names.index(name)
            rows = rows.set_column(place, name, pa.array(column, rows.schema.field(name).type))
        return rows
