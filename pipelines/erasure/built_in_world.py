"""Erased users in the source files of the built-in world, which Funnel wrote itself."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from feature_repo import columns as c
from feature_repo.erased import ErasedUsers
from feature_repo.files import write_atomically
from feature_repo.workspace import Workspace
from pipelines.ingest.manifest import IngestManifest, ingest_lock, manifest_path

_EVENTS = "events.csv"
_TRUTH = "truth.npz"
_CONFIG = "config.json"
_USER_ARRAYS = ("joined", "activity", "user_codes", "tastes", "price_tastes")


@dataclass(frozen=True)
class BuiltInWorld:
    """``raw/`` in the working folder."""

    workspace: Workspace
    erased: ErasedUsers
    name: str = "files of the built-in world"

    def find(self) -> Counter[str]:
        """Return the number of lines and true tastes of each erased user."""
        if not (self._folder / _CONFIG).is_file():
            return Counter()
        rows: Counter[str] = Counter(_user_ids(self._folder / _TRUTH))
        for name in (_EVENTS, "users.csv"):
            with (self._folder / name).open(newline="", encoding="utf-8") as file:
                rows.update(row[c.USER] for row in csv.DictReader(file))
        return Counter({user: rows[user] for user in self.erased.among(rows)})

    def remove(self, users: Set[str]) -> None:
        """Rewrite the files, which then count as ingested if the old ones did."""
        if self.find().keys().isdisjoint(users):
            return
        with ingest_lock(self.workspace):
            self._remove_lines(self._folder / "users.csv", users)
            self._remove_lines(self._folder / _EVENTS, users)
            _clear_tastes(self._folder / _TRUTH, users)

    @property
    def _folder(self) -> Path:
        return self.workspace.root / "raw"

    def _remove_lines(self, path: Path, users: Set[str]) -> None:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        index = header.index(c.USER)
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(
            [header, *(row for row in rows if row[index] not in users)]
        )
        content = out.getvalue().encode()

        # Ingest must take the rewritten file for the one that it has ingested.
        if path.name == _EVENTS and manifest_path(self.workspace).is_file():
            manifest = IngestManifest.read(self.workspace)
            files = manifest.files | {hashlib.sha256(content).hexdigest(): path.name}
            manifest.model_copy(update={"files": files}).write(self.workspace)
        write_atomically(path, content)


def _user_ids(truth: Path) -> list[str]:
    with np.load(truth, allow_pickle=False) as arrays:
        ids: list[str] = arrays["user_ids"].tolist()
    return ids


def _clear_tastes(truth: Path, users: Set[str]) -> None:
    with np.load(truth, allow_pickle=False) as loaded:
        arrays = {name: loaded[name].copy() for name in loaded.files}

    # The rows of the users become zeros, so that all others keep their indices.
    erased = np.isin(arrays["user_ids"], sorted(users))
    arrays["user_ids"][erased] = ""
    for name in _USER_ARRAYS:
        arrays[name][erased] = 0
    with io.BytesIO() as file:
        np.savez(file, **arrays)
        write_atomically(truth, file.getvalue())
