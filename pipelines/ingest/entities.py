"""Parses user and item tables: rows of one key are merged, and a bad cell costs only itself.

Rows of a table with ``valid_from`` are a history: each stands by itself, and one without a time
cannot be used.
"""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from feature_repo import columns as c
from feature_repo.dataset import Users
from pipelines.ingest import schemas
from pipelines.ingest.cells import Cells, as_texts, list_cells, number_cells, text_cells
from pipelines.ingest.ids import read_ids, repaired
from pipelines.ingest.quarantine import bad_rows
from pipelines.ingest.readers import RawFile
from pipelines.ingest.times import ALWAYS, NO_END, Times, read_begins, read_ends

_EMPTIED = "cell left empty"
_KEPT = "cell kept as it is"


class EntityRows(NamedTuple):
    """A user or item table.

    ``valid`` has one row a key, sorted by key; where the table has ``valid_from``, one a key and
    time, until ``Histories`` takes the current ones. ``rejected`` are rows that were not used, with
    reasons. ``cells`` are rows that were used without some of their cells, with reasons, and what
    the cells hold. ``read`` counts the rows; ``updates`` those that leave cells of earlier rows.
    ``history`` has all rows of a table with ``valid_from``, those of earlier ingests too.
    """

    valid: pd.DataFrame
    rejected: pd.DataFrame
    cells: pd.DataFrame
    read: int
    updates: int
    history: pd.DataFrame | None = None


def availability_columns(table: Users) -> dict[str, str]:
    """Return the source columns of an item's availability: from when and until when."""
    named = {name: getattr(table, name, None) for name in (c.AVAILABLE_FROM, c.AVAILABLE_UNTIL)}
    return {name: column for name, column in named.items() if column}


def entity_columns(table: Users) -> list[str]:
    """Return the columns of the user or item files that the spec names, each once."""
    columns = [table.key, *(table.source_column(name) for name in table.attributes)]
    columns += availability_columns(table).values()
    return list(dict.fromkeys([*columns, *([table.valid_from] if table.valid_from else [])]))


def optional_columns(table: Users) -> frozenset[str]:
    """Return the columns that some of the files may lack: all but the key and ``valid_from``."""
    return frozenset(entity_columns(table)) - {table.key, table.valid_from}


def parse_entities(table: Users, files: list[RawFile], key: str) -> EntityRows:
    """Return the rows of a user or item table.

    Of several rows with one key the last counts; what it leaves empty stays as it was before.
    With ``valid_from`` that are rows with one key and time, and the last stands as it is.
    """
    typed = [_typed(table, raw, key) for raw in files]
    schema = schemas.entity_schema(key, dated=table.valid_from is not None)
    reasons = [schemas.reasons(rows, schema) for rows, _ in typed]
    good = pd.concat(
        [rows.drop(index=why.index) for (rows, _), why in zip(typed, reasons, strict=True)],
        keys=range(len(files)),
    )
    good[key] = repaired(good[key])
    if table.valid_from is None:
        replaced = good.duplicated(key, keep="last")
        merged, updates = _merged(good, replaced, key)
        reason = f"duplicate {key}: a later row replaces it"
    else:
        replaced = good.duplicated([key, c.VALID_FROM], keep="last")
        merged, updates = good[~replaced].drop(columns=schemas.UNDATED), 0
        reason = f"duplicate {key} and {c.VALID_FROM}: a later row replaces it"

    rejected, cells = [], []
    for number, (raw, why) in enumerate(zip(files, reasons, strict=True)):
        lines = good.index[replaced.to_numpy() & (good.index.get_level_values(0) == number)]
        lines = lines.get_level_values(1)
        again = pd.Series(reason, index=lines, dtype="object")
        rejected.append(bad_rows(raw, pd.concat([why, again])))
        problems = typed[number][1]
        cells.append(_bad_cells(raw, problems.drop(index=why.index)))
    return EntityRows(
        _finished(merged, table, key),
        pd.concat(rejected, ignore_index=True),
        pd.concat(cells, ignore_index=True),
        sum(len(raw.rows) + len(raw.bad) for raw in files),
        updates,
    )


def _typed(table: Users, raw: RawFile, key: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the typed columns of a file, and by column why cells were left out."""
    fields: dict[str, pd.Series] = {key: read_ids(raw.rows[table.key])}
    problems: dict[str, pd.Series] = {}
    for name, kind in table.attributes.items():
        column = raw.rows[table.source_column(name)]
        if kind == "multi_categorical":
            cells = list_cells(column, name, table.list_separator)
        elif kind == "numeric":
            cells = number_cells(column, name, raw.decimal)
        else:
            cells = text_cells(column, name)
        fields[name], problems[name] = cells
    for name, source in availability_columns(table).items():
        fields[name], problems[name] = _limits(raw.rows[source], name)
    if table.valid_from:
        fields[c.VALID_FROM], undated = _limits(raw.rows[table.valid_from], c.VALID_FROM)
        missing = fields[c.VALID_FROM].isna() & (undated == "")
        fields[schemas.UNDATED] = undated.mask(missing, f"missing {c.VALID_FROM}")
    index = raw.rows.index
    return pd.DataFrame(fields, index=index), pd.DataFrame(problems, index=index, dtype="object")


def _limits(column: pd.Series, name: str) -> Cells:
    text = as_texts(column)
    times: Times = (read_ends if name == c.AVAILABLE_UNTIL else read_begins)(text)
    problems = pd.Series("", index=text.index, dtype="object")
    problems[text.notna() & times.moments.isna()] = f"unreadable {name}"
    problems[times.doubtful] = f"{name} is no epoch time"
    return Cells(times.moments, problems)


def _merged(good: pd.DataFrame, replaced: pd.Series, key: str) -> tuple[pd.DataFrame, int]:
    """Return one row a key, and how many rows took over values of the rows before them."""
    if not replaced.any():
        return good, 0
    last = good[~replaced]
    repeated = good[good[key].isin(good.loc[replaced, key])]
    merged = repeated.groupby(key, sort=False).last().reset_index()
    merged = merged[list(good.columns)].astype(good.dtypes.to_dict())
    single = last[~last[key].isin(merged[key])]
    before = last[last[key].isin(merged[key])].set_index(key).sort_index()
    after = merged.set_index(key).sort_index()
    updates = int((before.isna() & after.notna()).any(axis=1).sum())
    return pd.concat([single, merged], ignore_index=True), updates


def _finished(rows: pd.DataFrame, table: Users, key: str) -> pd.DataFrame:
    """Return rows sorted by key, empty lists and limits that are none written as such."""
    order = [key] if table.valid_from is None else [key, c.VALID_FROM]
    rows = rows.sort_values(order, ignore_index=True)
    for name, kind in table.attributes.items():
        if kind == "multi_categorical":
            lists = [value if isinstance(value, list) else [] for value in rows[name]]
            rows[name] = pd.Series(lists, index=rows.index, dtype="object")
    if c.AVAILABLE_FROM in rows:
        rows[c.AVAILABLE_FROM] = rows[c.AVAILABLE_FROM].mask(rows[c.AVAILABLE_FROM] == ALWAYS)
    if c.AVAILABLE_UNTIL in rows:
        rows[c.AVAILABLE_UNTIL] = rows[c.AVAILABLE_UNTIL].mask(rows[c.AVAILABLE_UNTIL] == NO_END)
    return rows


def _bad_cells(raw: RawFile, problems: pd.DataFrame) -> pd.DataFrame:
    """Return the cells that were left out or are doubtful: file, line, reason and row."""
    frames = [
        bad_rows(raw, found.map(_sentence), lines=False).assign(attribute=name)
        for name in problems.columns
        if len(found := problems.loc[problems[name] != "", name])
    ]
    empty = pd.DataFrame(columns=["file", "line", "reason", "row", "attribute"])
    return pd.concat(frames, ignore_index=True) if frames else empty


def _sentence(problem: str) -> str:
    return f"{problem}: {_KEPT if 'looks like' in problem else _EMPTIED}"
