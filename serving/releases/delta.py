"""The delta index: items that came after a release, in the spare rows of its arrays."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from pydantic import Field, TypeAdapter, ValidationError

from feature_repo import columns as c
from feature_repo.arrays import Float32Array, Int32Array
from feature_repo.attribute_types import ATTRIBUTE_TYPES
from feature_repo.cell_values import MAX_NUMBER
from feature_repo.dataset import AttributeKind
from feature_repo.encoding import ExtendedVocabulary, Vocabulary
from ranking.models.onnx import onnx_session
from serving.recommender.item_attributes import RawColumn
from serving.recommender.item_table import ItemTable, build_items

_log = logging.getLogger(__name__)


_Word = Annotated[str, Field(strict=True, max_length=1_000)]
_VALUES: dict[AttributeKind, TypeAdapter[Any]] = {
    "categorical": TypeAdapter(_Word | None),
    "multi_categorical": TypeAdapter(Annotated[list[_Word], Field(max_length=1_000)] | None),
    "numeric": TypeAdapter(
        Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-MAX_NUMBER, le=MAX_NUMBER)]
        | None
    ),
    "text": TypeAdapter(Annotated[str, Field(strict=True, max_length=100_000)] | None),
}


@dataclass(frozen=True)
class AddedItem:
    """An item's attributes as given, and from when until when it is available (None: always).

    Times are epoch seconds; ``added_at``: when it was first added.
    """

    attributes: Mapping[str, Any]
    available_from: float
    available_until: float | None = None
    added_at: float = 0.0


def attribute_problems(
    attributes: Mapping[str, Any], kinds: Mapping[str, AttributeKind]
) -> dict[str, str]:
    """Return what is wrong with attributes, by name: unknown, or a value of another kind."""
    problems: dict[str, str] = {}
    for name, value in attributes.items():
        if name not in kinds:
            problems[name] = f"items have no such attribute; they have {sorted(kinds)}"
            continue
        try:
            _VALUES[kinds[name]].validate_python(value)
        except ValidationError as error:
            problems[name] = f"it is {kinds[name]}: {error.errors()[0]['msg']}"
    return problems


def values(kind: AttributeKind) -> TypeAdapter[Any]:
    """Return what checks and describes the values of a kind of attribute."""
    return _VALUES[kind]


class ItemTowerSession:
    """The item tower in ONNX Runtime, for items that it was not trained on."""

    def __init__(self, model: bytes) -> None:
        self._session = onnx_session(model)

    def __call__(self, attributes: Int32Array, numbers: Float32Array) -> Float32Array:
        """Return raw vectors float32 ``[n, D]``.

        Args:
            attributes: codes, int32 ``[n, L]``.
            numbers: standardised, float32 ``[n, M]``.

        """
        inputs = {"attributes": attributes.astype(np.int64), "numbers": numbers}
        return np.asarray(self._session.run(["vector"], inputs)[0], dtype=np.float32)


@dataclass(frozen=True)
class ItemArrays:
    """A release's arrays by item code, their spare rows included: ``[N + spare, ...]`` each."""

    vectors: Float32Array
    raw: Float32Array
    neighbours: Int32Array
    similarities: Float32Array
    items: ItemTable


class Delta:
    """The added items in the spare rows of a loaded release; each process has its own.

    An item keeps its row: requests under way read arrays that end before rows which are written
    later. When an item is changed, its row is, and a request under way may see some of either.
    """

    def __init__(self, arrays: ItemArrays, tower: ItemTowerSession) -> None:
        """``arrays``: of the loaded release, whose spare rows are written."""
        self.arrays = arrays
        self.tower = tower
        self._first = len(arrays.items.codec.items)
        self._codes: dict[str, int] = {}
        self._added: dict[str, AddedItem] = {}
        self._attributes: dict[str, dict[str, Any]] = {}

    @property
    def spare(self) -> int:
        """The number of rows for added items."""
        return len(self.arrays.items) - self._first

    @property
    def left(self) -> int:
        """The number of rows that are still free."""
        return self.spare - len(self._codes)

    def has_row(self, item_id: str) -> bool:
        """Return whether an item has a row or can get one."""
        return item_id in self._codes or self.left > 0

    def update(self, items: Mapping[str, AddedItem]) -> int:
        """Write the rows of new and changed items while rows are free; others become unavailable.

        Returns:
            the number of rows in use, those of the release included.

        """
        for item_id in self._added.keys() - items.keys():
            del self._added[item_id]
            self.arrays.items.available_until[self._codes[item_id]] = -np.inf

        changed = {
            item_id: item for item_id, item in items.items() if self._added.get(item_id) != item
        }
        self._assign_rows([item_id for item_id in changed if item_id not in self._codes])

        changed = {item_id: item for item_id, item in changed.items() if item_id in self._codes}
        if changed:
            self._added |= changed
            self._write(changed)
        return self._first + len(self._codes)

    def _assign_rows(self, item_ids: list[str]) -> None:
        """Give new items a row each, in their order, while rows are free."""
        left = self.left
        if len(item_ids) > left:
            _log.error(
                "%d added items wait for a new release: it has %d spare rows",
                len(item_ids) - left,
                self.spare,
            )
        start = self._first + len(self._codes)
        self._codes |= {item_id: code for code, item_id in enumerate(item_ids[:left], start=start)}

    def table(self, released: ItemTable) -> ItemTable:
        """Return the release's item table with the added items behind its own."""
        whole = self.arrays.items
        names = list(self._codes)
        codec = replace(whole.codec, items=ExtendedVocabulary(whole.codec.items, names))
        raw = {
            name: RawColumn(
                pa.array(
                    [self._attributes[item].get(name) for item in names], ATTRIBUTE_TYPES[kind]
                ),
                whole.raw[name],
            )
            for name, kind in codec.spec.item_attributes.items()
        }
        return released.extended(codec, raw, whole)

    def _write(self, items: Mapping[str, AddedItem]) -> None:
        arrays = self.arrays
        whole = arrays.items
        # Attributes that the release's data set does not have, or has otherwise, count as missing.
        self._attributes |= {
            item_id: _fitting(item.attributes, whole.codec.spec.item_attributes)
            for item_id, item in items.items()
        }
        table = self._encoded(items)
        codes = np.array([self._codes[item_id] for item_id in items])
        encoded = table.encoded[1:]

        # Vectors [n, D]: raw and of unit length.
        numbers = whole.codec.item_tower_numbers(encoded.numbers)
        arrays.raw[codes] = self.tower(encoded.codes, numbers)
        arrays.vectors[codes] = _unit(arrays.raw[codes])

        # Attributes.
        whole.encoded.codes[codes] = encoded.codes
        whole.encoded.first[codes] = encoded.first
        whole.encoded.numbers[codes] = encoded.numbers
        whole.categorical[codes] = table.categorical[1:]

        # Categories [n, G]; the release's table may be wider or narrower.
        width = min(whole.categories.shape[1], table.categories.shape[1])
        whole.categories[codes] = 0
        whole.categories[codes, :width] = table.categories[1:, :width]

        # Availability last: the items can be shown from here on.
        whole.available_from[codes] = table.available_from[1:]
        whole.available_until[codes] = table.available_until[1:]

    def _encoded(self, items: Mapping[str, AddedItem]) -> ItemTable:
        """Return a table of these items only, as a release would have them."""
        codec = replace(self.arrays.items.codec, items=Vocabulary(items))
        columns: dict[str, list[Any]] = {
            name: [self._attributes[item].get(name) for item in items]
            for name in codec.spec.item_attributes
        }
        unknown = (*codec.item_activity, c.FIRST_EVENT_AT, c.LAST_EVENT_AT)
        columns |= {name: [None] * len(items) for name in unknown}
        columns[c.AVAILABLE_FROM] = [item.available_from for item in items.values()]
        columns[c.AVAILABLE_UNTIL] = [item.available_until for item in items.values()]
        return build_items(codec, columns)


def _fitting(attributes: Mapping[str, Any], kinds: Mapping[str, AttributeKind]) -> dict[str, Any]:
    bad = attribute_problems(attributes, kinds)
    return {name: value for name, value in attributes.items() if name not in bad}


def _unit(raw: Float32Array) -> Float32Array:
    return np.asarray(
        raw / np.maximum(np.linalg.norm(raw, axis=1, keepdims=True), 1e-6), dtype=np.float32
    )
