"""Pandera schemas of the ingested tables: the checks of a row, and the reason of a failed check."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import pandera.pandas as pa

from feature_repo import columns as c
from feature_repo.cell_values import BOUND, MAX_NUMBER
from feature_repo.dataset import DatasetSpec

MAX_ID_LENGTH = 256


def source_text(name: str) -> str:
    """Return the name of the column with the text that a column was parsed from."""
    return f"{name} as given"  # with spaces: no attribute can have this name


DOUBTFUL = f"{c.TIMESTAMP} is doubtful"
"""Column that says which times are numbers that are no epoch time of a log."""


UNDATED = f"{c.VALID_FROM} is wrong"
"""Column that says why a row of a user or item table cannot be placed in time."""


def _id_column(name: str) -> pa.Column:
    return pa.Column(
        checks=[
            pa.Check(lambda s: s.notna(), name=f"missing {name}", ignore_na=False),
            pa.Check(
                lambda s: s.str.len() <= MAX_ID_LENGTH,
                name=f"{name} longer than {MAX_ID_LENGTH} characters",
            ),
        ],
        nullable=True,
    )


def events_schema(spec: DatasetSpec, latest: pd.Timestamp) -> pa.DataFrameSchema:
    """Return the schema of parsed events; ``latest`` is the last plausible time.

    The source text tells a missing value from an unreadable one.
    """
    ids = [c.USER, c.ITEM, *([c.EVENT_ID] if spec.events.id else [])]
    checks = [
        pa.Check(lambda d: d[source_text(c.TIMESTAMP)].notna(), name="missing timestamp"),
        pa.Check(
            lambda d: d[c.TIMESTAMP].notna() | d[source_text(c.TIMESTAMP)].isna() | d[DOUBTFUL],
            name="unreadable timestamp",
        ),
        pa.Check(lambda d: ~d[DOUBTFUL], name="timestamp is no epoch time"),
        pa.Check(lambda d: ~(d[c.TIMESTAMP] > latest), name="timestamp in the future"),
        pa.Check(
            lambda d: ~(d[c.TIMESTAMP] <= pd.Timestamp(0, tz="UTC")), name="timestamp before 1970"
        ),
        pa.Check(
            lambda d: d[source_text(c.VALUE)].isna() | np.isfinite(d[c.VALUE]), name="bad number"
        ),
        pa.Check(
            lambda d: ~(np.isfinite(d[c.VALUE]) & (d[c.VALUE].abs() > MAX_NUMBER)),
            name=f"value {BOUND}",
        ),
        pa.Check(lambda d: d[c.TYPE].isin(spec.event_types), name="unknown event type"),
    ]
    return pa.DataFrameSchema({name: _id_column(name) for name in ids}, checks=checks)


def entity_schema(key: str, *, dated: bool = False) -> pa.DataFrameSchema:
    """Return the schema of a user or item table: it needs a key and, if ``dated``, a time.

    The column ``UNDATED`` says what is wrong with a row's time, "" if nothing is.
    """
    problems = [f"missing {c.VALID_FROM}", f"unreadable {c.VALID_FROM}"]
    problems.append(f"{c.VALID_FROM} is no epoch time")
    checks = [
        pa.Check(lambda d, problem=problem: d[UNDATED] != problem, name=problem)
        for problem in (problems if dated else [])
    ]
    return pa.DataFrameSchema({key: _id_column(key)}, checks=checks)


def reasons(frame: pd.DataFrame, schema: pa.DataFrameSchema) -> pd.Series:
    """Return the failed checks of each bad row, by row of ``frame``; good rows are left out.

    The checks are called one by one, because pandera's own report of failures takes a minute for a
    million rows of which a third are bad.
    """
    why = pd.Series("", index=frame.index, dtype="object")
    checks = [
        (frame[name], check) for name, column in schema.columns.items() for check in column.checks
    ]
    for subject, check in checks + [(frame, check) for check in schema.checks]:
        passed = check(subject).check_output  # without the rows whose value is missing
        why[passed.index[~passed.astype("bool")]] += f"; {check.name}"
    return why[why != ""].str.removeprefix("; ")
