"""Fits declared features on training rows: the towers' numbers, and the ranker's categories."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from feature_repo import columns as c
from feature_repo.arrays import Float32Array
from feature_repo.declarations.declared import Declared
from feature_repo.encoding import Vocabulary, moments_of, standardised
from pipelines.features.point_in_time import DAY_S, PointInTime
from pipelines.training.past_requests import context_of
from pipelines.training.split import epoch_seconds
from ranking.data import spaced_rows
from serving.recommender.codec import Category, TowerFeature
from serving.recommender.item_table import unit_vectors
from serving.recommender.users import with_computed

_SAMPLE = 20_000
"""Past requests that moments are taken from."""


def fit_user_features(
    declared: Declared, features: PointInTime, events: pd.DataFrame, context: Iterable[str] = ()
) -> tuple[TowerFeature, ...]:
    """Return the user tower's declared features, with moments as of the events of a sample.

    ``context``: names of the columns of ``events`` that requests have as well.
    """
    if not declared.user_tower:
        return ()
    sample = events.iloc[spaced_rows(len(events), _SAMPLE)]
    columns: dict[str, Any] = {
        name: values.tolist() for name, values in context_of(sample, context).items()
    }
    if declared.tower_inputs:
        table = _of_sample(declared.tower_inputs, features, events)
        columns |= {name: table[name].to_pylist() for _, name in declared.tower_inputs}
    time = epoch_seconds(sample[c.TIMESTAMP])
    given, _ = with_computed(declared.tower_views, columns, time)
    return tuple(
        TowerFeature(view, name, 1, *moments_of(list(given[name])))
        for view, name in declared.user_tower
    )


def fit_user_categories(
    declared: Declared, features: PointInTime, events: pd.DataFrame
) -> tuple[Category, ...]:
    """Return the ranker's declared categories of users, as of the events of a sample."""
    pairs = declared.ranking_categorical(c.USER)
    return _categories(pairs, _of_sample(pairs, features, events)) if pairs else ()


def fit_item_categories(
    declared: Declared, features: PointInTime, items: Sequence[str], time: float
) -> tuple[Category, ...]:
    """Return the ranker's declared categories of items, as of the midnight before a time."""
    pairs = declared.ranking_categorical(c.ITEM)
    return _categories(pairs, _at_midnight(pairs, features, items, time)) if pairs else ()


def _of_sample(
    pairs: Sequence[tuple[str, str]], features: PointInTime, events: pd.DataFrame
) -> pa.Table:
    """Return features of users just before a sample of events."""
    sample = events.iloc[spaced_rows(len(events), _SAMPLE)]
    users = sample[c.USER].to_numpy(dtype=object)
    return features.user_values(pairs, users, epoch_seconds(sample[c.TIMESTAMP]))


def _at_midnight(
    pairs: Sequence[tuple[str, str]], features: PointInTime, items: Sequence[str], time: float
) -> pa.Table:
    """Return features of items at the midnight before a time, epoch seconds."""
    return features.items(items, pairs, np.array([time // DAY_S], dtype=np.int64))


def _categories(pairs: Sequence[tuple[str, str]], table: pa.Table) -> tuple[Category, ...]:
    return tuple(
        Category(view, name, Vocabulary.fit(table[name].drop_null().to_pylist()))
        for view, name in pairs
    )


def fit_item_features(
    declared: Declared, features: PointInTime, items: Sequence[str], time: float
) -> tuple[TowerFeature, ...]:
    """Return the item tower's declared features, with moments as of the midnight before a time."""
    pairs = [(view, name) for view, name, _ in declared.item_tower]
    if not pairs:
        return ()
    table = _at_midnight(pairs, features, items, time)
    return tuple(
        TowerFeature(view, name, size, *(moments_of(table[name].to_pylist()) if size == 1 else ()))
        for view, name, size in declared.item_tower
    )


def item_features(
    tower: Sequence[TowerFeature], features: PointInTime, items: Sequence[str], time: float
) -> Float32Array:
    """Return the item tower's declared inputs as of the midnight before a time.

    Args:
        tower: the features.
        features: reads them.
        items: the ids of all items.
        time: epoch seconds.

    Returns:
        float32 ``[N, W]`` by item code, 0 where missing: standardised numbers and unit vectors.

    """
    if not tower:
        return np.zeros((len(items) + 1, 0), dtype=np.float32)
    pairs = [(feature.view, feature.name) for feature in tower]
    table = _at_midnight(pairs, features, items, time)
    parts = [_inputs(feature, table[feature.name]) for feature in tower]
    return np.concatenate(parts, axis=1)


def _inputs(feature: TowerFeature, column: pa.ChunkedArray) -> Float32Array:
    """Return one feature of all items, float32 ``[N, size]``."""
    values = [None, *column.to_pylist()]
    if feature.size > 1:
        return unit_vectors(values, feature.size)
    numbers = np.array([np.nan if v is None else v for v in values], dtype=np.float64)
    return standardised(numbers[:, None], [feature.mean], [feature.spread])
