"""Feast's engines of ``feast materialize``, for tables whose aggregates are computed already.

Feast 0.67 would aggregate a table of finished values once more: its local engine refuses time
windows, its Spark engine counts rows of values as events. These engines read the values.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any, Literal

from feast.infra.common.materialization_job import MaterializationJob, MaterializationTask
from feast.infra.compute_engines.local.compute import LocalComputeEngine, LocalComputeEngineConfig
from feast.infra.registry.base_registry import BaseRegistry


class FinishedTableLocalEngineConfig(LocalComputeEngineConfig):
    """The options of Feast's local engine."""

    type: Literal["feature_repo.stores.materialization.FinishedTableLocalEngine"] = (  # type: ignore[assignment]
        "feature_repo.stores.materialization.FinishedTableLocalEngine"
    )


class FinishedTableLocalEngine(LocalComputeEngine):
    """Feast's local engine, which reads aggregates as they lie in their table."""

    def _materialize_one(
        self, registry: BaseRegistry, task: MaterializationTask, **kwargs: Any
    ) -> MaterializationJob:
        return super()._materialize_one(registry, of_finished_table(task), **kwargs)


def of_finished_table(task: MaterializationTask) -> MaterializationTask:
    """Return a task whose view says nothing of how its values were computed."""
    if not getattr(task.feature_view, "aggregations", None):
        return task
    view = copy(task.feature_view)
    view.aggregations = []
    return replace(task, feature_view=view)
