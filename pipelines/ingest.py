"""Ingest: described files in, typed and partitioned Parquet out, bad rows in quarantine.

New files add their rows, a file already ingested adds nothing, and nothing counts until the manifest
that names it is replaced in one step: a killed run leaves no trace that a reader could see.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import columns as c
from feature_repo.dataset import DatasetSpec, SpecError, Users
from feature_repo.workspace import Workspace, file_hash, fingerprint, read_json, write_atomically, write_json
from pipelines import schemas
from pipelines.readers import RawFile, find_files, read_file, read_header

WEEK_S = 7 * 86_400
_CLOCK_SKEW = pd.Timedelta(days=1)
_QUARANTINE_COLUMNS = ["file", "line", "reason", "row"]

Progress = Callable[[str, int, int], None]
"""Called with what is done, how many steps of it are done, and how many there are."""


@dataclass
class IngestReport:
    """What one run added, and what it kept out."""

    files: int = 0
    events: int = 0
    users: int = 0
    items: int = 0
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
    progress: Progress = lambda *_: None,
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
    now = now or pd.Timestamp.now(tz="UTC")
    manifest = _manifest(workspace, spec)
    files = find_files(spec.events, folder)
    _check_headers(spec, folder, files)
    hashes = {path: file_hash(path) for path in files}
    new = [path for path in files if hashes[path] not in manifest["files"]]
    report = IngestReport(files=len(new))
    entities = {kind: _entities(spec, folder, kind, report) for kind in ("users", "items")}
    latest = now + _CLOCK_SKEW
    known = _known_event_ids(workspace, manifest)
    events, bad = _read_events(spec, new, latest, known, report, progress)
    if not manifest["batches"] and not len(events):
        raise SpecError(f"no usable event in {[path.name for path in files]}: {dict(report.quarantined)}")
    if manifest["shift_s"] is None:
        manifest["shift_s"] = _shift(events, now) if shift_to_now else 0
    if new:
        batch = fingerprint(sorted(hashes[path] for path in new))
        written = _write_events(workspace, spec, events, batch, manifest["shift_s"])
        manifest["batches"].append({"id": batch, "rows": len(events), "files": written})
        manifest["files"] |= {hashes[path]: path.name for path in new}
        _write_quarantine(workspace, batch, bad)
    for kind, (frame, bad_rows) in entities.items():
        if frame is not None:
            _write_entities(workspace, spec, kind, frame, manifest["shift_s"])
            _write_quarantine(workspace, kind, bad_rows)
    write_json(workspace.ingest / "dataset.json", json.loads(spec.model_dump_json()))
    tables = {k: fingerprint(f.astype(str).to_csv()) for k, (f, _) in entities.items() if f is not None}
    manifest["data_version"] = fingerprint(sorted(manifest["files"]), tables, manifest["spec"])
    report.total_events = sum(batch["rows"] for batch in manifest["batches"])
    report.data_version, report.shift_s = manifest["data_version"], manifest["shift_s"]
    write_json(workspace.ingest / "report.json", report.as_dict())
    write_json(workspace.ingest / "manifest.json", manifest)
    return report


def event_files(workspace: Workspace) -> list[str]:
    """Return the Parquet files of all ingested events, as the manifest names them."""
    manifest = read_json(workspace.ingest / "manifest.json")
    return [str(workspace.ingest / name) for batch in manifest["batches"] for name in batch["files"]]


def read_events(workspace: Workspace, columns: list[str] | None = None) -> pd.DataFrame:
    """Return all ingested events in the order of time (ties by event id)."""
    wanted = sorted({*(columns or []), c.TIMESTAMP, c.EVENT_ID}) if columns else None
    tables = [pq.read_table(name, columns=wanted, partitioning=None) for name in event_files(workspace)]
    frame = pa.concat_tables(tables).to_pandas()
    return frame.sort_values([c.TIMESTAMP, c.EVENT_ID], kind="stable", ignore_index=True)


def _manifest(workspace: Workspace, spec: DatasetSpec) -> dict[str, Any]:
    version = fingerprint(spec.model_dump(mode="json"))
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


def _wanted(table: Users) -> list[str]:
    columns = [table.key, *(table.source_column(name) for name in table.attributes)]
    extra = [getattr(table, name, None) for name in (c.AVAILABLE_FROM, c.AVAILABLE_UNTIL)]
    return columns + [name for name in extra if name]


def _event_columns(spec: DatasetSpec) -> list[str]:
    e = spec.events
    return [name for name in (e.user, e.item, e.timestamp, e.type, e.value, e.id) if name]


def _check_headers(spec: DatasetSpec, folder: Path, files: list[Path]) -> None:
    """Refuse a missing column before anything is read or written."""
    checks = [(spec.events, path, _event_columns(spec)) for path in files]
    for table in (spec.users, spec.items):
        if table is not None:
            checks += [(table, path, _wanted(table)) for path in find_files(table, folder)]
    for described, path, wanted in checks:
        if described.file_format(path) == "jsonl":
            continue  # keys may be absent from single lines
        header = read_header(path, described)
        missing = [name for name in wanted if name not in header]
        if missing:
            raise SpecError(f"{path.name}: no column {missing}; it has {header}; check dataset.toml")


def _known_event_ids(workspace: Workspace, manifest: dict[str, Any]) -> set[str]:
    names = [workspace.ingest / name for batch in manifest["batches"] for name in batch["files"]]
    return {i for name in names for i in pq.read_table(name, columns=[c.EVENT_ID], partitioning=None)[0].to_pylist()}


def _read_events(
    spec: DatasetSpec,
    files: list[Path],
    latest: pd.Timestamp,
    known: set[str],
    report: IngestReport,
    progress: Progress,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    good, bad = [], []
    for number, path in enumerate(files):
        progress(f"reading {path.name}", number, len(files))
        raw = read_file(path, spec.events, _event_columns(spec))
        events = _parse_events(spec, raw)
        why = schemas.reasons(events, schemas.events_schema(spec, latest))
        keep = events[~events.index.isin(why.index)]
        ids = _event_ids(spec, keep, raw)
        repeated = ids.duplicated() | ids.isin(known)
        why = pd.concat([why, pd.Series("duplicate", index=ids.index[repeated])])
        known.update(ids[~repeated])
        good.append(keep[~repeated].assign(**{c.EVENT_ID: ids[~repeated]}))
        bad.append(_bad_rows(raw, why))
    progress("reading events", len(files), len(files))
    for frame in bad:
        report.quarantined.update(frame["reason"].tolist())
    events = pd.concat(good, ignore_index=True) if good else pd.DataFrame(columns=[c.TIMESTAMP])
    report.events = len(events)
    return events, pd.concat(bad, ignore_index=True) if bad else pd.DataFrame(columns=_QUARANTINE_COLUMNS)


def _bad_rows(raw: RawFile, why: pd.Series) -> pd.DataFrame:
    rows = raw.rows.loc[why.index]
    texts = [json.dumps(row, default=str, ensure_ascii=False) for row in rows.astype(object).where(rows.notna(), None).to_dict("records")]
    parsed = pd.DataFrame({"line": why.index, "reason": why.to_numpy(), "row": texts})
    found = pd.concat([frame for frame in (raw.bad, parsed) if len(frame)] or [raw.bad], ignore_index=True)
    found.insert(0, "file", raw.name)
    return found.sort_values("line", kind="stable", ignore_index=True)


def _text(column: pd.Series) -> pd.Series:
    return column.astype("string[pyarrow]").str.strip()


def _number(column: pd.Series) -> pd.Series:
    return pd.to_numeric(column, errors="coerce").astype("float64")


def _parse_events(spec: DatasetSpec, raw: RawFile) -> pd.DataFrame:
    e, rows = spec.events, raw.rows
    value = _text(rows[e.value]) if e.value else pd.Series(pd.NA, rows.index, dtype="string[pyarrow]")
    frame = pd.DataFrame(
        {
            c.USER: _text(rows[e.user]),
            c.ITEM: _text(rows[e.item]),
            "raw_timestamp": _text(rows[e.timestamp]),
            "raw_value": value,
            c.VALUE: _number(value),
        }
    )
    frame[c.TIMESTAMP] = parse_times(frame["raw_timestamp"], e.timestamp_unit)
    frame[c.TYPE] = _types(spec, rows, frame[c.VALUE])
    return frame


def _types(spec: DatasetSpec, rows: pd.DataFrame, value: pd.Series) -> pd.Series:
    if spec.events.type:
        return _text(rows[spec.events.type]).replace(dict(spec.events.rename_types))
    if len(spec.events.types) == 1:
        return pd.Series(spec.event_types[0], index=rows.index)
    chosen = pd.Series(pd.NA, index=rows.index, dtype="object")
    for name, kind in sorted(spec.events.types.items(), key=lambda pair: pair[1].min_value or 0.0):
        chosen[value >= (kind.min_value or 0.0)] = name
    return chosen


def parse_times(raw: pd.Series, unit: str) -> pd.Series:
    """Parse epoch numbers or ISO 8601 text to UTC; what cannot be read becomes NaT.

    With ``auto``, numbers are seconds, milliseconds or microseconds by their size.
    """
    number = _number(raw)
    if unit == "iso" or (unit == "auto" and number.notna().sum() * 2 < raw.notna().sum()):
        return pd.to_datetime(raw.astype(object), errors="coerce", utc=True, format="ISO8601").astype("datetime64[us, UTC]")
    if unit == "auto":
        scale = np.select([number.abs() < 1e11, number.abs() < 1e14], [1e6, 1e3], 1.0)
    else:
        scale = np.full(len(number), {"s": 1e6, "ms": 1e3, "us": 1.0}[unit])
    micros = number.to_numpy() * scale
    readable = np.isfinite(micros) & (np.abs(micros) < 9e15)
    whole = np.where(readable, micros, 0).round().astype("int64")
    parsed = pd.Series(whole.view("datetime64[us]"), index=raw.index).dt.tz_localize("UTC")
    return parsed.where(pd.Series(readable, index=raw.index))


def _event_ids(spec: DatasetSpec, events: pd.DataFrame, raw: RawFile) -> pd.Series:
    if spec.events.id:
        given = _text(raw.rows.loc[events.index, spec.events.id])
        if given.notna().all():
            return given
    parts = zip(
        events[c.USER], events[c.ITEM], events[c.TYPE], events[c.TIMESTAMP].astype("int64"), events[c.VALUE], strict=True
    )
    ids = [hashlib.blake2b("\x1f".join(map(str, part)).encode(), digest_size=10).hexdigest() for part in parts]
    return pd.Series(ids, index=events.index, dtype="object")


def _shift(events: pd.DataFrame, now: pd.Timestamp) -> int:
    behind = (now - events[c.TIMESTAMP].max()).total_seconds()
    return max(0, math.floor(behind / WEEK_S)) * WEEK_S


def _write_events(
    workspace: Workspace, spec: DatasetSpec, events: pd.DataFrame, batch: str, shift_s: int
) -> list[str]:
    names = []
    types = spec.events.types
    events = events.assign(
        **{
            c.TIMESTAMP: events[c.TIMESTAMP] + pd.Timedelta(seconds=shift_s),
            c.WEIGHT: events[c.TYPE].map({name: kind.weight for name, kind in types.items()}).astype("float64"),
            c.POSITIVE: events[c.TYPE].isin(spec.positive_types),
        }
    )
    events = events.sort_values([c.TIMESTAMP, c.EVENT_ID], kind="stable")
    for month, part in events.groupby(events[c.TIMESTAMP].dt.strftime("%Y-%m")):
        name = f"events/{c.MONTH}={month}/{batch}.parquet"
        _write_parquet(workspace.ingest / name, pa.Table.from_pandas(part, EVENT_SCHEMA, preserve_index=False))
        names.append(name)
    return names


EVENT_SCHEMA = pa.schema(
    [
        (c.EVENT_ID, pa.string()),
        (c.USER, pa.string()),
        (c.ITEM, pa.string()),
        (c.TIMESTAMP, pa.timestamp("us", tz="UTC")),
        (c.TYPE, pa.string()),
        (c.VALUE, pa.float64()),
        (c.WEIGHT, pa.float64()),
        (c.POSITIVE, pa.bool_()),
    ]
)
"""Arrow schema of the ingested events."""


def _write_parquet(path: Path, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_atomically(path, sink.getvalue().to_pybytes())


def _write_quarantine(workspace: Workspace, name: str, bad: pd.DataFrame) -> None:
    schema = pa.schema([("file", pa.string()), ("line", pa.int64()), ("reason", pa.string()), ("row", pa.string())])
    table = pa.Table.from_pandas(bad[_QUARANTINE_COLUMNS], schema, preserve_index=False)
    _write_parquet(workspace.ingest / "quarantine" / f"{name}.parquet", table)


def _entities(
    spec: DatasetSpec, folder: Path, kind: str, report: IngestReport
) -> tuple[pd.DataFrame | None, pd.DataFrame]:
    """Read and check the user or item table; the last of several rows with one key is kept."""
    table: Users | None = getattr(spec, kind)
    empty = pd.DataFrame(columns=_QUARANTINE_COLUMNS)
    if table is None:
        return None, empty
    key = c.USER if kind == "users" else c.ITEM
    good, bad = [], []
    for path in find_files(table, folder):
        raw = read_file(path, table, _wanted(table))
        frame = _parse_entities(table, raw, key)
        numeric = [name for name, how in table.attributes.items() if how == "numeric"]
        why = schemas.reasons(frame, schemas.entity_schema(key, numeric))
        good.append(frame[~frame.index.isin(why.index)].drop(columns=[f"raw_{name}" for name in numeric]))
        bad.append(_bad_rows(raw, why))
    rows = pd.concat(good).drop_duplicates(key, keep="last").sort_values(key, ignore_index=True)
    rejected = pd.concat(bad, ignore_index=True)
    report.quarantined.update(rejected["reason"].tolist())
    setattr(report, kind, len(rows))
    return rows, rejected


def _parse_entities(table: Users, raw: RawFile, key: str) -> pd.DataFrame:
    frame = pd.DataFrame({key: _text(raw.rows[table.key])})
    for name, kind in table.attributes.items():
        source = raw.rows[table.source_column(name)]
        if kind == "multi_categorical":
            frame[name] = [_split(value, table.list_separator) for value in source]
        elif kind == "numeric":
            frame[f"raw_{name}"] = _text(source)
            frame[name] = _number(frame[f"raw_{name}"])
        else:
            frame[name] = _text(source)
    for name in (c.AVAILABLE_FROM, c.AVAILABLE_UNTIL):
        if getattr(table, name, None):
            frame[name] = parse_times(_text(raw.rows[getattr(table, name)]), "auto")
    return frame


def _split(value: Any, separator: str) -> list[str]:
    if isinstance(value, str):
        return [part.strip() for part in value.split(separator) if part.strip()]
    if value is None or value is pd.NA or isinstance(value, float):
        return []
    return [str(part) for part in value]


_ARROW_TYPES = {
    "categorical": pa.string(),
    "multi_categorical": pa.list_(pa.string()),
    "numeric": pa.float64(),
    "text": pa.string(),
}


def _write_entities(workspace: Workspace, spec: DatasetSpec, kind: str, frame: pd.DataFrame, shift_s: int) -> None:
    table: Users = getattr(spec, kind)
    fields = [(frame.columns[0], pa.string())] + [(name, _ARROW_TYPES[how]) for name, how in table.attributes.items()]
    for name in (c.AVAILABLE_FROM, c.AVAILABLE_UNTIL):
        if name in frame:
            fields.append((name, pa.timestamp("us", tz="UTC")))
            frame = frame.assign(**{name: frame[name] + pd.Timedelta(seconds=shift_s)})
    _write_parquet(
        workspace.ingest / f"{kind}.parquet", pa.Table.from_pandas(frame, pa.schema(fields), preserve_index=False)
    )
