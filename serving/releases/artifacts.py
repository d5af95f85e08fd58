"""The files of a release, each checked before native code reads it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feature_repo import columns as c
from feature_repo.files import read_json
from ranking.models.booster_text import check_booster
from ranking.models.scorer import CalibratedRanker
from ranking.row_schema import RowSchema
from retrieval.index import load_index
from serving.recommender.codec import Codec
from serving.recommender.item_table import ItemTable
from serving.releases.item_files import ATTRIBUTES, load_items, map_rows

_INVERTED = (faiss.IndexIVFFlat, faiss.IndexIVFScalarQuantizer)


class DamagedFile(ValueError):
    """The content of a file is wrong; the message names the file."""


@contextmanager
def naming_file(name: str) -> Iterator[None]:
    """Turn any error into ``DamagedFile``: most libraries do not name the file that they read."""
    try:
        yield
    except DamagedFile:
        raise
    except Exception as error:
        raise DamagedFile(f"{name}: {type(error).__name__}: {error}") from error


def read_part(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        DamagedFile: it is not JSON.

    """
    with naming_file(path.name):
        return read_json(path)


def read_array(path: Path, dtype: type[Any]) -> npt.NDArray[Any]:
    """Return an array ``[n, m]`` of this type, mapped into memory as ``map_rows`` does.

    Raises:
        DamagedFile: it is a pickle or not an array, of another shape or type, or contains NaN.

    """
    with naming_file(path.name):
        array = map_rows(path)
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype != dtype:
        raise DamagedFile(f"{path.name} is not a {np.dtype(dtype).name} array of two dimensions")
    # Least and greatest are NaN where any value is, and take no memory.
    if array.size and array.dtype.kind == "f" and not np.isfinite([array.min(), array.max()]).all():
        raise DamagedFile(f"{path.name} contains NaN or infinity")
    return array


def read_index(path: Path, dimension: int) -> faiss.Index:
    """Return an inner-product index of one of the kinds that ``retrieval.index`` builds.

    Raises:
        DamagedFile: it is another index, or its lists do not hold every row once.

    """
    with naming_file(path.name), _bounded(path.stat().st_size):
        index = load_index(path)
    if (
        not isinstance(index, (faiss.IndexFlat, *_INVERTED))
        or index.metric_type != faiss.METRIC_INNER_PRODUCT
    ):
        raise DamagedFile(f"{path.name} is not an inner-product index ({type(index).__name__})")
    if index.d != dimension or not index.is_trained:
        raise DamagedFile(
            f"{path.name} has vectors of {index.d} dimensions, the items' have {dimension}"
        )
    if isinstance(index, _INVERTED) and not _lists_are_whole(index):
        raise DamagedFile(f"{path.name} does not list every item once")
    return index


@contextmanager
def _bounded(size: int) -> Iterator[None]:
    """Limit what FAISS allocates to what a file of ``size`` bytes can fill."""
    before = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
    faiss.set_deserialization_vector_byte_limit(size + 1)
    faiss.set_deserialization_loop_limit(size)
    try:
        yield
    finally:
        faiss.set_deserialization_vector_byte_limit(before[0])
        faiss.set_deserialization_loop_limit(before[1])


def _lists_are_whole(index: Any) -> bool:
    lists = index.invlists
    parts = [
        faiss.rev_swig_ptr(lists.get_ids(number), size)
        for number in range(index.nlist)
        if (size := lists.list_size(number))
    ]
    ids = np.sort(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.int64)
    whole = index.quantizer.ntotal == index.nlist and 0 < index.nprobe <= index.nlist
    return whole and np.array_equal(ids, np.arange(index.ntotal))


def read_items(folder: Path, codec: Codec) -> ItemTable:
    """Return the item table, spare rows and all.

    Raises:
        DamagedFile: its rows are not the codec's items in their order, or its parts do not fit.

    """
    with naming_file(ATTRIBUTES), pa.memory_map(str(folder / ATTRIBUTES)) as file:
        table = pa.ipc.open_file(file).read_all()
        table.validate(full=True)  # Arrow itself trusts offsets, and would read where they point
        column = table[c.ITEM].combine_chunks() if c.ITEM in table.column_names else None
        if column is None or not column.equals(pa.array(codec.items.values, pa.string())):
            raise DamagedFile(f"{ATTRIBUTES} has other items than codec.json")
    with naming_file("items"):
        return load_items(folder, codec)


def read_ranker(folder: Path) -> CalibratedRanker:
    """Return the ranker saved in a folder.

    Raises:
        DamagedFile: a file cannot be read; for boosters that is found out before LightGBM tries.

    """
    parts = {path.name: read_part(path) for path in folder.glob("*.json")}
    with naming_file(folder.name):
        schema = RowSchema.from_dict(parts["schema.json"])
        for path in sorted(folder.glob("booster_*.txt")):
            with naming_file(f"{folder.name}/{path.name}"):
                check_booster(
                    path.read_text(encoding="utf-8"), len(schema.numeric) + len(schema.categorical)
                )
        return CalibratedRanker.load(folder)
