"""Pandera schemas of the ingested tables: the checks of a row, and the reason of a failed check."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import pandera.pandas as pa

from feature_repo import columns as c
from feature_repo.dataset import DatasetSpec

MAX_ID_LENGTH = 256


def source_text(name: str) -> str:
    """Return the name of the column with the text that a column was parsed from."""
    return f"{name} as given"  # with spaces: no attribute can have this name


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


def _readable(name: str, kind: str) -> pa.Check:
    """Return the check that a given text was parsed."""
    return pa.Check(
        lambda d: d[name].notna() | d[source_text(name)].isna(), name=f"unreadable {kind}"
    )


def events_schema(spec: DatasetSpec, latest: pd.Timestamp) -> pa.DataFrameSchema:
    """Return the schema of parsed events; ``latest`` is the last plausible time.

    The source text tells a missing value from an unreadable one.
    """
    ids = [c.USER, c.ITEM, *([c.EVENT_ID] if spec.events.id else [])]
    checks = [
        pa.Check(lambda d: d[source_text(c.TIMESTAMP)].notna(), name="missing timestamp"),
        _readable(c.TIMESTAMP, "timestamp"),
        pa.Check(lambda d: ~(d[c.TIMESTAMP] > latest), name="timestamp in the future"),
        pa.Check(
            lambda d: ~(d[c.TIMESTAMP] <= pd.Timestamp(0, tz="UTC")), name="timestamp before 1970"
        ),
        _is_number(c.VALUE, "bad number"),
        pa.Check(lambda d: d[c.TYPE].isin(spec.event_types), name="unknown event type"),
    ]
    return pa.DataFrameSchema({name: _id_column(name) for name in ids}, checks=checks)


def entity_schema(key: str, parsed: list[str]) -> pa.DataFrameSchema:
    """Return the schema of a user or item table; ``parsed`` names its numbers and times."""
    checks = [
        _readable(name, name)
        if name in (c.AVAILABLE_FROM, c.AVAILABLE_UNTIL)
        else _is_number(name, f"bad number in {name}")
        for name in parsed
    ]
    return pa.DataFrameSchema({key: _id_column(key)}, checks=checks)


def _is_number(name: str, reason: str) -> pa.Check:
    return pa.Check(lambda d: d[source_text(name)].isna() | np.isfinite(d[name]), name=reason)


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
