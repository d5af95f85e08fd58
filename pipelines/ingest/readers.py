"""Reads files of any described layout into tables of strings, with the line number of each row.

Values are not interpreted here, and no line is dropped: a line that cannot be split into its
columns is returned as a bad line with a reason.
"""

from __future__ import annotations

import csv
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo.dataset import SpecError, Table
from pipelines.ingest.delimited import (
    BadLines,
    as_frame,
    csv_header,
    printable,
    read_csv,
    read_text,
)


@dataclass(frozen=True)
class RawFile:
    """One file as read.

    ``rows`` has string columns (object where there are lists); its index is the line number.
    """

    name: str
    rows: pd.DataFrame
    bad: pd.DataFrame  # columns: line, reason, row


def find_files(table: Table, folder: Path) -> list[Path]:
    """Return the files of a table, sorted by path.

    Raises:
        SpecError: there is none.

    """
    files = table.find(folder)
    if not files:
        raise SpecError(
            f"no file matches '{table.path}' in {folder}; check path in dataset.toml and --data-dir"
        )
    return files


def check_header(path: Path, table: Table, wanted: list[str]) -> None:
    """Refuse a file without the wanted columns, before its rows are read.

    Raises:
        SpecError: a wanted column is missing or repeated, or the file cannot be read.

    """
    if table.file_format(path) == "jsonl":
        return  # each line has its own keys
    header = _header(path, table)
    if not header:
        raise SpecError(
            f"{path.name}: the file is empty and has no header line; remove it or fetch it again"
        )
    missing = [column for column in wanted if column not in header]
    if missing:
        raise SpecError(f"{path.name}: no column {missing}; it has {header}; check dataset.toml")
    repeated = [column for column in wanted if header.count(column) > 1]
    if repeated:
        raise SpecError(f"{path.name}: more than one column {repeated}; it has {header}")


def read_file(path: Path, table: Table, wanted: list[str], name: str | None = None) -> RawFile:
    """Read the wanted columns of one file as strings; ``name`` names the file in the result.

    Raises:
        SpecError: a wanted column is missing, or the file cannot be read.

    """
    check_header(path, table, wanted)
    reader = {"csv": read_csv, "parquet": _read_parquet, "jsonl": _read_jsonl}[
        table.file_format(path)
    ]
    with _readable(path):
        rows, bad = reader(path, table, wanted)
    return RawFile(name or path.name, rows, pd.DataFrame(bad, columns=["line", "reason", "row"]))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, UnicodeError, csv.Error, pa.ArrowException) as error:
        raise SpecError(f"{path.name}: cannot be read: {str(error).splitlines()[0]}") from error


def _header(path: Path, table: Table) -> list[str]:
    with _readable(path):
        if table.file_format(path) == "parquet":
            return list(pq.read_schema(path).names)
        return csv_header(path, table)


def _read_parquet(path: Path, table: Table, wanted: list[str]) -> tuple[pd.DataFrame, BadLines]:
    del table
    with pq.ParquetFile(path) as file:
        parsed = file.read(columns=wanted)
    rows = pd.RangeIndex(1, len(parsed) + 1)
    fields = {}
    for name in wanted:
        column = parsed[name]
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            fields[name] = pd.Series(
                [_as_text(value) for value in column.to_pylist()], rows, dtype="object"
            )
        else:
            fields[name] = as_frame([_parquet_text(column)], [name], rows)[name]
    return pd.DataFrame(fields, index=rows), []


def _parquet_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_timestamp(column.type):
        zone = "UTC" if column.type.tz else None
        # Whole microseconds are enough.
        column = column.cast(pa.timestamp("us", tz=zone), safe=False)
    if pa.types.is_floating(column.type):
        # Pandas makes ids and times floats if a value is missing: whole numbers become integers.
        whole = pc.fill_null(
            pc.and_(pc.equal(pc.floor(column), column), pc.less(pc.abs(column), 2.0**53)), False
        )
        integers = pc.if_else(whole, column, None).cast(pa.int64()).cast(pa.string())
        known = pc.if_else(pc.is_nan(column), None, column).cast(pa.string())
        return pc.coalesce(integers, known)
    return column.cast(pa.string())


def _read_jsonl(path: Path, table: Table, wanted: list[str]) -> tuple[pd.DataFrame, BadLines]:
    text, damaged = read_text(path, table.encoding)
    records: list[list[object]] = []
    lines: list[int] = []
    bad: BadLines = []
    present: set[str] = set()
    for number, line in enumerate(text.split("\n"), start=1):
        if not line or line.isspace():
            continue
        record, problem = (None, damaged[number]) if number in damaged else _json_object(line)
        if record is None:
            bad.append((number, problem, printable(line)))
            continue
        present |= record.keys()
        records.append([_as_text(record.get(name)) for name in wanted])
        lines.append(number)
    absent = [name for name in wanted if name not in present]
    if records and absent:
        raise SpecError(f"{path.name}: no line has the key {absent}; check dataset.toml")
    index = pd.Index(lines, dtype="int64")
    return pd.DataFrame(records, columns=wanted, index=index, dtype="object"), bad


def _json_object(line: str) -> tuple[dict[str, Any] | None, str]:
    try:
        record = json.loads(line)
        if "\\u" in line:
            json.dumps(record, ensure_ascii=False).encode()  # half a surrogate pair is not text
    except UnicodeEncodeError:
        return None, "broken line: not valid unicode"
    except (ValueError, RecursionError) as error:
        return None, f"broken line: not JSON ({getattr(error, 'msg', 'too large')})"
    return (record, "") if isinstance(record, dict) else (None, "broken line: not a JSON object")


def _as_text(value: object) -> object:
    """Return a JSON value as text; of a list, its items that are not null."""
    if value is None or isinstance(value, str):
        return value
    if value != value:  # NaN
        return None
    if isinstance(value, list):
        return [text for item in value if (text := _as_text(item)) is not None]
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value, ensure_ascii=False, default=str)
