"""The events of some keys as arrays, and which of them an aggregate is of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from feature_repo import columns as c
from feature_repo.aggregates.condition import columns_of, predicate
from feature_repo.aggregates.definition import Aggregate
from feature_repo.arrays import BoolArray, Int64Array
from feature_repo.units import DAY_MICROS

Values = npt.NDArray[Any]
"""Integers ``[n]``: int64, or objects where they may be larger; texts and lists are objects."""


@dataclass(frozen=True)
class Column:
    """A column of ``n`` events: ``values`` ``[n]``, and whether each is ``known``, bool ``[n]``."""

    values: Values
    known: BoolArray

    @classmethod
    def of(cls, values: list[Any]) -> Column:
        """Return a column of numbers in millionths, texts or lists; None: missing."""
        known = np.array([value is not None for value in values], dtype=np.bool_)
        if all(isinstance(value, int | None) for value in values):
            return cls(_integers([value or 0 for value in values]), known)
        column = np.empty(len(values), dtype=object)
        column[:] = values
        return cls(column, known)


def _integers(values: list[int]) -> Values:
    try:
        return np.array(values, dtype=np.int64)
    except OverflowError:
        return np.array(values, dtype=object)


@dataclass(frozen=True)
class Occurrences:
    """``n`` events of some keys, by key, then time, then event id.

    Attributes:
        key: number of each event's key, int64 ``[n]``, ascending.
        micros: event times, microseconds since the epoch, int64 ``[n]``.
        type: event types, objects ``[n]``.
        weight: of the types, in millionths, int64 ``[n]``.
        columns: further columns by name.

    """

    key: Int64Array
    micros: Int64Array
    type: npt.NDArray[np.object_]
    weight: Int64Array
    columns: Mapping[str, Column]

    def __len__(self) -> int:
        return len(self.key)

    def column(self, name: str) -> Column:
        """Return a column of the events."""
        always = np.ones(len(self), dtype=np.bool_)
        if name == c.TIMESTAMP:
            return Column(self.micros, always)
        if name == c.DAY:
            return Column(self.micros // DAY_MICROS, always)
        if name == c.TYPE:
            return Column(self.type, always)
        if name == c.EVENT_ID and name not in self.columns:
            return Column(np.arange(len(self)), always)  # distinct, as ids are
        return self.columns[name]

    def rows_of(self, aggregate: Aggregate) -> Int64Array:
        """Return which events an aggregate is of, ascending, int64 ``[k]``."""
        counts = self.column(aggregate.column).known
        if aggregate.types:
            counts = counts & np.isin(self.type, np.array(aggregate.types, dtype=object))
        rows = np.flatnonzero(counts)
        if not aggregate.where:
            return rows
        holds = predicate(aggregate.where)
        names = list(columns_of(aggregate.where))
        read = [self.column(name) for name in names]
        return np.array(
            [
                row
                for row in rows.tolist()
                if holds(
                    {
                        name: column.values[row] if column.known[row] else None
                        for name, column in zip(names, read, strict=True)
                    }
                )
            ],
            dtype=np.int64,
        )
