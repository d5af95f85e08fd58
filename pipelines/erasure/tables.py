"""Erased users in the Parquet files of a working folder.

A file is replaced in one step, and only a second search proves that a location is clean, so the
next run finishes one that was killed anywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo import columns as c
from feature_repo.erased import ErasedUsers
from feature_repo.files import replace_atomically
from feature_repo.parquet_files import set_aside, why_unreadable
from feature_repo.workspace import MissingStage, Workspace
from pipelines.erasure.locations import LocationUnavailable, StorageLocation
from pipelines.features.stream_state import KEY, STATE, USER_KEY
from pipelines.features.whole_tables import (
    FEATURES_ANEW,
    forget_files,
    is_listed,
    list_files,
    set_torn_files_aside,
)
from pipelines.ingest.ingested import INGEST_ANEW
from pipelines.ingest.manifest import (
    IngestedBatch,
    IngestManifest,
    ingest_lock,
    manifest_path,
)
from pipelines.streaming.offline import archive, tables_lock
from serving.impression_files import impressions_lock

Lock = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Tables:
    """Parquet files with a column of user ids, which may have a ``prefix``.

    Of files that cannot be read ``remedy`` says what to do; None: they are set aside.
    """

    name: str
    erased: ErasedUsers
    files: Callable[[], Iterable[Path]]
    column: str = c.USER
    prefix: str = ""
    lock: Lock = nullcontext
    remedy: str | None = None

    def find(self) -> Counter[str]:
        """Return the rows of each erased user."""
        with self.lock():
            return sum((self.count(path) for path in self.files()), Counter())

    def remove(self, users: Set[str]) -> None:
        """Rewrite the files with rows of users."""
        with self.lock():
            self.rewrite(users)

    def rewrite(self, users: Set[str]) -> None:
        """Rewrite the files; the caller holds the lock."""
        keys = pa.array([self.prefix + user for user in sorted(users)], pa.string())
        for path in self.files():
            if not self.count(path).keys().isdisjoint(users):
                filter_rows(path, lambda rows: pc.invert(pc.is_in(rows[self.column], keys)))

    def count(self, path: Path) -> Counter[str]:
        """Return the rows of each erased user in one file.

        Raises:
            LocationUnavailable: the file cannot be read.

        """
        try:
            column = pq.read_table(path, columns=[self.column], partitioning=None)[self.column]
        except (pa.ArrowInvalid, OSError):
            reason = why_unreadable(path)
            if reason is None:
                raise
            if self.remedy:
                raise LocationUnavailable(
                    f"{path} cannot be read ({reason}): {self.remedy}"
                ) from None
            set_aside(path, reason)
            return Counter()
        rows = {
            value["values"].removeprefix(self.prefix): value["counts"]
            for value in pc.value_counts(column).to_pylist()
            if value["values"] and value["values"].startswith(self.prefix)
        }
        return Counter({user: rows[user] for user in self.erased.among(rows)})


@dataclass(frozen=True)
class IngestedTables(Tables):
    """The ingested tables; their manifest gives the number of rows and the version of the data."""

    workspace: Workspace = Workspace(Path())

    def rewrite(self, users: Set[str]) -> None:
        """Rewrite the manifest for the files as they will be, then the files."""
        if manifest_path(self.workspace).is_file():
            self._rewrite_manifest(users)
        super().rewrite(users)

    def _rewrite_manifest(self, users: Set[str]) -> None:
        counts = {path: self.count(path) for path in self.files()}
        if all(count.keys().isdisjoint(users) for count in counts.values()):
            return
        manifest = IngestManifest.read(self.workspace)
        batches = tuple(self._without(batch, users, counts) for batch in manifest.batches)
        manifest = manifest.model_copy(update={"batches": batches})
        manifest.with_erasures(map(self.erased.number, users)).write(self.workspace)

    def _without(
        self, batch: IngestedBatch, users: Set[str], counts: dict[Path, Counter[str]]
    ) -> IngestedBatch:
        paths = [self.workspace.ingest / name for name in batch.files]
        rows = sum(pq.read_metadata(path).num_rows for path in paths)
        removed = sum(counts[path][user] for path in paths for user in users)
        return batch.model_copy(update={"rows": rows - removed})


@dataclass(frozen=True)
class FeatureTables(Tables):
    """Offline tables, whose files are listed with their hashes."""

    versions: Callable[[], Iterable[Path]] = list

    def rewrite(self, users: Set[str]) -> None:
        """Rewrite the files, and list them anew; without a list only their indices are checked."""
        changed = any(not self.count(path).keys().isdisjoint(users) for path in self.files())
        versions = [v for v in self.versions() if changed or not is_listed(v)]
        for version in versions:
            forget_files(version)
        super().rewrite(users)
        for version in versions:
            list_files(version)


@dataclass(frozen=True)
class QuarantinedRows:
    """Bad rows as text: the user is under one of ``keys``, or anywhere if the text is not JSON."""

    erased: ErasedUsers
    files: Callable[[], Iterable[Path]]
    keys: Collection[str]
    lock: Lock
    name: str = "quarantine"

    def find(self) -> Counter[str]:
        """Return the rows that name each erased user."""
        with self.lock():
            return Counter(
                user
                for path in self.files()
                for named in self._named(_rows(path))
                for user in named
            )

    def remove(self, users: Set[str]) -> None:
        """Drop the rows that name users."""
        with self.lock():
            for path in self.files():
                if not all(named.isdisjoint(users) for named in self._named(_rows(path))):
                    filter_rows(
                        path,
                        lambda rows: pa.array(
                            [n.isdisjoint(users) for n in self._named(rows)], pa.bool_()
                        ),
                    )

    def _named(self, rows: pa.Table) -> Iterator[set[str]]:
        return (self.erased.named_in(text or "", self.keys) for text in rows["row"].to_pylist())


def _rows(path: Path) -> pa.Table:
    return pq.read_table(path, partitioning=None)


def table_locations(workspace: Workspace, erased: ErasedUsers) -> list[StorageLocation]:
    """Return the tables of a working folder, the ingested ones before features made from them.

    Files and locks are given as functions: each search or removal lists and locks anew.
    """
    ingest = workspace.ingest
    features = workspace.root / "features"
    lock_ingest: Lock = lambda: ingest_lock(workspace)  # noqa: E731
    lock_impressions: Lock = lambda: impressions_lock(workspace.impressions, True)  # noqa: E731
    lock_offline_tables: Lock = lambda: tables_lock(workspace, exclusive=True)  # noqa: E731
    return [
        IngestedTables(
            "ingested events",
            erased,
            _below(ingest / "events"),
            lock=lock_ingest,
            remedy=INGEST_ANEW,
            workspace=workspace,
        ),
        Tables(
            "ingested users",
            erased,
            lambda: ingest.glob("users*.parquet"),
            lock=lock_ingest,
            remedy=INGEST_ANEW,
        ),
        QuarantinedRows(
            erased, lambda: _of_users(ingest / "quarantine"), _user_columns(workspace), lock_ingest
        ),
        *_feature_tables(features, erased, lock_offline_tables),
        Tables("event archive", erased, _below(archive(workspace)), lock=lock_offline_tables),
        Tables("impressions", erased, _below(workspace.impressions), lock=lock_impressions),
    ]


def _feature_tables(features: Path, erased: ErasedUsers, lock: Lock) -> list[FeatureTables]:
    """Return the tables that the feature job wrote and those that the stream appended to them."""
    tables = FeatureTables(
        "feature tables",
        erased,
        lambda: _feature_files(features),
        lock=lock,
        remedy=FEATURES_ANEW,
        versions=lambda: _finished(features),
    )
    return [
        tables,
        replace(
            tables,
            name="table of the stream's state",
            files=lambda: _state_files(features),
            column=KEY,
            prefix=USER_KEY,
        ),
    ]


def _below(folder: Path) -> Callable[[], list[Path]]:
    return lambda: [
        path for path in sorted(folder.rglob("*.parquet")) if not path.name.startswith(".")
    ]


def _of_users(quarantine: Path) -> list[Path]:
    return [path for path in quarantine.glob("[!.]*.parquet") if path.name != "items.parquet"]


def _finished(features: Path) -> list[Path]:
    """Return the folders of finished tables."""
    return [
        version
        for version in features.glob("[!.]*")
        if version.is_dir() and not version.is_symlink()
    ]


def _files_of(features: Path) -> list[Path]:
    """Return the files of finished tables; what the stream appended and is torn is set aside."""
    versions = _finished(features)
    for version in versions:
        set_torn_files_aside(version)
    return [path for version in versions for path in _below(version)()]


def _feature_files(features: Path) -> list[Path]:
    return [path for path in _files_of(features) if _may_have_users(path)]


def _may_have_users(path: Path) -> bool:
    """Return whether a file has a column of users, or cannot be read."""
    return (
        why_unreadable(path, footer_only=True) is not None or c.USER in pq.read_schema(path).names
    )


def _state_files(features: Path) -> list[Path]:
    return [path for path in _files_of(features) if path.parent.name.endswith(STATE)]


def _user_columns(workspace: Workspace) -> set[str]:
    try:
        spec = workspace.spec()
    except MissingStage:
        return set()
    return {spec.events.user, *([spec.users.key] if spec.users else [])}


def filter_rows(path: Path, mask_of: Callable[[pa.Table], Any]) -> None:
    """Rewrite a Parquet file in one step with the rows of a mask.

    ``mask_of`` returns the mask, bool ``[n]``, of each row group, a table of n rows.
    """
    with pq.ParquetFile(path) as file, replace_atomically(path) as temporary:
        groups = range(file.num_row_groups)
        coding = file.metadata.row_group(0).column(0).compression.lower() if groups else "snappy"
        coding = "none" if coding == "uncompressed" else coding
        with pq.ParquetWriter(temporary, file.schema_arrow, compression=coding) as out:
            for group in groups:
                rows = file.read_row_group(group)
                rows = rows.filter(mask_of(rows))
                if len(rows):
                    out.write_table(rows)
        # Hadoop's checksum is of the old file.
        path.with_name(f".{path.name}.crc").unlink(missing_ok=True)
