"""The one row builder: a request's user, an item and what links them, as the ranker's inputs.

Training and serving call the same function on the same arrays, so a feature cannot mean two things.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from feature_repo import columns as c
from feature_repo.arrays import Float32Array, Float64Array, Int32Array

CROSS = c.PAIR_FEATURES
"""Numeric features of a user-item pair."""

ITEM_AGES = c.ITEM_AGES
"""Days since an item's first and last event, at the moment of the request."""

PAIR_COLUMNS = len(CROSS) + len(ITEM_AGES)
"""Number of the columns of a pair, without on-demand features."""

REQUEST_TIME = {"hour_of_day": 24, "day_of_week": 7}
"""Categorical features of the request's time, with their cardinalities."""


@dataclass(frozen=True)
class UserRows:
    """The user columns of ``B`` requests.

    ``numeric`` is float32 ``[B, Fu]``, NaN where missing; ``categorical`` is int32 ``[B, Cu]``.
    """

    numeric: Float32Array
    categorical: Int32Array
    time: Float64Array


@dataclass(frozen=True)
class ItemRows:
    """The columns of all ``N`` items.

    ``numeric`` is float32 ``[N, Fi]`` and ``categorical`` int32 ``[N, Ci]``. Times are in epoch
    seconds.
    """

    numeric: Float32Array
    categorical: Int32Array
    first_event_at: Float64Array
    last_event_at: Float64Array


@dataclass(frozen=True)
class PairRows:
    """One request's user beside ``n`` items, before they are joined to rows.

    ``pair`` float32 ``[n, P]``: ``CROSS``, ``ITEM_AGES``, then declared features (NaN: missing);
    ``user_numeric`` float32 ``[Fu]``; ``user_categorical`` int32 ``[Cu]``; ``item`` int32 ``[n]``,
    the items' rows in the catalogue; ``missing``: on-demand features that could not be computed.
    """

    pair: Float32Array
    user_numeric: Float32Array
    user_categorical: Int32Array
    item: Int32Array
    missing: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.item)

    def __getitem__(self, rows: npt.NDArray[Any]) -> PairRows:
        return PairRows(self.pair[rows], self.user_numeric, self.user_categorical, self.item[rows])

    def join(self, items: ItemRows) -> tuple[Float32Array, Int32Array]:
        """Return the ranker's inputs.

        Numeric float32 ``[n, F]`` (NaN: missing) and categorical int32 ``[n, C]``.
        """
        numeric = _side_by_side(self.pair, self.user_numeric, items.numeric[self.item])
        return numeric, _side_by_side(self.user_categorical, items.categorical[self.item])


def _side_by_side(*parts: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return arrays ``[n, k]`` beside each other.

    One of a single row ``[k]`` stands in every row.
    """
    out = np.empty((len(parts[-1]), sum(part.shape[-1] for part in parts)), dtype=parts[-1].dtype)
    start = 0
    for part in parts:
        out[:, start : start + part.shape[-1]] = part
        start += part.shape[-1]
    return out
