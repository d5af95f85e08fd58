"""The item table as files of a release: arrays that processes map into memory and share, read in no time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feature_repo import columns as c
from feature_repo.encoding import Encoded
from serving.catalogue import Activity, ItemTable, RawColumn
from serving.codec import Codec

ATTRIBUTES = "items.arrow"
_ARRAYS = ("codes", "first", "categories", "numeric", "times")


def save_items(table: ItemTable, folder: Path) -> None:
    """Write a table into a folder.

    ``items.arrow`` has one row per item: its id and its attributes as given. The arrays have a row for item 0 too:
    ``codes``, ``first`` and ``categories`` int32, ``numeric`` float32 (counts, then the attributes' numbers),
    ``times`` float64 ``[4, N]``: available from and until (infinite: always), first and last event (NaN: none).
    """
    raw = pa.table({c.ITEM: table.codec.items.values, **{name: column.values for name, column in table.raw.items()}})
    with pa.OSFile(str(folder / ATTRIBUTES), "wb") as file, pa.ipc.new_file(file, raw.schema) as writer:
        writer.write_table(raw.combine_chunks())
    activity = table.activity
    arrays: dict[str, npt.NDArray[Any]] = {
        "codes": table.encoded.codes,
        "first": table.encoded.first,
        "categories": table.categories,
        "numeric": table.rows.numeric,
        "times": np.stack(
            [table.available_from, table.available_until, activity.first_event_at, activity.last_event_at]
        ),
    }
    for name in _ARRAYS:
        np.save(_file(folder, name), arrays[name])


def load_items(folder: Path, codec: Codec) -> ItemTable:
    """Return what ``save_items`` wrote, mapped into memory.

    Raises:
        ValueError: its parts do not fit each other or the codec.

    """
    raw = pa.ipc.open_file(pa.memory_map(str(folder / ATTRIBUTES))).read_all()
    found: dict[str, npt.NDArray[Any]] = {
        name: np.load(_file(folder, name), mmap_mode="r", allow_pickle=False).view(np.ndarray) for name in _ARRAYS
    }
    size, counts = len(codec.items), len(codec.item_activity)
    shapes = {
        "codes": (size, codec.item_attributes.width),
        "first": (size, len(codec.item_attributes.coded)),
        "categories": (size, found["categories"].shape[1]),
        "numeric": (size, counts + len(codec.item_attributes.numeric)),
        "times": (4, size),
    }
    for name, shape in shapes.items():
        if found[name].shape != shape:
            raise ValueError(f"items.{name} has shape {found[name].shape}, not {shape}")
    if len(raw) != size - 1 or raw.column_names != [c.ITEM, *codec.spec.item_attributes]:
        raise ValueError(f"{ATTRIBUTES} does not fit the codec")
    columns = {name: RawColumn(raw[name].combine_chunks()) for name in codec.spec.item_attributes}
    return _table(codec, columns, found, counts)


def _table(codec: Codec, raw: dict[str, RawColumn], found: dict[str, npt.NDArray[Any]], counts: int) -> ItemTable:
    numeric = found["numeric"].astype(np.float32, copy=False)
    begin, end, first, last = found["times"].astype(np.float64, copy=False)
    return ItemTable(
        codec=codec,
        raw=raw,
        encoded=Encoded(
            found["codes"].astype(np.int32, copy=False),
            found["first"].astype(np.int32, copy=False),
            numeric[:, counts:],
        ),
        categories=found["categories"].astype(np.int32, copy=False),
        available_from=begin,
        available_until=end,
        activity=Activity(numeric[:, :counts], first, last, numeric),
    )


def _file(folder: Path, name: str) -> Path:
    return folder / f"items.{name}.npy"
