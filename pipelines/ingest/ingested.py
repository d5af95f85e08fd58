"""Reads what was ingested: the event files, the events, their data version and log position."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import columns as c
from feature_repo.erased import ErasedUsers
from feature_repo.events.schema import EVENT_SCHEMA
from feature_repo.parquet_files import DamagedTable, why_unreadable
from feature_repo.workspace import Workspace
from pipelines.ingest.identity import own_id
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


class StoredEvents:
    """The events that were ingested before a run, as their files gave them."""

    def __init__(self, workspace: Workspace, manifest: IngestManifest) -> None:
        self._paths = [workspace.ingest / name for name in manifest.event_files]
        self._shift = pd.Timedelta(seconds=manifest.shift_s or 0)

    def ids(self) -> set[str]:
        """Return the ids of all events, those of erased users included."""
        return set(map(own_id, self._read([c.EVENT_ID])[c.EVENT_ID]))

    def columns(self, names: list[str]) -> pd.DataFrame:
        """Return columns of all events, with the times of their files."""
        events = self._read(names)
        if c.TIMESTAMP in events:
            events[c.TIMESTAMP] -= self._shift
        return events

    def with_ids(self, ids: set[str]) -> pd.DataFrame:
        """Return the events with these ids, once for each time that their file may have had.

        Events of files were shifted, those of the event log were not.
        """
        names = [c.EVENT_ID, c.USER, c.ITEM, c.TYPE, c.TIMESTAMP, c.VALUE]
        events = self._read(names)
        events[c.EVENT_ID] = events[c.EVENT_ID].map(own_id)
        events = events[events[c.EVENT_ID].isin(ids)]
        shifted = events.assign(**{c.TIMESTAMP: events[c.TIMESTAMP] - self._shift})
        return pd.concat([events, shifted], ignore_index=True) if self._shift else events

    def _read(self, names: list[str]) -> pd.DataFrame:
        empty = pa.schema([EVENT_SCHEMA.field(name) for name in names]).empty_table()
        tables = [pq.read_table(path, columns=names, partitioning=None) for path in self._paths]
        columns = [table.select(names).cast(empty.schema) for table in tables]
        frame: pd.DataFrame = pa.concat_tables([empty, *columns]).to_pandas()
        if c.TIMESTAMP in frame:  # the zone as pandas has it, so that columns can be joined
            frame[c.TIMESTAMP] = frame[c.TIMESTAMP].dt.tz_convert("UTC")
        return frame
