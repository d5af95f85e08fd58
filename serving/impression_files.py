"""Keeps the impressions to few files: those of an hour become one, and old ones are removed.

A merged file says in its metadata which files it was made from. Until these are removed, whoever
reads the folder passes over them, so a merge can be killed anywhere and no impression counts twice.
"""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.files import LockHeld, locked, replace_atomically
from feature_repo.parquet_files import files_set_aside, original_name, set_torn_aside

_LOCK = ".lock"
_TIDYING = ".tidying.lock"
_SOURCES = b"funnel.merged"
_MERGED = re.compile(r"hour-(\d{8}T\d{2})\.parquet")
_SINGLE = re.compile(r"(\d{8}T\d{2})\d{4}\.\d+Z-.*\.parquet")
_SETTLED = timedelta(minutes=10)
"""How long after an hour its files are merged: their writers are done by then."""

_ROWS_PER_GROUP = 4_000
_KEPT_S = 7_200.0


def files_of(folder: Path, since: float = 0.0) -> list[Path]:
    """Return the files to read, so that each impression is in one of them.

    Files of hours that were over at ``since`` (epoch seconds) are left out, but never the newest
    ones: a clock may have been set back after their requests.
    """
    since = min(since, time.time() - _KEPT_S)
    files = [
        path
        for path in sorted(folder.glob("[!.]*.parquet"))
        if (hour := _hour_of(path.name)) is None or _end_of(hour).timestamp() >= since
    ]
    merged = {name for path in files if _MERGED.fullmatch(path.name) for name in _sources(path)}
    return [path for path in files if path.name not in merged]


def tidy(folder: Path, schema: pa.Schema, keep: timedelta, now: datetime | None = None) -> int:
    """Merge the files of each past hour and remove hours that are older than ``keep``.

    Nothing is done while another process does it, or an erasure works on the files. Servers go on
    adding files meanwhile.

    Args:
        folder: the impressions; it need not exist.
        schema: of all files; a column that a file lacks is null.
        keep: the retention.
        now: the present, for tests.

    Returns:
        how many files are fewer.

    """
    if not folder.is_dir():
        return 0
    now = now or datetime.now(UTC)
    before = len(list(folder.glob("[!.]*.parquet")))
    try:
        with locked(folder / _TIDYING, blocking=False):
            _prune(folder, now - keep)
            for hour, names in sorted(_single_files(folder).items()):
                if _end_of(hour) + _SETTLED < now:
                    # Not for longer than an hour's files: an erasure may wait.
                    with impressions_lock(folder, exclusive=False, blocking=False):
                        _merge(folder, hour, names, schema)
    except LockHeld:
        return 0
    return before - len(list(folder.glob("[!.]*.parquet")))


@contextmanager
def impressions_lock(folder: Path, exclusive: bool, blocking: bool = True) -> Iterator[None]:
    """Lock the impressions: shared to add or to merge files, exclusive to remove users from them.

    Raises:
        LockHeld: ``blocking`` is false and another process removes users.

    """
    with locked(folder / _LOCK, shared=not exclusive, blocking=blocking):
        yield


def _prune(folder: Path, oldest: datetime) -> None:
    """Remove the files of hours that ended before a moment."""
    for path in (*folder.glob("[!.]*.parquet"), *files_set_aside(folder)):
        hour = _hour_of(original_name(path))
        if hour and _end_of(hour) < oldest:
            path.unlink(missing_ok=True)


def _single_files(folder: Path) -> dict[str, list[str]]:
    """Return the names of the files that servers wrote, by hour."""
    by_hour: dict[str, list[str]] = defaultdict(list)
    for path in sorted(folder.glob("[!.]*.parquet")):
        if name := _SINGLE.fullmatch(path.name):
            by_hour[name[1]].append(path.name)
    return by_hour


def _merge(folder: Path, hour: str, names: list[str], schema: pa.Schema) -> None:
    """Put the files of an hour into one, which an earlier merge may have begun; remove them."""
    merged = folder / f"hour-{hour}.parquet"
    set_torn_aside([path for path in (merged, *(folder / name for name in names)) if path.exists()])
    known = _sources(merged) if merged.is_file() else []
    fresh = [name for name in names if name not in known and (folder / name).is_file()]
    if fresh:
        parts = [*([merged] if merged.is_file() else []), *(folder / name for name in fresh)]
        _write_merged(merged, parts, schema, sources=[*known, *fresh])
    for name in names:
        (folder / name).unlink(missing_ok=True)


def _write_merged(
    merged: Path, parts: Sequence[Path], schema: pa.Schema, *, sources: Sequence[str]
) -> None:
    described = schema.with_metadata({_SOURCES: json.dumps(list(sources)).encode()})
    with (
        replace_atomically(merged) as temporary,
        pq.ParquetWriter(temporary, described, compression="zstd") as out,
    ):
        waiting: list[pa.Table] = []
        for path in parts:  # a few rows at a time: an hour may be large
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    waiting.append(_with_columns(file.read_row_group(group), described))
                    if sum(map(len, waiting)) >= _ROWS_PER_GROUP:
                        out.write_table(pa.concat_tables(waiting))
                        waiting = []
        if waiting:
            out.write_table(pa.concat_tables(waiting))


def _with_columns(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return rows with all columns of a schema; those that are missing are null."""
    columns = [
        rows[field.name].cast(field.type)
        if field.name in rows.column_names
        else pa.nulls(len(rows), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _sources(merged: Path) -> list[str]:
    """Return which files a merged one was made from; none if it cannot be read."""
    try:
        metadata = pq.read_schema(merged).metadata or {}
    except (pa.ArrowInvalid, OSError):
        return []
    names: list[str] = json.loads(metadata.get(_SOURCES, b"[]"))
    return names


def _hour_of(name: str) -> str | None:
    match = _MERGED.fullmatch(name) or _SINGLE.fullmatch(name)
    return match[1] if match else None


def _end_of(hour: str) -> datetime:
    return datetime.strptime(hour, "%Y%m%dT%H").replace(tzinfo=UTC) + timedelta(hours=1)
