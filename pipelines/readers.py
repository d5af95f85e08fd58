"""Files of any described layout -> tables of strings, with the line each row came from.

Nothing is interpreted here and nothing is lost: a line that cannot be split into its columns comes
back as a bad line with a reason.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from feature_repo.dataset import SpecError, Table

_UNIT_SEPARATOR = "\x1f"  # stands in for separators of several characters, which Arrow cannot split by


@dataclass(frozen=True)
class RawFile:
    """One file as read: ``rows`` has string columns (lists for Parquet lists) and its index is the line number."""

    name: str
    rows: pd.DataFrame
    bad: pd.DataFrame  # columns: line, reason, row


def find_files(table: Table, folder: Path) -> list[Path]:
    """Return the files of a table, sorted by path.

    Raises:
        SpecError: there is none.

    """
    direct = folder / table.path
    if direct.is_file():
        return [direct]
    found = direct.rglob("*") if direct.is_dir() else folder.glob(table.path)
    files = sorted(path for path in found if path.is_file() and not path.name.startswith((".", "_")))
    if not files:
        raise SpecError(f"no file matches '{table.path}' in {folder}; check path in dataset.toml and the data folder")
    return files


def read_header(path: Path, table: Table) -> list[str]:
    """Return the column names of a file without reading its rows (JSON lines: those of the first line)."""
    kind = table.file_format(path)
    if kind == "parquet":
        return list(pq.read_schema(path).names)
    with _open(path) as file:
        first = file.readline().decode(table.encoding, errors="replace").strip("\r\n")
    if kind == "csv":
        if table.columns:
            return table.columns
        if len(table.separator) > 1:
            return first.split(table.separator)
        return next(csv.reader([first.removeprefix("\ufeff")], delimiter=table.separator), [])
    try:
        return list(json.loads(first or "{}"))
    except (json.JSONDecodeError, TypeError):
        return []


def read_file(path: Path, table: Table, wanted: list[str]) -> RawFile:
    """Read the wanted columns of one file as strings.

    Raises:
        SpecError: a wanted column is not in the file.

    """
    kind = table.file_format(path)
    header = read_header(path, table)
    missing = [column for column in wanted if column not in header]
    if missing and kind != "jsonl":
        raise SpecError(f"{path.name}: no column {missing}; it has {header}; check dataset.toml")
    reader = {"csv": _read_csv, "parquet": _read_parquet, "jsonl": _read_jsonl}[kind]
    rows, bad = reader(path, table, wanted)
    return RawFile(path.name, rows, pd.DataFrame(bad, columns=["line", "reason", "row"]))


def _open(path: Path) -> io.BufferedIOBase:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


_BadLines = list[tuple[int, str, str]]


def _read_csv(path: Path, table: Table, wanted: list[str]) -> tuple[pd.DataFrame, _BadLines]:
    with _open(path) as file:
        data = file.read()
    data, numbers, bad = _decodable_lines(data, table.encoding)
    quote: str | bool = '"'
    separator = table.separator
    if len(separator) > 1:
        data, separator, quote = data.replace(separator, _UNIT_SEPARATOR), _UNIT_SEPARATOR, False
    first_row = 0 if table.columns else 1

    def on_invalid(row: pa_csv.InvalidRow) -> str:
        broken.append(row.number)
        texts.append(row.text)
        return "skip"

    broken: list[int] = []
    texts: list[str] = []
    header = read_header(path, table)
    if not data.strip():
        return pd.DataFrame(columns=wanted, dtype=str), bad
    parsed = pa_csv.read_csv(
        io.BytesIO(data.encode()),
        read_options=pa_csv.ReadOptions(column_names=table.columns, use_threads=False, block_size=1 << 26),
        parse_options=pa_csv.ParseOptions(
            delimiter=separator, quote_char=quote, newlines_in_values=bool(quote), ignore_empty_lines=False,
            invalid_row_handler=on_invalid,
        ),
        convert_options=pa_csv.ConvertOptions(
            column_types={name: pa.string() for name in header}, include_columns=wanted, strings_can_be_null=True,
            null_values=[""], quoted_strings_can_be_null=True,
        ),
    )
    return _number_rows(parsed, broken, texts, numbers, first_row, data, bad)


def _decodable_lines(data: bytes, encoding: str) -> tuple[str, list[int] | None, _BadLines]:
    """Decode; lines that do not decode are taken out (and ``numbers`` then holds each line's number)."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        pass
    else:
        if "\x00" not in text:
            return text.replace("\r\n", "\n"), None, []
    kept, numbers, bad = [], [], []
    for number, line in enumerate(data.split(b"\n"), start=1):
        line = line.removesuffix(b"\r")
        try:
            decoded = line.decode(encoding)
        except UnicodeDecodeError:
            bad.append((number, f"not valid {encoding}", line.decode(encoding, errors="replace")))
            continue
        if "\x00" in decoded:
            bad.append((number, "broken line: NUL byte", decoded.replace("\x00", "\\0")))
            continue
        kept.append(decoded)
        numbers.append(number)
    return "\n".join(kept), numbers, bad


def _number_rows(
    parsed: pa.Table,
    broken: list[int],
    texts: list[str],
    numbers: list[int] | None,
    first_row: int,
    data: str,
    bad: _BadLines,
) -> tuple[pd.DataFrame, _BadLines]:
    """Give each parsed row its line in the file; Arrow numbers rows from 1, the header included."""
    frame = parsed.to_pandas(types_mapper={pa.string(): pd.StringDtype("pyarrow")}.get)
    total = len(frame) + len(broken)
    rows = pd.RangeIndex(1 + first_row, 1 + first_row + total)
    index = rows.difference(pd.Index(broken)) if broken else rows
    lines = index.to_numpy()
    if data.count("\n") > total + first_row:  # quoted values with line breaks: rows span lines
        breaks = sum((frame[name].str.count("\n").fillna(0) for name in frame.columns), start=pd.Series(0, frame.index))
        lines = lines + breaks.cumsum().shift(fill_value=0).to_numpy(dtype="int64")
    real = (lambda line: numbers[line - 1] if line <= len(numbers) else line) if numbers is not None else int
    frame.index = pd.Index([real(line) for line in lines]) if numbers is not None else pd.Index(lines)
    for row, text in zip(broken, texts, strict=True):
        if text.strip():  # an empty line is no row
            bad.append((real(row), "broken line: wrong number of columns", text.replace(_UNIT_SEPARATOR, "::")))
    return frame, bad


def _read_parquet(path: Path, table: Table, wanted: list[str]) -> tuple[pd.DataFrame, _BadLines]:
    del table
    parsed = pq.read_table(path, columns=wanted)
    fields = {}
    for name in wanted:
        column = parsed[name]
        if pa.types.is_timestamp(column.type):
            moments = column.cast(pa.timestamp("us", tz="UTC") if column.type.tz else pa.timestamp("us"))
            fields[name] = pd.Series(moments.to_pandas()).dt.strftime("%Y-%m-%dT%H:%M:%S.%f").astype("string[pyarrow]")
        elif pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            fields[name] = column.to_pandas()
        else:
            fields[name] = column.cast(pa.string()).to_pandas(types_mapper={pa.string(): pd.StringDtype("pyarrow")}.get)
    frame = pd.DataFrame(fields)
    frame.index = pd.RangeIndex(1, len(frame) + 1)
    return frame, []


def _read_jsonl(path: Path, table: Table, wanted: list[str]) -> tuple[pd.DataFrame, _BadLines]:
    with _open(path) as file:
        text, numbers, bad = _decodable_lines(file.read(), table.encoding)
    records, lines = [], []
    for position, line in enumerate(text.split("\n")):
        number = numbers[position] if numbers is not None else position + 1
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            bad.append((number, f"broken line: not JSON ({error.msg})", line))
            continue
        if not isinstance(record, dict):
            bad.append((number, "broken line: not a JSON object", line))
            continue
        records.append([_as_text(record.get(name)) for name in wanted])
        lines.append(number)
    frame = pd.DataFrame(records, columns=wanted, index=pd.Index(lines, dtype="int64"))
    if len(frame) and frame.notna().sum().min() == 0:
        absent = [name for name in wanted if frame[name].isna().all()]
        raise SpecError(f"{path.name}: no line has the key {absent}; check dataset.toml")
    return frame, bad


def _as_text(value: object) -> object:
    if value is None or isinstance(value, list):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value if isinstance(value, str) else json.dumps(value)
