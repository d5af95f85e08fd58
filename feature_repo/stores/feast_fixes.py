"""Corrections of Feast 0.67, made when its registry is opened; remove them when Feast has them.

Feast takes no registry class of somebody else's, so its own methods are wrapped here.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from feast import FeatureStore, FeatureView
from feast.errors import FeatureViewNotFoundException
from feast.infra.registry.registry import Registry
from feast.protos.feast.core.OnDemandFeatureView_pb2 import OnDemandFeatureView
from feast.protos.feast.core.StreamFeatureView_pb2 import StreamFeatureView


def correct_feast() -> None:
    """Wrap the methods below, once a process."""
    if not hasattr(FeatureStore.get_feature_view, "__wrapped__"):
        FeatureStore.get_feature_view = _finding_stream_views(FeatureStore.get_feature_view)
        Registry.to_dict = _with_python_functions(Registry.to_dict)
        Registry.apply_saved_dataset = _with_its_own_period(Registry.apply_saved_dataset)


def _finding_stream_views(get: Any) -> Any:
    """Let a look-up by name find stream views too.

    ``feast feature-views list`` ends with a traceback where an on-demand view reads one, and
    ``create_saved_dataset`` loses the keys of stream views.
    """

    @wraps(get)
    def get_feature_view(
        self: FeatureStore, name: str, allow_registry_cache: bool = False
    ) -> FeatureView:
        try:
            return get(self, name, allow_registry_cache=allow_registry_cache)
        except FeatureViewNotFoundException:
            return self.get_stream_feature_view(name, allow_registry_cache=allow_registry_cache)

    return get_feature_view


def _with_python_functions(to_dict: Any) -> Any:
    """Let ``feast registry-dump`` print on-demand views of mode ``python``, and stream views.

    It expects of the former a Python function and a Substrait plan, of the latter a function.
    """

    @wraps(to_dict)
    def corrected(self: Registry, project: str) -> dict[str, list[Any]]:
        plain = self._message_to_sorted_dict

        def with_plan(message: Any) -> dict[str, Any]:
            found: dict[str, Any] = plain(message)
            spec = found.get("spec", {})
            if isinstance(message, OnDemandFeatureView):
                spec["featureTransformation"].setdefault("substraitPlan", {})
            if isinstance(message, StreamFeatureView):
                spec.setdefault("userDefinedFunction", {})
            return found

        self._message_to_sorted_dict = with_plan
        try:
            return to_dict(self, project)
        finally:
            del self._message_to_sorted_dict

    return corrected


def _with_its_own_period(apply: Any) -> Any:
    """Let a saved dataset that replaces another of its name have the period of its own rows.

    With the period of the old one ``get_saved_dataset`` leaves rows out.
    """

    @wraps(apply)
    def apply_saved_dataset(
        self: Registry, dataset: Any, project: str, commit: bool = True
    ) -> None:
        period = dataset.min_event_timestamp, dataset.max_event_timestamp
        apply(self, dataset, project, commit=False)
        for stored in self.cached_registry_proto.saved_datasets:
            if stored.spec.name == dataset.name and stored.spec.project == project:
                stored.meta.min_event_timestamp.FromDatetime(period[0])
                stored.meta.max_event_timestamp.FromDatetime(period[1])
        if commit:
            self.commit()

    return apply_saved_dataset
