"""Splits lines of separated values into rows with line numbers; only blank lines are no rows."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv

from feature_repo.dataset import Table
from pipelines.ingest.text_files import BadLines, open_unpacked, printable, read_text

_BLOCK_BYTES = 1 << 26
_LONGEST_FIELD = 1 << 26
_FEWEST_SWALLOWED = 4
_NARROWEST = 3
_ESCAPED = re.compile(r'\\(["\\])')

BACKSLASH = '\\"'
"""A quotation mark within a value, as MySQL and Spark write it."""


def csv_header(path: Path, table: Table) -> list[str]:
    """Return the column names of a CSV file (empty: the file is)."""
    if table.columns:
        return table.columns
    with (
        open_unpacked(path) as file,
        io.TextIOWrapper(file, table.encoding, errors="replace") as text,
    ):
        first = text.readline().strip("\n")
    if len(table.separator) > 1:
        return first.split(table.separator) if first else []
    return next(csv.reader([first], delimiter=table.separator), [])


class _Csv(NamedTuple):
    """A CSV file: its text, the number of header lines to skip, and how to split the others.

    ``source`` is the text as it lies in the file, where ``text`` was changed to be split.
    """

    text: str
    skip: int
    header: list[str]
    separator: str
    damaged: dict[int, str]
    source: str

    def is_blank(self, line: str) -> bool:
        # A line of tabs is a row if the separator is a tab.
        return not line or (line.isspace() and self.separator not in line)


class CsvRows(NamedTuple):
    """The wanted columns of all rows by line number, the other lines, and what to tell about it."""

    rows: pd.DataFrame
    bad: BadLines
    notes: tuple[str, ...] = ()


def read_csv(path: Path, table: Table, wanted: list[str]) -> CsvRows:
    """Return the wanted columns of all rows, by line number, and the lines that are not rows.

    A wanted column that the header lacks is missing in every row.
    """
    text, damaged = read_text(path, table.encoding)
    skip = 0 if table.columns else 1
    file = _Csv(text, skip, csv_header(path, table), table.separator, damaged, text)
    present = [name for name in wanted if name in file.header]
    read = _split(file, table.quoting, present)
    rows = read.rows
    for name in wanted:
        if name not in rows:
            rows[name] = pd.Series(pd.NA, rows.index, dtype=pd.StringDtype("pyarrow"))
    return read._replace(rows=rows[wanted])


def _split(file: _Csv, quoting: str, wanted: list[str]) -> CsvRows:
    """Split a file as its quoting says; with ``auto``, as most of its lines can be read."""
    one_byte = len(file.separator) == 1 and file.separator.isascii()
    if not one_byte or quoting == "none":
        return _split_plain(file, wanted)
    if quoting == "backslash":
        return _split_quoted(file._replace(text=with_doubled_quotes(file.text)), wanted)
    if '"' not in file.text and len(file.header) > 1:
        return _split_plain(file, wanted)
    read = _split_quoted(file, wanted)
    if quoting == "double" or not _broken(read):
        return read

    if '\\"' in file.text:
        other = _split_quoted(file._replace(text=with_doubled_quotes(file.text)), wanted)
        if _broken(other) < _broken(read):
            return other._replace(notes=(f"its quotation marks are read as written {BACKSLASH}",))
    advice = f"set quoting = 'none' if they belong to the values, 'backslash' for {BACKSLASH}"
    return read._replace(notes=(f"{_broken(read)} lines have stray quotation marks; {advice}",))


def _broken(read: CsvRows) -> int:
    """Return how many lines were not split because of their quotation marks."""
    return sum('"' in text for _, reason, text in read.bad if reason.startswith("broken line"))


def _split_plain(file: _Csv, wanted: list[str]) -> CsvRows:
    """Split unquoted rows with Arrow's reader, which is fast."""
    text, numbers, bad = _full_lines(file)
    separator = file.separator
    if len(separator.encode()) > 1:  # Arrow splits by one byte only
        stand_in = next(char for char in map(chr, range(1, 9)) if char not in text)
        text, separator = text.replace(separator, stand_in), stand_in
    broken: list[tuple[int, str]] = []

    def skip(row: pa_csv.InvalidRow) -> str:
        broken.append((row.number - 1, row.text.replace(separator, file.separator)))
        return "skip"

    if not text:
        return CsvRows(as_frame([pa.array([], pa.string()) for _ in wanted], wanted, []), bad)
    table = pa_csv.read_csv(
        io.BytesIO(text.encode()),
        read_options=pa_csv.ReadOptions(
            column_names=file.header, use_threads=False, block_size=_BLOCK_BYTES
        ),
        parse_options=pa_csv.ParseOptions(
            delimiter=separator, quote_char=False, invalid_row_handler=skip
        ),
        convert_options=pa_csv.ConvertOptions(
            column_types=dict.fromkeys(wanted, pa.string()),
            include_columns=wanted,
            strings_can_be_null=True,
            null_values=[""],
        ),
    )
    rows = (
        numbers
        if numbers is not None
        else pd.RangeIndex(1, len(table) + len(broken) + 1) + file.skip
    )
    invalid = [
        (int(rows[row]), "broken line: wrong number of columns", line) for row, line in broken
    ]
    frame = as_frame(table.columns, wanted, rows.delete([row for row, _ in broken]))
    return CsvRows(frame, bad + [row for row in invalid if not file.is_blank(row[2])])


def _full_lines(file: _Csv) -> tuple[str, pd.Index | None, BadLines]:
    """Return the text without header, blank and damaged lines, its line numbers and bad lines.

    The line numbers are None if all lines follow the header.
    """
    body = file.text if not file.skip else file.text.partition("\n")[2]
    if not file.damaged and not body.startswith("\n") and "\n\n" not in body:
        return body, None, []
    numbers: list[int] = []
    lines: list[str] = []
    bad: BadLines = []
    for number, line in enumerate(body.split("\n"), start=file.skip + 1):
        if number in file.damaged:
            bad.append((number, file.damaged[number], printable(line)))
        elif not file.is_blank(line):
            numbers.append(number)
            lines.append(line)
    return "\n".join(lines), pd.Index(numbers, dtype="int64"), bad


def _split_quoted(file: _Csv, wanted: list[str]) -> CsvRows:
    """Split rows with quoted values, which may span lines."""
    lines = file.text.split("\n")
    source = file.source.split("\n")
    indices = [file.header.index(name) for name in wanted]
    columns: list[list[str | None]] = [[] for _ in wanted]
    numbers: list[int] = []
    bad: BadLines = []
    for first, last, fields in _records(file, lines):
        damage = next((file.damaged[n] for n in range(first, last + 1) if n in file.damaged), None)
        problem = damage or (fields if isinstance(fields, str) else None)
        if problem is None and len(fields) != len(file.header):
            problem = "broken line: wrong number of columns"
        if problem is None:
            numbers.append(first)
            for column, index in zip(columns, indices, strict=True):
                column.append(fields[index] or None)
        else:
            bad.append((first, problem, printable("\n".join(source[first - 1 : last]))))
    frame = as_frame([pa.array(column, pa.string()) for column in columns], wanted, numbers)
    return CsvRows(frame, bad)


def _records(file: _Csv, lines: list[str]) -> Iterator[tuple[int, int, list[str] | str]]:
    """Yield first line, last line and fields of each row, or its problem instead of fields.

    A quotation mark that is never closed, closed within a value, or closed after rows that it
    swallowed, makes only its own line bad: reading continues with the next line.
    """
    position = file.skip
    limit = csv.field_size_limit(_LONGEST_FIELD)
    try:
        while position < len(lines):
            rest = (lines[n] + "\n" for n in range(position, len(lines)))
            reader = csv.reader(rest, delimiter=file.separator, strict=True)
            start = position
            try:
                for fields in reader:
                    first = position + 1
                    position = start + reader.line_num
                    if swallows_rows(lines[first - 1 : position], fields, file):
                        position = first - 1
                        raise csv.Error("a quotation mark is opened and not closed")
                    if position > first or not file.is_blank(lines[first - 1]):
                        yield first, position, fields
            except csv.Error as error:
                position += 1
                yield position, position, f"broken line: {error}"
    finally:
        csv.field_size_limit(limit)


def swallows_rows(lines: list[str], fields: list[str], file: _Csv) -> bool:
    """Return whether a row's lines look like rows of their own behind a stray quotation mark."""
    width = len(file.header)
    if len(lines) < _FEWEST_SWALLOWED or width < _NARROWEST:
        return False
    like_rows = sum(line.count(file.separator) == width - 1 for line in lines[1:])
    if len(fields) == width:
        return like_rows == len(lines) - 1
    return like_rows * 2 > len(lines)


def with_doubled_quotes(text: str) -> str:
    """Return a text whose escaped quotation marks are doubled, and escaped backslashes single."""
    return _ESCAPED.sub(lambda match: '""' if match[1] == '"' else "\\", text)


def as_frame(columns: list[Any], names: list[str], numbers: Any) -> pd.DataFrame:
    """Return Arrow columns of strings as a frame whose index is the line numbers."""
    frame: pd.DataFrame = pa.table(columns, names=names).to_pandas(
        types_mapper={pa.string(): pd.StringDtype("pyarrow")}.get
    )
    frame.index = pd.Index(numbers, dtype="int64")
    return frame
