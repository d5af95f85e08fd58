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
from feature_repo.arrays import BoolArray, Float32Array, Float64Array, Int32Array
from feature_repo.attribute_types import ATTRIBUTE_TYPES
from feature_repo.encoding import Encoded
from ranking.rows import ItemRows
from serving.recommender.codec import Codec
from serving.recommender.item_attributes import (
    ItemAttributes,
    RawColumn,
    category_codes,
    ranked_codes,
)


@dataclass(frozen=True)
class Activity:
    """Items' event counts and times as of some time.

    ``counts`` float32 ``[N, F]``; event times float64 ``[N]``, epoch seconds, NaN: none.
    ``numeric`` float32 ``[N, F + M]`` holds the counts with the numeric attributes beside them,
    where they lie so in memory (in a file that processes share); None: they do not. ``vectors``
    has a float32 ``[N, D]`` for each of the codec's vectors: unit vectors, 0 where missing.
    ``categories`` int32 ``[N, C]`` are the codes of declared categories, 0: unknown.
    ``attributes``: those of the same time, where the data set keeps a history; None: those of the
    release hold.
    """

    counts: Float32Array
    first_event_at: Float64Array
    last_event_at: Float64Array
    numeric: Float32Array | None = None
    vectors: tuple[Float32Array, ...] = ()
    categories: Int32Array | None = None
    attributes: ItemAttributes | None = None

    def head(self, size: int) -> Activity:
        """Return the first ``size`` rows as views; missing rows are added without counts."""
        missing = size - len(self.counts)
        attributes = None if self.attributes is None else self.attributes.head(size)
        if missing <= 0:
            numeric = None if self.numeric is None else self.numeric[:size]
            return Activity(
                self.counts[:size],
                self.first_event_at[:size],
                self.last_event_at[:size],
                numeric,
                tuple(vectors[:size] for vectors in self.vectors),
                None if self.categories is None else self.categories[:size],
                attributes,
            )
        counts = np.full((missing, self.counts.shape[1]), np.nan, dtype=np.float32)
        never = np.full(missing, np.nan)
        return Activity(
            np.concatenate([self.counts, counts]),
            np.concatenate([self.first_event_at, never]),
            np.concatenate([self.last_event_at, never]),
            vectors=tuple(
                np.concatenate([vectors, np.zeros((missing, vectors.shape[1]), np.float32)])
                for vectors in self.vectors
            ),
            categories=None
            if self.categories is None
            else np.pad(self.categories, ((0, missing), (0, 0))),
            attributes=attributes,
        )


@dataclass(frozen=True)
class ItemTable:
    """All items of a release.

    ``encoded`` has ``N`` rows; ``categories`` int32 ``[N, G]`` are category codes (0: none), the
    item's main one first; ``raw`` holds each attribute as given, for rules and for people; the
    last ``added`` rows are of items that were added after the release.
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
        """Return the table with other counts, and with the attributes of their time.

        Those of added items may be missing.
        """
        activity = activity.head(len(self))
        if self.added and activity.numeric is not None:
            # The file has no attributes of added items.
            counts = activity.counts.shape[1]
            activity.numeric[-self.added :, counts:] = self.encoded.numbers[-self.added :]
        if activity.attributes is None:
            return self._with(activity=activity)
        return self._with_attributes(activity, activity.attributes)

    def _with_attributes(self, activity: Activity, attributes: ItemAttributes) -> ItemTable:
        """Return the table with these attributes; added items keep their own."""
        if self.added:
            attributes.write_tail(
                self.added, self.encoded.numbers, self.categorical, self.categories
            )
        raw = {
            name: RawColumn(self.raw[name].values, column) if self.added else column
            for name, column in attributes.raw.items()
        }
        changed = self._with(
            activity=activity,
            raw={**self.raw, **raw},
            encoded=replace(self.encoded, numbers=attributes.numbers),
            categories=attributes.categories,
        )
        changed.__dict__["categorical"] = attributes.categorical
        return changed

    def without(
        self,
        codes: Int32Array,
        whole: ItemTable,
        ends: Mapping[int, float | None] | None = None,
    ) -> ItemTable:
        """Return the table without some items; the availability of others is as in ``whole``.

        ``ends``: other ends of availability by code, epoch seconds; None: never.
        """
        until = whole.available_until.copy()
        for code, end in (ends or {}).items():
            until[code] = np.inf if end is None else end
        until[codes] = -np.inf
        return self._with(available_until=until)

    def known_by_log_only(self, code: int) -> bool:
        """Return whether an item has an end of availability and no attribute at all.

        So is what only the log knows, where the item table is the catalogue.
        """
        return bool(np.isfinite(self.available_until[code])) and not any(
            column[code] for column in self.raw.values()
        )

    def head(self, size: int) -> ItemTable:
        """Return the first ``size`` rows as views; the attributes as given stay as they are."""
        head = replace(
            self,
            encoded=self.encoded[:size],
            categories=self.categories[:size],
            available_from=self.available_from[:size],
            available_until=self.available_until[:size],
            activity=self.activity.head(size),
        )
        head.__dict__["categorical"] = self.categorical[:size]
        return head

    def extended(self, codec: Codec, raw: Mapping[str, RawColumn], whole: ItemTable) -> ItemTable:
        """Return the table with the further items of ``codec`` and ``raw``, as in ``whole``."""
        start = len(self)
        size = len(codec.items)
        extended = replace(whole.head(size), codec=codec, raw=raw, added=size - start)
        extended.__dict__["categorical"] = whole.categorical[:size]

        # Insert the new times: sorting the times of a million items again takes longer.
        times = np.concatenate(
            [whole.available_from[start:size], whole.available_until[start:size]]
        )
        times.sort()
        changes = self._availability_changes
        extended.__dict__["_availability_changes"] = np.insert(
            changes, np.searchsorted(changes, times), times
        )
        return extended

    def _with(self, **parts: Any) -> ItemTable:
        """Return the table with other parts and the same cached properties.

        Availability changes that no longer happen do no harm.
        """
        changed = replace(self, **parts)
        changed.__dict__.update(
            categorical=self.categorical, _availability_changes=self._availability_changes
        )
        return changed

    @cached_property
    def categorical(self) -> Int32Array:
        """The codes of attributes that the ranker sees, int32 ``[N, C]``."""
        return ranked_codes(self.encoded, self.codec)

    @cached_property
    def rows(self) -> ItemRows:
        """The ranker's view."""
        numeric = self.activity.numeric
        if numeric is None:
            numeric = np.concatenate(
                [self.activity.counts, self.encoded.numbers], axis=1, dtype=np.float32
            )
        kept = self.codec.kept(self.codec.all_item_numeric)
        categorical = self.categorical
        if self.activity.categories is not None:
            categorical = np.concatenate([categorical, self.activity.categories], axis=1)
        return ItemRows(
            numeric[:, kept],
            categorical,
            self.activity.first_event_at,
            self.activity.last_event_at,
        )

    def available(self, time: float, codes: Int32Array | None = None) -> BoolArray:
        """Return which items are available at a time (epoch seconds); row 0 never is.

        ``codes``: int32 ``[n]``, the items in question; None: all ``N``.
        """
        begin = self.available_from
        end = self.available_until
        if codes is not None:
            return np.asarray((begin[codes] <= time) & (time < end[codes]) & (codes > 0))
        mask = (begin <= time) & (time < end)
        mask[0] = False
        return np.asarray(mask)

    def availability_state(self, time: float) -> int:
        """Return a number that is equal for all times between which no availability changes."""
        return int(self._availability_changes.searchsorted(time, side="right"))

    @cached_property
    def memo(self) -> dict[Any, Any]:
        """A cache for users of the table, of values that hold for this table only."""
        return {}

    @cached_property
    def _availability_changes(self) -> Float64Array:
        """Times at which an item becomes available or unavailable, float64, ascending."""
        return np.unique(np.concatenate([self.available_from, self.available_until]))

    def main_category(self, item_id: str) -> str:
        """Return the name of an item's main category, "" if it has none."""
        code = self.categories[self.codec.items.code(item_id), 0]
        return self.codec.categories.values[code - 1] if code else ""

    def count_or_nan(self, name: str) -> Float32Array:
        """Return one activity column, float32 ``[N]``; NaN: nothing is known."""
        return self.activity.counts[:, self.codec.item_activity.index(name)]

    def count(self, name: str, codes: Int32Array | None = None) -> Float32Array:
        """Return one activity column, float32 ``[n]``, 0 where nothing is known.

        ``codes``: int32 ``[n]``, the items in question; None: all ``N``.
        """
        column = self.count_or_nan(name)
        return np.nan_to_num(column if codes is None else column[codes], nan=0.0)


def activity_from(
    columns: Mapping[str, Sequence[Any] | npt.NDArray[Any]], codec: Codec
) -> Activity:
    """Return activity from feature columns that have one value per item code, row 0 included."""

    def numbers(name: str) -> Float64Array:
        return np.array([np.nan if v is None else v for v in columns[name]], dtype=np.float64)

    counts = np.stack([numbers(name) for name in codec.item_activity], axis=1).astype(np.float32)
    missing = [None] * len(counts)
    return Activity(
        counts,
        numbers(c.FIRST_EVENT_AT),
        numbers(c.LAST_EVENT_AT),
        vectors=tuple(
            unit_vectors(columns.get(name, missing), size) for _, name, size in codec.vectors
        ),
        categories=_declared_categories(columns, codec, len(counts)),
    )


def _declared_categories(
    columns: Mapping[str, Sequence[Any] | npt.NDArray[Any]], codec: Codec, size: int
) -> Int32Array | None:
    """Return the codes of declared categories, int32 ``[N, C]``; None: there are none."""
    if not codec.item_categories:
        return None
    missing = [None] * size
    codes = [
        category.values.encode(list(columns.get(category.name, missing)))
        for category in codec.item_categories
    ]
    return np.stack(codes, axis=1)


def unit_vectors(values: Sequence[Any] | npt.NDArray[Any], size: int) -> Float32Array:
    """Return vectors of length one, float32 ``[N, size]``; 0 where one is missing.

    One of another length, without a length or not finite counts as missing.
    """
    out = np.zeros((len(values), size), dtype=np.float32)
    rows = [row for row, value in enumerate(values) if value is not None and len(value) == size]
    if not rows:
        return out
    given = np.array([values[row] for row in rows], dtype=np.float64)
    lengths = np.linalg.norm(given, axis=1, keepdims=True)
    usable = np.isfinite(lengths) & (lengths > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        out[rows] = np.where(usable, given / lengths, 0.0)
    return out


def build_items(codec: Codec, columns: Mapping[str, Sequence[Any]]) -> ItemTable:
    """Build the table from columns of attributes, availability and counts.

    ``columns``: one value per item in code order, without row 0.
    """
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
        codec=codec,
        raw=raw,
        encoded=encoded,
        categories=category_codes(codec, given, size),
        available_from=times(c.AVAILABLE_FROM, -np.inf),
        available_until=times(c.AVAILABLE_UNTIL, np.inf),
        activity=activity,
    )
