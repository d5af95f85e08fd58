"""Files in which erased users are looked for and out of which they are taken: one small class a kind of file.

A file is replaced in one step, and a place that was searched again is the only proof that it is
clean, so a run that is killed anywhere is finished by the next one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo import columns as c
from feature_repo.erased import ErasedUsers
from feature_repo.errors import FunnelError
from feature_repo.events.log_folder import LogFolder
from feature_repo.files import (
    read_json,
    replace_atomically,
    write_atomically,
    write_json,
)
from feature_repo.workspace import MissingStage, Workspace
from pipelines.features.stream_facts import KEY, STATE, USER_KEY
from pipelines.ingest.ingest import erased_version, ingest_lock
from pipelines.streaming.offline import archive, tables_lock

Lock = Callable[[], AbstractContextManager[None]]


class Unsearchable(FunnelError):  # noqa: N818 - said to the user
    """A place cannot be looked through, or changed, as things are; the message says what to do."""


class Place(Protocol):
    """Somewhere a user can be found."""

    @property
    def name(self) -> str:
        """What the proof calls it."""

    def find(self) -> Counter[str]:
        """Return how many rows, keys or entries there are of each erased user who is found.

        Raises:
            Unsearchable: it cannot be said now.

        """

    def remove(self, users: Set[str]) -> None:
        """Remove what there is of users.

        Raises:
            Unsearchable: it cannot be done now.

        """


@dataclass(frozen=True)
class Tables:
    """Parquet files with a column of user ids, which may begin with a ``prefix``."""

    name: str
    erased: ErasedUsers
    files: Callable[[], Iterable[Path]]
    column: str = c.USER
    prefix: str = ""
    lock: Lock = nullcontext

    def find(self) -> Counter[str]:
        """Return the rows of each erased user."""
        with self.lock():
            return sum((self.count(path) for path in self.files()), Counter())

    def remove(self, users: Set[str]) -> None:
        """Rewrite the files that have rows of users."""
        with self.lock():
            self.rewrite(users)

    def rewrite(self, users: Set[str]) -> None:
        """Rewrite the files, by somebody who holds the lock."""
        keys = pa.array([self.prefix + user for user in sorted(users)], pa.string())
        for path in self.files():
            if not self.count(path).keys().isdisjoint(users):
                keep_rows(path, lambda rows: pc.invert(pc.is_in(rows[self.column], keys)))

    def count(self, path: Path) -> Counter[str]:
        """Return the rows of each erased user in one file."""
        column = pq.read_table(path, columns=[self.column], partitioning=None)[self.column]
        counts = {
            row["values"]: row["counts"]
            for row in pc.value_counts(column).to_pylist()
            if row["values"]
        }
        rows = {
            key[len(self.prefix) :]: count
            for key, count in counts.items()
            if key.startswith(self.prefix)
        }
        return Counter({user: rows[user] for user in self.erased.among(rows)})


@dataclass(frozen=True)
class IngestedTables(Tables):
    """The ingested tables, whose manifest says how many rows there are and of which version they are."""

    manifest: Path = Path()

    def rewrite(self, users: Set[str]) -> None:
        """Rewrite the manifest, then the files that it describes as they will be."""
        if self.manifest.is_file():
            self._describe(users)
        super().rewrite(users)

    def _describe(self, users: Set[str]) -> None:
        manifest = read_json(self.manifest)
        gone = {path: self.count(path) for path in self.files()}
        if not any(not count.keys().isdisjoint(users) for count in gone.values()):
            return
        for batch in manifest["batches"]:
            paths = [self.manifest.parent / name for name in batch["files"]]
            lost = sum(gone[path][user] for path in paths for user in users)
            batch["rows"] = sum(pq.read_metadata(path).num_rows for path in paths) - lost
        write_json(self.manifest, erased_version(manifest, map(self.erased.number, users)))


@dataclass(frozen=True)
class QuarantinedRows:
    """Bad rows as they were read: text, with the user under one of ``keys``, or anywhere if it is no JSON."""

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
                    keep_rows(
                        path,
                        lambda rows: pa.array(
                            [n.isdisjoint(users) for n in self._named(rows)], pa.bool_()
                        ),
                    )

    def _named(self, rows: pa.Table) -> Iterator[set[str]]:
        return (self.erased.named_in(text or "", self.keys) for text in rows["row"].to_pylist())


def _rows(path: Path) -> pa.Table:
    return pq.read_table(path, partitioning=None)


@dataclass(frozen=True)
class LogFiles:
    """The event log of files; a line keeps its place when others go, since it carries its position."""

    erased: ErasedUsers
    folder: Path
    name: str = "files of the event log"

    def find(self) -> Counter[str]:
        """Return the entries of each erased user."""
        files = LogFolder(self.folder).after(0)
        return Counter(
            user for file in files for _, event in file.read() for user in self._users(event)
        )

    def remove(self, users: Set[str]) -> None:
        """Rewrite the files that have entries of users; one that has no other entries goes."""
        with LogFolder(self.folder).writing() as writer:
            for file in writer.after(0):
                lines = (
                    file.path.read_text(encoding="utf-8", errors="surrogateescape")
                    .removesuffix("\n")
                    .split("\n")
                )
                kept = [line for line in lines if self._users(_event(line)).isdisjoint(users)]
                if not kept:
                    file.path.unlink()
                elif len(kept) < len(lines):
                    text = "\n".join(kept) + "\n"
                    write_atomically(file.path, text.encode("utf-8", "surrogateescape"))

    def _users(self, event: str) -> set[str]:
        return self.erased.named_in(event, (c.USER,))


def _event(line: str) -> str:
    try:
        return json.dumps(json.loads(line)["event"])
    except (ValueError, TypeError, KeyError):
        return line


@dataclass(frozen=True)
class UnfinishedFeatures:
    """What a features run has in the making, or left when it was killed: its files may be half written."""

    folder: Path
    name: str = "unfinished features"

    def find(self) -> Counter[str]:
        """Say that there is nothing, or that it cannot be said."""
        if any(path.is_dir() for path in self.folder.glob(".*")):
            raise Unsearchable(
                "'funnel features' is at work, or was killed: let it finish, or run it again"
            )
        return Counter()

    def remove(self, users: Set[str]) -> None:
        """Leave it to the run."""


def file_places(workspace: Workspace, erased: ErasedUsers) -> list[Place]:
    """Return the tables of a workspace as places, in the order in which one is made from another."""
    ingest, features = workspace.ingest, workspace.root / "features"
    ingesting: Lock = lambda: ingest_lock(workspace)  # noqa: E731
    writing: Lock = lambda: tables_lock(workspace, exclusive=True)  # noqa: E731
    manifest = ingest / "manifest.json"
    return [
        IngestedTables(
            "ingested events", erased, _below(ingest / "events"), lock=ingesting, manifest=manifest
        ),
        Tables("ingested users", erased, lambda: ingest.glob("users.parquet"), lock=ingesting),
        QuarantinedRows(
            erased, lambda: _of_users(ingest / "quarantine"), _user_columns(workspace), ingesting
        ),
        Tables("feature tables", erased, lambda: _feature_files(features), lock=writing),
        Tables(
            "table of the stream's state",
            erased,
            lambda: _state_files(features),
            KEY,
            USER_KEY,
            writing,
        ),
        UnfinishedFeatures(features),
        Tables("event archive", erased, _below(archive(workspace)), lock=writing),
        Tables("impressions", erased, _below(workspace.impressions)),
    ]


def _below(folder: Path) -> Callable[[], list[Path]]:
    return lambda: [
        path for path in sorted(folder.rglob("*.parquet")) if not path.name.startswith(".")
    ]


def _of_users(quarantine: Path) -> list[Path]:
    return [path for path in quarantine.glob("[!.]*.parquet") if path.name != "items.parquet"]


def _finished(features: Path) -> list[Path]:
    tables = [
        version
        for version in features.glob("[!.]*")
        if version.is_dir() and not version.is_symlink()
    ]
    return [path for version in tables for path in _below(version)()]


def _feature_files(features: Path) -> list[Path]:
    return [path for path in _finished(features) if c.USER in pq.read_schema(path).names]


def _state_files(features: Path) -> list[Path]:
    return [path for path in _finished(features) if path.parent.name.endswith(STATE)]


def _user_columns(workspace: Workspace) -> set[str]:
    try:
        spec = workspace.spec()
    except MissingStage:
        return set()
    return {spec.events.user, *([spec.users.key] if spec.users else [])}


def keep_rows(path: Path, kept: Callable[[pa.Table], Any]) -> None:
    """Rewrite a Parquet file in one step with the rows that ``kept`` says of a table of some of them, bool ``[n]``."""
    with pq.ParquetFile(path) as file, replace_atomically(path) as temporary:
        groups = range(file.num_row_groups)
        coding = file.metadata.row_group(0).column(0).compression.lower() if groups else "snappy"
        coding = "none" if coding == "uncompressed" else coding
        with pq.ParquetWriter(temporary, file.schema_arrow, compression=coding) as out:
            for group in groups:
                rows = file.read_row_group(group)
                rows = rows.filter(kept(rows))
                if len(rows):
                    out.write_table(rows)
        # Hadoop's checksum is of the old file.
        path.with_name(f".{path.name}.crc").unlink(missing_ok=True)
