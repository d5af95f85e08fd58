"""A user's own features: what the ``features.py`` beside a ``dataset.toml`` declares.

The file is the operator's trusted code: reading it runs it.
"""

from __future__ import annotations

import re
import runpy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

from feast import FeatureService, FeatureView, Field, PushSource, StreamFeatureView
from feast.aggregation import Aggregation
from feast.types import String

from feature_repo import columns as c
from feature_repo.aggregates.definition import AggregateView, Function
from feature_repo.aggregates.feast_view import ENTITIES, definition_of, event_types, feature_types
from feature_repo.dataset import DatasetSpec
from feature_repo.declare import EVENT_COLUMNS, built_in_views, events
from feature_repo.errors import FunnelError
from feature_repo.hashing import fingerprint
from feature_repo.own_names import taken
from feature_repo.views import BuiltIn, Profile, built_in
from feature_repo.workspace import Workspace

_NAME = re.compile(r"[a-z][a-z0-9_]{0,59}")
_LEAST_WINDOW = timedelta(minutes=1)


class BadDefinition(FunnelError):
    """A ``features.py`` cannot be used; the message says where and why."""

    exit_code = 2


@dataclass(frozen=True)
class Declared:
    """What a ``features.py`` adds to the built-in features.

    Attributes:
        aggregates: the views of aggregates of events.
        ranking: for each view, the features that the ranking models read.
        objects: Feast objects to register beside the built-in ones.

    """

    aggregates: tuple[AggregateView, ...] = ()
    ranking: tuple[tuple[str, tuple[str, ...]], ...] = ()
    objects: tuple[Any, ...] = ()

    @property
    def version(self) -> str:
        """A hash of what is computed from events; "" if nothing is."""
        return fingerprint(repr(self.aggregates)) if self.aggregates else ""

    def of_key(self, key: str) -> tuple[AggregateView, ...]:
        """Return the views whose rows are of users (``user_id``) or of items (``item_id``)."""
        return tuple(view for view in self.aggregates if view.key == key)

    def ranking_numeric(self, key: str) -> tuple[str, ...]:
        """Return the numeric features of users or items that the ranking models read."""
        own = {view.name for view in self.of_key(key)}
        return tuple(name for view, names in self.ranking if view in own for name in names)


def declared_in(workspace: Workspace, profile: Profile = "local") -> Declared:
    """Return what the working folder's ``features.py`` declares, nothing without one.

    Raises:
        BadDefinition: the file cannot be used.

    """
    return read_declared(workspace.declarations, workspace.spec(), workspace.features, profile)


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
    declared = _read(declarations, spec, own)
    views = {view.name: view for view in declared.objects if isinstance(view, FeatureView)}
    with _without_experimental_warnings():
        projections = [views[name][list(names)] for name, names in declared.ranking]
        of_users = [
            views[view.name][[aggregate.name for aggregate in view.aggregates]]
            for view in declared.of_key(c.USER)
        ]
    return [*own.objects, *declared.objects, *own.services(ranking=projections, online=of_users)]


def read_declared(
    file: Path | None, spec: DatasetSpec, features: Path, profile: Profile = "local"
) -> Declared:
    """Return what a ``features.py`` declares for a data set; None: nothing.

    Raises:
        BadDefinition: the file cannot be used.

    """
    if file is None:
        return Declared()
    return _read(file, spec, built_in(spec, features, profile))


def _read(file: Path | None, spec: DatasetSpec, own: BuiltIn) -> Declared:
    if file is None:
        return Declared()
    found = _run(file, own)
    aggregates: list[AggregateView] = []
    objects: list[Any] = []
    names = {declared.name for declared in own.objects}
    names |= {*taken(spec.event_types), *spec.user_attributes, *spec.item_attributes}
    for view in found:
        if not isinstance(view, StreamFeatureView):
            continue
        definition = aggregate_view(view, spec, file)
        own_names = [a.name for a in definition.aggregates]
        for name in (view.name, *own_names, definition.state_column):
            if name in names:
                raise BadDefinition(
                    f"{file}: view '{view.name}': the name '{name}' is taken; choose another"
                )
            names.add(name)
        aggregates.append(definition)
        objects.append(_registered(view, definition, own))

    ranking = [o for o in found if isinstance(o, FeatureService) and o.name == "ranking"]
    selected = _selected(ranking[0], aggregates, file) if ranking else ()
    return Declared(tuple(aggregates), selected, tuple(objects))


@contextmanager
def _without_experimental_warnings() -> Iterator[None]:
    """Silence Feast's warning that stream feature views are experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def _run(file: Path, own: BuiltIn) -> list[Any]:
    """Return the Feast objects that a file declares, each once."""
    token = built_in_views.set({"ranking": own.ranking})
    try:
        with _without_experimental_warnings():
            scope = runpy.run_path(str(file), run_name="features")
    except FileNotFoundError:
        raise BadDefinition(
            f"{file.resolve()}: no such file, though dataset.toml names it in 'features'"
        ) from None
    except Exception as error:
        raise BadDefinition(f"{file}: {type(error).__name__}: {error}") from error
    finally:
        built_in_views.reset(token)
    kinds = (FeatureView, FeatureService)
    return list({id(o): o for o in scope.values() if isinstance(o, kinds)}.values())


def aggregate_view(view: StreamFeatureView, spec: DatasetSpec, file: Path) -> AggregateView:
    """Return what a view declares about aggregates of events.

    Raises:
        BadDefinition: Funnel cannot compute it; the message names ``file``, view and reason.

    """

    def refuse(reason: str) -> BadDefinition:
        return BadDefinition(f"{file}: view '{view.name}': {reason}")

    if not _NAME.fullmatch(view.name):
        raise refuse("a name has small letters, digits and '_', and begins with a letter")
    if len(view.entities) != 1 or view.entities[0] not in ENTITIES:
        raise refuse(f"its entity is one of {sorted(ENTITIES)}, not {view.entities}")
    if view.stream_source != events:
        raise refuse("its source is 'events' of feature_repo.declare")
    if not view.aggregations:
        raise refuse("it has no aggregations")
    types = event_types(view)
    unknown = sorted(set(types) - set(spec.event_types))
    if unknown:
        raise refuse(f"event types {unknown} are not among {spec.event_types}")
    for aggregation in view.aggregations:
        reason = _problem(aggregation, spec)
        if reason:
            raise refuse(f"aggregation '{aggregation.name}': {reason}")
    return definition_of(view)


def _problem(aggregation: Aggregation, spec: DatasetSpec) -> str | None:
    """Return why Funnel cannot compute an aggregation; None: it can."""
    window = aggregation.time_window
    functions = list(get_args(Function))
    of_value = aggregation.column == c.VALUE
    if not _NAME.fullmatch(aggregation.resolved_name(window)):
        return "a name has small letters, digits and '_', and begins with a letter"
    if aggregation.function not in functions:
        return f"the function is one of {functions}, not '{aggregation.function}'"
    if aggregation.column not in ("", *EVENT_COLUMNS):
        return f"events have no column '{aggregation.column}', only {list(EVENT_COLUMNS)}"
    if aggregation.function != "count" and not of_value:
        return f"'{aggregation.function}' takes column '{c.VALUE}'"
    if of_value and not spec.has_value:
        return "the events of dataset.toml have no value"
    if window is not None and window < _LEAST_WINDOW:
        return "a time window is at least a minute, or None for all time"
    if aggregation.slide_interval not in (None, window):
        return "slide_interval is not used: a window slides by a sixtieth of its length"
    return None


def _registered(
    view: StreamFeatureView, definition: AggregateView, own: BuiltIn
) -> StreamFeatureView:
    """Return a view as it is registered: with its features, over the table of its values."""
    fields = [Field(name=definition.key, dtype=String)]
    fields += [Field(name=name, dtype=kind) for name, kind in feature_types(definition).items()]
    push = PushSource(name=f"{view.name}_push", batch_source=own.source(view.name))
    with _without_experimental_warnings():
        return StreamFeatureView(
            name=view.name,
            entities=[ENTITIES[view.entities[0]]],
            ttl=view.ttl,
            schema=fields,
            source=push,
            aggregations=view.aggregations,
            timestamp_field=c.EVENT_TIMESTAMP,
            tags=view.tags,
            description=view.description,
            owner=view.owner,
        )


def _selected(
    service: FeatureService, aggregates: Sequence[AggregateView], file: Path
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the features of declared views that a service reads."""
    views = {view.name: [a.name for a in view.aggregates] for view in aggregates}
    selected = []
    for projection in service.feature_view_projections:
        if projection.name not in views:
            continue
        wanted = projection.desired_features or [f.name for f in projection.features]
        wanted = wanted or views[projection.name]
        unknown = sorted(set(wanted) - set(views[projection.name]))
        if unknown:
            raise BadDefinition(
                f"{file}: service '{service.name}': view '{projection.name}' has no {unknown}"
            )
        selected.append((projection.name, tuple(wanted)))
    return tuple(selected)
