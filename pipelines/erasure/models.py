"""Erased users in models and releases: the id leaves the vocabulary, its vector becomes zeros.

To the user tower, zeros are an unknown user; all other codes stay, so everybody else is served as
before. A release is named by its content, so without the id it is a new release. The old name stays
as a link to the new one, because impressions and people refer to it.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

from feature_repo.erased import ErasedUsers
from feature_repo.files import (
    link_atomically,
    publish_folder,
    read_json,
    replace_atomically,
    write_atomically,
    write_json,
)
from feature_repo.workspace import Workspace
from pipelines.erasure.locations import StorageLocation
from pipelines.training.release_pointer import pointer_lock
from serving.releases.manifest import MANIFEST, read_manifest, write_manifest

CODEC = "codec.json"
TOWER = "user_tower.onnx"
WEIGHTS = "towers.safetensors"

NOBODY = ""
"""Replaces an erased id in a vocabulary of users; no user has this id."""

_STAGED = ".erasing-"
_REPLACED = ".erased-"
_VECTORS_ONNX = "ids.weight"
_VECTORS = "users.ids.weight"


@dataclass(frozen=True)
class Models:
    """Trained models that are not released."""

    folder: Path
    erased: ErasedUsers
    name: str = "models"

    def find(self) -> Counter[str]:
        """Return the vocabularies with each erased user."""
        return _named(self.erased, self.folder.rglob(CODEC))

    def remove(self, users: Set[str]) -> None:
        """Redact the models, and remove checkpoints of training, which are of older data now."""
        for codec in list(self.folder.rglob(CODEC)):
            if not users.isdisjoint(read_json(codec)["users"]):
                shutil.rmtree(self.folder / "towers", ignore_errors=True)
                redact(codec.parent, users)


@dataclass(frozen=True)
class Releases:
    """Releases, and leftovers of unfinished ones."""

    workspace: Workspace
    erased: ErasedUsers
    name: str = "releases"

    def find(self) -> Counter[str]:
        """Return the releases with each erased user."""
        return _named(
            self.erased,
            (path for path in self._folder.rglob(CODEC) if not path.parent.is_symlink()),
        )

    def remove(self, users: Set[str]) -> None:
        """Replace each release with one of the users by a release without them."""
        if self._folder.is_dir():
            with pointer_lock(self.workspace):
                self._remove(users)

    @property
    def _folder(self) -> Path:
        return self.workspace.releases

    def _remove(self, users: Set[str]) -> None:
        for leftover in self._folder.glob(f"{_STAGED}*"):
            shutil.rmtree(leftover)
        for release in self._finished():
            if not users.isdisjoint(read_json(release / CODEC)["users"]):
                self._replace(release, users)
        self._link_old_names()
        for leftover in self._folder.glob(f"{_REPLACED}*"):
            shutil.rmtree(leftover)
        for codec in list(self._folder.rglob(CODEC)):
            redact(codec.parent, users)

    def _finished(self) -> list[Path]:
        folders = sorted(manifest.parent for manifest in self._folder.glob(f"[!.]*/{MANIFEST}"))
        return [
            folder for folder in folders if not folder.is_symlink() and (folder / CODEC).is_file()
        ]

    def _replace(self, release: Path, users: Set[str]) -> None:
        staged = self._folder / f"{_STAGED}{release.name}"
        shutil.copytree(release, staged, copy_function=os.link)  # changed files are replaced
        redact(staged, users)
        manifest = read_manifest(staged)
        provenance = manifest.provenance.model_copy(
            update={"replaces": [*manifest.replaces, release.name]}
        )
        # A release of another version of Funnel keeps its format.
        fresh = self._folder / write_manifest(staged, provenance, format=manifest.format)
        if fresh.exists():  # of a run that was killed after this step
            shutil.rmtree(staged)
        else:
            publish_folder(staged, fresh, fresh.with_name(f"{_STAGED}old-{fresh.name}"))
        target = release.resolve()
        for link in list(self._folder.iterdir()):
            if link.is_symlink() and link.resolve() == target:
                link_atomically(link, fresh)

    def _link_old_names(self) -> None:
        replaces = {release: read_manifest(release).replaces for release in self._finished()}
        old = {name for names in replaces.values() for name in names}
        for release, names in replaces.items():
            for name in names if release.name not in old else ():
                self._link(name, release)

    def _link(self, old: str, release: Path) -> None:
        path = self._folder / old
        if path.is_dir() and not path.is_symlink():
            os.replace(path, self._folder / f"{_REPLACED}{old}")
        link_atomically(path, release)


def _named(erased: ErasedUsers, codecs: Iterator[Path]) -> Counter[str]:
    return Counter(user for path in codecs for user in erased.among(read_json(path)["users"]))


def redact(folder: Path, users: Set[str]) -> None:
    """Redact a candidate generator; the vocabulary is last, since it shows what is left to do."""
    codec = read_json(folder / CODEC)
    rows = [code for code, user in enumerate(codec["users"], start=1) if user in users]
    if not rows:
        return
    if (folder / TOWER).is_file():
        _clear_onnx(folder / TOWER, rows)
    if (folder / WEIGHTS).is_file():
        _clear_weights(folder / WEIGHTS, rows)
    codec["users"] = [NOBODY if user in users else user for user in codec["users"]]
    write_json(folder / CODEC, codec)


def _clear_onnx(path: Path, rows: list[int]) -> None:
    model = onnx.load_from_string(path.read_bytes())
    table = next(array for array in model.graph.initializer if array.name == _VECTORS_ONNX)
    vectors = numpy_helper.to_array(table).copy()
    vectors[rows] = 0
    table.CopyFrom(numpy_helper.from_array(vectors, _VECTORS_ONNX))
    write_atomically(path, model.SerializeToString(deterministic=True))


def _clear_weights(path: Path, rows: list[int]) -> None:
    weights = load_file(path)
    weights[_VECTORS] = weights[_VECTORS].copy()
    weights[_VECTORS][np.array(rows)] = 0
    with replace_atomically(path) as temporary:
        save_file(weights, temporary)


def model_locations(workspace: Workspace, erased: ErasedUsers) -> list[StorageLocation]:
    """Return models and releases; the models first, since releases are made from them."""
    return [Models(workspace.models, erased), Releases(workspace, erased)]
