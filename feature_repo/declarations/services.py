"""The feature services of the models: which declared features each of them reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from feast import FeatureService

from feature_repo import columns as c
from feature_repo.dataset import DatasetSpec
from feature_repo.declarations.checks import DeclaredView
from feature_repo.declarations.on_demand_views import DeclaredOnDemand
from feature_repo.units import DAY_MICROS

MODELS = ("ranking", "user_tower", "item_tower")
"""Names of the services that say what a model reads."""

_BUILT_IN = {c.USER: ("user_profile", "user_history"), c.ITEM: ("item_profile",)}
"""The built-in views that the towers read."""


def selected_features(
    service: FeatureService,
    views: Sequence[DeclaredView],
    on_demand: Sequence[DeclaredOnDemand],
    built_in: Sequence[str],
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the features of declared views that a service reads.

    The ranker also reads the item features that its on-demand views are computed from, since its
    rows are where a server keeps them.

    Raises:
        ValueError: no ranker can read one of them.

    """
    declared = {view.name: view for view in views}
    computed = {view.definition.name: view.definition for view in on_demand}
    selected: dict[str, list[str]] = {}
    for projection in service.feature_view_projections:
        name = projection.name
        wanted = projection.desired_features or [f.name for f in projection.features]
        if name in declared:
            view = declared[name]
            selected[name] = _checked(view, wanted, also=view.categorical)
        elif name in computed:
            given_features = computed[name].features
            unknown = sorted(set(wanted) - set(given_features))
            if unknown:
                raise ValueError(f"view '{name}' has no {unknown}")
            selected[name] = list(wanted or given_features)
        elif name not in built_in:
            raise ValueError(
                f"view '{name}' is neither a variable of the file nor one of {list(built_in)}"
            )
    for name in [name for name in selected if name in computed]:
        for given in computed[name].inputs:
            if given.owner == "item" and given.view in declared:
                features = selected.setdefault(given.view, [])
                if given.name not in features:
                    features += _checked(declared[given.view], [given.name])
    return tuple((name, tuple(features)) for name, features in selected.items())


def left_out_features(
    service: FeatureService, built_in: Sequence[Any]
) -> tuple[tuple[str, str], ...]:
    """Return the built-in views and features that a service of the ranking models does not name."""
    named: dict[str, set[str]] = {}
    for projection in service.feature_view_projections:
        named.setdefault(projection.name, set()).update(f.name for f in projection.features)
    return tuple(
        (view.name, field.name)
        for view in built_in
        for field in view.features
        if field.name not in named.get(view.name, ())
    )


def ranker_column(view: str, feature: str, spec: DatasetSpec) -> str:
    """Return the name that a feature of a built-in view has in the ranker's rows."""
    if view == "user_affinity":
        return c.PAIR_FEATURES[-1]
    if view.startswith("item_"):
        return f"item_{feature}"
    categorical = spec.user_attributes.get(feature, "numeric") != "numeric"
    return f"user_{feature}" if view == "user_profile" and categorical else feature


def tower_features(
    service: FeatureService,
    views: Sequence[DeclaredView],
    key: str,
    on_demand: Sequence[DeclaredOnDemand] = (),
) -> tuple[tuple[str, str, int], ...]:
    """Return views, names and lengths (1: a number) of the declared features that a tower reads.

    Args:
        service: the tower's.
        views: the declared views.
        key: the column of the tower's entity.
        on_demand: the declared on-demand views, of which the tower reads those without items.

    Raises:
        ValueError: the tower cannot read one of them.

    """
    declared = {view.name: view for view in views}
    computed = {view.definition.name: view.definition for view in on_demand}
    selected = []
    for projection in service.feature_view_projections:
        view = declared.get(projection.name)
        wanted = projection.desired_features or [f.name for f in projection.features]
        if projection.name in computed:
            definition = computed[projection.name]
            if any(given.owner == "item" for given in definition.inputs):
                raise ValueError(
                    f"view '{projection.name}' reads items, which the user tower does not know"
                )
            unknown = sorted(set(wanted) - set(definition.features))
            if unknown:
                raise ValueError(f"view '{projection.name}' has no {unknown}")
            selected += [(definition.name, name, 1) for name in wanted or definition.features]
            continue
        if view is None:
            if projection.name in _BUILT_IN[key]:
                continue
            raise ValueError(
                f"view '{projection.name}': towers read tables and aggregates only, "
                "and the user tower on-demand views"
            )
        if view.key != key:
            raise ValueError(f"view '{view.name}' is not of its entity '{key}'")
        checked = _checked(view, wanted)
        selected += [(view.name, name, view.vectors.get(name, 1)) for name in checked]
    return tuple(selected)


def _checked(view: DeclaredView, wanted: Sequence[str], also: Sequence[str] = ()) -> list[str]:
    """Return features of a view that a model can read: numbers, vectors, and those of ``also``.

    None wanted, or all of a built-in view, are its numbers and vectors: its state is no feature.

    Raises:
        ValueError: it cannot read one of them.

    """
    known = {field.name for field in view.registered.features}
    if not wanted or (view.aggregates and set(wanted) == known):
        wanted = [*view.numeric, *view.vectors]
    unknown = sorted(set(wanted) - known)
    if unknown:
        every = [*view.numeric, *view.vectors, *also]
        raise ValueError(f"view '{view.name}' has no {unknown}, only {every}")
    other = sorted({*wanted} - {*view.numeric, *view.vectors, *also})
    if other:
        raise ValueError(
            f"view '{view.name}': {other} are of types that this model does not read; it reads "
            f"{[*view.numeric, *view.vectors, *also]}"
        )
    short = _short_windows(view, wanted)
    if short:
        raise ValueError(
            f"view '{view.name}': the windows of {short} are shorter than a day; models learn "
            "items' aggregates as of midnight, so these would mean something else when served"
        )
    return list(wanted)


def _short_windows(view: DeclaredView, names: Sequence[str]) -> list[str]:
    """Return which of a view's features are of items, and of windows shorter than a day."""
    if view.aggregates is None or view.key != c.ITEM:
        return []
    return [
        one.name
        for one in view.aggregates.aggregates
        if one.name in names and one.window is not None and one.window < DAY_MICROS
    ]
