"""The table of what was set aside: file, line, reason, and the row as it was."""

from __future__ import annotations

import json

import pandas as pd

from pipelines.ingest.readers import RawFile

QUARANTINE_COLUMNS = ["file", "line", "reason", "row"]


def bad_rows(raw: RawFile, why: pd.Series, *, lines: bool = True) -> pd.DataFrame:
    """Return the rows of a file that ``why`` names, in the order of lines.

    ``lines``: also its lines that are no rows.
    """
    rows = raw.rows.loc[why.index].astype("object")
    records = rows.where(rows.notna(), None).to_dict("records")
    texts = [json.dumps(row, default=str, ensure_ascii=False) for row in records]
    parsed = pd.DataFrame({"line": why.index, "reason": why.to_numpy(), "row": texts})
    unsplit = raw.bad if lines else raw.bad.iloc[:0]
    bad = pd.concat(
        [frame for frame in (unsplit, parsed) if len(frame)] or [unsplit], ignore_index=True
    )
    bad.insert(0, "file", raw.name)
    return bad.sort_values("line", kind="stable", ignore_index=True)[QUARANTINE_COLUMNS]


def quarantined(rejected: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """Return the rows not used and those used without some cells, one entry a row."""
    both = pd.concat([rejected, cells[QUARANTINE_COLUMNS]], ignore_index=True)
    if not len(cells):
        return both
    joined = both.groupby(["file", "line"], sort=False, as_index=False).agg(
        {"reason": "; ".join, "row": "first"}
    )
    return joined[QUARANTINE_COLUMNS]
