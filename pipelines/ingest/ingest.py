"""Ingest: described files in, typed and partitioned Parquet out, bad rows in quarantine.

New files add their rows; a file that was already ingested adds nothing. The manifest is replaced
last, and only batches that it names count: leftovers of a killed run are removed by the next one.
The user and item tables are read anew each time and replaced as wholes, but for the rows of those
that keep a history: they stay.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from feature_repo import columns as c
from feature_repo.dataset import DatasetSpec, SpecError, Users
from feature_repo.erased import ErasedUsers
from feature_repo.errors import FunnelError
from feature_repo.events.schema import EVENT_SCHEMA
from feature_repo.files import write_atomically, write_json
from feature_repo.hashing import file_hash, fingerprint
from feature_repo.progress import Progress, no_progress
from feature_repo.workspace import Workspace
from pipelines.ingest.entities import EntityRows
from pipelines.ingest.entity_history import Histories, history_file
from pipelines.ingest.figures import measure
from pipelines.ingest.findings import tell, tell_cells, tell_shares
from pipelines.ingest.identity import KnownEvents
from pipelines.ingest.ids import TableKeys
from pipelines.ingest.ingested import StoredEvents
from pipelines.ingest.manifest import IngestedBatch, IngestManifest, ingest_lock
from pipelines.ingest.parsing import EventRows
from pipelines.ingest.quarantine import quarantined
from pipelines.ingest.readers import find_files
from pipelines.ingest.reading import KEYS, FileReader, check_all_headers, relative_name
from pipelines.ingest.report import IngestReport
from pipelines.ingest.streamed import context_columns, usable_events
from pipelines.ingest.tables import (
    remove_leftovers,
    write_entities,
    write_events,
    write_quarantine,
)
from pipelines.streaming.offline import read_archive

WEEK_S = 7 * 86_400
_MAX_CLOCK_SKEW = pd.Timedelta(days=1)


class ImplausibleData(FunnelError):
    """A strict ingest found an implausible share; nothing was written."""


def ingest(  # noqa: PLR0913 - the options of the command
    spec: DatasetSpec,
    folder: Path,
    workspace: Workspace,
    *,
    shift_to_now: bool = False,
    strict: bool = False,
    now: pd.Timestamp | None = None,
    progress: Progress = no_progress,
) -> IngestReport:
    """Ingest the new files of a folder.

    Args:
        spec: description of the files.
        folder: the folder with the files.
        workspace: where the tables are written.
        shift_to_now: add whole weeks to all times so that the last event lies in the past week; the
            first ingest fixes how many.
        strict: write nothing if a share of the data is implausible.
        now: the present, for tests.
        progress: called after each file.

    Raises:
        SpecError: a file or column that the spec names is missing, or the working folder holds a
            data set of another spec. Nothing has been written then.
        ImplausibleData: with ``strict``, a share is implausible. Nothing has been written then.

    """
    spec = spec.without_optional(folder)
    files = find_files(spec.events, folder)
    IngestManifest.read_or_new(workspace, spec)  # refuses another data set before anything is read
    check_all_headers(spec, folder, files)
    run = _IngestRun(
        spec=spec,
        folder=folder,
        workspace=workspace,
        shift_to_now=shift_to_now,
        strict=strict,
        now=now or pd.Timestamp.now(tz="UTC"),
        progress=progress,
    )
    with ingest_lock(workspace):
        run.ingest(files)
    return run.report


class _IngestRun:
    """One run, under the lock of the ingested tables."""

    def __init__(
        self,
        *,
        spec: DatasetSpec,
        folder: Path,
        workspace: Workspace,
        shift_to_now: bool,
        strict: bool,
        now: pd.Timestamp,
        progress: Progress,
    ) -> None:
        self.report = IngestReport()
        self._spec = spec
        self._folder = folder
        self._workspace = workspace
        self._shift_to_now = shift_to_now
        self._strict = strict
        self._now = now
        self._erased = ErasedUsers(workspace)
        self._histories = Histories(workspace, spec, self._erased, self.report)
        self._reader = FileReader(spec, folder, self._erased, self.report, progress=progress)

    def ingest(self, files: list[Path]) -> None:
        """Read everything, then write events and entities, and last the manifest."""
        manifest = IngestManifest.read_or_new(self._workspace, self._spec)
        new_files = _new_files(files, manifest)
        self.report.files = len(new_files)

        entities = self._histories.read(self._reader.entities(), manifest.shift_s or 0)
        streamed = read_archive(self._workspace, manifest.position)
        stored = StoredEvents(self._workspace, manifest)
        known = KnownEvents(stored=stored.with_ids)
        if new_files or len(streamed):
            known.ids = stored.ids()
        events = self._read_events(list(new_files.values()), manifest, known, _keys(entities))
        self._refuse_no_events(files, events, manifest)
        if manifest.shift_s is None:
            manifest = manifest.model_copy(update={"shift_s": self._shift(events.valid)})
        now = self._now - pd.Timedelta(seconds=manifest.shift_s or 0)
        entities = self._histories.current(entities, now)
        self._describe(stored, entities, events, manifest)

        remove_leftovers(self._workspace.ingest, manifest)
        if new_files:
            manifest = self._write_batch(new_files, events, manifest)
        if len(streamed):
            manifest = self._write_streamed(streamed, known.ids, manifest)
        self._write_entities(entities, manifest.shift_s or 0)
        self._finish(manifest, entities)

    def _read_events(
        self,
        files: list[Path],
        manifest: IngestManifest,
        known: KnownEvents,
        keys: TableKeys,
    ) -> EventRows:
        shift = pd.Timedelta(seconds=manifest.shift_s or 0)
        return self._reader.events(files, self._now + _MAX_CLOCK_SKEW - shift, known, keys)

    def _refuse_no_events(
        self, files: list[Path], events: EventRows, manifest: IngestManifest
    ) -> None:
        if manifest.batches or len(events.valid):
            return
        names = [path.name for path in files]
        told = ("of events not used", "quotation marks")
        why = "; ".join(note for note in self.report.notes if any(part in note for part in told))
        raise SpecError(
            f"no usable event in {names}: {why or 'they have no rows'}. Check dataset.toml"
        )

    def _describe(
        self,
        stored: StoredEvents,
        entities: dict[str, EntityRows],
        events: EventRows,
        manifest: IngestManifest,
    ) -> None:
        """Measure all events and the tables; with ``strict``, refuse what is implausible."""
        report = self.report
        columns = [c.USER, c.ITEM, c.TIMESTAMP]
        frames = [stored.columns(columns), *([events.valid[columns]] if len(events.valid) else [])]
        tables = {kind: rows.valid for kind, rows in entities.items()}
        every = pd.concat([frame for frame in frames if len(frame)] or frames, ignore_index=True)
        if self._erased.numbers():  # rows of users whose erasure is under way
            every = every[~every[c.USER].isin(self._erased.among(every[c.USER].unique()))]
        report.figures = measure(self._spec, every, tables.get("users"), tables.get("items"))

        told = tell(self._spec, report.figures)
        first_run = not manifest.batches
        tell_shares(told, read=report.rows, rejected=events.rejected, first_run=first_run)
        for kind, rows in entities.items():
            tell_shares(told, read=rows.read, rejected=rows.rejected, first_run=False, kind=kind)
            tell_cells(told, kind, rows.cells, rows.read)
        report.notes += told.notes
        report.warnings += told.warnings
        if self._strict and report.warnings:
            raise ImplausibleData(
                f"nothing was written, because of --strict: {'; '.join(report.warnings)}"
            )

    def _shift(self, events: pd.DataFrame) -> int:
        """Return the whole weeks from the last event to the present, in seconds."""
        if not self._shift_to_now:
            return 0
        behind: float = (self._now - events[c.TIMESTAMP].max()).total_seconds()
        return max(0, math.floor(behind / WEEK_S)) * WEEK_S

    def _write_batch(
        self, new_files: dict[str, Path], events: EventRows, manifest: IngestManifest
    ) -> IngestManifest:
        """Write the events of new files as one batch, and its bad rows."""
        batch = fingerprint(sorted(new_files))
        folder = self._workspace.ingest
        shift_s = manifest.shift_s or 0
        names = write_events(folder, self._spec, events.valid, batch=batch, shift_s=shift_s)
        write_quarantine(folder, batch, events.rejected)

        files = {digest: relative_name(path, self._folder) for digest, path in new_files.items()}
        manifest = manifest.model_copy(update={"files": manifest.files | files})
        return manifest.with_batch(
            IngestedBatch(id=batch, rows=len(events.valid), files=tuple(names))
        )

    def _write_streamed(
        self, streamed: pa.Table, known: set[str], manifest: IngestManifest
    ) -> IngestManifest:
        """Write the events that came through the event log since the last ingest, as one batch.

        Their times are not shifted: they are of the present already.
        """
        columns = [name for name in EVENT_SCHEMA.names if name in streamed.column_names]
        events = streamed.select(columns).to_pandas()
        events = events.assign(**context_columns(streamed, self._spec))
        events = events[~events[c.EVENT_ID].isin(known)]
        events = events[events[c.TYPE].isin(self._spec.event_types)]
        erased = events[c.USER].isin(self._erased.among(events[c.USER].unique()))
        self.report.erased += int(erased.sum())
        events = usable_events(events[~erased], self.report)
        self.report.events += len(events)

        position = streamed["position"][-1].as_py()
        batch = fingerprint("log", position)
        names = write_events(self._workspace.ingest, self._spec, events, batch=batch, shift_s=0)
        manifest = manifest.model_copy(update={"log_position": position})
        return manifest.with_batch(IngestedBatch(id=batch, rows=len(events), files=tuple(names)))

    def _write_entities(self, entities: dict[str, EntityRows], shift_s: int) -> None:
        folder = self._workspace.ingest
        for kind, rows in entities.items():
            table: Users = getattr(self._spec, kind)
            if rows.history is not None:
                write_entities(history_file(folder, kind), table, rows.history, shift_s)
            write_entities(folder / f"{kind}.parquet", table, rows.valid, shift_s)
            write_quarantine(folder, kind, quarantined(rows.rejected, rows.cells))

    def _finish(self, manifest: IngestManifest, entities: dict[str, EntityRows]) -> None:
        """Write what describes the tables; the manifest is last and makes the run count."""
        tables = {
            name: fingerprint(frame.astype(str).to_csv())
            for kind, rows in entities.items()
            for name, frame in ((kind, rows.valid), (f"{kind}_history", rows.history))
            if frame is not None
        }
        origin: list[Any] = [sorted(manifest.files), tables, manifest.spec, manifest.shift_s]
        origin += [part for part in (manifest.log_position, manifest.erased) if part is not None]
        version = fingerprint(*origin)

        self.report.total_events = sum(batch.rows for batch in manifest.batches)
        self.report.data_version = version
        self.report.shift_s = manifest.shift_s or 0
        folder = self._workspace.ingest
        write_atomically(folder / "dataset.json", self._spec.model_dump_json(indent=2) + "\n")
        if (
            version != manifest.data_version
        ):  # otherwise the report of the run that made the data stays
            write_json(folder / "report.json", self.report.as_dict())
        manifest.model_copy(update={"data_version": version}).write(self._workspace)


def _keys(entities: dict[str, EntityRows]) -> TableKeys:
    """Return the keys of the tables that there are."""
    keys = {kind: frozenset(rows.valid[KEYS[kind]]) for kind, rows in entities.items()}
    return TableKeys(keys.get("users"), keys.get("items"))


def _new_files(files: list[Path], manifest: IngestManifest) -> dict[str, Path]:
    """Return the files that were not ingested before, by hash; the first of equal ones."""
    new_files: dict[str, Path] = {}
    for path in files:
        digest = file_hash(path)
        if digest not in manifest.files:
            new_files.setdefault(digest, path)
    return new_files
