"""Leaves out events of the event log that earlier versions of the API accepted."""

from __future__ import annotations

import pandas as pd

from feature_repo import columns as c
from feature_repo.cell_values import BOUND, MAX_NUMBER, stands_for_nothing
from pipelines.ingest.report import IngestReport


def usable_events(events: pd.DataFrame, report: IngestReport) -> pd.DataFrame:
    """Return events of the log without numbers beyond the bound and words as ids.

    What is left out is counted in the report.
    """
    checks = {
        f"value {BOUND}": events[c.VALUE].abs() > MAX_NUMBER,
        f"missing {c.USER}": events[c.USER].map(stands_for_nothing).astype("bool"),
        f"missing {c.ITEM}": events[c.ITEM].map(stands_for_nothing).astype("bool"),
    }
    for reason, bad in checks.items():
        bad = bad.reindex(events.index)
        if bad.any():
            report.quarantined[reason] += int(bad.sum())
            report.notes.append(f"{int(bad.sum()):,} events of the event log not used: {reason}")
            events = events[~bad]
    return events
