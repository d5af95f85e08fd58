"""Erased users in the files of the built-in world, which Funnel wrote itself; other source files are their owner's."""

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
from feature_repo.files import read_json, write_atomically, write_json
from feature_repo.workspace import Workspace
from pipelines.ingest.ingest import ingest_lock

_EVENTS, _TRUTH, _MARK = "events.csv", "truth.npz", "config.json"
_OF_USERS = ("joined", "activity", "user_codes", "tastes", "price_tastes")


@dataclass(frozen=True)
class BuiltInWorld:
    """``raw/`` in the working folder."""

    workspace: Workspace
    erased: ErasedUsers
    name: str = "files of the built-in world"

    def find(self) -> Counter[str]:
        """Return the lines and drawn tastes of each erased user."""
        if not (self._folder / _MARK).is_file():
            return Counter()
        found: Counter[str] = Counter(_user_ids(self._folder / _TRUTH))
        for name in (_EVENTS, "users.csv"):
            with (self._folder / name).open(newline="", encoding="utf-8") as file:
                found.update(row[c.USER] for row in csv.DictReader(file))
        return Counter({user: found[user] for user in self.erased.among(found)})

    def remove(self, users: Set[str]) -> None:
        """Rewrite the files; ingest takes the new ones for those that it has taken in already."""
        if self.find().keys().isdisjoint(users):
            return
        with ingest_lock(self.workspace):
            self._keep_lines(self._folder / "users.csv", users)
            self._keep_lines(self._folder / _EVENTS, users)
            _forget_tastes(self._folder / _TRUTH, users)

    @property
    def _folder(self) -> Path:
        return self.workspace.root / "raw"

    def _keep_lines(self, path: Path, users: Set[str]) -> None:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        place = header.index(c.USER)
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(
            [header, *(row for row in rows if row[place] not in users)]
        )
        content, manifest = out.getvalue().encode(), self.workspace.ingest / "manifest.json"
        if path.name == _EVENTS and manifest.is_file():
            known = read_json(manifest)
            known["files"][hashlib.sha256(content).hexdigest()] = path.name
            write_json(manifest, known)
        write_atomically(path, content)


def _user_ids(truth: Path) -> list[str]:
    with np.load(truth, allow_pickle=False) as arrays:
        ids: list[str] = arrays["user_ids"].tolist()
    return ids


def _forget_tastes(truth: Path, users: Set[str]) -> None:
    with np.load(truth, allow_pickle=False) as loaded:
        arrays = {name: loaded[name].copy() for name in loaded.files}
    gone = np.isin(arrays["user_ids"], sorted(users))
    arrays["user_ids"][gone] = ""
    for name in _OF_USERS:
        arrays[name][gone] = 0
    with io.BytesIO() as file:
        np.savez(file, **arrays)
        write_atomically(truth, file.getvalue())
