"""Declared features that the towers read: how they are standardised, and those of all items."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

from feature_repo import columns as c
from feature_repo.arrays import Float32Array
from feature_repo.declarations.declared import Declared
from feature_repo.encoding import moments_of, standardised
from feature_repo.views import TOWER_USERS
from pipelines.features.point_in_time import DAY_S, PointInTime
from pipelines.training.split import epoch_seconds
from ranking.data import spaced_rows
from serving.recommender.codec import TowerFeature
from serving.recommender.item_table import unit_vectors

_SAMPLE = 20_000
"""Past requests that moments are taken from."""


def fit_user_features(
    declared: Declared, features: PointInTime, events: pd.DataFrame
) -> tuple[TowerFeature, ...]:
    """Return the user tower's declared features, with moments as of the events of a sample."""
    pairs = declared.user_tower
    if not pairs:
        return ()
    sample = events.iloc[spaced_rows(len(events), _SAMPLE)]
    users = sample[c.USER].to_numpy(dtype=object)
    times = epoch_seconds(sample[c.TIMESTAMP])
    values: dict[str, list[float | None]] = {name: [] for _, name in pairs}
    for _, columns in features.users(TOWER_USERS, users, times):
        for name, column in values.items():
            column += columns[name]
    return tuple(TowerFeature(view, name, 1, *moments_of(values[name])) for view, name in pairs)


def fit_item_features(
    declared: Declared, features: PointInTime, items: Sequence[str], time: float
) -> tuple[TowerFeature, ...]:
    """Return the item tower's declared features, with moments as of the midnight before a time."""
    pairs = [(view, name) for view, name, _ in declared.item_tower]
    if not pairs:
        return ()
    table = features.items(items, pairs, int(time // DAY_S))
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
    table = features.items(items, pairs, int(time // DAY_S))
    parts = [_inputs(feature, table[feature.name]) for feature in tower]
    return np.concatenate(parts, axis=1)


def _inputs(feature: TowerFeature, column: pa.ChunkedArray) -> Float32Array:
    """Return one feature of all items, float32 ``[N, size]``."""
    values = [None, *column.to_pylist()]
    if feature.size > 1:
        return unit_vectors(values, feature.size)
    numbers = np.array([np.nan if v is None else v for v in values], dtype=np.float64)
    return standardised(numbers[:, None], [feature.mean], [feature.spread])
