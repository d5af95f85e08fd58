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
from feature_repo.dataset import AttributeKind
from feature_repo.encoding import ExtendedVocabulary, Vocabulary
from ranking.models.onnx import onnx_session
from serving.recommender.item_table import ATTRIBUTE_TYPES, ItemTable, RawColumn, build_items

_log = logging.getLogger(__name__)


_Word = Annotated[str, Field(strict=True, max_length=1_000)]
_VALUES: dict[AttributeKind, TypeAdapter[Any]] = {
    "categorical": TypeAdapter(_Word | None),
    "multi_categorical": TypeAdapter(Annotated[list[_Word], Field(max_length=1_000)] | None),
    "numeric": TypeAdapter(Annotated[float, Field(strict=True, allow_inf_nan=False)] | None),
    "text": TypeAdapter(Annotated[str, Field(strict=True, max_length=100_000)] | None),
}


@dataclass(frozen=True)
class AddedItem:
    """An item's attributes as given, the epoch seconds between which it can be had (``until`` None: always).

    ``added_at``: when it was first added, epoch seconds.
    """

    attributes: Mapping[str, Any]
    available_from: float
    available_until: float | None = None
    added_at: float = 0.0


def misfits(attributes: Mapping[str, Any], kinds: Mapping[str, AttributeKind]) -> dict[str, str]:
    """Return what is wrong with attributes, by name: items have none of that name, or it is of another kind."""
    found: dict[str, str] = {}
    for name, value in attributes.items():
        if name not in kinds:
            found[name] = f"items have no such attribute; they have {sorted(kinds)}"
            continue
        try:
            _VALUES[kinds[name]].validate_python(value)
        except ValidationError as error:
            found[name] = f"it is {kinds[name]}: {error.errors()[0]['msg']}"
    return found


def values(kind: AttributeKind) -> TypeAdapter[Any]:
    """Return what checks and describes the values of a kind of attribute."""
    return _VALUES[kind]


class ItemTowerSession:
    """The item tower in ONNX Runtime, for items that it has never met."""

    def __init__(self, model: bytes) -> None:
        self._session = onnx_session(model)

    def __call__(self, attributes: Int32Array, numbers: Float32Array) -> Float32Array:
        """Return raw vectors float32 ``[n, D]`` from codes int32 ``[n, L]`` and standardised numbers ``[n, M]``."""
        inputs = {"attributes": attributes.astype(np.int64), "numbers": numbers}
        return np.asarray(self._session.run(["vector"], inputs)[0], dtype=np.float32)


@dataclass(frozen=True)
class Rows:
    """A release's arrays by item code, their spare rows included: ``[N + spare, ...]`` each."""

    vectors: Float32Array
    raw: Float32Array
    neighbours: Int32Array
    similarities: Float32Array
    items: ItemTable


class Delta:
    """Which items stand in the spare rows of a loaded release; each process has its own.

    An item keeps its row: requests under way read arrays that end before rows which are written
    later. When an item is changed, its row is, and a request under way may see some of either.
    """

    def __init__(self, rows: Rows, tower: ItemTowerSession) -> None:
        self.rows, self.tower = rows, tower
        self._first = len(rows.items.codec.items)
        self._codes: dict[str, int] = {}
        self._known: dict[str, AddedItem] = {}
        self._attributes: dict[str, dict[str, Any]] = {}

    @property
    def spare(self) -> int:
        """How many items there is place for."""
        return len(self.rows.items) - self._first

    @property
    def left(self) -> int:
        """For how many items there still is place."""
        return self.spare - len(self._codes)

    def has_place(self, item_id: str) -> bool:
        """Return whether an item has a row, or there is one left for it."""
        return item_id in self._codes or self.left > 0

    def take(self, items: Mapping[str, AddedItem]) -> int:
        """Write the rows of new and changed items, as long as there are spare ones; others than ``items`` are gone.

        Returns:
            how many rows the arrays have now.

        """
        for name in self._known.keys() - items.keys():
            del self._known[name]
            self.rows.items.available_until[self._codes[name]] = -np.inf
        changed = {name: item for name, item in items.items() if self._known.get(name) != item}
        new = [name for name in changed if name not in self._codes]
        left = self.left
        if len(new) > left:
            _log.error(
                "%d added items wait for a new release: there are no more than %d",
                len(new) - left,
                self.spare,
            )
        self._codes |= {
            name: code for code, name in enumerate(new[:left], start=self._first + len(self._codes))
        }
        changed = {name: item for name, item in changed.items() if name in self._codes}
        if changed:
            self._known |= changed
            self._write(changed)
        return self._first + len(self._codes)

    def table(self, released: ItemTable) -> ItemTable:
        """Return the release's item table with the added items behind its own."""
        whole, names = self.rows.items, list(self._codes)
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
        rows, whole = self.rows, self.rows.items
        # What another release's data set calls otherwise counts as missing.
        self._attributes |= {
            name: _fitting(item.attributes, whole.codec.spec.item_attributes)
            for name, item in items.items()
        }
        table = self._encoded(items)
        codes, encoded = np.array([self._codes[name] for name in items]), table.encoded[1:]
        rows.raw[codes] = self.tower(
            encoded.codes, whole.codec.item_attributes.standardise(encoded.numbers)
        )
        rows.vectors[codes] = _unit(rows.raw[codes])
        whole.encoded.codes[codes], whole.encoded.first[codes] = encoded.codes, encoded.first
        whole.encoded.numbers[codes] = encoded.numbers
        whole.categorical[codes] = table.categorical[1:]
        width = min(whole.categories.shape[1], table.categories.shape[1])
        whole.categories[codes] = 0
        whole.categories[codes, :width] = table.categories[1:, :width]
        whole.available_from[codes], whole.available_until[codes] = (
            table.available_from[1:],
            table.available_until[1:],
        )

    def _encoded(self, items: Mapping[str, AddedItem]) -> ItemTable:
        """Return a table of these items only, as a release would have them."""
        codec = replace(self.rows.items.codec, items=Vocabulary(items))
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
    bad = misfits(attributes, kinds)
    return {name: value for name, value in attributes.items() if name not in bad}


def _unit(raw: Float32Array) -> Float32Array:
    return np.asarray(
        raw / np.maximum(np.linalg.norm(raw, axis=1, keepdims=True), 1e-6), dtype=np.float32
    )
