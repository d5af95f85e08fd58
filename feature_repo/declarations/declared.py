"""What a data set's ``features.py`` declares, read and checked.

The file is the operator's trusted code: reading it runs it.
"""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feast import FeatureService, FeatureView, StreamFeatureView

from feature_repo import columns as c
from feature_repo.aggregates.definition import MICROS, AggregateView
from feature_repo.dataset import DatasetSpec
from feature_repo.declarations.aggregate_views import declared_aggregates
from feature_repo.declarations.checks import (
    BadDefinition,
    DeclaredView,
    without_experimental_warnings,
)
from feature_repo.declarations.tables import declared_table
from feature_repo.declare import built_in_views
from feature_repo.hashing import fingerprint
from feature_repo.own_names import taken
from feature_repo.views import BuiltIn, Profile, built_in
from feature_repo.workspace import Workspace

_DAY = 86_400 * MICROS


@dataclass(frozen=True)
class Declared:
    """What a ``features.py`` adds to the built-in features.

    Attributes:
        views: the declared views.
        ranking: for each view, the features that the ranking models read.

    """

    views: tuple[DeclaredView, ...] = ()
    ranking: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def aggregates(self) -> tuple[AggregateView, ...]:
        """What is computed from events."""
        return tuple(view.aggregates for view in self.views if view.aggregates)

    @property
    def version(self) -> str:
        """A hash of what is computed from events; "" if nothing is."""
        return fingerprint(repr(self.aggregates)) if self.aggregates else ""

    def of_key(self, key: str) -> tuple[AggregateView, ...]:
        """Return the aggregates of users (``user_id``) or of items (``item_id``)."""
        return tuple(view for view in self.aggregates if view.key == key)

    def ranking_numeric(self, key: str) -> tuple[tuple[str, str], ...]:
        """Return views and names of the numeric features that the ranking models read."""
        own = {view.name for view in self.views if view.key == key}
        return tuple((view, name) for view, names in self.ranking if view in own for name in names)


def declared_in(workspace: Workspace, profile: Profile = "local") -> Declared:
    """Return what the working folder's ``features.py`` declares, nothing without one.

    Raises:
        BadDefinition: the file cannot be used.

    """
    return read_declared(workspace.declarations, workspace.spec(), workspace.features, profile)


def read_declared(
    file: Path | None, spec: DatasetSpec, features: Path, profile: Profile = "local"
) -> Declared:
    """Return what a ``features.py`` declares for a data set; None: nothing.

    Raises:
        BadDefinition: the file cannot be used.

    """
    return _read(file, spec, built_in(spec, features, profile)) if file else Declared()


def build(
    spec: DatasetSpec, features: Path, profile: Profile = "local", declarations: Path | None = None
) -> list[Any]:
    """Return every Feast object of a data set, ready for ``FeatureStore.apply``.

    Args:
        spec: the data set.
        features: folder with one folder of Parquet per offline table.
        profile: ``local`` reads the tables with DuckDB, ``cluster`` with Spark.
        declarations: the ``features.py``, if there is one.

    Raises:
        BadDefinition: ``declarations`` cannot be used.

    """
    own = built_in(spec, features, profile)
    declared = _read(declarations, spec, own) if declarations else Declared()
    views = {view.name: view.registered for view in declared.views}
    with without_experimental_warnings():
        ranking = [views[name][list(names)] for name, names in declared.ranking]
        online = [
            view.registered[list(view.numeric)]
            for view in declared.views
            if view.key == c.USER and view.numeric
        ]
    return [*own.objects, *views.values(), *own.services(ranking=ranking, online=online)]


def _read(file: Path, spec: DatasetSpec, own: BuiltIn) -> Declared:
    views: list[DeclaredView] = []
    names = {declared.name for declared in own.objects}
    names |= {*taken(spec.event_types), *spec.user_attributes, *spec.item_attributes}
    found = _run(file, own)
    for view in found:
        if isinstance(view, FeatureService):
            continue
        try:
            declared = (
                declared_aggregates(view, spec, own.source(view.name))
                if isinstance(view, StreamFeatureView)
                else declared_table(view, file.parent)
            )
            for name in declared.names:
                if name in names:
                    raise ValueError(f"the name '{name}' is taken; choose another")
                names.add(name)
        except ValueError as error:
            raise BadDefinition(f"{file}: view '{view.name}': {error}") from None
        views.append(declared)

    services = [o for o in found if isinstance(o, FeatureService) and o.name == "ranking"]
    try:
        ranking = _selected(services[0], views) if services else ()
    except ValueError as error:
        raise BadDefinition(f"{file}: service 'ranking': {error}") from None
    return Declared(tuple(views), ranking)


def _run(file: Path, own: BuiltIn) -> list[FeatureView | FeatureService]:
    """Return the Feast objects that a file declares, each once, without the built-in ones."""
    token = built_in_views.set({"ranking": own.ranking})
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
    built = {id(declared) for declared in own.ranking}
    kinds = (FeatureView, FeatureService)
    found = {id(o): o for o in scope.values() if isinstance(o, kinds) and id(o) not in built}
    return list(found.values())


def _selected(
    service: FeatureService, views: Sequence[DeclaredView]
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the features of declared views that a service reads.

    Raises:
        ValueError: no ranker can read one of them.

    """
    declared = {view.name: view for view in views}
    selected = []
    for projection in service.feature_view_projections:
        if projection.name not in declared:
            continue
        view = declared[projection.name]
        wanted = projection.desired_features or [f.name for f in projection.features]
        wanted = wanted or list(view.numeric)
        unknown = sorted(set(wanted) - {field.name for field in view.registered.features})
        if unknown:
            raise ValueError(f"view '{view.name}' has no {unknown}")
        other = sorted(set(wanted) - set(view.numeric))
        if other:
            raise ValueError(
                f"view '{view.name}': {other} are not numbers, and the ranker reads no others yet"
            )
        short = _short_windows(view, wanted)
        if short:
            raise ValueError(
                f"view '{view.name}': the windows of {short} are shorter than a day; rankers learn "
                "items' aggregates as of midnight, so these would mean something else when served"
            )
        selected.append((view.name, tuple(wanted)))
    return tuple(selected)


def _short_windows(view: DeclaredView, names: Sequence[str]) -> list[str]:
    """Return which of a view's features are of items, and of windows shorter than a day."""
    if view.aggregates is None or view.key != c.ITEM:
        return []
    return [
        aggregate.name
        for aggregate in view.aggregates.aggregates
        if aggregate.name in names and aggregate.window is not None and aggregate.window < _DAY
    ]
