"""Items' attributes: as given, for rules and people, and as codes and numbers as of some time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.arrays import BoolArray, Float32Array, Float64Array, Int32Array
from feature_repo.attribute_types import ATTRIBUTE_TYPES
from feature_repo.encoding import Encoded
from serving.recommender.codec import Codec, ranked_columns

_NO_ITEMS: Int32Array = np.zeros(0, dtype=np.int32)


class RawColumn(Sequence[Any]):
    """An attribute as given, by item code; None for item 0.

    The values stay in Arrow, since a million Python strings take much memory.
    """

    def __init__(self, values: pa.Array, before: RawColumn | None = None) -> None:
        """``values``: one per item, without row 0; they follow those of the column ``before``."""
        self.values = values
        self._before = before
        self._start = len(before) if before is not None else 1

    def __len__(self) -> int:
        return self._start + len(self.values)

    def __getitem__(self, code: Any) -> Any:
        if code >= self._start:
            return self.values[code - self._start].as_py()
        return self._before[code] if self._before is not None else None

    def take(self, codes: Int32Array) -> npt.NDArray[Any]:
        """Return the values of items, objects ``[n]``; None: missing."""
        own = codes >= self._start
        values = np.full(len(codes), None, dtype=object)
        given = self.values.take(pa.array(codes[own] - self._start)).to_pylist()
        for row, value in zip(np.flatnonzero(own), given, strict=True):
            values[row] = value  # one by one: NumPy would make an axis of lists
        if self._before is not None and not own.all():
            values[~own] = self._before.take(codes[~own])
        return values

    def between(self, least: float | None, most: float | None) -> BoolArray:
        """Return which values of a numeric attribute are in a range, bool ``[N]``; missing: none.

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
        """Return codes of the items that have a value, or have it in their list, int32 ``[n]``."""
        codes = self._by_value.get(value, _NO_ITEMS)
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
        """The codes of the items that have each value, int32 ``[n]``, ascending."""
        # Lists are flattened; flat [m] has every value and owner [m] the code of its item.
        flat = self.values
        owner = np.arange(self._start, len(self), dtype=np.int32)
        if pa.types.is_list(flat.type):
            owner = owner[pc.list_parent_indices(flat).to_numpy()]
            flat = pc.list_flatten(flat)
        owner = owner[flat.is_valid().to_numpy(zero_copy_only=False)]
        encoded = flat.drop_null().dictionary_encode()
        if not len(encoded.dictionary):
            return {}

        # Sort the owners by value, and cut where the next value begins. Values are numbered by
        # their place in the dictionary.
        numbers = encoded.indices.to_numpy()
        order = np.argsort(numbers, kind="stable")
        borders = np.searchsorted(numbers[order], np.arange(1, len(encoded.dictionary)))
        groups = np.split(owner[order], borders)
        return dict(zip(encoded.dictionary.to_pylist(), groups, strict=True))


@dataclass(frozen=True)
class ItemAttributes:
    """Attributes of N items as of some time, of a data set that keeps their history.

    ``raw`` holds them as given, by name; ``numbers`` float32 ``[N, M]`` (NaN: missing);
    ``categorical`` int32 ``[N, C]`` the codes that the ranker reads; ``categories`` int32
    ``[N, G]`` the category codes, the main one first. Row 0 is no item.
    """

    raw: Mapping[str, RawColumn]
    numbers: Float32Array
    categorical: Int32Array
    categories: Int32Array

    def head(self, size: int) -> ItemAttributes:
        """Return the first ``size`` rows as views; missing rows are added without values."""
        return ItemAttributes(
            self.raw,
            _head(self.numbers, size, np.nan),
            _head(self.categorical, size, 0),
            _head(self.categories, size, 0),
        )

    def write_tail(
        self, rows: int, numbers: Float32Array, categorical: Int32Array, categories: Int32Array
    ) -> None:
        """Write the last ``rows`` rows, which are those of ``[N, ...]`` arrays of another table.

        Where that has more categories an item, the first of them count.
        """
        self.numbers[-rows:] = numbers[-rows:]
        self.categorical[-rows:] = categorical[-rows:]
        width = min(self.categories.shape[1], categories.shape[1])
        self.categories[-rows:] = 0
        self.categories[-rows:, :width] = categories[-rows:, :width]


def _head(array: npt.NDArray[Any], size: int, fill: float) -> npt.NDArray[Any]:
    missing = size - len(array)
    if missing <= 0:
        return array[:size]
    return np.concatenate([array, np.full((missing, array.shape[1]), fill, dtype=array.dtype)])


def attributes_from(
    columns: Mapping[str, Sequence[Any] | npt.NDArray[Any]], codec: Codec
) -> ItemAttributes | None:
    """Return attributes from columns with one value per item code, row 0 included.

    One that has no column is missing of all items. None: the data set keeps no history of items.
    """
    names = codec.spec.dated_item_attributes
    if not names:
        return None
    size = len(codec.items)
    given = {name: list(columns.get(name, [None] * size)) for name in names}
    encoded = codec.item_attributes.encode(given, size)
    kinds = codec.spec.item_attributes
    return ItemAttributes(
        {
            name: RawColumn(pa.array(given[name][1:], ATTRIBUTE_TYPES[kinds[name]]))
            for name in names
        },
        encoded.numbers,
        ranked_codes(encoded, codec),
        category_codes(codec, given, size),
    )


def ranked_codes(encoded: Encoded, codec: Codec) -> Int32Array:
    """Return the codes of attributes that the ranker reads, int32 ``[N, C]``."""
    codes: Int32Array = encoded.first[:, ranked_columns(codec.item_attributes)]
    declared = len(codec.item_categories)
    names = list(codec.all_item_categorical)
    return codes[:, codec.kept(names[: len(names) - declared])]


def category_codes(codec: Codec, raw: Mapping[str, Sequence[Any]], size: int) -> Int32Array:
    """Return the category codes of the items, int32 ``[size, G]``, 0 where there are fewer."""
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
