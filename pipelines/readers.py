"""Files of any described layout -> tables of strings, with the line each row came from.

Nothing is interpreted here and nothing is lost: a line that cannot be split into its columns comes
back as a bad line with a reason. Only blank lines are no rows. A line ends with LF, CRLF or CR.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from feature_repo.dataset import SpecError, Table

_BLOCK_BYTES = 1 << 26
_LONGEST_FIELD = 1 << 26
_UNDECODABLE = re.compile("[\ud800-\udfff]")
_BOM = b"\xef\xbb\xbf"

_BadLines = list[tuple[int, str, str]]


@dataclass(frozen=True)
class RawFile:
    """One file as read: ``rows`` has string columns (object where there are lists), its index is the line number."""

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
        raise SpecError(f"no file matches '{table.path}' in {folder}; check path in dataset.toml and the data folder")
    return files


def check_header(path: Path, table: Table, wanted: list[str]) -> None:
    """Refuse a file without the wanted columns, before its rows are read.

    Raises:
        SpecError: a wanted column is not in the file, or is there twice, or the file cannot be read.

    """
    if table.file_format(path) == "jsonl":
        return  # each line has its own keys
    header = _header(path, table)
    if not header:
        raise SpecError(f"{path.name}: the file is empty, without even a header line; remove it or fetch it again")
    missing = [column for column in wanted if column not in header]
    if missing:
        raise SpecError(f"{path.name}: no column {missing}; it has {header}; check dataset.toml")
    twice = [column for column in wanted if header.count(column) > 1]
    if twice:
        raise SpecError(f"{path.name}: more than one column {twice}; it has {header}")


def read_file(path: Path, table: Table, wanted: list[str], name: str | None = None) -> RawFile:
    """Read the wanted columns of one file as strings; ``name`` is what the file is called in the result.

    Raises:
        SpecError: a wanted column is not in the file, or the file cannot be read.

    """
    check_header(path, table, wanted)
    reader = {"csv": _read_csv, "parquet": _read_parquet, "jsonl": _read_jsonl}[table.file_format(path)]
    with _readable(path):
        rows, bad = reader(path, table, wanted)
    return RawFile(name or path.name, rows, pd.DataFrame(bad, columns=["line", "reason", "row"]))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, UnicodeError, pa.ArrowException) as error:
        raise SpecError(f"{path.name}: cannot be read: {str(error).splitlines()[0]}") from error


def _open(path: Path) -> BinaryIO:
    """Open a file, unpacked, behind its byte order mark."""
    file: Any = gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")
    if file.read(len(_BOM)) != _BOM:
        file.seek(0)
    return file  # type: ignore[no-any-return]


def _header(path: Path, table: Table) -> list[str]:
    with _readable(path):
        if table.file_format(path) == "parquet":
            return list(pq.read_schema(path).names)
        if table.columns:
            return table.columns
        with _open(path) as file:
            first = io.TextIOWrapper(file, table.encoding, errors="replace").readline().strip("\n")
    if len(table.separator) > 1:
        return first.split(table.separator) if first else []
    return next(csv.reader([first], delimiter=table.separator), [])


def _text(path: Path, encoding: str) -> tuple[str, dict[int, str]]:
    """Return a file's text with LF line ends, and what is wrong with each damaged line."""
    with _open(path) as file:
        data = file.read()
    try:
        text, sound = data.decode(encoding), True
    except UnicodeDecodeError:
        text, sound = data.decode(encoding, errors="surrogateescape"), False
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if sound and "\0" not in text:
        return text, {}
    damaged = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if _UNDECODABLE.search(line):
            damaged[number] = f"not valid {encoding}"
        elif "\0" in line:
            damaged[number] = "broken line: NUL byte"
    return text, damaged


def _shown(text: str) -> str:
    """Return the text of a bad line as something that every later reader can take."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").replace("\0", "\\0")


class _Csv(NamedTuple):
    """The text of a CSV file, line by line, and how to split it; ``start`` is its first line that is no header."""

    lines: list[str]
    start: int
    header: list[str]
    separator: str
    damaged: dict[int, str]


def _read_csv(path: Path, table: Table, wanted: list[str]) -> tuple[pd.DataFrame, _BadLines]:
    text, damaged = _text(path, table.encoding)
    separator = table.separator
    quoted = len(separator) == 1 and separator.isascii()
    split = _Csv(text.split("\n"), 0 if table.columns else 1, _header(path, table), separator, damaged)
    if quoted and ('"' in text or len(split.header) == 1):
        return _split_quoted(split, wanted)
    return _split_plain(split, wanted)


def _split_plain(file: _Csv, wanted: list[str]) -> tuple[pd.DataFrame, _BadLines]:
    """Split lines that are rows, fast."""
    numbers, lines, bad = [], [], []
    for number, line in enumerate(file.lines[file.start :], start=file.start + 1):
        if number in file.damaged:
            bad.append((number, file.damaged[number], _shown(line)))
        elif line and not line.isspace():
            numbers.append(number)
            lines.append(line)
    text, separator = "\n".join(lines), file.separator
    if len(separator.encode()) > 1:  # Arrow splits by one byte only
        stand_in = next(char for char in map(chr, range(1, 9)) if char not in text)
        text, separator = text.replace(separator, stand_in), stand_in
    broken: list[int] = []

    def skip(row: pa_csv.InvalidRow) -> str:
        broken.append(row.number - 1)
        return "skip"

    if not lines:
        return _frame([[] for _ in wanted], wanted, []), bad
    table = pa_csv.read_csv(
        io.BytesIO(text.encode()),
        read_options=pa_csv.ReadOptions(column_names=file.header, use_threads=False, block_size=_BLOCK_BYTES),
        parse_options=pa_csv.ParseOptions(delimiter=separator, quote_char=False, invalid_row_handler=skip),
        convert_options=pa_csv.ConvertOptions(
            column_types=dict.fromkeys(wanted, pa.string()),
            include_columns=wanted,
            strings_can_be_null=True,
            null_values=[""],
        ),
    )
    bad += [(numbers[row], "broken line: wrong number of columns", lines[row]) for row in broken]
    index = pd.Index(numbers, dtype="int64").delete(broken)
    return _frame(table.columns, wanted, index), bad


def _split_quoted(file: _Csv, wanted: list[str]) -> tuple[pd.DataFrame, _BadLines]:
    """Split rows with quoted values, which may span lines."""
    places = [file.header.index(name) for name in wanted]
    columns: list[list[str | None]] = [[] for _ in wanted]
    numbers, bad = [], []
    for first, last, fields in _records(file):
        damage = next((file.damaged[n] for n in range(first, last + 1) if n in file.damaged), None)
        problem = damage or (fields if isinstance(fields, str) else None)
        if problem is None and len(fields) != len(file.header):
            problem = "broken line: wrong number of columns"
        if problem is None:
            numbers.append(first)
            for column, place in zip(columns, places, strict=True):
                column.append(fields[place] or None)
        else:
            bad.append((first, problem, _shown("\n".join(file.lines[first - 1 : last]))))
    return _frame(columns, wanted, numbers), bad


def _records(file: _Csv) -> Iterator[tuple[int, int, list[str] | str]]:
    """Yield first line, last line and fields of each row, or what is wrong with it.

    A quotation mark that is never closed, or closed in the midst of a value, spoils its own line only:
    reading goes on with the next one.
    """
    position = file.start
    limit = csv.field_size_limit(_LONGEST_FIELD)
    try:
        while position < len(file.lines):
            lines = (file.lines[n] + "\n" for n in range(position, len(file.lines)))
            reader = csv.reader(lines, delimiter=file.separator, strict=True)
            start = position
            try:
                for fields in reader:
                    first, position = position + 1, start + reader.line_num
                    if position > first or (file.lines[first - 1] and not file.lines[first - 1].isspace()):
                        yield first, position, fields
            except csv.Error as error:
                position += 1
                yield position, position, f"broken line: {error}"
    finally:
        csv.field_size_limit(limit)


def _frame(columns: list[Any], wanted: list[str], numbers: Any) -> pd.DataFrame:
    arrays = [column if isinstance(column, pa.ChunkedArray) else pa.array(column, pa.string()) for column in columns]
    frame = pa.table(arrays, names=wanted).to_pandas(types_mapper={pa.string(): pd.StringDtype("pyarrow")}.get)
    frame.index = pd.Index(numbers, dtype="int64")
    return frame


def _read_parquet(path: Path, table: Table, wanted: list[str]) -> tuple[pd.DataFrame, _BadLines]:
    del table
    with pq.ParquetFile(path) as file:
        parsed = file.read(columns=wanted)
    rows = pd.RangeIndex(1, len(parsed) + 1)
    fields = {}
    for name in wanted:
        column = parsed[name]
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            fields[name] = pd.Series([_as_text(value) for value in column.to_pylist()], rows, dtype="object")
        else:
            fields[name] = _frame([_parquet_text(column)], [name], rows)[name]
    return pd.DataFrame(fields, index=rows), []


def _parquet_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_timestamp(column.type):
        zone = "UTC" if column.type.tz else None
        column = column.cast(pa.timestamp("us", tz=zone), safe=False)  # whole microseconds are enough
    if pa.types.is_floating(column.type):  # ids and times that pandas made floats, for want of a value
        whole = pc.fill_null(pc.and_(pc.equal(pc.floor(column), column), pc.less(pc.abs(column), 2.0**53)), False)
        integers = pc.if_else(whole, column, None).cast(pa.int64()).cast(pa.string())
        known = pc.if_else(pc.is_nan(column), None, column).cast(pa.string())
        return pc.coalesce(integers, known)
    return column.cast(pa.string())


def _read_jsonl(path: Path, table: Table, wanted: list[str]) -> tuple[pd.DataFrame, _BadLines]:
    text, damaged = _text(path, table.encoding)
    records, lines, met, bad = [], [], set(), []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line or line.isspace():
            continue
        record, problem = (None, damaged[number]) if number in damaged else _json_object(line)
        if record is None:
            bad.append((number, problem, _shown(line)))
            continue
        met |= record.keys()
        records.append([_as_text(record.get(name)) for name in wanted])
        lines.append(number)
    absent = [name for name in wanted if name not in met]
    if records and absent:
        raise SpecError(f"{path.name}: no line has the key {absent}; check dataset.toml")
    return pd.DataFrame(records, columns=wanted, index=pd.Index(lines, dtype="int64"), dtype="object"), bad


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
    if value is None or isinstance(value, str) or value != value:
        return None if value != value else value
    if isinstance(value, list):
        return [text for item in value if (text := _as_text(item)) is not None]
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value, ensure_ascii=False, default=str)
