"""On-demand features of a request's candidates: their inputs are gathered, their functions run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from feature_repo.arrays import Float32Array, Int32Array
from feature_repo.on_demand.view import Input, OnDemandError, OnDemandView, Values
from serving.recommender.codec import Codec
from serving.recommender.deadline import Breaker, Deadline
from serving.recommender.item_table import ItemTable
from serving.recommender.users import UserBatch

_log = logging.getLogger(__name__)

_SLOW_S = 0.02
_PAUSE_S = 30.0
"""How long a function is left out that made a request miss its deadline."""


class Pairs(NamedTuple):
    """A user of a batch beside ``n`` items: ``row`` of the user, and codes int32 ``[n]``."""

    users: UserBatch
    row: int
    codes: Int32Array
    items: ItemTable


_Read = Callable[[Pairs], Values]
"""Returns an input's values ``[n]``."""


class OnDemandFeatures:
    """Computes a release's on-demand features; a function that fails leaves them missing."""

    def __init__(self, codec: Codec) -> None:
        self.width = len(codec.on_demand_features)
        self._views = [
            _View(view, [_reader(given, codec) for given in view.inputs])
            for view in codec.on_demand
        ]

    def write(self, out: Float32Array, pairs: Pairs, deadline: Deadline) -> tuple[str, ...]:
        """Write the features of ``n`` pairs, and return those that could not be computed.

        Args:
            out: float32 ``[n, width]``, written; NaN: missing.
            pairs: the user and the items.
            deadline: of the request.

        """
        missing: tuple[str, ...] = ()
        start = 0
        for view in self._views:
            part = out[:, start : start + view.width]
            values = [read(pairs) for read in view.reads]
            missing += view.write(part, values, deadline)
            start += view.width
        return missing


class _View:
    """One view, which is left out for a while after it made a request late."""

    def __init__(self, view: OnDemandView, reads: Sequence[_Read]) -> None:
        self.reads = reads
        self.width = len(view.features)
        self._view = view
        self._breaker = Breaker(failures=1, open_s=_PAUSE_S)

    def write(self, out: Float32Array, values: list[Values], deadline: Deadline) -> tuple[str, ...]:
        """Write the features ``[n, width]``, and return the names of those that are missing."""
        features = self._view.features
        out[:] = np.nan
        if not self._breaker.allows():
            return features
        start = perf_counter()
        try:
            out[:] = self._view.compute(values, len(out))
        except OnDemandError as error:
            _log.warning("on-demand view %s: %s", self._view.name, error)
            return features
        if deadline.remaining() < 0 and perf_counter() - start > _SLOW_S:
            _log.warning("on-demand view %s is too slow; it pauses", self._view.name)
            self._breaker.failed()
        else:
            self._breaker.succeeded()

        # A missing value is explained by a missing input; where there is none, it is a failure.
        absent = np.isnan(out)
        if not absent.any():
            return ()
        complete = ~np.logical_or.reduce([_missing(column) for column in values])
        failed = (absent & complete[:, None]).any(axis=0)
        return tuple(name for name, bad in zip(features, failed, strict=True) if bad)


def _missing(values: Values) -> Any:
    """Return which values are missing, bool ``[n]``."""
    if values.dtype == object:
        return np.array([value is None for value in values])
    return np.isnan(values)


def _reader(given: Input, codec: Codec) -> _Read:
    """Return what reads an input."""
    name = given.name
    if given.owner != "item":
        numeric = given.numeric
        return lambda pairs: _repeated(
            pairs.users.inputs[name][pairs.row], len(pairs.codes), numeric=numeric
        )
    if name in codec.item_activity:
        count = codec.item_activity.index(name)
        return lambda pairs: pairs.items.activity.counts[pairs.codes, count].astype(np.float64)
    if name in codec.item_attributes.numeric:
        number = codec.item_attributes.numeric.index(name)
        return lambda pairs: pairs.items.encoded.numbers[pairs.codes, number].astype(np.float64)
    return lambda pairs: pairs.items.raw[name].take(pairs.codes)


def _repeated(value: Any, size: int, *, numeric: bool) -> Values:
    """Return a user's value once per candidate, ``[n]``."""
    if numeric:
        return np.full(size, np.nan if value is None else value, dtype=np.float64)
    if isinstance(value, float):  # pandas' missing text
        value = None
    values = np.empty(size, dtype=object)
    values.fill(value)
    return values
