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
from feature_repo.arrays import BoolArray, Float32Array, Float64Array, Int32Array
from feature_repo.encoding import Encoded
from ranking.rows import ItemRows
from serving.recommender.codec import Codec, ranked_columns

_NOWHERE: Int32Array = np.zeros(0, dtype=np.int32)

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

    ``numeric`` float32 ``[N, F + M]``: the counts with the numbers of the attributes beside them,
    if they lie so in memory (in a file that processes share); None: they do not.
    """

    counts: Float32Array
    first_event_at: Float64Array
    last_event_at: Float64Array
    numeric: Float32Array | None = None

    def head(self, size: int) -> Activity:
        """Return the first ``size`` rows as views; rows that are not there yet have no counts."""
        missing = size - len(self.counts)
        if missing <= 0:
            numeric = None if self.numeric is None else self.numeric[:size]
            return Activity(
                self.counts[:size], self.first_event_at[:size], self.last_event_at[:size], numeric
            )
        counts = np.full((missing, self.counts.shape[1]), np.nan, dtype=np.float32)
        never = np.full(missing, np.nan)
        return Activity(
            np.concatenate([self.counts, counts]),
            np.concatenate([self.first_event_at, never]),
            np.concatenate([self.last_event_at, never]),
        )


class RawColumn(Sequence[Any]):
    """An attribute as given, by item code; None for item 0. The values stay in Arrow: a million strings cost dear."""

    def __init__(self, values: pa.Array, before: RawColumn | None = None) -> None:
        """``values`` has one value per item, without row 0; they follow those of the column ``before``."""
        self.values = values
        self._before = before
        self._start = len(before) if before is not None else 1

    def __len__(self) -> int:
        return self._start + len(self.values)

    def __getitem__(self, code: Any) -> Any:
        if code >= self._start:
            return self.values[code - self._start].as_py()
        return self._before[code] if self._before is not None else None

    def between(self, least: float | None, most: float | None) -> BoolArray:
        """Return which values of a numeric attribute are in a range, bool ``[N]``; a missing one never is.

        The values are compared as given: the models' float32 cannot tell 16,777,216 from
        16,777,217.
        """
        fits = ~np.isnan(self._numbers)
        if least is not None:
            fits &= self._numbers >= least
        if most is not None:
            fits &= self._numbers <= most
        before = (
            np.zeros(1, dtype=np.bool_)
            if self._before is None
            else self._before.between(least, most)
        )
        return np.concatenate([before, fits])

    def having(self, value: str) -> Int32Array:
        """Return the codes of the items that have a value, int32 ``[n]``; those of a list have each of its values."""
        codes = self._by_value.get(value, _NOWHERE)
        return (
            codes if self._before is None else np.concatenate([self._before.having(value), codes])
        )

    @cached_property
    def _numbers(self) -> Float64Array:
        return np.asarray(
            self.values.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64
        )

    @cached_property
    def _by_value(self) -> dict[str, Int32Array]:
        flat, owner = self.values, np.arange(self._start, len(self), dtype=np.int32)
        if pa.types.is_list(flat.type):
            owner = owner[pc.list_parent_indices(flat).to_numpy()]
            flat = pc.list_flatten(flat)
        known = flat.drop_null().dictionary_encode()
        if not len(known.dictionary):
            return {}
        owner = owner[flat.is_valid().to_numpy(zero_copy_only=False)]
        place = known.indices.to_numpy()
        order = np.argsort(place, kind="stable")
        borders = np.searchsorted(place[order], np.arange(1, len(known.dictionary)))
        return dict(zip(known.dictionary.to_pylist(), np.split(owner[order], borders), strict=True))


@dataclass(frozen=True)
class ItemTable:
    """All items of a release.

    ``encoded`` has ``N`` rows; ``categories`` int32 ``[N, G]`` category codes (0: none) of which
    the first is the item's main one; ``raw`` holds each attribute as given, for rules and for
    people; the last ``added`` rows are of items that came after the release.
    """

    codec: Codec
    raw: Mapping[str, RawColumn]
    encoded: Encoded
    categories: Int32Array
    available_from: Float64Array
    available_until: Float64Array
    activity: Activity
    added: int = 0

    def __len__(self) -> int:
        return len(self.available_from)

    def with_activity(self, activity: Activity) -> ItemTable:
        """Return the table with other counts; everything else is shared. Added items' counts may be missing."""
        activity = activity.head(len(self))
        if self.added and activity.numeric is not None:
            # Whoever wrote the file knew of no added items.
            activity.numeric[-self.added :, activity.counts.shape[1] :] = self.encoded.numbers[
                -self.added :
            ]
        return self._changed(activity=activity)

    def without(self, codes: Int32Array, whole: ItemTable) -> ItemTable:
        """Return the table in which some items cannot be had, and all others as in ``whole``, whose codes it shares."""
        until = whole.available_until.copy()
        until[codes] = -np.inf
        return self._changed(available_until=until)

    def head(self, size: int) -> ItemTable:
        """Return the first ``size`` rows as views, without their attributes as given: these stay as they are."""
        made = replace(
            self,
            encoded=self.encoded[:size],
            categories=self.categories[:size],
            available_from=self.available_from[:size],
            available_until=self.available_until[:size],
            activity=self.activity.head(size),
        )
        made.__dict__["categorical"] = self.categorical[:size]
        return made

    def extended(self, codec: Codec, raw: Mapping[str, RawColumn], whole: ItemTable) -> ItemTable:
        """Return the table with the items that ``codec`` and ``raw`` have more, whose rows stand in ``whole``."""
        start, size = len(self), len(codec.items)
        made = replace(whole.head(size), codec=codec, raw=raw, added=size - start)
        times = np.sort(
            np.concatenate([whole.available_from[start:size], whole.available_until[start:size]])
        )
        made.__dict__["categorical"] = whole.categorical[:size]
        # To sort the times of a million items again takes longer than all the rest.
        made.__dict__["_turns"] = np.insert(self._turns, np.searchsorted(self._turns, times), times)
        return made

    def _changed(self, **parts: Any) -> ItemTable:
        """Return the table with other parts, and with what was worked out and holds still; more turns do no harm."""
        made = replace(self, **parts)
        made.__dict__.update(categorical=self.categorical, _turns=self._turns)
        return made

    @cached_property
    def categorical(self) -> Int32Array:
        """The codes that the ranker sees, int32 ``[N, C]``."""
        found: Int32Array = self.encoded.first[:, ranked_columns(self.codec.item_attributes)]
        return found

    @cached_property
    def rows(self) -> ItemRows:
        """The ranker's view."""
        numeric = self.activity.numeric
        if numeric is None:
            numeric = np.concatenate(
                [self.activity.counts, self.encoded.numbers], axis=1, dtype=np.float32
            )
        return ItemRows(
            numeric, self.categorical, self.activity.first_event_at, self.activity.last_event_at
        )

    def available(self, time: float, codes: Int32Array | None = None) -> BoolArray:
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
    def _turns(self) -> Float64Array:
        return np.unique(np.concatenate([self.available_from, self.available_until]))

    def main_category(self, item_id: str) -> str:
        """Return the name of an item's main category, "" if it has none."""
        code = self.categories[self.codec.items.code(item_id), 0]
        return self.codec.categories.values[code - 1] if code else ""

    def count(self, name: str) -> Float32Array:
        """Return one activity column, float32 ``[N]``, 0 where nothing is known."""
        return np.nan_to_num(self.activity.counts[:, self.codec.item_activity.index(name)], nan=0.0)


def activity_from(
    columns: Mapping[str, Sequence[Any] | npt.NDArray[Any]], codec: Codec
) -> Activity:
    """Return activity from feature columns that have one value per item code, row 0 included."""

    def numbers(name: str) -> Float64Array:
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

    def times(name: str, missing: float) -> Float64Array:
        values = columns.get(name)
        if values is None:
            return np.full(size, missing)
        return np.array(
            [missing, *(missing if v is None or v != v else v for v in values)], dtype=np.float64
        )

    activity = activity_from({name: [None, *values] for name, values in columns.items()}, codec)
    return ItemTable(
        codec, raw, encoded, _categories(codec, given, size), times(c.AVAILABLE_FROM, -np.inf),
        times(c.AVAILABLE_UNTIL, np.inf), activity,
    )  # fmt: skip


def _categories(codec: Codec, raw: Mapping[str, Sequence[Any]], size: int) -> Int32Array:
    name = codec.spec.category
    if name is None:
        return np.zeros((size, 1), dtype=np.int32)
    lists = [
        [value] if isinstance(value, str) else list(value if value is not None else ())
        for value in raw[name]
    ]
    width = max(1, max(map(len, lists)))
    codes = np.zeros((size, width), dtype=np.int32)
    for row, values in enumerate(lists):
        codes[row, : len(values)] = codec.categories.encode(values)
    return codes
