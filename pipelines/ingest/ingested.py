"""Reads what was ingested: the event files, the events, their data version and log position."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import columns as c
from feature_repo.erased import ErasedUsers
from feature_repo.parquet_files import DamagedTable, why_unreadable
from feature_repo.workspace import Workspace
from pipelines.ingest.manifest import IngestManifest

INGEST_ANEW = (
    "remove the folder 'ingest' of the working folder and run 'funnel ingest' with all source files"
)
"""What to do when a file of the ingested tables is damaged."""


def event_files(workspace: Workspace) -> list[str]:
    """Return the paths of the Parquet files of all ingested events.

    Raises:
        MissingStage: nothing has been ingested.

    """
    return [str(workspace.ingest / name) for name in IngestManifest.read(workspace).event_files]


def require_whole_events(workspace: Workspace) -> None:
    """Refuse ingested events of which a file cannot be read.

    Raises:
        MissingStage: nothing has been ingested.
        DamagedTable: a file is missing or torn; the message says what to do.

    """
    for name in event_files(workspace):
        path = Path(name)
        reason = why_unreadable(path, footer_only=True) if path.is_file() else "it is missing"
        if reason:
            raise DamagedTable(f"{path} cannot be read ({reason}): {INGEST_ANEW}")


def event_count(workspace: Workspace) -> int:
    """Return the number of ingested events.

    Raises:
        MissingStage: nothing has been ingested.

    """
    return sum(batch.rows for batch in IngestManifest.read(workspace).batches)


def data_version(workspace: Workspace) -> str:
    """Return the version of the ingested data.

    Raises:
        MissingStage: nothing has been ingested.

    """
    return IngestManifest.read(workspace).data_version


def log_position(workspace: Workspace) -> str:
    """Return the newest entry of the event log among the ingested events, ``0-0`` if there is none.

    Raises:
        MissingStage: nothing has been ingested.

    """
    return IngestManifest.read(workspace).position


def read_events(workspace: Workspace, columns: list[str] | None = None) -> pd.DataFrame:
    """Return all ingested events except those of erased users, in time order (ties by event id).

    Raises:
        MissingStage: nothing has been ingested.
        DamagedTable: a file of them cannot be read.

    """
    require_whole_events(workspace)
    names = sorted({*(columns or []), c.TIMESTAMP, c.EVENT_ID}) if columns else None
    tables = [
        pq.read_table(path, columns=names, partitioning=None) for path in event_files(workspace)
    ]
    events: pd.DataFrame = pa.concat_tables(tables).to_pandas()
    if c.USER in events and (erased := ErasedUsers(workspace)).numbers():
        events = events[~events[c.USER].isin(erased.among(events[c.USER].unique()))]
    return events.sort_values([c.TIMESTAMP, c.EVENT_ID], kind="stable", ignore_index=True)


def read_event_ids(workspace: Workspace, manifest: IngestManifest) -> set[str]:
    """Return the ids of all ingested events, those of erased users included."""
    columns = [
        pq.read_table(workspace.ingest / name, columns=[c.EVENT_ID], partitioning=None)[0]
        for name in manifest.event_files
    ]
    return {event_id for column in columns for event_id in column.to_pylist()}
