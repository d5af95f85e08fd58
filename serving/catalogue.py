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
import pyarrow.compute as pc

from feature_repo import columns as c
from feature_repo.encoding import Codes, Encoded, Floats
from ranking.rows import ItemRows
from serving.codec import Codec, ranked_columns

Times = npt.NDArray[np.float64]

ATTRIBUTE_TYPES = {
    "categorical": pa.string(),
    "multi_categorical": pa.list_(pa.string()),
    "numeric": pa.float64(),
    "text": pa.string(),
}
"""Arrow's type of each kind of attribute."""


@dataclass(frozen=True)
class Activity:
    """Items' counts as of a moment: ``counts`` float32 ``[N, F]`` and event times, epoch seconds, NaN: none.

    ``numeric`` float32 ``[N, F + M]``: the counts with the numbers of the attributes beside them, if they lie so
    in memory (in a file that processes share); None: they do not.
    """

    counts: Floats
    first_event_at: Times
    last_event_at: Times
    numeric: Floats | None = None


class RawColumn(Sequence[Any]):
    """An attribute as given, by item code; None for item 0. The values stay in Arrow: a million strings cost dear."""

    def __init__(self, values: pa.Array) -> None:
        """``values`` has one value per item, without row 0."""
        self.values = values

    def __len__(self) -> int:
        return len(self.values) + 1

    def __getitem__(self, code: Any) -> Any:
        return self.values[code - 1].as_py() if code else None

    def numbers(self) -> Times:
        """Return a numeric attribute, float64 ``[N]``, NaN where missing."""
        return np.concatenate([[np.nan], self.values.cast(pa.float64()).to_numpy(zero_copy_only=False)])

    def by_value(self) -> dict[str, Codes]:
        """Return the codes of the items that have a value, by value; those of a list have each of its values."""
        flat, owner = self.values, np.arange(1, len(self), dtype=np.int32)
        if pa.types.is_list(flat.type):
            owner = owner[pc.list_parent_indices(flat).to_numpy()]
            flat = pc.list_flatten(flat)
        known = flat.drop_null().dictionary_encode()
        owner = owner[flat.is_valid().to_numpy(zero_copy_only=False)]
        place = known.indices.to_numpy()
        order = np.argsort(place, kind="stable")
        borders = np.searchsorted(place[order], np.arange(1, len(known.dictionary)))
        return dict(zip(known.dictionary.to_pylist(), np.split(owner[order], borders), strict=True))


@dataclass(frozen=True)
class ItemTable:
    """All items of a release.

    ``encoded`` has ``N`` rows; ``categories`` int32 ``[N, G]`` category codes (0: none) of which the
    first is the item's main one; ``raw`` holds each attribute as given, for rules and for people.
    """

    codec: Codec
    raw: Mapping[str, RawColumn]
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

    def without(self, codes: Codes, whole: ItemTable) -> ItemTable:
        """Return the table in which some items cannot be had, and all others as in ``whole``, whose codes it shares."""
        until = whole.available_until.copy()
        until[codes] = -np.inf
        return replace(self, available_until=until)

    @cached_property
    def rows(self) -> ItemRows:
        """The ranker's view."""
        numeric = self.activity.numeric
        if numeric is None:
            numeric = np.concatenate([self.activity.counts, self.encoded.numbers], axis=1, dtype=np.float32)
        categorical = self.encoded.first[:, ranked_columns(self.codec.item_attributes)]
        return ItemRows(numeric, categorical, self.activity.first_event_at, self.activity.last_event_at)

    def available(self, time: float, codes: Codes | None = None) -> npt.NDArray[np.bool_]:
        """Return which items can be had at a moment (epoch seconds): of ``codes`` ``[n]``, or of all; row 0 never."""
        begin, end = self.available_from, self.available_until
        if codes is not None:
            return np.asarray((begin[codes] <= time) & (time < end[codes]) & (codes > 0))
        mask = (begin <= time) & (time < end)
        mask[0] = False
        return np.asarray(mask)

    def availability_state(self, time: float) -> int:
        """Return a number that is the same for all moments (epoch seconds) between which nothing comes or goes."""
        return int(self._turns.searchsorted(time, side="right"))

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
    given = {name: [None, *columns[name]] for name in codec.spec.item_attributes}
    encoded = codec.item_attributes.encode(given, size)
    raw = {
        name: RawColumn(pa.array(columns[name], ATTRIBUTE_TYPES[kind]))
        for name, kind in codec.spec.item_attributes.items()
    }

    def times(name: str, missing: float) -> Times:
        values = columns.get(name)
        if values is None:
            return np.full(size, missing)
        return np.array([missing, *(missing if v is None or v != v else v for v in values)], dtype=np.float64)

    activity = activity_from({name: [None, *values] for name, values in columns.items()}, codec)
    return ItemTable(
        codec, raw, encoded, _categories(codec, given, size), times(c.AVAILABLE_FROM, -np.inf),
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
