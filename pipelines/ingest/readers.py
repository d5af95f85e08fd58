"""Reads files of any described layout into tables of strings, with the line number of each row.

Values are not interpreted here, and no line is dropped: a line that cannot be split into its
columns is returned as a bad line with a reason.
"""

from __future__ import annotations

import csv
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.dataset import SpecError, Table
from pipelines.ingest.delimited import csv_header, read_csv
from pipelines.ingest.json_values import read_json
from pipelines.ingest.parquet_columns import read_parquet
from pipelines.ingest.text_files import BadLines


@dataclass(frozen=True)
class RawFile:
    """One file as read.

    ``rows`` has string columns (object where there are lists); its index is the line number.
    ``bad`` has the columns line, reason and row. ``absent`` are wanted columns that the file lacks,
    ``notes`` what a person should know of how it was read.
    """

    name: str
    rows: pd.DataFrame
    bad: pd.DataFrame
    absent: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    decimal: str = "."


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


def check_headers(
    paths: list[Path], table: Table, wanted: list[str], optional: frozenset[str] = frozenset()
) -> None:
    """Refuse files without the wanted columns, before their rows are read.

    Raises:
        SpecError: a file lacks a wanted column, or all files lack an optional one; a wanted column
            is repeated, or a file cannot be read.

    """
    lacking: dict[str, int] = dict.fromkeys(optional, 0)
    for path in paths:
        for column in check_header(path, table, wanted, optional):
            lacking[column] += 1
    nowhere = [column for column in wanted if paths and lacking.get(column) == len(paths)]
    if nowhere:
        raise _no_column(paths[0], nowhere, _header(paths[0], table))


def check_header(
    path: Path, table: Table, wanted: list[str], optional: frozenset[str] = frozenset()
) -> list[str]:
    """Return the optional columns that a file lacks, before its rows are read.

    Raises:
        SpecError: another wanted column is missing, one is repeated, or the file cannot be read.

    """
    if table.file_format(path) == "jsonl":
        return []  # each line has its own keys
    header = _header(path, table)
    if not header:
        raise SpecError(
            f"{path.name}: the file is empty and has no header line; remove it or fetch it again"
        )
    missing = [column for column in wanted if column not in header]
    if required := [column for column in missing if column not in optional]:
        raise _no_column(path, required, header)
    repeated = [column for column in wanted if header.count(column) > 1]
    if repeated:
        raise SpecError(f"{path.name}: more than one column {repeated}; it has {header}")
    return missing


def _no_column(path: Path, missing: list[str], header: list[str]) -> SpecError:
    return SpecError(f"{path.name}: no column {missing}; it has {header}; check dataset.toml")


def read_file(
    path: Path,
    table: Table,
    wanted: list[str],
    name: str | None = None,
    *,
    optional: frozenset[str] = frozenset(),
) -> RawFile:
    """Read the wanted columns of one file as strings; ``name`` names the file in the result.

    An ``optional`` column that the file lacks is missing in every row.

    Raises:
        SpecError: another wanted column is missing, or the file cannot be read.

    """
    lacking = check_header(path, table, wanted, optional)
    kind = table.file_format(path)
    bad: BadLines = []
    notes: tuple[str, ...] = ()
    with _readable(path):
        if kind == "csv":
            rows, bad, notes = read_csv(path, table, wanted)
        elif kind == "jsonl":
            rows, bad, lacking = read_json(path, table, wanted, optional)
        else:
            rows = read_parquet(path, wanted, _header(path, table))
    return RawFile(
        name or path.name,
        rows,
        pd.DataFrame(bad, columns=["line", "reason", "row"]),
        absent=tuple(lacking),
        notes=notes,
        decimal=table.decimal if kind == "csv" else ".",
    )


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
