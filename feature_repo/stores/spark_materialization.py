"""Feast's Spark engine of ``feast materialize``, for tables whose aggregates are computed already.

A module of its own, because it imports Spark.
"""

from __future__ import annotations

from typing import Any, Literal

from feast.infra.common.materialization_job import MaterializationJob, MaterializationTask
from feast.infra.compute_engines.spark.compute import SparkComputeEngine, SparkComputeEngineConfig
from feast.infra.registry.base_registry import BaseRegistry

from feature_repo.stores.materialization import of_finished_table


class FinishedTableSparkEngineConfig(SparkComputeEngineConfig):
    """The options of Feast's Spark engine."""

    type: Literal["feature_repo.stores.spark_materialization.FinishedTableSparkEngine"] = (  # type: ignore[assignment]
        "feature_repo.stores.spark_materialization.FinishedTableSparkEngine"
    )


class FinishedTableSparkEngine(SparkComputeEngine):
    """Feast's Spark engine, which reads aggregates as they lie in their table."""

    def _materialize_one(
        self,
        registry: BaseRegistry,
        task: MaterializationTask,
        from_offline_store: bool = False,
        **kwargs: Any,
    ) -> MaterializationJob:
        return super()._materialize_one(
            registry, of_finished_table(task), from_offline_store, **kwargs
        )
