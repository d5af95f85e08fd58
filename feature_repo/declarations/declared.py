"""What a data set's ``features.py`` declares, read and checked.

The file is the operator's trusted code: reading it runs it.
"""

from __future__ import annotations

import runpy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from feast.types import UnixTimestamp

from feature_repo import columns as c
from feature_repo.aggregates.definition import AggregateView
from feature_repo.dataset import DatasetSpec
from feature_repo.declarations.aggregate_views import declared_aggregates
from feature_repo.declarations.checks import (
    NUMERIC,
    BadDefinition,
    DeclaredView,
    without_experimental_warnings,
)
from feature_repo.declarations.on_demand_views import (
    DeclaredOnDemand,
    Source,
    declared_on_demand,
)
from feature_repo.declarations.services import (
    left_out_features,
    ranker_column,
    selected_features,
    tower_features,
)
from feature_repo.declarations.tables import declared_table
from feature_repo.declare import BuiltInViews, built_in_views
from feature_repo.hashing import fingerprint
from feature_repo.on_demand.view import OnDemandView
from feature_repo.own_names import EVENT_NAMES, taken
from feature_repo.views import REQUEST_SOURCE, BuiltIn, Profile, built_in
from feature_repo.workspace import Workspace


@dataclass(frozen=True)
class Declared:
    """What a ``features.py`` adds to the built-in features.

    Attributes:
        views: the declared views of users and of items.
        on_demand: the declared views of on-demand features.
        ranking: for each view, the features that the ranking models read.
        user_tower: views and names of the numbers that the user tower reads.
        item_tower: views, names and lengths (1: a number) of what the item tower reads.
        left_out: built-in views and features that the ranking models do not read.

    """

    views: tuple[DeclaredView, ...] = ()
    on_demand: tuple[DeclaredOnDemand, ...] = ()
    ranking: tuple[tuple[str, tuple[str, ...]], ...] = ()
    user_tower: tuple[tuple[str, str], ...] = ()
    item_tower: tuple[tuple[str, str, int], ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()

    def left_out_columns(self, spec: DatasetSpec) -> frozenset[str]:
        """Return the columns of a ranker's rows that it does not read."""
        return frozenset(ranker_column(view, name, spec) for view, name in self.left_out)

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
        own = {view.name: view.numeric for view in self.views if view.key == key}
        return tuple(
            (view, name)
            for view, names in self.ranking
            for name in names
            if name in own.get(view, ())
        )

    @property
    def ranking_vectors(self) -> tuple[tuple[str, str, int], ...]:
        """Views, names and lengths of the vectors of items that the ranking models read."""
        own = {view.name: view.vectors for view in self.views}
        return tuple(
            (view, name, own[view][name])
            for view, names in self.ranking
            for name in names
            if name in own.get(view, {})
        )

    @property
    def ranking_on_demand(self) -> tuple[OnDemandView, ...]:
        """The on-demand views that the ranking models read."""
        read = dict(self.ranking)
        return tuple(
            replace(view.definition, features=read[view.definition.name])
            for view in self.on_demand
            if view.definition.name in read
        )

    @property
    def user_inputs(self) -> tuple[tuple[str, str], ...]:
        """Views and names of the user features that on-demand views read."""
        inputs = (given for view in self.ranking_on_demand for given in view.inputs)
        return tuple(
            dict.fromkeys((given.view, given.name) for given in inputs if given.owner == "user")
        )


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
    views |= {view.definition.name: view.registered for view in declared.on_demand}
    left_out = set(declared.left_out)
    with without_experimental_warnings():
        built_in_ranking = []
        for view in own.ranking:
            kept = [f.name for f in view.features if (view.name, f.name) not in left_out]
            if len(kept) == len(view.features):
                built_in_ranking.append(view)
            elif kept:
                built_in_ranking.append(view[kept])
        ranking = [views[name][list(names)] for name, names in declared.ranking]
        online = [
            view.registered[names]
            for view in declared.views
            if view.key == c.USER and (names := _served(view, declared))
        ]
        tower: dict[str, list[str]] = {}
        for name, feature in declared.user_tower:
            tower.setdefault(name, []).append(feature)
        user_tower = [views[name][names] for name, names in tower.items()]
    services = own.services(
        ranking=[*built_in_ranking, *ranking], online=online, user_tower=user_tower
    )
    return [*own.objects, *views.values(), *services]


def _served(view: DeclaredView, declared: Declared) -> list[str]:
    """Return the features of a user view that requests read: numbers, and on-demand inputs."""
    inputs = [name for owner, name in declared.user_inputs if owner == view.name]
    return list(dict.fromkeys([*view.numeric, *inputs]))


def _read(file: Path, spec: DatasetSpec, own: BuiltIn) -> Declared:
    names = {declared.name for declared in own.objects}
    names |= {*taken(spec.event_types), *spec.user_attributes, *spec.item_attributes}
    names |= {*EVENT_NAMES, *spec.context}
    found = _run(file, own)
    views: list[DeclaredView] = []
    for view in found:
        if not isinstance(view, FeatureView):
            continue
        with _refusing(file, f"view '{view.name}'"):
            declared = (
                declared_aggregates(view, spec, own.source(view.name))
                if isinstance(view, StreamFeatureView)
                else declared_table(view, file.parent)
            )
            _take(names, declared.names)
        views.append(declared)

    sources = _built_in_sources(own) | {view.name: _source(view) for view in views}
    on_demand: list[DeclaredOnDemand] = []
    for view in found:
        if isinstance(view, OnDemandFeatureView):
            with _refusing(file, f"view '{view.name}'"):
                _take(names, list(dict.fromkeys([view.name, *(f.name for f in view.features)])))
                for source in view.source_request_sources.values():
                    _check_fields(source, spec)
                on_demand.append(declared_on_demand(view, sources))

    services = {o.name: o for o in found if isinstance(o, FeatureService)}
    with _refusing(file, "service 'ranking'"):
        service = services.pop("ranking", None)
        ranking = selected_features(service, views, on_demand) if service else ()
        left_out = left_out_features(service, own.ranking) if service else ()
    with _refusing(file, "service 'user_tower'"):
        service = services.pop("user_tower", None)
        user_tower = tower_features(service, views, c.USER) if service else ()
    with _refusing(file, "service 'item_tower'"):
        service = services.pop("item_tower", None)
        item_tower = tower_features(service, views, c.ITEM) if service else ()
    return Declared(
        tuple(views),
        tuple(on_demand),
        ranking,
        tuple((view, name) for view, name, _ in user_tower),
        item_tower,
        left_out,
    )


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
    """Return a declared view as a source: its columns of users, its numbers of items."""
    if view.aggregates or view.key == c.ITEM:
        return Source(view.registered, view.key, view.numeric)
    fields = view.registered.features
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
    kinds = (FeatureView, OnDemandFeatureView, FeatureService)
    found = {id(o): o for o in scope.values() if isinstance(o, kinds) and id(o) not in built}
    return list(found.values())
