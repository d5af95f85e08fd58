"""The item table as files of a release: arrays that processes map into memory and share.

Every array with a row for each item has spare rows at its end, for items that are added before the
next release. A process that writes one gets its own copy of that page of memory only, and indexes
one array as before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feature_repo import columns as c
from feature_repo.encoding import Encoded
from serving.recommender.codec import Codec
from serving.recommender.item_attributes import RawColumn
from serving.recommender.item_table import Activity, ItemTable

ATTRIBUTES = "items.arrow"
_ARRAYS = ("codes", "first", "categories", "numeric", "times")
SPARE_ROWS = 1_024


def with_spare(
    array: npt.NDArray[Any], fill: float = 0, rows: int = SPARE_ROWS
) -> npt.NDArray[Any]:
    """Return an array ``[N, ...]`` with spare rows behind its own."""
    return np.concatenate([array, np.full((rows, *array.shape[1:]), fill, dtype=array.dtype)])


def map_rows(path: Path) -> npt.NDArray[Any]:
    """Return an array of a file mapped into memory: what is written to it stays in this process."""
    array: npt.NDArray[Any] = np.load(path, mmap_mode="c", allow_pickle=False)
    return array


def save_raw(path: Path, items: Sequence[str], raw: Mapping[str, RawColumn]) -> None:
    """Write attributes as given, a row for each item, with the items' ids."""
    table = pa.table({c.ITEM: items, **{name: column.values for name, column in raw.items()}})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table.combine_chunks())


def map_raw(path: Path, names: Sequence[str]) -> dict[str, RawColumn]:
    """Return attributes that ``save_raw`` wrote, mapped into memory."""
    table = _mapped_table(path)
    return {name: RawColumn(table[name].combine_chunks()) for name in names}


def _mapped_table(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def save_items(table: ItemTable, folder: Path) -> None:
    """Write a table into a folder.

    ``items.arrow`` has one row per item: its id and its attributes as given. The arrays have a row
    for item 0 too: ``codes``, ``first`` and ``categories`` int32, ``numeric`` float32 (counts, then
    the attributes' numbers), ``times`` float64 ``[4, N]``: available from and until (infinite:
    always), first and last event (NaN: none); ``vectors-<number>`` float32 ``[N, D]`` for each of
    the codec's vectors; ``declared-categories`` int32 ``[N, C]``. Spare rows are of items that can
    never be had.
    """
    save_raw(folder / ATTRIBUTES, table.codec.items.values, table.raw)
    activity = table.activity
    arrays: dict[str, npt.NDArray[Any]] = {
        "codes": with_spare(table.encoded.codes),
        "first": with_spare(table.encoded.first),
        "categories": with_spare(table.categories),
        "numeric": with_spare(
            np.concatenate([activity.counts, table.encoded.numbers], axis=1, dtype=np.float32),
            np.nan,
        ),
        "times": np.stack(
            [
                with_spare(table.available_from, np.inf),
                with_spare(table.available_until, np.inf),
                with_spare(activity.first_event_at, np.nan),
                with_spare(activity.last_event_at, np.nan),
            ]
        ),
    }
    for name in _ARRAYS:
        np.save(_file(folder, name), arrays[name])
    for number, vectors in enumerate(activity.vectors):
        np.save(_file(folder, f"vectors-{number}"), with_spare(vectors))
    if activity.categories is not None:
        np.save(_file(folder, "declared-categories"), with_spare(activity.categories))


def load_items(folder: Path, codec: Codec) -> ItemTable:
    """Return what ``save_items`` wrote, mapped into memory, with its spare rows.

    Raises:
        ValueError: its parts do not fit each other or the codec.

    """
    raw = _mapped_table(folder / ATTRIBUTES)
    arrays: dict[str, npt.NDArray[Any]] = {
        name: map_rows(_file(folder, name)).view(np.ndarray) for name in _ARRAYS
    }
    size = max(len(arrays["codes"]), len(codec.items))
    counts = len(codec.item_activity)
    shapes = {
        "codes": (size, codec.item_attributes.width),
        "first": (size, len(codec.item_attributes.coded)),
        "categories": (size, arrays["categories"].shape[1]),
        "numeric": (size, counts + len(codec.item_attributes.numeric)),
        "times": (4, size),
    }
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(f"items.{name} has shape {arrays[name].shape}, not {shape}")
    if len(raw) != len(codec.items) - 1 or raw.column_names != [
        c.ITEM,
        *codec.spec.item_attributes,
    ]:
        raise ValueError(f"{ATTRIBUTES} does not fit the codec")
    vectors = tuple(
        map_rows(_file(folder, f"vectors-{number}")).view(np.ndarray)
        for number in range(len(codec.vectors))
    )
    for array, (_, name, length) in zip(vectors, codec.vectors, strict=True):
        if array.shape != (size, length):
            raise ValueError(f"the vectors '{name}' have shape {array.shape}, not {(size, length)}")
    categories = None
    if codec.item_categories:
        categories = map_rows(_file(folder, "declared-categories")).view(np.ndarray)
        if categories.shape != (size, len(codec.item_categories)):
            raise ValueError(f"the declared categories have shape {categories.shape}")
    columns = {name: RawColumn(raw[name].combine_chunks()) for name in codec.spec.item_attributes}
    table = _table(codec, columns, arrays, counts)
    activity = replace(table.activity, vectors=vectors, categories=categories)
    return replace(table, activity=activity)


def _table(
    codec: Codec, raw: dict[str, RawColumn], arrays: dict[str, npt.NDArray[Any]], counts: int
) -> ItemTable:
    numeric = arrays["numeric"].astype(np.float32, copy=False)
    begin, end, first, last = arrays["times"].astype(np.float64, copy=False)
    return ItemTable(
        codec=codec,
        raw=raw,
        encoded=Encoded(
            arrays["codes"].astype(np.int32, copy=False),
            arrays["first"].astype(np.int32, copy=False),
            numeric[:, counts:],
        ),
        categories=arrays["categories"].astype(np.int32, copy=False),
        available_from=begin,
        available_until=end,
        activity=Activity(numeric[:, :counts], first, last, numeric),
    )


def _file(folder: Path, name: str) -> Path:
    return folder / f"items.{name}.npy"
