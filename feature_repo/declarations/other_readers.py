"""Feature services of other readers than Funnel's models, and who may read what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from feast import FeatureService, FeatureView, OnDemandFeatureView
from feast.permissions.permission import Permission

from feature_repo.declarations.checks import without_experimental_warnings
from feature_repo.declarations.declared import Declared
from feature_repo.declarations.services import MODELS
from feature_repo.declarations.views import BuiltIn

_ALIKE = 0.8


def service_of_others(service: FeatureService, declared: Declared, own: BuiltIn) -> FeatureService:
    """Return a service of other readers than the models, over the views as they are registered.

    Args:
        service: as the ``features.py`` declares it.
        declared: the views that the file declares.
        own: the built-in objects.

    Raises:
        ValueError: its name is that of a built-in service or like that of a model's, or it names a
            view or feature that does not exist.

    """
    alike = get_close_matches(service.name.lower(), MODELS, n=1, cutoff=_ALIKE)
    with without_experimental_warnings():
        built = own.services(ranking=own.ranking, online=[], user_tower=[])
    if service.name in {other.name for other in built} or not service.name:
        raise ValueError("the name is taken; choose another")
    if alike:
        raise ValueError(
            f"did you mean '{alike[0]}', which a model reads? A service of other readers has a "
            "name that is less like it"
        )
    views = _readable(declared, own)
    features = []
    for projection in service.feature_view_projections:
        wanted = projection.desired_features or [f.name for f in projection.features]
        part = _part_of(projection.name, wanted, views)
        part.projection.name_alias = projection.name_alias
        part.projection.join_key_map = projection.join_key_map
        features.append(part)
    for reference in service._pending_feature_refs:  # views and features as text
        name, _, feature = reference.partition(":")
        features.append(_part_of(name, [feature] if feature else [], views))
    return FeatureService(
        name=service.name,
        features=features,
        tags=service.tags,
        description=service.description,
        owner=service.owner,
        logging_config=service.logging_config,
    )


def check_permission(permission: Permission) -> None:
    """Check that Feast can read a permission that it writes: of one without policy it cannot.

    Raises:
        ValueError: it cannot, and no command of Feast would work any more.

    """
    try:
        Permission.from_proto(permission.to_proto())
    except Exception as error:
        raise ValueError(
            f"Feast could not read it back ({error}): give it a policy, as RoleBasedPolicy(['bi'])"
        ) from None


def _part_of(
    name: str, wanted: Sequence[str], views: Mapping[str, tuple[Any, Sequence[str]]]
) -> Any:
    """Return a registered view with some of its features; none wanted: those of the whole view.

    Raises:
        ValueError: there is no such view or feature.

    """
    if name not in views:
        raise ValueError(
            f"view '{name}' is neither a variable of the file nor one of {sorted(views)}"
        )
    view, every = views[name]
    unknown = sorted(set(wanted) - {field.name for field in view.features})
    if unknown:
        raise ValueError(f"view '{name}' has no {unknown}, only {list(every)}")
    with without_experimental_warnings():
        return view[list(wanted or every)]


def _readable(declared: Declared, own: BuiltIn) -> dict[str, tuple[Any, list[str]]]:
    """Return every registered view by name, with the features that stand for the whole view."""
    views = [o for o in own.objects if isinstance(o, (FeatureView, OnDemandFeatureView))]
    views += [view.registered for view in declared.views]
    views += [view.registered for view in declared.on_demand]
    readable = {view.name: (view, [field.name for field in view.features]) for view in views}
    # The state of aggregates is not a feature.
    for aggregates in declared.aggregates:
        view, _ = readable[aggregates.name]
        readable[aggregates.name] = (view, [one.name for one in aggregates.aggregates])
    return readable
