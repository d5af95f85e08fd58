"""Ingest: described files in, typed and partitioned Parquet out, bad rows in quarantine.

New files add their rows; a file that was already ingested adds nothing. The manifest is replaced
last, and only batches that it names count: leftovers of a killed run are removed by the next one.
The user and item tables are read anew each time and replaced as wholes.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa

from feature_repo import columns as c
from feature_repo.dataset import DatasetSpec, SpecError, Users
from feature_repo.erased import ErasedUsers
from feature_repo.events.schema import EVENT_SCHEMA
from feature_repo.files import write_atomically, write_json
from feature_repo.hashing import file_hash, fingerprint
from feature_repo.progress import Progress, no_progress
from feature_repo.workspace import Workspace
from pipelines.ingest.ingested import read_event_ids
from pipelines.ingest.manifest import IngestedBatch, IngestManifest, ingest_lock
from pipelines.ingest.parsing import (
    QUARANTINE_COLUMNS,
    entity_columns,
    event_columns,
    parse_entities,
    parse_events,
)
from pipelines.ingest.readers import RawFile, check_header, find_files, read_file
from pipelines.ingest.report import IngestReport
from pipelines.ingest.tables import (
    remove_leftovers,
    write_entities,
    write_events,
    write_quarantine,
)
from pipelines.streaming.offline import read_archive

WEEK_S = 7 * 86_400
_MAX_CLOCK_SKEW = pd.Timedelta(days=1)


class _ParsedRows(NamedTuple):
    """The valid rows of some files and their bad rows with reasons."""

    valid: pd.DataFrame
    rejected: pd.DataFrame


def ingest(
    spec: DatasetSpec,
    folder: Path,
    workspace: Workspace,
    *,
    shift_to_now: bool = False,
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
        now: the present, for tests.
        progress: called after each file.

    Raises:
        SpecError: a file or column that the spec names is missing, or the working folder holds a
            data set of another spec. Nothing has been written then.

    """
    spec = spec.without_optional(folder)
    files = find_files(spec.events, folder)
    IngestManifest.read_or_new(workspace, spec)  # refuses another data set before anything is read
    _check_headers(spec, folder, files)
    run = _IngestRun(
        spec=spec,
        folder=folder,
        workspace=workspace,
        shift_to_now=shift_to_now,
        now=now or pd.Timestamp.now(tz="UTC"),
        progress=progress,
    )
    with ingest_lock(workspace):
        run.ingest(files)
    return run.report


def _check_headers(spec: DatasetSpec, folder: Path, files: list[Path]) -> None:
    """Refuse a missing column before anything is read or written."""
    for path in files:
        check_header(path, spec.events, event_columns(spec))
    for table in filter(None, (spec.users, spec.items)):
        for path in find_files(table, folder):
            check_header(path, table, entity_columns(table))


class _IngestRun:
    """One run, under the lock of the ingested tables."""

    def __init__(
        self,
        *,
        spec: DatasetSpec,
        folder: Path,
        workspace: Workspace,
        shift_to_now: bool,
        now: pd.Timestamp,
        progress: Progress,
    ) -> None:
        self.report = IngestReport()
        self._spec = spec
        self._folder = folder
        self._workspace = workspace
        self._shift_to_now = shift_to_now
        self._now = now
        self._progress = progress
        self._erased = ErasedUsers(workspace)

    def ingest(self, files: list[Path]) -> None:
        """Read everything, then write events and entities, and last the manifest."""
        manifest = IngestManifest.read_or_new(self._workspace, self._spec)
        new_files = _new_files(files, manifest)
        self.report.files = len(new_files)

        entities = self._read_entities()
        streamed = read_archive(self._workspace, manifest.position)
        known: set[str] = set()
        if new_files or len(streamed):
            known = read_event_ids(self._workspace, manifest)
        events = self._read_events(list(new_files.values()), manifest.shift_s or 0, known)
        self._refuse_no_events(files, events.valid, manifest)

        if manifest.shift_s is None:
            manifest = manifest.model_copy(update={"shift_s": self._shift(events.valid)})
        remove_leftovers(self._workspace.ingest, manifest)
        if new_files:
            manifest = self._write_batch(new_files, events, manifest)
        if len(streamed):
            known |= set(events.valid.get(c.EVENT_ID, ()))
            manifest = self._write_streamed(streamed, known, manifest)
        self._write_entities(entities, manifest.shift_s or 0)
        self._finish(manifest, entities)

    def _refuse_no_events(
        self, files: list[Path], events: pd.DataFrame, manifest: IngestManifest
    ) -> None:
        if manifest.batches or len(events):
            return
        names = [path.name for path in files]
        raise SpecError(
            f"no usable event in {names}: {dict(self.report.quarantined)}; check dataset.toml"
        )

    def _shift(self, events: pd.DataFrame) -> int:
        """Return the whole weeks from the last event to the present, in seconds."""
        if not self._shift_to_now:
            return 0
        behind: float = (self._now - events[c.TIMESTAMP].max()).total_seconds()
        return max(0, math.floor(behind / WEEK_S)) * WEEK_S

    def _read_events(self, files: list[Path], shift_s: int, known: set[str]) -> _ParsedRows:
        """Read the events of new files; their ids are added to the known ones."""
        latest = self._now + _MAX_CLOCK_SKEW - pd.Timedelta(seconds=shift_s)
        valid: list[pd.DataFrame] = []
        rejected: list[pd.DataFrame] = []
        for number, path in enumerate(files):
            self._progress(f"reading {path.name}", number, len(files))
            name = _relative_name(path, self._folder)
            raw = read_file(path, self._spec.events, event_columns(self._spec), name)
            raw = self._without_erased(raw, self._spec.events.user)
            events, bad = parse_events(self._spec, raw, latest, known)
            valid.append(events)
            rejected.append(bad)
            self.report.quarantined.update(bad["reason"].tolist())
        self._progress("reading events", len(files), len(files))

        parsed = _ParsedRows(
            _concat(valid, columns=[c.TIMESTAMP]), _concat(rejected, columns=QUARANTINE_COLUMNS)
        )
        self.report.events = len(parsed.valid)
        return parsed

    def _read_entities(self) -> dict[str, _ParsedRows]:
        """Read the user and item tables that the spec has."""
        entities = {}
        for kind, key in (("users", c.USER), ("items", c.ITEM)):
            table: Users | None = getattr(self._spec, kind)
            if table is None:
                continue
            files = [
                read_file(path, table, entity_columns(table), _relative_name(path, self._folder))
                for path in find_files(table, self._folder)
            ]
            if kind == "users":
                files = [self._without_erased(raw, table.key) for raw in files]
            parsed = _ParsedRows(*parse_entities(table, files, key))
            self.report.quarantined.update(parsed.rejected["reason"].tolist())
            setattr(self.report, kind, len(parsed.valid))
            entities[kind] = parsed
        return entities

    def _without_erased(self, raw: RawFile, column: str) -> RawFile:
        """Drop the rows of erased users, so that neither tables nor quarantine contain them."""
        if not self._erased.numbers():
            return raw
        users = raw.rows[column].astype("string[pyarrow]").str.strip()
        erased_rows = users.isin(self._erased.among(users.dropna().unique())).to_numpy(dtype=bool)
        erased_lines = (
            raw.bad["row"]
            .map(lambda text: bool(self._erased.named_in(str(text), (column,))))
            .to_numpy(dtype=bool)
        )
        self.report.erased += int(erased_rows.sum() + erased_lines.sum())
        return replace(raw, rows=raw.rows[~erased_rows], bad=raw.bad[~erased_lines])

    def _write_batch(
        self, new_files: dict[str, Path], events: _ParsedRows, manifest: IngestManifest
    ) -> IngestManifest:
        """Write the events of new files as one batch, and its bad rows."""
        batch = fingerprint(sorted(new_files))
        folder = self._workspace.ingest
        shift_s = manifest.shift_s or 0
        names = write_events(folder, self._spec, events.valid, batch=batch, shift_s=shift_s)
        write_quarantine(folder, batch, events.rejected)

        files = {digest: _relative_name(path, self._folder) for digest, path in new_files.items()}
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
        events = events[~events[c.EVENT_ID].isin(known)]
        events = events[events[c.TYPE].isin(self._spec.event_types)]
        erased = events[c.USER].isin(self._erased.among(events[c.USER].unique()))
        self.report.erased += int(erased.sum())
        events = events[~erased]
        self.report.events += len(events)

        position = streamed["position"][-1].as_py()
        batch = fingerprint("log", position)
        names = write_events(self._workspace.ingest, self._spec, events, batch=batch, shift_s=0)
        manifest = manifest.model_copy(update={"log_position": position})
        return manifest.with_batch(IngestedBatch(id=batch, rows=len(events), files=tuple(names)))

    def _write_entities(self, entities: dict[str, _ParsedRows], shift_s: int) -> None:
        folder = self._workspace.ingest
        for kind, rows in entities.items():
            table: Users = getattr(self._spec, kind)
            write_entities(folder / f"{kind}.parquet", table, rows.valid, shift_s)
            write_quarantine(folder, kind, rows.rejected)

    def _finish(self, manifest: IngestManifest, entities: dict[str, _ParsedRows]) -> None:
        """Write what describes the tables; the manifest is last and makes the run count."""
        tables = {
            kind: fingerprint(rows.valid.astype(str).to_csv()) for kind, rows in entities.items()
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


def _concat(frames: list[pd.DataFrame], *, columns: list[str]) -> pd.DataFrame:
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


def _relative_name(path: Path, folder: Path) -> str:
    # Folders of one table may hold files of equal names.
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _new_files(files: list[Path], manifest: IngestManifest) -> dict[str, Path]:
    """Return the files that were not ingested before, by hash; the first of equal ones."""
    new_files: dict[str, Path] = {}
    for path in files:
        digest = file_hash(path)
        if digest not in manifest.files:
            new_files.setdefault(digest, path)
    return new_files
