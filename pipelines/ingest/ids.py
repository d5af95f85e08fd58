"""Ids of users and items in files: missing ones, and ones that were written as floats."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from pipelines.ingest.cells import as_texts, without_null_words

_FLOAT_WRITTEN = r"-?\d{1,15}\.0+"


@dataclass(frozen=True)
class TableKeys:
    """The keys of the user and item tables; None: there is no such table."""

    users: frozenset[str] | None = None
    items: frozenset[str] | None = None


def read_ids(column: pd.Series) -> pd.Series:
    """Return a column of ids; blanks and words such as ``undefined`` are missing."""
    return without_null_words(as_texts(column))


def repaired(ids: pd.Series, keys: frozenset[str] | None = None) -> pd.Series:
    """Return ids that were written as floats (``123.0``) as whole numbers.

    That are all ids of a column that has only such, and those of which the table has the whole
    number. An id that the table has as it stands is never changed.
    """
    floats = ids.str.fullmatch(_FLOAT_WRITTEN).fillna(False).astype("bool")
    if not floats.any():
        return ids
    whole = ids.str.replace(r"\.0+$", "", regex=True)
    all_floats = bool(floats[ids.notna()].all())
    if keys is None:
        return whole if all_floats else ids
    change = floats & ~ids.isin(keys)
    if not all_floats:
        change &= whole.isin(keys)
    return ids.mask(change, whole)
