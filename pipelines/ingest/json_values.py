"""Reads JSON files: one object a line, objects that span lines, or one array of objects.

Rows are numbered by line; those of an array, or that span lines, by their place among the values.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from feature_repo.dataset import SpecError, Table
from pipelines.ingest.text_files import BadLines, printable, read_text

_DECODER = json.JSONDecoder()
_SHOWN_KEYS = 20
_SHOWN_TEXT = 1_000
_SPACE = " \t\r\n"

# Each error costs time in proportion to the text before it.
_MOST_BROKEN = 1_000
_GIVEN_UP = "broken line: the rest of the file is not read, after 1,000 values that are not JSON"


class JsonRows(NamedTuple):
    """The wanted values by row number, the rows that are none, and the wanted keys of no row."""

    rows: pd.DataFrame
    bad: BadLines
    absent: list[str]


class _Value(NamedTuple):
    """One JSON value, or why it is none, and the text it was read from."""

    number: int
    value: object
    problem: str
    text: str


def read_json(
    path: Path, table: Table, wanted: list[str], optional: frozenset[str] = frozenset()
) -> JsonRows:
    """Return the wanted values of all objects; ``a.b`` is the key b of the object under a.

    Raises:
        SpecError: no object has a wanted key that is not optional.

    """
    text, damaged = read_text(path, table.encoding)
    paths = [(name, name.split(".")) for name in wanted]
    records: list[list[object]] = []
    numbers: list[int] = []
    bad: BadLines = []
    present: set[str] = set()
    keys: dict[str, None] = {}
    for item in _values(text, damaged):
        if not isinstance(item.value, dict):
            problem = item.problem or "broken line: not a JSON object"
            bad.append((item.number, problem, printable(item.text)))
            continue
        if len(keys) < _SHOWN_KEYS:
            keys |= dict.fromkeys(_keys(item.value))
        record = []
        for name, parts in paths:
            value, exists = _lookup(item.value, name, parts)
            if exists:
                present.add(name)
            record.append(as_text(value))
        records.append(record)
        numbers.append(item.number)
    absent = [name for name in wanted if name not in present] if records else []
    required = [name for name in absent if name not in optional]
    if required:
        raise _no_key(path, required, list(keys)[:_SHOWN_KEYS])
    index = pd.Index(numbers, dtype="int64")
    rows = pd.DataFrame(records, columns=wanted, index=index, dtype="object")
    return JsonRows(rows, bad, absent)


def _no_key(path: Path, missing: list[str], keys: list[str]) -> SpecError:
    return SpecError(
        f"{path.name}: no line has the key {missing}; the keys there are {keys}; check "
        "dataset.toml, where a.b names the key b of the object under a, and that there is one "
        "object a line or a list of objects"
    )


def as_text(value: object) -> object:
    """Return a JSON value as text; of a list, the list of its values that are not null."""
    if value is None or isinstance(value, str):
        return value
    if value != value:  # NaN
        return None
    if isinstance(value, list):
        return [text for item in value if (text := as_text(item)) is not None]
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value, ensure_ascii=False, default=str)


def _values(text: str, damaged: dict[int, str]) -> Iterator[_Value]:
    first = text.lstrip()
    if first.startswith("[") and _is_array(text):
        return _array_values(text)
    if first.startswith("{") and not _is_object(first.partition("\n")[0]) and _begins_whole(first):
        return _stream_values(text)
    return _line_values(text, damaged)


def _line_values(text: str, damaged: dict[int, str]) -> Iterator[_Value]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line or line.isspace():
            continue
        value, problem = (None, damaged[number]) if number in damaged else _parsed(line)
        yield _Value(number, value, problem, line)


def _array_values(text: str) -> Iterator[_Value]:
    """Yield the values of an array; after one that cannot be read, go on in the next line."""
    return _values_from(text, _after_space(text, 0) + 1, between=_SPACE + ",", closing="]")


def _stream_values(text: str) -> Iterator[_Value]:
    """Yield values that follow each other without separators."""
    return _values_from(text, 0, between=_SPACE)


def _values_from(
    text: str, position: int, *, between: str, closing: str | None = None
) -> Iterator[_Value]:
    """Yield values until ``closing`` or the end; after too many that cannot be read, give up."""
    broken = 0
    number = 0
    while True:
        position = _after_space(text, position, between)
        if position >= len(text) or text[position] == closing:
            return
        number += 1
        position, item = _one(text, position, number)
        yield item
        broken += bool(item.problem)
        if broken == _MOST_BROKEN:
            yield _Value(number + 1, None, _GIVEN_UP, text[position : position + _SHOWN_TEXT])
            return


def _one(text: str, position: int, number: int) -> tuple[int, _Value]:
    try:
        value, end = _DECODER.raw_decode(text, position)
    except (ValueError, RecursionError) as error:
        end = text.find("\n", position)
        end = len(text) if end < 0 else end
        why = getattr(error, "msg", "too large")
        line = text.count("\n", 0, position) + 1
        problem = f"broken line: not JSON ({why}), in line {line}"
        return end, _Value(number, None, problem, text[position:end])
    source = text[position:end]
    problem = _surrogate_problem(source, value)
    return end, _Value(number, None if problem else value, problem, source)


def _parsed(line: str) -> tuple[object, str]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return None, f"broken line: not JSON ({getattr(error, 'msg', 'too large')})"
    problem = _surrogate_problem(line, value)
    return (None, problem) if problem else (value, "")


def _surrogate_problem(source: str, value: object) -> str:
    try:
        if not source.isascii():
            source.encode()
        if "\\u" in source:
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is not text
    except UnicodeEncodeError:
        return "broken line: not valid unicode"
    return ""


def _is_array(text: str) -> bool:
    """Return whether a text that begins with ``[`` is one array of objects, not one a line."""
    start = _after_space(text, 0)
    first = _after_space(text, start + 1)
    if text[first : first + 1] not in ("{", "]"):
        return False
    line_end = text.find("\n", start)
    if line_end < 0:
        return True
    try:
        json.loads(text[start:line_end])
    except (ValueError, RecursionError):
        return True  # the array spans lines
    return not text[line_end:].strip()


def _is_object(line: str) -> bool:
    return isinstance(_parsed(line)[0], dict)


def _begins_whole(text: str) -> bool:
    """Return whether a text begins with an object, which may span lines."""
    try:
        _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def _after_space(text: str, position: int, skipped: str = _SPACE) -> int:
    while position < len(text) and text[position] in skipped:
        position += 1
    return position


def _lookup(record: dict[str, object], name: str, parts: list[str]) -> tuple[object, bool]:
    """Return the value of a key, and whether the record has it."""
    if name in record:
        return record[name], True
    value: object = record
    for part in parts:
        if not isinstance(value, dict) or part not in value:
            return None, False
        value = value[part]
    return value, True


def _keys(record: dict[str, object]) -> Iterator[str]:
    """Yield the keys of a record, those of objects within it as ``a.b``."""
    for key, value in record.items():
        yield key
        if isinstance(value, dict):
            yield from (f"{key}.{inner}" for inner in value)
