"""Ingest: described files in, typed and partitioned Parquet out, bad rows in quarantine.

New files add their rows, a file already ingested adds nothing. Events count only when the manifest
that names their files is replaced, which is the last step: what a killed run left is removed by the
next one. The user and item tables are read anew each time and replaced as wholes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import columns as c
from feature_repo.dataset import DatasetSpec, SpecError, Users
from feature_repo.erased import ErasedUsers
from feature_repo.files import TEMPORARY, locked, read_json, write_atomically, write_json
from feature_repo.hashing import file_hash, fingerprint
from feature_repo.progress import Progress, no_progress
from feature_repo.workspace import MissingStage, Workspace
from pipelines.ingest.parsing import (
    QUARANTINE_COLUMNS,
    parse_entities,
    parse_events,
    wanted_entities,
    wanted_events,
)
from pipelines.ingest.readers import RawFile, check_header, find_files, read_file
from pipelines.ingest.tables import EVENT_SCHEMA, write_entities, write_events, write_quarantine
from pipelines.streaming.offline import read_archive

__all__ = ["EVENT_SCHEMA", "IngestReport", "event_files", "ingest", "read_events"]

WEEK_S = 7 * 86_400
_CLOCK_SKEW = pd.Timedelta(days=1)

"""Called with what is done, how many steps of it are done, and how many there are."""


@dataclass
class IngestReport:
    """What one run added, and what it kept out; ``erased``: rows of users who were erased, which nothing keeps."""

    files: int = 0
    events: int = 0
    users: int = 0
    items: int = 0
    erased: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    total_events: int = 0
    data_version: str = ""
    shift_s: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values."""
        return {**self.__dict__, "quarantined": dict(sorted(self.quarantined.items()))}


def ingest(
    spec: DatasetSpec,
    folder: Path,
    workspace: Workspace,
    *,
    shift_to_now: bool = False,
    now: pd.Timestamp | None = None,
    progress: Progress = no_progress,
) -> IngestReport:
    """Bring the new files of ``folder`` into the workspace.

    Args:
        spec: description of the files.
        folder: where they lie.
        workspace: where the tables go.
        shift_to_now: move all times by whole weeks, fixed at the first ingest, so that the last
            event lies in the past week.
        now: the present, for tests.
        progress: told after each file.

    Raises:
        SpecError: a file or column that the spec names is not there, or the spec differs from the
            one the workspace was made with. Nothing has been written then.

    """
    spec = spec.without_optional(folder)
    files = find_files(spec.events, folder)
    _manifest(workspace, spec)
    _check_headers(spec, folder, files)
    with ingest_lock(workspace):
        return _ingest(
            spec,
            folder,
            files,
            workspace,
            shift_to_now,
            now or pd.Timestamp.now(tz="UTC"),
            progress,
        )


@contextmanager
def ingest_lock(workspace: Workspace) -> Iterator[None]:
    """Hold the ingested tables for oneself; where there is no working folder yet there is nothing to hold."""
    if not workspace.root.is_dir():
        yield
        return
    with locked(workspace.root / ".ingest.lock"):
        yield


def _ingest(
    spec: DatasetSpec,
    folder: Path,
    files: list[Path],
    workspace: Workspace,
    shift_to_now: bool,
    now: pd.Timestamp,
    progress: Progress,
) -> IngestReport:
    manifest = _manifest(workspace, spec)
    new = _new_files(files, manifest)
    report, erased = IngestReport(files=len(new)), ErasedUsers(workspace)
    entities = _read_entities(spec, folder, erased, report)
    latest = now + _CLOCK_SKEW - pd.Timedelta(seconds=manifest["shift_s"] or 0)
    streamed = read_archive(workspace, manifest.get("log_position", "0-0"))
    known = _known_event_ids(workspace, manifest) if new or len(streamed) else set()
    events, bad = _read_events(
        spec, folder, list(new.values()), latest, known, erased, report, progress
    )
    if not manifest["batches"] and not len(events):
        raise SpecError(
            f"no usable event in {[path.name for path in files]}: {dict(report.quarantined)}"
        )
    if manifest["shift_s"] is None:
        manifest["shift_s"] = _shift(events, now) if shift_to_now else 0
    _remove_leftovers(workspace, manifest)
    if new:
        batch = fingerprint(sorted(new))
        written = write_events(workspace.ingest, spec, events, batch, manifest["shift_s"])
        write_quarantine(workspace.ingest, batch, bad)
        manifest["batches"].append({"id": batch, "rows": len(events), "files": written})
        manifest["files"] |= {digest: _name(path, folder) for digest, path in new.items()}
    if len(streamed):
        _add_streamed(
            workspace, spec, streamed, manifest, known | set(events.get(c.EVENT_ID, ())), report
        )
    for kind, (rows, rejected) in entities.items():
        write_entities(workspace.ingest, spec, kind, rows, manifest["shift_s"])
        write_quarantine(workspace.ingest, kind, rejected)
    tables = {kind: fingerprint(rows.astype(str).to_csv()) for kind, (rows, _) in entities.items()}
    _finish(workspace, spec, manifest, tables, report)
    return report


def _add_streamed(
    workspace: Workspace,
    spec: DatasetSpec,
    streamed: pa.Table,
    manifest: dict[str, Any],
    known: set[str],
    report: IngestReport,
) -> None:
    """Add the events that came through the log since the last ingest; their times are of the present already."""
    events = streamed.select(
        [name for name in EVENT_SCHEMA.names if name in streamed.column_names]
    ).to_pandas()
    events = events[~events[c.EVENT_ID].isin(known) & events[c.TYPE].isin(spec.event_types)]
    of_erased = events[c.USER].isin(ErasedUsers(workspace).among(events[c.USER].unique()))
    report.erased += int(of_erased.sum())
    events = events[~of_erased]
    position = streamed["position"][-1].as_py()
    batch = fingerprint("log", position)
    written = write_events(workspace.ingest, spec, events, batch, 0)
    manifest["batches"].append({"id": batch, "rows": len(events), "files": written})
    manifest["log_position"] = position
    report.events += len(events)


def event_files(workspace: Workspace) -> list[str]:
    """Return the Parquet files of all ingested events, as the manifest names them.

    Raises:
        MissingStage: nothing has been ingested here.

    """
    batches = _ingested(workspace)["batches"]
    return [str(workspace.ingest / name) for batch in batches for name in batch["files"]]


def data_version(workspace: Workspace) -> str:
    """Return the version of the ingested data.

    Raises:
        MissingStage: nothing has been ingested here.

    """
    return str(_ingested(workspace)["data_version"])


def log_position(workspace: Workspace) -> str:
    """Return the newest entry of the event log among the ingested events, ``0-0`` if none came from there.

    Raises:
        MissingStage: nothing has been ingested here.

    """
    return str(_ingested(workspace).get("log_position", "0-0"))


def _ingested(workspace: Workspace) -> dict[str, Any]:
    path = workspace.ingest / "manifest.json"
    if not path.is_file():
        raise MissingStage(
            f"no data in {workspace.root}: run 'funnel ingest' (or 'make demo') first"
        )
    manifest: dict[str, Any] = read_json(path)
    return manifest


def read_events(workspace: Workspace, columns: list[str] | None = None) -> pd.DataFrame:
    """Return all ingested events but those of erased users, in the order of time (ties by event id)."""
    wanted = sorted({*(columns or []), c.TIMESTAMP, c.EVENT_ID}) if columns else None
    tables = [
        pq.read_table(name, columns=wanted, partitioning=None) for name in event_files(workspace)
    ]
    frame: pd.DataFrame = pa.concat_tables(tables).to_pandas()
    if c.USER in frame and (erased := ErasedUsers(workspace)).numbers():
        frame = frame[~frame[c.USER].isin(erased.among(frame[c.USER].unique()))]
    return frame.sort_values([c.TIMESTAMP, c.EVENT_ID], kind="stable", ignore_index=True)


def _manifest(workspace: Workspace, spec: DatasetSpec) -> dict[str, Any]:
    version = fingerprint(spec.model_dump_json())
    path = workspace.ingest / "manifest.json"
    if not path.is_file():
        return {"spec": version, "files": {}, "batches": [], "shift_s": None, "data_version": ""}
    manifest: dict[str, Any] = read_json(path)
    if manifest["spec"] != version:
        raise SpecError(
            f"{workspace.root} was ingested with another dataset.toml (or other optional tables); "
            "choose a new working folder with --home, or remove that one"
        )
    return manifest


def _new_files(files: list[Path], manifest: dict[str, Any]) -> dict[str, Path]:
    """Return the files, by their hash, that were not ingested before; of equal ones, the first."""
    new: dict[str, Path] = {}
    for path in files:
        digest = file_hash(path)
        if digest not in manifest["files"]:
            new.setdefault(digest, path)
    return new


def _finish(
    workspace: Workspace,
    spec: DatasetSpec,
    manifest: dict[str, Any],
    tables: dict[str, str],
    report: IngestReport,
) -> None:
    """Write what describes the tables, the manifest last: with it the run counts."""
    origin = [sorted(manifest["files"]), tables, manifest["spec"], manifest["shift_s"]]
    version = fingerprint(
        *origin, *(manifest[name] for name in ("log_position", "erased") if name in manifest)
    )
    report.total_events = sum(batch["rows"] for batch in manifest["batches"])
    report.data_version, report.shift_s = version, manifest["shift_s"]
    write_atomically(workspace.ingest / "dataset.json", spec.model_dump_json(indent=2) + "\n")
    if version != manifest["data_version"]:  # the report of the run that made the data stays
        write_json(workspace.ingest / "report.json", report.as_dict())
    write_json(workspace.ingest / "manifest.json", manifest | {"data_version": version})


def erased_version(manifest: dict[str, Any], erasures: Iterable[str]) -> dict[str, Any]:
    """Return a manifest that says which erasures took rows away, under a new version of the data."""
    erased = sorted({*manifest.get("erased", []), *erasures})
    return manifest | {
        "erased": erased,
        "data_version": fingerprint(manifest["data_version"], erased),
    }


def _name(path: Path, folder: Path) -> str:
    # Folders of one table may hold files of equal names.
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _check_headers(spec: DatasetSpec, folder: Path, files: list[Path]) -> None:
    """Refuse a missing column before anything is read or written."""
    for path in files:
        check_header(path, spec.events, wanted_events(spec))
    for table in filter(None, (spec.users, spec.items)):
        for path in find_files(table, folder):
            check_header(path, table, wanted_entities(table))


def _known_event_ids(workspace: Workspace, manifest: dict[str, Any]) -> set[str]:
    names = [workspace.ingest / name for batch in manifest["batches"] for name in batch["files"]]
    return {
        i
        for name in names
        for i in pq.read_table(name, columns=[c.EVENT_ID], partitioning=None)[0].to_pylist()
    }


def _read_events(
    spec: DatasetSpec,
    folder: Path,
    files: list[Path],
    latest: pd.Timestamp,
    known: set[str],
    erased: ErasedUsers,
    report: IngestReport,
    progress: Progress,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    good, bad = [], []
    for number, path in enumerate(files):
        progress(f"reading {path.name}", number, len(files))
        raw = read_file(path, spec.events, wanted_events(spec), _name(path, folder))
        raw = _without_erased(raw, spec.events.user, erased, report)
        events, rejected = parse_events(spec, raw, latest, known)
        good.append(events)
        bad.append(rejected)
        report.quarantined.update(rejected["reason"].tolist())
    progress("reading events", len(files), len(files))
    events = pd.concat(good, ignore_index=True) if good else pd.DataFrame(columns=[c.TIMESTAMP])
    report.events = len(events)
    return events, pd.concat(bad, ignore_index=True) if bad else pd.DataFrame(
        columns=QUARANTINE_COLUMNS
    )


def _read_entities(
    spec: DatasetSpec, folder: Path, erased: ErasedUsers, report: IngestReport
) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """Read the user and item tables that the spec has: rows of each, and its bad ones."""
    found = {}
    for kind, key in (("users", c.USER), ("items", c.ITEM)):
        table: Users | None = getattr(spec, kind)
        if table is None:
            continue
        wanted = wanted_entities(table)
        files = [
            read_file(path, table, wanted, _name(path, folder))
            for path in find_files(table, folder)
        ]
        if kind == "users":
            files = [_without_erased(raw, table.key, erased, report) for raw in files]
        rows, rejected = parse_entities(table, files, key)
        report.quarantined.update(rejected["reason"].tolist())
        setattr(report, kind, len(rows))
        found[kind] = (rows, rejected)
    return found


def _without_erased(
    raw: RawFile, column: str, erased: ErasedUsers, report: IngestReport
) -> RawFile:
    """Return a file's rows but those of erased users, so that neither tables nor quarantine get them."""
    if not erased.numbers():
        return raw
    users = raw.rows[column].astype("string[pyarrow]").str.strip()
    gone = users.isin(erased.among(users.dropna().unique())).to_numpy(dtype=bool)
    named = (
        raw.bad["row"]
        .map(lambda text: bool(erased.named_in(str(text), (column,))))
        .to_numpy(dtype=bool)
    )
    report.erased += int(gone.sum() + named.sum())
    return replace(raw, rows=raw.rows[~gone], bad=raw.bad[~named])


def _remove_leftovers(workspace: Workspace, manifest: dict[str, Any]) -> None:
    """Remove what a killed run left: unfinished files, and whole ones that the manifest does not name."""
    batches = manifest["batches"]
    named = {name for batch in batches for name in batch["files"]}
    named |= {
        f"quarantine/{name}.parquet"
        for name in ("users", "items", *(batch["id"] for batch in batches))
    }
    for path in workspace.ingest.rglob("*"):
        unfinished = path.name.startswith(".") and path.name.endswith(TEMPORARY)
        table = path.relative_to(workspace.ingest).as_posix()
        if unfinished or (
            table.startswith(("events/", "quarantine/")) and path.is_file() and table not in named
        ):
            path.unlink()
    for folder in (workspace.ingest / "events").glob("*"):
        if not any(folder.iterdir()):
            folder.rmdir()


def _shift(events: pd.DataFrame, now: pd.Timestamp) -> int:
    behind: float = (now - events[c.TIMESTAMP].max()).total_seconds()
    return max(0, math.floor(behind / WEEK_S)) * WEEK_S
