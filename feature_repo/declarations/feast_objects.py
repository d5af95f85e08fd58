"""The Feast objects of a data set: the built-in ones, and those of its ``features.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from feast import FeatureView

from feature_repo import columns as c
from feature_repo.dataset import DatasetSpec
from feature_repo.declarations.checks import DeclaredView, without_experimental_warnings
from feature_repo.declarations.declared import Declared
from feature_repo.declarations.reading import read_with
from feature_repo.declarations.tables import read_by_spark
from feature_repo.declarations.views import Profile, built_in


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
    declared = read_with(declarations, spec, own) if declarations else Declared()
    by_spark = profile == "cluster"
    views = {
        view.name: read_by_spark(view.registered) if by_spark else view.registered
        for view in declared.views
    }
    views |= {view.definition.name: view.registered for view in declared.on_demand}
    optional = {view.name: view.registered for view in own.optional}
    left_out = set(declared.left_out)
    with without_experimental_warnings():
        built_in_ranking = []
        for view in own.ranking:
            kept = [f.name for f in view.features if (view.name, f.name) not in left_out]
            if len(kept) == len(view.features):
                built_in_ranking.append(view)
            elif kept:
                built_in_ranking.append(view[kept])
        ranking = [(views | optional)[name][list(names)] for name, names in declared.ranking]
        online = [
            view.registered[names]
            for view in declared.views
            if view.key == c.USER and (names := _served(view, declared))
        ]
        online += [
            optional[name][list(names)] for name, names in declared.ranking if name in optional
        ]
        tower: dict[str, list[str]] = {}
        for name, feature in declared.tower_inputs:
            tower.setdefault(name, []).append(feature)
        known = {view.name: view for view in own.objects if isinstance(view, FeatureView)}
        user_tower = [(known | views)[name][names] for name, names in tower.items()]
    services = own.services(
        ranking=[*built_in_ranking, *ranking], online=online, user_tower=user_tower
    )
    return [*own.objects, *views.values(), *services, *declared.for_others]


def _served(view: DeclaredView, declared: Declared) -> list[str]:
    """Return the features of a user view that requests read.

    They are numbers, and what ranking models and on-demand views read besides.
    """
    read = [*declared.ranking_categorical(c.USER), *declared.user_inputs]
    inputs = [name for owner, name in read if owner == view.name]
    return list(dict.fromkeys([*view.numeric, *inputs]))
