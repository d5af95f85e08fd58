"""Reads a data set's ``features.py`` and checks it.

The file is the operator's trusted code: reading it runs it.
"""

from __future__ import annotations

import runpy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from feast import (
    Entity,
    FeatureService,
    FeatureView,
    OnDemandFeatureView,
    RequestSource,
    StreamFeatureView,
)
from feast.permissions.permission import Permission
from feast.types import UnixTimestamp

from feature_repo import columns as c
from feature_repo.dataset import DatasetSpec
from feature_repo.declarations.aggregate_views import declared_aggregates
from feature_repo.declarations.checks import (
    NUMERIC,
    BadDefinition,
    DeclaredView,
    without_experimental_warnings,
)
from feature_repo.declarations.declared import Declared
from feature_repo.declarations.on_demand_views import (
    DeclaredOnDemand,
    Source,
    declared_on_demand,
)
from feature_repo.declarations.other_readers import check_permission, service_of_others
from feature_repo.declarations.services import (
    MODELS,
    left_out_features,
    selected_features,
    tower_features,
)
from feature_repo.declarations.tables import declared_table
from feature_repo.declarations.views import REQUEST_SOURCE, BuiltIn, Profile, built_in
from feature_repo.declare import BuiltInViews, built_in_views
from feature_repo.own_names import EVENT_NAMES, FIXED
from feature_repo.workspace import Workspace


def declared_in(workspace: Workspace, profile: Profile = "local") -> Declared:
    """Return what the working folder's ``features.py`` declares, nothing without one.

    Raises:
        BadDefinition: the file cannot be used.

    """
    return read_declared(workspace.declarations, workspace.spec(), workspace.features, profile)


def read_declared(
    file: Path | None, spec: DatasetSpec, features: Path, profile: Profile = "local"
) -> Declared:
    """Return what a ``features.py`` declares for a data set; None: only what is built in.

    Raises:
        BadDefinition: the file cannot be used.

    """
    own = built_in(spec, features, profile)
    return read_with(file, spec, own) if file else _nothing(own)


def read_with(file: Path, spec: DatasetSpec, own: BuiltIn) -> Declared:
    """Return what a ``features.py`` declares beside the built-in objects of a data set.

    Raises:
        BadDefinition: the file cannot be used.

    """
    found = _run(file, own)
    names = _taken(spec, own)
    views = [
        _view(file, view, spec, own=own, names=names)
        for view in found
        if isinstance(view, FeatureView)
    ]
    sources = _built_in_sources(own) | {view.name: _source(view) for view in views}
    on_demand = [
        _on_demand(file, view, spec, sources=sources, names=names)
        for view in found
        if isinstance(view, OnDemandFeatureView)
    ]

    declared = replace(_nothing(own), views=tuple(views), on_demand=tuple(on_demand))
    services: set[str] = set()
    for service in (o for o in found if isinstance(o, FeatureService)):
        with _refusing(file, f"service '{service.name}'"):
            _take(services, [service.name])
            declared = _with_service(declared, service, own)
    permissions: set[str] = set()
    for permission in (o for o in found if isinstance(o, Permission)):
        with _refusing(file, f"permission '{permission.name}'"):
            _take(permissions, [permission.name])
            check_permission(permission)
            declared = replace(declared, for_others=(*declared.for_others, permission))
    return declared


def _with_service(declared: Declared, service: FeatureService, own: BuiltIn) -> Declared:
    """Return what is declared with what a service says.

    Raises:
        ValueError: the service cannot be used.

    """
    views = declared.views
    if service.name not in MODELS:
        of_others = service_of_others(service, declared, own)
        return replace(declared, for_others=(*declared.for_others, of_others))
    if service._pending_feature_refs:
        raise ValueError("models read views, and features as view[['feature']], not their names")
    if service.name == "ranking":
        names = [view.name for view in own.ranking]
        return replace(
            declared,
            ranking=selected_features(service, [*views, *own.optional], declared.on_demand, names),
            left_out=left_out_features(service, own.ranking),
        )
    if service.name == "user_tower":
        read = tower_features(service, [*views, *own.optional], c.USER, declared.on_demand)
        return replace(declared, user_tower=tuple((view, feature) for view, feature, _ in read))
    return replace(declared, item_tower=tower_features(service, views, c.ITEM))


def _nothing(own: BuiltIn) -> Declared:
    """Return what there is without a ``features.py``."""
    return Declared(built_in=own.aggregates, optional=own.optional)


def _taken(spec: DatasetSpec, own: BuiltIn) -> set[str]:
    """Return the names that no declared view or feature may have."""
    names = {declared.name for declared in own.objects}
    for view in own.objects:
        for feature in getattr(view, "features", ()):
            names |= {feature.name, f"item_{feature.name}"}
    names |= {*FIXED, *EVENT_NAMES, *spec.user_attributes, *spec.item_attributes, *spec.context}
    names |= {f"user_{name}" for name in spec.user_attributes}
    return names | {f"item_{name}" for name in spec.item_attributes}


def _view(
    file: Path, view: FeatureView, spec: DatasetSpec, *, own: BuiltIn, names: set[str]
) -> DeclaredView:
    """Return a view of users or items, checked, and take its names."""
    with _refusing(file, f"view '{view.name}'"):
        declared = (
            declared_aggregates(view, spec, own.source(view.name))
            if isinstance(view, StreamFeatureView)
            else declared_table(view, file.parent)
        )
        _take(names, declared.names)
    return declared


def _on_demand(
    file: Path,
    view: OnDemandFeatureView,
    spec: DatasetSpec,
    *,
    sources: Mapping[str, Source],
    names: set[str],
) -> DeclaredOnDemand:
    """Return an on-demand view, checked, and take its names."""
    with _refusing(file, f"view '{view.name}'"):
        _take(names, list(dict.fromkeys([view.name, *(f.name for f in view.features)])))
        for source in view.source_request_sources.values():
            _check_fields(source, spec)
        return declared_on_demand(view, sources)


@contextmanager
def _refusing(file: Path, what: str) -> Iterator[None]:
    """Turn a ``ValueError`` into the error of a file that cannot be used."""
    try:
        yield
    except ValueError as error:
        raise BadDefinition(f"{file}: {what}: {error}") from None


def _take(names: set[str], wanted: Sequence[str]) -> None:
    """Add names to those that are taken.

    Raises:
        ValueError: one of them is.

    """
    for name in wanted:
        if name in names:
            raise ValueError(f"the name '{name}' is taken; choose another")
        names.add(name)


def _check_fields(source: RequestSource, spec: DatasetSpec) -> None:
    """Check that requests and past events have a request source's fields.

    Raises:
        ValueError: they lack one, or have it as another type.

    """
    if source.name == REQUEST_SOURCE:
        raise ValueError(f"the name '{source.name}' is taken; choose another")
    for field in source.schema:
        kind = "numeric" if field.name == c.REQUEST_TIME else spec.context.get(field.name)
        if kind is None:
            raise ValueError(
                f"'{field.name}' of a request is not declared: add it to [events.context] of "
                f"dataset.toml, which has {sorted(spec.context)}"
            )
        if (kind == "numeric") != (field.dtype in NUMERIC):
            raise ValueError(f"'{field.name}' is {field.dtype}, and {kind} in dataset.toml")


_READ_ON_DEMAND = (
    "user_profile",
    "user_activity",
    "user_affinity",
    "item_profile",
    "item_activity",
)
"""Built-in views that on-demand views may read, where the data set has them."""


def _built_in_sources(own: BuiltIn) -> dict[str, Source]:
    """Return the built-in views that on-demand views may read."""
    views = {view.name: view for view in own.objects if isinstance(view, FeatureView)}
    of_item = {c.FIRST_EVENT_AT, c.LAST_EVENT_AT}  # a server has them as ages
    sources = {}
    for name in _READ_ON_DEMAND:
        if name not in views:
            continue
        key = c.ITEM if name.startswith("item_") else c.USER
        hidden = of_item if key == c.ITEM else set()
        readable = tuple(
            field.name
            for field in views[name].features
            if field.dtype != UnixTimestamp and field.name not in hidden
        )
        sources[name] = Source(views[name], key, readable)
    return sources


def _source(view: DeclaredView) -> Source:
    """Return a declared view as a source: its features of users, its numbers of items."""
    if view.key == c.ITEM:
        return Source(view.registered, view.key, view.numeric)
    hidden = view.aggregates.state_column if view.aggregates else ""
    fields = [field for field in view.registered.features if field.name != hidden]
    readable = tuple(field.name for field in fields if field.dtype != UnixTimestamp)
    return Source(view.registered, view.key, readable)


def _run(file: Path, own: BuiltIn) -> list[Any]:
    """Return the Feast objects that a file declares, each once, without the built-in ones."""
    views = {o.name: o for o in own.objects if not isinstance(o, Entity)}
    item_tower = [views[name] for name in ("item_profile",) if name in views]
    services = {"ranking": own.ranking, "user_tower": own.user_tower, "item_tower": item_tower}
    token = built_in_views.set(BuiltInViews(services, views))
    try:
        with without_experimental_warnings():
            scope = runpy.run_path(str(file), run_name="features")
    except FileNotFoundError:
        raise BadDefinition(
            f"{file.resolve()}: no such file, though dataset.toml names it in 'features'"
        ) from None
    except Exception as error:
        raise BadDefinition(f"{file}: {type(error).__name__}: {error}") from error
    finally:
        built_in_views.reset(token)
    built = {id(declared) for declared in (*own.ranking, *own.objects)}
    kinds = (FeatureView, OnDemandFeatureView, FeatureService, Permission)
    found = {id(o): o for o in scope.values() if isinstance(o, kinds) and id(o) not in built}
    whole = {o.name for o in found.values() if not _is_part(o)} | {*views}
    return [o for o in found.values() if not (_is_part(o) and o.name in whole)]


def _is_part(declared: Any) -> bool:
    """Return whether this is some features of a view, as ``spend[["spend_1h"]]`` in a variable."""
    if isinstance(declared, (FeatureService, Permission)):
        return False
    projection = declared.projection
    return bool(projection.desired_features) or len(projection.features) < len(declared.features)
