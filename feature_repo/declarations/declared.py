"""What a data set's ``features.py`` declares: views, and which features each model reads."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from feast import FeatureService
from feast.permissions.permission import Permission

from feature_repo.aggregates.definition import AggregateView
from feature_repo.dataset import DatasetSpec
from feature_repo.declarations.checks import DeclaredView
from feature_repo.declarations.on_demand_views import DeclaredOnDemand
from feature_repo.declarations.services import ranker_column
from feature_repo.hashing import fingerprint
from feature_repo.on_demand.view import OnDemandView


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
        built_in: the built-in aggregates of events.
        optional: built-in views that ranking models read where a service names them.
        for_others: services of other readers than the models, and permissions of Feast.

    """

    views: tuple[DeclaredView, ...] = ()
    on_demand: tuple[DeclaredOnDemand, ...] = ()
    ranking: tuple[tuple[str, tuple[str, ...]], ...] = ()
    user_tower: tuple[tuple[str, str], ...] = ()
    item_tower: tuple[tuple[str, str, int], ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    built_in: tuple[AggregateView, ...] = ()
    optional: tuple[DeclaredView, ...] = ()
    for_others: tuple[FeatureService | Permission, ...] = ()

    def left_out_columns(self, spec: DatasetSpec) -> frozenset[str]:
        """Return the columns of a ranker's rows that it does not read."""
        return frozenset(ranker_column(view, name, spec) for view, name in self.left_out)

    @property
    def aggregates(self) -> tuple[AggregateView, ...]:
        """What is computed from events."""
        return (*self.built_in, *(view.aggregates for view in self.views if view.aggregates))

    @property
    def version(self) -> str:
        """A hash of what is computed from events."""
        return fingerprint(repr(self.aggregates))

    @property
    def streamed(self) -> tuple[AggregateView, ...]:
        """What the stream computes, too."""
        return tuple(view for view in self.aggregates if not view.daily)

    @property
    def streamed_version(self) -> str:
        """A hash of what the stream computes; "" if that is nothing."""
        return fingerprint(repr(self.streamed)) if self.streamed else ""

    def ranking_numeric(self, key: str) -> tuple[tuple[str, str], ...]:
        """Return views and names of the numeric features that the ranking models read."""
        views = (*self.views, *self.optional)
        return self._ranking({view.name: view.numeric for view in views if view.key == key})

    def ranking_categorical(self, key: str) -> tuple[tuple[str, str], ...]:
        """Return views and names of the categories that the ranking models read."""
        own = {view.name: view.categorical for view in self.views if view.key == key}
        return self._ranking(own)

    def _ranking(self, own: Mapping[str, Collection[str]]) -> tuple[tuple[str, str], ...]:
        """Return those of some views and names that the ranking models read."""
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
        return tuple((view, name, own[view][name]) for view, name in self._ranking(own))

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
    def tower_views(self) -> tuple[OnDemandView, ...]:
        """The on-demand views that the user tower reads, with the features that it reads."""
        named: dict[str, list[str]] = {}
        for view, feature in self.user_tower:
            named.setdefault(view, []).append(feature)
        return tuple(
            replace(view.definition, features=tuple(named[view.definition.name]))
            for view in self.on_demand
            if view.definition.name in named
        )

    @property
    def tower_inputs(self) -> tuple[tuple[str, str], ...]:
        """Views and names of the stored features of users that the user tower reads."""
        computed = {view.name for view in self.tower_views}
        stored = [pair for pair in self.user_tower if pair[0] not in computed]
        inputs = (given for view in self.tower_views for given in view.inputs)
        stored += [(given.view, given.name) for given in inputs if given.owner == "user"]
        return tuple(dict.fromkeys(stored))

    @property
    def user_inputs(self) -> tuple[tuple[str, str], ...]:
        """Views and names of the user features that on-demand views read."""
        views = (*self.ranking_on_demand, *self.tower_views)
        inputs = (given for view in views for given in view.inputs)
        return tuple(
            dict.fromkeys((given.view, given.name) for given in inputs if given.owner == "user")
        )
