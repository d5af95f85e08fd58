"""pandera schemas of the ingested tables: what a good row is, and the reason a bad one is given."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import pandera.pandas as pa

from feature_repo import columns as c
from feature_repo.dataset import DatasetSpec

LONGEST_ID = 256


def _id_column(name: str) -> pa.Column:
    return pa.Column(
        checks=[
            pa.Check(lambda s: s.notna() & (s.str.len() > 0), name=f"missing {name}", ignore_na=False),
            pa.Check(lambda s: s.str.len() <= LONGEST_ID, name=f"{name} longer than {LONGEST_ID} characters"),
        ],
        nullable=True,
    )


def events_schema(spec: DatasetSpec, latest: pd.Timestamp) -> pa.DataFrameSchema:
    """Return the schema of parsed events; ``latest`` is the last believable moment.

    Missing and unreadable are told apart by the raw columns ``raw_timestamp`` and ``raw_value``.
    """
    checks = [
        pa.Check(lambda d: d["raw_timestamp"].notna(), name="missing timestamp", ignore_na=False),
        pa.Check(lambda d: d[c.TIMESTAMP].notna() | d["raw_timestamp"].isna(), name="unreadable timestamp"),
        pa.Check(lambda d: ~(d[c.TIMESTAMP] > latest), name="timestamp in the future"),
        pa.Check(lambda d: ~(d[c.TIMESTAMP] <= pd.Timestamp(0, tz="UTC")), name="timestamp before 1970"),
        pa.Check(lambda d: d["raw_value"].isna() | np.isfinite(d[c.VALUE].astype("float64")), name="bad number"),
        pa.Check(lambda d: d[c.TYPE].isin(spec.event_types), name="unknown event type"),
    ]
    return pa.DataFrameSchema({c.USER: _id_column(c.USER), c.ITEM: _id_column(c.ITEM)}, checks=checks)


def entity_schema(key: str, numeric: list[str]) -> pa.DataFrameSchema:
    """Return the schema of a user or item table; numbers are checked against their raw text."""
    checks = [
        pa.Check(lambda d, n=name: d[f"raw_{n}"].isna() | np.isfinite(d[n].astype("float64")), name=f"bad number in {name}")
        for name in numeric
    ]
    checks.append(pa.Check(lambda d: ~d.duplicated(key, keep="last"), name=f"duplicate {key}: a later row replaces it"))
    return pa.DataFrameSchema({key: _id_column(key)}, checks=checks)


def reasons(frame: pd.DataFrame, schema: pa.DataFrameSchema) -> pd.Series:
    """Return, by row of ``frame`` (whose index is unique), why it is bad; good rows are left out."""
    try:
        schema.validate(frame, lazy=True)
    except pa.errors.SchemaErrors as error:
        cases = error.failure_cases
        lost = cases[cases["index"].isna()]
        if len(lost):  # a check that broke instead of failing rows is our bug, never a bad row
            raise RuntimeError(f"schema check failed to run: {lost['check'].tolist()}") from error
        unique = cases[["index", "check"]].drop_duplicates()
        return unique.groupby("index")["check"].agg("; ".join)
    return pd.Series(dtype="object")
