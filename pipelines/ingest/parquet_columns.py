"""Reads Parquet columns of any type as texts or lists of texts."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo.dataset import SpecError
from pipelines.ingest.delimited import as_frame
from pipelines.ingest.json_values import as_text


def read_parquet(path: Path, wanted: list[str], present: list[str]) -> pd.DataFrame:
    """Return the wanted columns by row number; those that are not ``present`` are missing.

    Raises:
        SpecError: a column's type has no reading.

    """
    with pq.ParquetFile(path) as file:
        parsed = file.read(columns=[name for name in wanted if name in present])
    rows = pd.RangeIndex(1, len(parsed) + 1)
    fields = {}
    for name in wanted:
        if name not in present:
            fields[name] = pd.Series(pd.NA, rows, dtype=pd.StringDtype("pyarrow"))
            continue
        try:
            fields[name] = _column(parsed[name], name, rows)
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid, _NoReading):
            raise SpecError(
                f"{path.name}: cannot be read: column '{name}' is {parsed[name].type}; write it as "
                "text, number, time or list of texts, or leave it out of dataset.toml"
            ) from None
    return pd.DataFrame(fields, index=rows)


class _NoReading(Exception):
    """A column's type has no reading as text or as a list of texts."""


def _column(column: pa.ChunkedArray, name: str, rows: pd.RangeIndex) -> pd.Series:
    if not _is_list(column.type):
        return as_frame([_texts(column)], [name], rows)[name]
    if pa.types.is_nested(column.type.value_type):
        raise _NoReading
    return pd.Series([as_text(value) for value in column.to_pylist()], rows, dtype="object")


def _is_list(kind: pa.DataType) -> bool:
    return any(
        check(kind)
        for check in (
            pa.types.is_list,
            pa.types.is_large_list,
            pa.types.is_fixed_size_list,
            pa.types.is_list_view,
            pa.types.is_large_list_view,
        )
    )


def _texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_nested(kind):
        raise _NoReading
    if pa.types.is_timestamp(kind):
        zone = "UTC" if kind.tz else None
        # Whole microseconds are enough.
        column = column.cast(pa.timestamp("us", tz=zone), safe=False)
    if pa.types.is_float16(kind):
        column = column.cast(pa.float32())
    if pa.types.is_decimal(kind):  # of whole numbers, so that ids have no ".00"
        column = column.cast(pa.string())
        return pc.replace_substring_regex(column, pattern=r"\.0+$", replacement="")
    if pa.types.is_floating(column.type):
        # Pandas makes ids and times floats if a value is missing: whole numbers become integers.
        whole = pc.fill_null(
            pc.and_(pc.equal(pc.floor(column), column), pc.less(pc.abs(column), 2.0**53)), False
        )
        integers = pc.if_else(whole, column, None).cast(pa.int64()).cast(pa.string())
        known = pc.if_else(pc.is_nan(column), None, column).cast(pa.string())
        return pc.coalesce(integers, known)
    return column.cast(pa.string())
