"""Reads cells of user and item tables: numbers, lists and texts; what cannot be read is missing."""

from __future__ import annotations

import ast
import csv
import json
import re
from typing import NamedTuple

import numpy as np
import pandas as pd

from feature_repo.cell_values import BOUND, MAX_NUMBER, NULL_WORDS

_GROUPED = r"[+-]?(?:\d{1,3}(?:\.\d{3})+|\d+)(?:,\d+)?"
_TRUTH = {"true": "1", "false": "0"}
_JOINED = re.compile(r"""['"]\s+['"]""")


class Cells(NamedTuple):
    """One column of cells: values, and by row why a cell that is not empty was left out."""

    values: pd.Series
    problems: pd.Series


def as_texts(column: pd.Series) -> pd.Series:
    """Return a column of strings without outer blanks; blank ones are missing."""
    if column.dtype == "object":  # from JSON: a list is not an id; the quarantine shows its text
        column = column.map(lambda value: json.dumps(value) if isinstance(value, list) else value)
    text = column.astype("string[pyarrow]").str.strip()
    return text.mask(text == "")


def without_null_words(text: pd.Series) -> pd.Series:
    """Return texts without the words that programs write where there is no value."""
    return text.mask(text.str.lower().isin(NULL_WORDS))


def as_numbers(text: pd.Series, decimal: str = ".") -> pd.Series:
    """Return texts as float64; NaN where a text is no number written with this decimal mark."""
    if decimal == ",":
        text = text.where(text.str.fullmatch(_GROUPED).fillna(False).astype("bool"))
        text = text.str.replace(".", "", regex=False).str.replace(",", ".", regex=False)
    return pd.to_numeric(text, errors="coerce").astype("float64")


def number_cells(column: pd.Series, name: str, decimal: str) -> Cells:
    """Read a numeric attribute; true and false are 1 and 0."""
    text = as_texts(column)
    lowered = text.str.lower()
    truth = lowered.isin(_TRUTH)
    numbers = as_numbers(text.mask(truth, lowered.map(_TRUTH).astype(text.dtype)), decimal)

    finite = pd.Series(np.isfinite(numbers), index=numbers.index)
    inside = finite & (numbers.abs() <= MAX_NUMBER)
    problems = pd.Series("", index=text.index, dtype="object")
    problems[text.notna() & ~finite] = f"bad number in {name}"
    problems[finite & ~inside] = f"number in {name} {BOUND}"
    return Cells(numbers.where(inside), problems)


def list_cells(column: pd.Series, name: str, separator: str) -> Cells:
    """Read a multi-categorical attribute; None where a cell is empty."""
    read = [_list_cell(value, separator) for value in column]
    values = pd.Series([parts for parts, _ in read], index=column.index, dtype="object")
    problems = [f"{problem} in {name}" if problem else "" for _, problem in read]
    return Cells(values, pd.Series(problems, index=column.index, dtype="object"))


def text_cells(column: pd.Series, name: str) -> Cells:
    """Read a categorical or text attribute; a list stays as text, and is told."""
    text = as_texts(column)
    problems = pd.Series("", index=text.index, dtype="object")
    bracketed = text.str.fullmatch(r"\[.*,.*\]|\[\s*[\"'].*\]").fillna(False).astype("bool")
    problems[bracketed] = f"text that looks like a list in {name}"
    return Cells(text, problems)


def _list_cell(value: object, separator: str) -> tuple[list[str] | None, str]:
    """Return the parts of a cell, and what is wrong with it."""
    if isinstance(value, str):
        text = value.strip()
        if not text:
            return None, ""
        if text[0] + text[-1] in ("[]", "{}") and len(text) > 1:
            parts = _written_list(text)
            if parts is None:
                return _split(text, separator), "text that looks like a list"
            value = parts
        else:
            return _split(text, separator), ""
    if not isinstance(value, list):
        return None, ""
    if any(isinstance(part, list | dict) for part in value):
        return None, "list within a list"
    return [text for part in value if (text := str(part).strip())], ""


def _split(text: str, separator: str) -> list[str]:
    return [part for piece in text.split(separator) if (part := piece.strip())]


def _written_list(text: str) -> list[object] | None:
    """Return the list that a text writes, as JSON, Python or PostgreSQL do; None if it is none."""
    if text[0] == "{":
        return _database_list(text)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        if _JOINED.search(text):
            return None  # NumPy writes no commas, and Python would join the words
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
    if not isinstance(value, list):
        return None
    known = [part for part in value if part is not None and part == part]
    return [json.dumps(part) if isinstance(part, bool) else part for part in known]


def _database_list(text: str) -> list[object] | None:
    try:
        if isinstance(json.loads(text), dict):
            return None if text != "{}" else []
    except ValueError:
        pass
    if ":" in text:
        return None
    reader = csv.reader([text[1:-1]], escapechar="\\", strict=True)
    try:
        parts = next(reader, [])
    except csv.Error:
        return None
    return [part for part in parts if part != "NULL"]
