"""Splits text files into lines, and lines of separated values into rows with line numbers.

A line ends with LF, CRLF or CR. Only blank lines are no rows.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv

from feature_repo.dataset import Table

_BLOCK_BYTES = 1 << 26
_LONGEST_FIELD = 1 << 26
_UNDECODABLE = re.compile("[\ud800-\udfff]")
_BOM = b"\xef\xbb\xbf"

BadLines = list[tuple[int, str, str]]
"""Line number, reason and text of each line that is not a row."""


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


@contextmanager
def open_unpacked(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, unpacked, behind its byte order mark."""
    unpack: Any = gzip.open if path.suffix == ".gz" else open
    with unpack(path, "rb") as file:
        if file.read(len(_BOM)) != _BOM:
            file.seek(0)
        yield file


def read_text(path: Path, encoding: str) -> tuple[str, dict[int, str]]:
    """Return a file's text with LF line ends, and the problem of each damaged line by number."""
    with open_unpacked(path) as file:
        data = file.read()
    try:
        text = data.decode(encoding)
        decodable = True
    except UnicodeDecodeError:
        text = data.decode(encoding, errors="surrogateescape")
        decodable = False
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if decodable and "\0" not in text:
        return text, {}
    damaged = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if _UNDECODABLE.search(line):
            damaged[number] = f"not valid {encoding}"
        elif "\0" in line:
            damaged[number] = "broken line: NUL byte"
    return text, damaged


def printable(text: str) -> str:
    """Return the text of a bad line as valid UTF-8 without NUL."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").replace("\0", "\\0")


class _Csv(NamedTuple):
    """A CSV file: its text, the number of header lines to skip, and how to split the others."""

    text: str
    skip: int
    header: list[str]
    separator: str
    damaged: dict[int, str]

    def is_blank(self, line: str) -> bool:
        # A line of tabs is a row if the separator is a tab.
        return not line or (line.isspace() and self.separator not in line)


def read_csv(path: Path, table: Table, wanted: list[str]) -> tuple[pd.DataFrame, BadLines]:
    """Return the wanted columns of all rows, by line number, and the lines that are not rows."""
    text, damaged = read_text(path, table.encoding)
    file = _Csv(text, 0 if table.columns else 1, csv_header(path, table), table.separator, damaged)
    quoted = len(table.separator) == 1 and table.separator.isascii()
    if quoted and ('"' in text or len(file.header) == 1):
        return _split_quoted(file, wanted)
    return _split_plain(file, wanted)


def _split_plain(file: _Csv, wanted: list[str]) -> tuple[pd.DataFrame, BadLines]:
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
        return as_frame([pa.array([], pa.string()) for _ in wanted], wanted, []), bad
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
    return frame, bad + [row for row in invalid if not file.is_blank(row[2])]


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


def _split_quoted(file: _Csv, wanted: list[str]) -> tuple[pd.DataFrame, BadLines]:
    """Split rows with quoted values, which may span lines."""
    lines = file.text.split("\n")
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
            bad.append((first, problem, printable("\n".join(lines[first - 1 : last]))))
    return as_frame([pa.array(column, pa.string()) for column in columns], wanted, numbers), bad


def _records(file: _Csv, lines: list[str]) -> Iterator[tuple[int, int, list[str] | str]]:
    """Yield first line, last line and fields of each row, or its problem instead of fields.

    A quotation mark that is never closed, or closed within a value, makes only its own line bad:
    reading continues with the next line.
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
                    if position > first or not file.is_blank(lines[first - 1]):
                        yield first, position, fields
            except csv.Error as error:
                position += 1
                yield position, position, f"broken line: {error}"
    finally:
        csv.field_size_limit(limit)


def as_frame(columns: list[Any], names: list[str], numbers: Any) -> pd.DataFrame:
    """Return Arrow columns of strings as a frame whose index is the line numbers."""
    frame: pd.DataFrame = pa.table(columns, names=names).to_pandas(
        types_mapper={pa.string(): pd.StringDtype("pyarrow")}.get
    )
    frame.index = pd.Index(numbers, dtype="int64")
    return frame
