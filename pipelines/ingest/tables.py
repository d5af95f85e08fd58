"""Writes the ingested tables as Parquet, each file in one step; equal rows give equal bytes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import columns as c
from feature_repo.attribute_types import ATTRIBUTE_TYPES
from feature_repo.dataset import DatasetSpec, Users
from feature_repo.events.schema import event_schema
from feature_repo.files import TEMPORARY, write_atomically
from pipelines.ingest.manifest import IngestManifest
from pipelines.ingest.quarantine import QUARANTINE_COLUMNS


def write_events(
    folder: Path, spec: DatasetSpec, events: pd.DataFrame, *, batch: str, shift_s: int
) -> list[str]:
    """Write one batch of events, one file a month, and return the files' names.

    ``shift_s`` seconds are added to the events' times.
    """
    names: list[str] = []
    if not len(events):
        return names

    # Derived columns, in the order of time.
    weights = {name: kind.weight for name, kind in spec.events.types.items()}
    events = events.copy()
    events[c.TIMESTAMP] += pd.Timedelta(seconds=shift_s)
    events[c.WEIGHT] = events[c.TYPE].map(weights).astype("float64")
    events[c.POSITIVE] = events[c.TYPE].isin(spec.positive_types)
    table = pa.Table.from_pandas(events, event_schema(spec.context), preserve_index=False)
    table = table.sort_by([(c.TIMESTAMP, "ascending"), (c.EVENT_ID, "ascending")])

    # The rows of one month follow each other: cut where the month changes.
    months = table[c.TIMESTAMP].cast(pa.timestamp("us")).to_numpy().astype("datetime64[M]")
    starts = np.flatnonzero(np.concatenate([[True], months[1:] != months[:-1]]))
    for start, stop in pairwise([*starts.tolist(), len(table)]):
        name = f"events/{c.MONTH}={months[start]}/{batch}.parquet"
        _write_parquet(folder / name, table.slice(start, stop - start))
        names.append(name)
    return names


def _write_parquet(path: Path, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_atomically(path, sink.getvalue().to_pybytes())


def write_quarantine(folder: Path, name: str, bad: pd.DataFrame) -> None:
    """Write the bad rows of one batch, or of the ``users`` or ``items``."""
    schema = pa.schema(
        [("file", pa.string()), ("line", pa.int64()), ("reason", pa.string()), ("row", pa.string())]
    )
    table = pa.Table.from_pandas(bad[QUARANTINE_COLUMNS], schema, preserve_index=False)
    _write_parquet(folder / "quarantine" / f"{name}.parquet", table)


def write_entities(path: Path, table: Users, frame: pd.DataFrame, shift_s: int) -> None:
    """Write the users or items; ``shift_s`` seconds are added to their times."""
    fields = [(frame.columns[0], pa.string())] + [
        (name, ATTRIBUTE_TYPES[how]) for name, how in table.attributes.items()
    ]
    for name in (c.AVAILABLE_FROM, c.AVAILABLE_UNTIL, c.VALID_FROM):
        if name in frame:
            fields.append((name, pa.timestamp("us", tz="UTC")))
            frame = frame.assign(**{name: frame[name] + pd.Timedelta(seconds=shift_s)})
    _write_parquet(path, pa.Table.from_pandas(frame, pa.schema(fields), preserve_index=False))


def remove_leftovers(folder: Path, manifest: IngestManifest) -> None:
    """Remove what a killed run left: temporary files, and files that the manifest does not name."""
    tables = ("users", "items", *(batch.id for batch in manifest.batches))
    named = {*manifest.event_files, *(f"quarantine/{name}.parquet" for name in tables)}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        temporary = path.name.startswith(".") and path.name.endswith(TEMPORARY)
        batch_file = name.startswith(("events/", "quarantine/")) and path.is_file()
        if temporary or (batch_file and name not in named):
            path.unlink()

    for month in (folder / "events").glob("*"):
        if not any(month.iterdir()):
            month.rmdir()
