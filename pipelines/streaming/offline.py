"""Appends the stream's rows to the offline tables: one small file per batch, merged later.

A file is named by the batches that it holds, so a repeated batch replaces its own file. A merge
that was killed leaves files whose batches lie within those of another file: they are removed.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.dataset import dataset

from feature_repo import columns as c
from feature_repo.events.log_position import position_key
from feature_repo.files import locked, replace_atomically
from feature_repo.parquet_files import read_whole, set_torn_aside
from feature_repo.workspace import Workspace

MERGE = 200
"""Files of neighbouring batches that are merged into one."""

EVENT_SCHEMA = pa.schema(
    [
        ("position", pa.string()),
        (c.EVENT_ID, pa.string()),
        (c.USER, pa.string()),
        (c.ITEM, pa.string()),
        (c.TYPE, pa.string()),
        (c.TIMESTAMP, pa.timestamp("us", tz="UTC")),
        (c.VALUE, pa.float64()),
        ("request_id", pa.string()),
        ("accepted_at", pa.timestamp("us", tz="UTC")),
        ("context", pa.string()),
    ]
)
"""The archive of accepted events; their context is JSON."""

_NAME = re.compile(r"stream-(\d+)-(\d+)-(\d+)\.parquet")


class Part(NamedTuple):
    """A file of the stream: the generation of its checkpoint, and its first and last batch."""

    generation: int
    first: int
    last: int

    @property
    def name(self) -> str:
        """The file's name; names sort in the order of time."""
        return f"stream-{self.generation:06d}-{self.first:012d}-{self.last:012d}.parquet"

    @classmethod
    def named(cls, name: str) -> Part | None:
        """Return the part that a file name means; None: it is no part's name."""
        match = _NAME.fullmatch(name)
        return cls(*map(int, match.groups())) if match else None


def archive(workspace: Workspace) -> Path:
    """Return the folder of all events that the stream has read from the log."""
    return workspace.root / "stream" / "events"


def arrival(position: str) -> datetime:
    """Return when a log entry was accepted; entries of one millisecond differ in microseconds."""
    milliseconds, number = position_key(position)
    micros = milliseconds * 1_000 + min(number, 999)
    return datetime.fromtimestamp(micros // 1_000_000, UTC).replace(microsecond=micros % 1_000_000)


def write_part(
    folder: Path, part: Part, rows: Sequence[dict[str, Any]] | pa.Table, schema: pa.Schema
) -> None:
    """Write one file in one step; no rows, no file."""
    if not len(rows):
        return
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows), schema)
    # Synced: when the batch is committed the log may drop its entries, and this file is the record.
    with replace_atomically(folder / part.name) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def parts(folder: Path) -> list[Part]:
    """Return the files of a folder by batch; remove those whose batches lie within another's."""
    remaining: list[Part] = []
    stored = [part for path in folder.glob("stream-*") if (part := Part.named(path.name))]
    for part in sorted(stored, key=lambda part: (part.generation, part.first, -part.last)):
        last = remaining[-1] if remaining else None
        if last and last.generation == part.generation and part.last <= last.last:
            (folder / part.name).unlink(missing_ok=True)
        else:
            remaining.append(part)
    return remaining


def merge(folder: Path, schema: pa.Schema, below: int, generation: int) -> int:
    """Merge runs of ``MERGE`` files of batches before ``below``; return how many were merged.

    Merged files are merged again with others of their size, so that their number stays small.
    """
    merged = 0
    finished = [part for part in parts(folder) if part.generation < generation or part.last < below]
    for width in (1, MERGE, MERGE * MERGE):
        # A batch without rows has no file, so a run is of neighbours, not of consecutive numbers.
        run = [
            part
            for part in finished
            if part.last - part.first < width and (width == 1 or part.last > part.first)
        ]
        run = [part for part in run if part.generation == run[0].generation]
        for start in range(0, len(run) - MERGE + 1, MERGE):
            some = run[start : start + MERGE]
            tables = _rows(folder, some, schema)
            if len(tables) < len(some):  # one was set aside: the next merge is of others
                return merged
            merged_part = Part(some[0].generation, some[0].first, some[-1].last)
            write_part(folder, merged_part, pa.concat_tables(tables), schema)
            for part in some:
                (folder / part.name).unlink()
            merged += len(some)
    return merged


def read_archive(workspace: Workspace, after: str = "0-0") -> pa.Table:
    """Return the archived events whose log position is after one, in the order of the log.

    A file that cannot be read is set aside, and made anew from the event log as far as that has its
    entries.
    """
    folder = archive(workspace)
    if folder.is_dir():
        # It imports this module; and Feast, which takes seconds.
        from pipelines.streaming.repair import rebuild_archive

        rebuild_archive(workspace)
    tables: list[pa.Table] | None = None
    while tables is None:
        with contextlib.suppress(FileNotFoundError):  # it was merged meanwhile: list again
            wanted = [part for part in parts(folder) if _reaches(folder / part.name, after)]
            tables = _rows(folder, wanted, EVENT_SCHEMA)
            if len(tables) < len(wanted):
                rebuild_archive(workspace)
                tables = None
    events = pa.concat_tables([EVENT_SCHEMA.empty_table(), *tables])
    order = [position_key(position) for position in events["position"].to_pylist()]
    rows = sorted((key, row) for row, key in enumerate(order) if key > position_key(after))
    return events.take(pa.array([row for _, row in rows], pa.int64()))


def _rows(folder: Path, some: Sequence[Part], schema: pa.Schema) -> list[pa.Table]:
    """Return the tables of some parts, without those that cannot be read and were set aside."""
    tables = (read_whole(folder / part.name, schema) for part in some)
    return [table for table in tables if table is not None]


def _reaches(path: Path, after: str) -> bool:
    """Return whether a file may have entries after a position, by the statistics in its index."""
    try:
        groups = pq.read_metadata(path)
    except FileNotFoundError:
        raise
    except (pa.ArrowInvalid, OSError):
        return True  # whoever reads it sets it aside
    column = groups.schema.names.index("accepted_at")
    newest = [groups.row_group(n).column(column).statistics for n in range(groups.num_row_groups)]
    if any(known is None or not known.has_min_max for known in newest):
        return True
    # A log entry's time rises with its position, so what is older was accepted earlier.
    return any(known.max >= arrival(after) for known in newest)


@contextmanager
def tables_lock(workspace: Workspace, exclusive: bool) -> Iterator[None]:
    """Lock the offline tables: shared to append to them, exclusive to replace them."""
    with locked(workspace.root / "features" / ".lock", shared=not exclusive):
        yield


def carry_over(old: Path, new: Path) -> None:
    """Link the files that the stream appended to old tables into the new ones, if whole.

    Those of tables that are declared no more, or have other columns now, stay behind.
    """
    for table in {path.parent.name for path in old.glob("*/stream-*.parquet")}:
        if not (new / table).is_dir():
            continue
        columns = dataset(new / table, format="parquet").schema.names
        set_torn_aside(list((old / table).glob("stream-*.parquet")))
        for path in (old / table).glob("stream-*.parquet"):
            if columns and set(pq.read_schema(path).names) != set(columns):
                continue
            if not (new / table / path.name).exists():
                os.link(path, new / table / path.name)
