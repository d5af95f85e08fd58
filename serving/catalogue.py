"""The item table: every item's attributes and activity, columnar, in the process.

Row 0 is no item; row ``code`` is the item with that code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feature_repo import columns as c
from feature_repo.encoding import Codes, Encoded, Floats
from ranking.rows import ItemRows
from serving.codec import Codec, ranked_codes

Times = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Activity:
    """Items' counts as of a moment: ``counts`` float32 ``[N, F]`` and event times, epoch seconds, NaN: none."""

    counts: Floats
    first_event_at: Times
    last_event_at: Times


@dataclass(frozen=True)
class ItemTable:
    """All items of a release.

    ``encoded`` has ``N`` rows; ``categories`` int32 ``[N, G]`` category codes (0: none) of which the
    first is the item's main one; ``raw`` holds each attribute as given, for rules and for people.
    """

    codec: Codec
    raw: Mapping[str, Sequence[Any]]
    encoded: Encoded
    categories: Codes
    available_from: Times
    available_until: Times
    activity: Activity

    def __len__(self) -> int:
        return len(self.available_from)

    def with_activity(self, activity: Activity) -> ItemTable:
        """Return the table with other counts; everything else is shared."""
        return replace(self, activity=activity)

    @cached_property
    def rows(self) -> ItemRows:
        """The ranker's view."""
        numeric = np.concatenate([self.activity.counts, self.encoded.numbers], axis=1, dtype=np.float32)
        categorical = ranked_codes(self.codec.item_attributes, self.encoded.first)
        return ItemRows(numeric, categorical, self.activity.first_event_at, self.activity.last_event_at)

    def available(self, time: float, codes: Codes | None = None) -> npt.NDArray[np.bool_]:
        """Return which items can be had at a moment (epoch seconds): of ``codes`` ``[n]``, or of all; row 0 never."""
        begin, end = self.available_from, self.available_until
        if codes is not None:
            return np.asarray((begin[codes] <= time) & (time < end[codes]) & (codes > 0))
        mask = (begin <= time) & (time < end)
        mask[0] = False
        return np.asarray(mask)

    def availability_state(self, time: Times) -> npt.NDArray[np.int64]:
        """Return numbers, int64 ``[n]``, equal for moments between which nothing comes or goes."""
        return np.searchsorted(self._turns, time, side="right").astype(np.int64)

    @cached_property
    def memo(self) -> dict[Any, Any]:
        """What others keep that holds for this table only."""
        return {}

    @cached_property
    def _turns(self) -> Times:
        return np.unique(np.concatenate([self.available_from, self.available_until]))

    def main_category(self, item_id: str) -> str:
        """Return the name of an item's main category, "" if it has none."""
        code = self.categories[self.codec.items.code(item_id), 0]
        return self.codec.categories.values[code - 1] if code else ""

    def count(self, name: str) -> Floats:
        """Return one activity column, float32 ``[N]``, 0 where nothing is known."""
        return np.nan_to_num(self.activity.counts[:, self.codec.item_activity.index(name)], nan=0.0)


def activity_from(columns: Mapping[str, Sequence[Any] | npt.NDArray[Any]], codec: Codec) -> Activity:
    """Return activity from feature columns that have one value per item code, row 0 included."""

    def numbers(name: str) -> Times:
        return np.array([np.nan if v is None else v for v in columns[name]], dtype=np.float64)

    counts = np.stack([numbers(name) for name in codec.item_activity], axis=1).astype(np.float32)
    return Activity(counts, numbers(c.FIRST_EVENT_AT), numbers(c.LAST_EVENT_AT))


def build_items(codec: Codec, columns: Mapping[str, Sequence[Any]]) -> ItemTable:
    """Build the table from one value per item (in code order, without row 0) of each attribute and count."""
    size = len(codec.items)
    raw = {name: [None, *columns[name]] for name in codec.spec.item_attributes}
    encoded = codec.item_attributes.encode(raw, size)

    def times(name: str, missing: float) -> Times:
        values = columns.get(name)
        if values is None:
            return np.full(size, missing)
        return np.array([missing, *(missing if v is None or v != v else v for v in values)], dtype=np.float64)

    activity = activity_from({name: [None, *values] for name, values in columns.items()}, codec)
    return ItemTable(
        codec, raw, encoded, _categories(codec, raw, size), times(c.AVAILABLE_FROM, -np.inf),
        times(c.AVAILABLE_UNTIL, np.inf), activity,
    )  # fmt: skip


def _categories(codec: Codec, raw: Mapping[str, Sequence[Any]], size: int) -> Codes:
    name = codec.spec.category
    if name is None:
        return np.zeros((size, 1), dtype=np.int32)
    lists = [[value] if isinstance(value, str) else list(value if value is not None else ()) for value in raw[name]]
    width = max(1, max(map(len, lists)))
    codes = np.zeros((size, width), dtype=np.int32)
    for row, values in enumerate(lists):
        codes[row, : len(values)] = codec.categories.encode(values)
    return codes


def to_arrow(table: ItemTable) -> pa.Table:
    """Return the table as Arrow, one row per item, for storage in a release."""
    codec = table.codec
    data: dict[str, Any] = {c.ITEM: codec.items.values}
    data |= {name: list(values[1:]) for name, values in table.raw.items()}
    for name in (c.AVAILABLE_FROM, c.AVAILABLE_UNTIL):
        values = getattr(table, name)[1:]
        data[name] = [float(v) if np.isfinite(v) else None for v in values]
    for position, name in enumerate(codec.item_activity):
        data[name] = _nullable(table.activity.counts[1:, position])
    data[c.FIRST_EVENT_AT] = _nullable(table.activity.first_event_at[1:])
    data[c.LAST_EVENT_AT] = _nullable(table.activity.last_event_at[1:])
    return pa.table(data)


def _nullable(values: npt.NDArray[Any]) -> pa.Array:
    return pa.array(values.astype(np.float64), mask=np.isnan(values))


def from_arrow(table: pa.Table, codec: Codec) -> ItemTable:
    """Restore what ``to_arrow`` gave."""
    return build_items(codec, {name: table[name].to_pylist() for name in table.column_names})
