"""What ``feast monitor`` computes of the local tables, and where it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from feast import FileSource, RepoConfig
from feast.infra.offline_stores.duckdb import DuckDBOfflineStore
from pyarrow.dataset import dataset

from feature_repo.workspace import default_root


class MonitoredDuckDBOfflineStore(DuckDBOfflineStore):
    """Feast's DuckDB store, which keeps its figures beside the registry of the working folder.

    Feast's own keeps those of all data sets in the folder of the code.
    """

    @staticmethod
    def compute_monitoring_metrics(
        config: RepoConfig,
        data_source: FileSource,
        feature_columns: Sequence[tuple[str, str]],
        *rest: Any,
        **options: Any,
    ) -> list[dict[str, Any]]:
        """Return Feast's figures of columns; it takes lists of numbers for numbers, and fails."""
        schema = dataset(data_source.path, format="parquet").schema
        plain = [
            column
            for column in feature_columns
            if not pa.types.is_nested(schema.field(column[0]).type)
        ]
        return DuckDBOfflineStore.compute_monitoring_metrics(
            config, data_source, plain, *rest, **options
        )

    @staticmethod
    def ensure_monitoring_tables(config: RepoConfig) -> None:
        """Make the tables of figures where there are none."""
        DuckDBOfflineStore.ensure_monitoring_tables(_beside_registry(config))

    @staticmethod
    def save_monitoring_metrics(config: RepoConfig, *rest: Any, **options: Any) -> None:
        """Keep figures."""
        DuckDBOfflineStore.save_monitoring_metrics(_beside_registry(config), *rest, **options)

    @staticmethod
    def query_monitoring_metrics(
        config: RepoConfig, *rest: Any, **options: Any
    ) -> list[dict[str, Any]]:
        """Return kept figures."""
        return DuckDBOfflineStore.query_monitoring_metrics(
            _beside_registry(config), *rest, **options
        )

    @staticmethod
    def clear_monitoring_baseline(config: RepoConfig, *rest: Any, **options: Any) -> None:
        """Let kept figures be no baseline any more."""
        DuckDBOfflineStore.clear_monitoring_baseline(_beside_registry(config), *rest, **options)


def _beside_registry(config: RepoConfig) -> RepoConfig:
    """Return a configuration whose folder is that of the registry."""
    folder = default_root().resolve() / Path(config.registry.path).parent
    return config.model_copy(update={"repo_path": folder})
