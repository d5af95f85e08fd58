"""Parses tables of strings into typed events, users and items, and says why a row is bad."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pandas as pd

from feature_repo import columns as c
from feature_repo.dataset import DatasetSpec, Users
from pipelines.ingest import schemas
from pipelines.ingest.readers import RawFile

QUARANTINE_COLUMNS = ["file", "line", "reason", "row"]


def event_columns(spec: DatasetSpec) -> list[str]:
    """Return the columns of the event files that the spec names, each once."""
    e = spec.events
    return list(
        dict.fromkeys(name for name in (e.user, e.item, e.timestamp, e.type, e.value, e.id) if name)
    )


def entity_columns(table: Users) -> list[str]:
    """Return the columns of the user or item files that the spec names, each once."""
    columns = [table.key, *(table.source_column(name) for name in table.attributes)]
    return list(dict.fromkeys([*columns, *_availability_columns(table).values()]))


def parse_events(
    spec: DatasetSpec, raw: RawFile, latest: pd.Timestamp, known: set[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the good events of one file, and its bad rows with reasons.

    Args:
        spec: the data set.
        raw: the file's rows.
        latest: the last plausible time.
        known: ids of all earlier events; those of this file are added.

    """
    events = _typed_events(spec, raw.rows)
    why = schemas.reasons(events, schemas.events_schema(spec, latest))
    valid = events.drop(index=why.index)

    # An event id counts once: the first event with it is kept.
    ids = valid[c.EVENT_ID] if spec.events.id else _hashed_ids(valid)
    repeated = ids.duplicated() | ids.isin(known)
    fresh = ids[~repeated]
    known.update(fresh)
    why = pd.concat([why, pd.Series("duplicate", index=ids.index[repeated], dtype="object")])
    return valid[~repeated].assign(**{c.EVENT_ID: fresh.astype("object")}), bad_rows(raw, why)


def parse_entities(
    table: Users, files: list[RawFile], key: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the good rows of a user or item table, sorted by key, and the bad ones with reasons.

    Of several good rows with one key the last is kept.
    """
    numeric = [name for name, kind in table.attributes.items() if kind == "numeric"]
    schema = schemas.entity_schema(key, [*numeric, *_availability_columns(table)])
    later_keys: set[str] = set()
    good: list[pd.DataFrame] = []
    bad: list[pd.DataFrame] = []
    for raw in reversed(files):
        rows = _typed_entities(table, raw.rows, key)
        why = schemas.reasons(rows, schema)
        valid = rows.drop(index=why.index)
        replaced = valid.duplicated(key, keep="last") | valid[key].isin(later_keys)
        later_keys.update(valid[key])
        reason = f"duplicate {key}: a later row replaces it"
        why = pd.concat([why, pd.Series(reason, index=valid.index[replaced], dtype="object")])
        good.append(valid.loc[~replaced, [key, *table.attributes, *_availability_columns(table)]])
        bad.append(bad_rows(raw, why))
    rows = pd.concat(good).sort_values(key, ignore_index=True)
    return rows, pd.concat(bad[::-1], ignore_index=True)


def bad_rows(raw: RawFile, why: pd.Series) -> pd.DataFrame:
    """Return the bad lines of a file and its rows that ``why`` names, in the order of lines."""
    rows = raw.rows.loc[why.index].astype("object")
    records = rows.where(rows.notna(), None).to_dict("records")
    texts = [json.dumps(row, default=str, ensure_ascii=False) for row in records]
    parsed = pd.DataFrame({"line": why.index, "reason": why.to_numpy(), "row": texts})
    bad = pd.concat(
        [frame for frame in (raw.bad, parsed) if len(frame)] or [raw.bad], ignore_index=True
    )
    bad.insert(0, "file", raw.name)
    return bad.sort_values("line", kind="stable", ignore_index=True)[QUARANTINE_COLUMNS]


def parse_times(raw: pd.Series, unit: str) -> pd.Series:
    """Parse epoch numbers or ISO 8601 text to UTC; what cannot be read becomes NaT.

    With ``auto``, a column holds numbers unless more of its values are ISO 8601 only; each number
    is seconds, milliseconds or microseconds by its size. ISO 8601 without a zone is UTC.
    """
    number = _number(raw)
    if unit == "iso" or (
        unit == "auto" and number.notna().sum() < _iso_times(raw.where(number.isna())).notna().sum()
    ):
        return _iso_times(raw)

    # Epoch numbers to microseconds: the unit of each value, then finite values within range.
    if unit == "auto":
        scale = np.select([number.abs() < 1e11, number.abs() < 1e14], [1e6, 1e3], 1.0)
    else:
        scale = np.full(len(number), {"s": 1e6, "ms": 1e3, "us": 1.0}[unit])
    with np.errstate(over="ignore"):
        micros = number.to_numpy() * scale
    readable = np.isfinite(micros) & (np.abs(micros) < 9e15)
    whole = np.where(readable, micros, 0).round().astype("int64")
    times = pd.Series(whole.view("datetime64[us]"), index=raw.index).dt.tz_localize("UTC")
    return times.where(pd.Series(readable, index=raw.index))


def _iso_times(raw: pd.Series) -> pd.Series:
    def parse(selected: pd.Series) -> pd.Series:
        texts = raw.where(selected.fillna(False)).astype("object")
        parsed = pd.to_datetime(texts, errors="coerce", utc=True, format="ISO8601")
        return parsed.astype("datetime64[us, UTC]")

    dates = raw.str.match(r"\d{4}")  # pandas reads "now" and "today" too
    zoned = raw.str.match(r".*[T ].*(?:[Zz]|[+-]\d\d:?(?:\d\d)?)$")
    # Separately, because pandas gives a time without zone the offset of the one before it.
    return parse(dates & zoned).fillna(parse(dates & ~zoned))


def _typed_events(spec: DatasetSpec, rows: pd.DataFrame) -> pd.DataFrame:
    e = spec.events
    value = (
        _text(rows[e.value]) if e.value else pd.Series(pd.NA, rows.index, dtype="string[pyarrow]")
    )
    timestamp = _text(rows[e.timestamp])
    frame = pd.DataFrame(
        {
            c.USER: _text(rows[e.user]),
            c.ITEM: _text(rows[e.item]),
            schemas.source_text(c.TIMESTAMP): timestamp,
            c.TIMESTAMP: parse_times(timestamp, e.timestamp_unit),
            schemas.source_text(c.VALUE): value,
            c.VALUE: _number(value),
        }
    )
    frame[c.TYPE] = _types(spec, rows, frame[c.VALUE])
    if e.id:
        frame[c.EVENT_ID] = _text(rows[e.id])
    return frame


def _types(spec: DatasetSpec, rows: pd.DataFrame, value: pd.Series) -> pd.Series:
    types = spec.events.types
    if spec.events.type:
        return (
            _text(rows[spec.events.type]).replace(dict(spec.events.rename_types)).astype("object")
        )
    kinds = pd.Series(pd.NA, index=rows.index, dtype="object")
    for name, kind in sorted(types.items(), key=lambda pair: pair[1].min_value or 0.0):
        kinds[slice(None) if kind.min_value is None else value >= kind.min_value] = name
    return kinds


def _hashed_ids(events: pd.DataFrame) -> pd.Series:
    micros = events[c.TIMESTAMP].astype("int64")
    parts = zip(
        events[c.USER], events[c.ITEM], events[c.TYPE], micros, events[c.VALUE], strict=True
    )
    ids = [
        hashlib.blake2b("\x1f".join(map(str, part)).encode(), digest_size=10).hexdigest()
        for part in parts
    ]
    return pd.Series(ids, index=events.index, dtype="object")


def _typed_entities(table: Users, rows: pd.DataFrame, key: str) -> pd.DataFrame:
    fields = {key: _text(rows[table.key])}
    for name, kind in table.attributes.items():
        source = rows[table.source_column(name)]
        if kind == "multi_categorical":
            parts = [_split(value, table.list_separator) for value in source]
            fields[name] = pd.Series(parts, index=rows.index, dtype="object")
        elif kind == "numeric":
            fields[schemas.source_text(name)] = _text(source)
            fields[name] = _number(fields[schemas.source_text(name)])
        else:
            fields[name] = _text(source)
    for name, column in _availability_columns(table).items():
        fields[schemas.source_text(name)] = _text(rows[column])
        fields[name] = parse_times(fields[schemas.source_text(name)], "auto")
    return pd.DataFrame(fields, index=rows.index)


def _availability_columns(table: Users) -> dict[str, str]:
    """Return the source columns of an item's availability: from when and until when."""
    named = {name: getattr(table, name, None) for name in (c.AVAILABLE_FROM, c.AVAILABLE_UNTIL)}
    return {name: column for name, column in named.items() if column}


def _text(column: pd.Series) -> pd.Series:
    if column.dtype == "object":  # from JSON: a list is not an id; the quarantine shows its text
        column = column.map(lambda value: json.dumps(value) if isinstance(value, list) else value)
    text = column.astype("string[pyarrow]").str.strip()
    return text.mask(text == "")


def _number(column: pd.Series) -> pd.Series:
    return pd.to_numeric(column, errors="coerce").astype("float64")


def _split(value: Any, separator: str) -> list[str]:
    if isinstance(value, str):
        value = value.split(separator)
    return [part.strip() for part in value if part.strip()] if isinstance(value, list) else []
