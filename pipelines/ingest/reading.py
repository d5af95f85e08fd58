"""Reads the described files of one run: user and item tables first, then new event files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd

from feature_repo import columns as c
from feature_repo.dataset import DatasetSpec, SpecError, Table, Users
from feature_repo.erased import ErasedUsers
from feature_repo.progress import Progress
from pipelines.ingest.entities import EntityRows, entity_columns, optional_columns, parse_entities
from pipelines.ingest.findings import cell_samples, samples, unused_file
from pipelines.ingest.identity import KnownEvents, in_file_order
from pipelines.ingest.ids import TableKeys, read_ids, repaired
from pipelines.ingest.parsing import EventRows, event_columns, parse_events
from pipelines.ingest.parsing import optional_columns as optional_event_columns
from pipelines.ingest.quarantine import QUARANTINE_COLUMNS
from pipelines.ingest.readers import RawFile, check_headers, find_files, read_file
from pipelines.ingest.report import IngestReport

KEYS = {"users": c.USER, "items": c.ITEM}
"""The tables of users and items, and the key of each."""


def check_all_headers(spec: DatasetSpec, folder: Path, files: list[Path]) -> None:
    """Refuse a missing column before anything is read or written.

    Raises:
        SpecError: a file lacks a column that it needs, or all files of a table lack another.

    """
    check_headers(files, spec.events, event_columns(spec), optional_event_columns(spec))
    for table in filter(None, (spec.users, spec.items)):
        paths = find_files(table, folder)
        check_headers(paths, table, entity_columns(table), optional_columns(table))


class FileReader:
    """Reads the files of one data set, and counts in the report what it sets aside."""

    def __init__(
        self,
        spec: DatasetSpec,
        folder: Path,
        erased: ErasedUsers,
        report: IngestReport,
        *,
        progress: Progress,
    ) -> None:
        self._spec = spec
        self._folder = folder
        self._erased = erased
        self._report = report
        self._progress = progress

    def entities(self) -> dict[str, EntityRows]:
        """Return the user and item tables that the spec has."""
        tables: dict[str, EntityRows] = {}
        for kind, key in KEYS.items():
            table: Users | None = getattr(self._spec, kind)
            if table is None:
                continue
            files = self._read(table, find_files(table, self._folder), kind)
            if kind == "users":
                files = [self._without_erased(raw, table.key, None) for raw in files]
            parsed = parse_entities(table, files, key)
            setattr(self._report, kind, len(parsed.valid))
            self._report.quarantined.update(parsed.rejected["reason"].tolist())
            self._report.cells.update(parsed.cells["reason"].tolist())
            self._report.notes += [f"{raw.name}: {note}" for raw in files for note in raw.notes]
            self._report.notes += [*samples(self._spec, kind, parsed.rejected)]
            self._report.notes += [*cell_samples(kind, table, parsed.cells)]
            if parsed.updates:
                self._report.notes.append(
                    f"{parsed.updates:,} {kind}: the last row leaves cells empty; their values "
                    "are kept from the rows before it"
                )
            tables[kind] = parsed
        return tables

    def _read(self, table: Users, paths: list[Path], kind: str) -> list[RawFile]:
        columns, optional = entity_columns(table), optional_columns(table)
        files = [
            read_file(path, table, columns, relative_name(path, self._folder), optional=optional)
            for path in paths
        ]
        self._tell_absent(table, files, kind, earlier=False)
        return files

    def events(
        self, files: list[Path], latest: pd.Timestamp, known: KnownEvents, keys: TableKeys
    ) -> EventRows:
        """Return the events of new files; they are added to the known ones.

        ``latest`` is the last plausible time.
        """
        e = self._spec.events
        columns, optional = event_columns(self._spec), optional_event_columns(self._spec)
        valid: list[pd.DataFrame] = []
        rejected: list[pd.DataFrame] = []
        read: list[RawFile] = []
        earlier = bool(known.ids)
        for number, path in enumerate(files):
            self._progress(f"reading {path.name}", number, len(files))
            name = relative_name(path, self._folder)
            raw = read_file(path, e, columns, name, optional=optional)
            raw = self._without_erased(raw, e.user, keys.users)
            self._report.rows += len(raw.rows) + len(raw.bad)
            parsed = parse_events(self._spec, raw, latest, known, tables=keys)
            valid.append(parsed.valid)
            rejected.append(parsed.rejected)
            self._report.notes += [f"{raw.name}: {note}" for note in parsed.notes]
            if len(files) > 1:
                self._report.warnings += [*unused_file(raw, parsed.rejected)]
            read.append(replace(raw, rows=raw.rows.iloc[:, :0]))
        self._progress("reading events", len(files), len(files))
        self._tell_absent(e, read, "events", earlier=earlier)

        events = _concat(valid, columns=[c.TIMESTAMP])
        set_aside = _concat(rejected, columns=QUARANTINE_COLUMNS)
        self._report.events = len(events)
        self._report.quarantined.update(set_aside["reason"].tolist())
        self._report.notes += [*samples(self._spec, "events", set_aside)]
        return EventRows(in_file_order(events) if len(events) else events, set_aside)

    def _tell_absent(self, table: Table, files: list[RawFile], kind: str, *, earlier: bool) -> None:
        """Tell which files lack a column, and refuse a column that no file has."""
        for column in sorted({column for raw in files for column in raw.absent}):
            lacking = [raw for raw in files if column in raw.absent]
            if len(lacking) == len(files) and not earlier:
                raise SpecError(
                    f"{table.path}: no file has '{column}'; check dataset.toml and the files' keys"
                )
            rows = sum(len(raw.rows) for raw in lacking)
            names = ", ".join(raw.name for raw in lacking)
            self._report.notes.append(
                f"{names}: no '{column}'; it is missing in {rows:,} rows of {kind}"
            )

    def _without_erased(self, raw: RawFile, column: str, keys: frozenset[str] | None) -> RawFile:
        """Drop the rows of erased users, so that neither tables nor quarantine contain them."""
        if not self._erased.numbers():
            return raw
        users = repaired(read_ids(raw.rows[column]), keys)
        erased_rows = users.isin(self._erased.among(users.dropna().unique())).to_numpy(dtype=bool)
        erased_lines = (
            raw.bad["row"]
            .map(lambda text: bool(self._erased.named_in(str(text), (column,))))
            .to_numpy(dtype=bool)
        )
        self._report.erased += int(erased_rows.sum() + erased_lines.sum())
        return replace(raw, rows=raw.rows[~erased_rows], bad=raw.bad[~erased_lines])


def relative_name(path: Path, folder: Path) -> str:
    """Return a file's name within the data folder: tables may hold files of equal names."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _concat(frames: list[pd.DataFrame], *, columns: list[str]) -> pd.DataFrame:
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)
