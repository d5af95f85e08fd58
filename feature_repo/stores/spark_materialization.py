"""Feast's Spark engine of ``feast materialize``, for tables whose aggregates are computed already.

A module of its own, because it imports Spark.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import Any, Literal

from feast import FeatureView, StreamFeatureView
from feast.infra.common.materialization_job import MaterializationJob, MaterializationTask
from feast.infra.compute_engines.spark.compute import SparkComputeEngine, SparkComputeEngineConfig
from feast.infra.compute_engines.spark.utils import get_or_create_new_spark_session
from feast.infra.registry.base_registry import BaseRegistry
from pyspark.sql import SparkSession


class FinishedTableSparkEngineConfig(SparkComputeEngineConfig):
    """The options of Feast's Spark engine."""

    type: Literal["feature_repo.stores.spark_materialization.FinishedTableSparkEngine"] = (  # type: ignore[assignment]
        "feature_repo.stores.spark_materialization.FinishedTableSparkEngine"
    )


class FinishedTableSparkEngine(SparkComputeEngine):
    """Feast's Spark engine, which reads aggregates as they lie in their table."""

    def _get_feature_view_spark_session(self, feature_view: FeatureView) -> SparkSession:  # noqa: ARG002
        """Return the session, started with the settings of the offline store.

        Feast 0.67 takes the engine's own options for Spark's settings: no master is among them, and
        all would run in the driver.
        """
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        return get_or_create_new_spark_session(self.repo_config.offline_store.spark_conf)

    def _materialize_one(
        self,
        registry: BaseRegistry,
        task: MaterializationTask,
        from_offline_store: bool = False,
        **kwargs: Any,
    ) -> MaterializationJob:
        task = replace(task, feature_view=_plain(task.feature_view))
        return super()._materialize_one(registry, task, from_offline_store, **kwargs)


def _plain(view: FeatureView) -> FeatureView:
    """Return a stream view as a view of its table.

    Feast 0.67 sends its workers the message of a stream view, and they read that of a plain one.
    """
    if not isinstance(view, StreamFeatureView):
        return view
    plain = FeatureView(
        name=view.name, source=view.batch_source, ttl=view.ttl, online=view.online, tags=view.tags
    )
    plain.entities = view.entities
    plain.entity_columns = view.entity_columns
    plain.features = view.features
    return plain
