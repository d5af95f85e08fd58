"""Leaves out events of the event log that earlier versions of the API accepted."""

from __future__ import annotations

from typing import Any

import orjson
import pandas as pd
import pyarrow as pa

from feature_repo import columns as c
from feature_repo.cell_values import BOUND, MAX_NUMBER, stands_for_nothing
from feature_repo.dataset import DatasetSpec
from feature_repo.events.context import usable_context
from pipelines.ingest.report import IngestReport


def context_columns(streamed: pa.Table, spec: DatasetSpec) -> dict[str, list[Any]]:
    """Return the columns of the context of archived events, None where a field is missing."""
    contexts = [
        usable_context(orjson.loads(text or "{}"), spec.context)
        for text in streamed["context"].to_pylist()
    ]
    return {name: [context.get(name) for context in contexts] for name in spec.context}


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
