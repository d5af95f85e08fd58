"""Parses tables of strings into typed events, and says why a row is bad."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from feature_repo import columns as c
from feature_repo.dataset import DatasetSpec
from pipelines.ingest import schemas
from pipelines.ingest.cells import (
    as_numbers,
    as_texts,
    number_cells,
    text_cells,
    without_null_words,
)
from pipelines.ingest.identity import KnownEvents, identify
from pipelines.ingest.ids import TableKeys, read_ids, repaired
from pipelines.ingest.quarantine import bad_rows
from pipelines.ingest.readers import RawFile
from pipelines.ingest.times import read_times

_NO_TABLES = TableKeys()


class EventRows(NamedTuple):
    """The good events of a file, its other rows with reasons, and what to tell about the file."""

    valid: pd.DataFrame
    rejected: pd.DataFrame
    notes: tuple[str, ...] = ()


def event_columns(spec: DatasetSpec) -> list[str]:
    """Return the columns of the event files that the spec names, each once."""
    e = spec.events
    return list(
        dict.fromkeys(
            name
            for name in (
                e.user,
                e.item,
                e.timestamp,
                e.type,
                e.value,
                e.id,
                *map(e.source_column, e.context),
            )
            if name
        )
    )


def optional_columns(spec: DatasetSpec) -> frozenset[str]:
    """Return the columns that some of the event files may lack.

    They are the context, and a value that decides nothing.
    """
    e = spec.events
    needed = {e.user, e.item, e.timestamp, e.type, e.id}
    optional = set(map(e.source_column, e.context))
    decides = any(kind.min_value is not None for kind in e.types.values())
    if decides:
        needed.add(e.value)
    elif e.value:
        optional.add(e.value)
    return frozenset(optional - needed)


def parse_events(
    spec: DatasetSpec,
    raw: RawFile,
    latest: pd.Timestamp,
    known: KnownEvents,
    *,
    tables: TableKeys = _NO_TABLES,
) -> EventRows:
    """Return the good events of one file, and its bad rows with reasons.

    Args:
        spec: the data set.
        raw: the file's rows.
        latest: the last plausible time.
        known: all earlier events; those of this file are added.
        tables: the users and items that the tables list.

    """
    events, notes = _typed_events(spec, raw, tables)
    why = schemas.reasons(events, schemas.events_schema(spec, latest))
    valid = events.drop(index=why.index)

    # An event counts once: the first row of it is kept.
    identified = identify(valid, known, own_ids=spec.events.id is not None)
    repeated = identified.repeated
    if identified.shared:
        notes.append(
            f"{identified.shared:,} rows have the {spec.events.id} of a row that differs, such as "
            f"{identified.example!r}: it names no event, and all of them are kept"
        )
    again = pd.Series("duplicate", index=valid.index[repeated], dtype="object")
    fresh = valid[~repeated].assign(**{c.EVENT_ID: identified.ids[~repeated].astype("object")})
    known.add(fresh)
    return EventRows(fresh, bad_rows(raw, pd.concat([why, again])), (*raw.notes, *notes))


def _typed_events(
    spec: DatasetSpec, raw: RawFile, tables: TableKeys
) -> tuple[pd.DataFrame, list[str]]:
    e = spec.events
    rows = raw.rows
    value = pd.Series(pd.NA, rows.index, dtype="string[pyarrow]")
    if e.value:
        value = without_null_words(as_texts(rows[e.value]))
    timestamp = without_null_words(as_texts(rows[e.timestamp]))
    times = read_times(timestamp, e.timestamp_unit)
    written = {c.USER: read_ids(rows[e.user]), c.ITEM: read_ids(rows[e.item])}
    users = repaired(written[c.USER], tables.users)
    items = repaired(written[c.ITEM], tables.items)
    frame = pd.DataFrame(
        {
            c.USER: users,
            c.ITEM: items,
            schemas.source_text(c.TIMESTAMP): timestamp,
            schemas.DOUBTFUL: times.doubtful,
            c.TIMESTAMP: times.moments,
            schemas.source_text(c.VALUE): value,
            c.VALUE: as_numbers(value, raw.decimal),
        }
    )
    notes = [
        f"{column}: ids written as floats are read as whole numbers, {before} as {after}"
        for column, ids in ((e.user, (c.USER, users)), (e.item, (c.ITEM, items)))
        for before, after in _first_change(written[ids[0]], ids[1])
    ]
    if times.dates:
        notes.append(
            f"{e.timestamp}: numbers such as {timestamp.dropna().iloc[0]} are read as days"
        )
    for name, kind in e.context.items():
        column = rows[e.source_column(name)]
        numeric = kind == "numeric"
        cells = number_cells(column, name, raw.decimal) if numeric else text_cells(column, name)
        frame[name] = cells.values if numeric else without_null_words(cells.values)
        bad = cells.problems[cells.problems != ""]
        if numeric and len(bad):
            notes.append(f"{len(bad):,} cells left empty: {bad.iloc[0]}")
    frame[c.TYPE], respelt = _types(spec, rows, frame[c.VALUE])
    if e.id:
        frame[c.EVENT_ID] = read_ids(rows[e.id])
    return frame, notes + respelt


def _first_change(before: pd.Series, after: pd.Series) -> list[tuple[str, str]]:
    if after is before:
        return []
    changed = (before != after).fillna(False).to_numpy(dtype=bool).nonzero()[0][:1]
    return [(before.iloc[row], after.iloc[row]) for row in changed]


def _types(spec: DatasetSpec, rows: pd.DataFrame, value: pd.Series) -> tuple[pd.Series, list[str]]:
    """Return each event's type, and what to tell about words that were read as another's."""
    types = spec.events.types
    if spec.events.type:
        words = as_texts(rows[spec.events.type]).astype("object")
        known = {word: spec.event_type(word) or word for word in words.dropna().unique()}
        stated = {*types, *spec.events.rename_types}
        respelt = sorted(w for w, kind in known.items() if kind in types and w not in stated)
        notes = [f"the type {word} is read as {known[word]}" for word in respelt]
        return words.map(known).astype("object"), notes
    kinds = pd.Series(pd.NA, index=rows.index, dtype="object")
    for name, kind in sorted(types.items(), key=lambda pair: pair[1].min_value or 0.0):
        kinds[slice(None) if kind.min_value is None else value >= kind.min_value] = name
    return kinds, []
