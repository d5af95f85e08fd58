"""Erased users in trained models and releases: the id goes out of the vocabulary, its vector becomes zeros.

To the user tower a vector of zeros is an unknown user's, and all other codes stay, so that
everybody else is served as before. A release is its content: without the id it is another one, with
an id of its own. It takes the place of the old one, whose name stays as a link to it, because
impressions and people refer to it.
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
    read_json,
    replace_atomically,
    write_atomically,
    write_json,
)
from feature_repo.workspace import Workspace
from pipelines.erasure.places import Place
from pipelines.training.release_pointer import pointer_lock
from serving.releases.release import MANIFEST, write_manifest

CODEC, TOWER, WEIGHTS = "codec.json", "user_tower.onnx", "towers.safetensors"
NOBODY = ""
"""What stands in a vocabulary of users in place of an erased id; no user has this id."""

_STAGED, _REPLACED = ".erasing-", ".erased-"
_VECTORS_ONNX, _VECTORS = "ids.weight", "users.ids.weight"


@dataclass(frozen=True)
class Models:
    """What is trained and not released."""

    folder: Path
    erased: ErasedUsers
    name: str = "models"

    def find(self) -> Counter[str]:
        """Return the vocabularies with each erased user."""
        return _named(self.erased, self.folder.rglob(CODEC))

    def remove(self, users: Set[str]) -> None:
        """Take users out of the models, and drop a training's checkpoints, which are of older data now."""
        for codec in list(self.folder.rglob(CODEC)):
            if not users.isdisjoint(read_json(codec)["users"]):
                shutil.rmtree(self.folder / "towers", ignore_errors=True)
                redact(codec.parent, users)


@dataclass(frozen=True)
class Releases:
    """Releases, also what is left of those that were never finished."""

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
        """Put a release without the users in the place of each that has one of them."""
        if self._folder.is_dir():
            with pointer_lock(self.workspace):
                self._remove(users)

    @property
    def _folder(self) -> Path:
        return self.workspace.releases

    def _remove(self, users: Set[str]) -> None:
        for left in self._folder.glob(f"{_STAGED}*"):
            shutil.rmtree(left)
        for release in self._finished():
            if not users.isdisjoint(read_json(release / CODEC)["users"]):
                self._replace(release, users)
        self._link_old_names()
        for left in self._folder.glob(f"{_REPLACED}*"):
            shutil.rmtree(left)
        for codec in list(self._folder.rglob(CODEC)):
            redact(codec.parent, users)

    def _finished(self) -> list[Path]:
        folders = sorted(manifest.parent for manifest in self._folder.glob(f"[!.]*/{MANIFEST}"))
        return [
            folder for folder in folders if not folder.is_symlink() and (folder / CODEC).is_file()
        ]

    def _replace(self, release: Path, users: Set[str]) -> None:
        staged = self._folder / f"{_STAGED}{release.name}"
        shutil.copytree(release, staged, copy_function=os.link)  # what changes is written anew
        redact(staged, users)
        manifest = read_json(staged / MANIFEST)
        manifest["replaces"] = [*manifest.get("replaces", []), release.name]
        about = {
            name: value
            for name, value in manifest.items()
            if name not in ("format", "release", "files")
        }
        fresh = self._folder / write_manifest(staged, about)
        # It may be a release of another version of Funnel, and stays one.
        write_json(staged / MANIFEST, read_json(staged / MANIFEST) | {"format": manifest["format"]})
        if fresh.exists():  # of a run that was killed after this step
            shutil.rmtree(staged)
        else:
            os.replace(staged, fresh)
        same = release.resolve()
        for link in [
            path for path in self._folder.iterdir() if path.is_symlink() and path.resolve() == same
        ]:
            link_atomically(link, fresh)

    def _link_old_names(self) -> None:
        replaces = {
            release: read_json(release / MANIFEST).get("replaces", [])
            for release in self._finished()
        }
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
    """Take users out of a candidate generator, the vocabulary last: by it a run that was killed is known."""
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
    table = next(one for one in model.graph.initializer if one.name == _VECTORS_ONNX)
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


def model_places(workspace: Workspace, erased: ErasedUsers) -> list[Place]:
    """Return models and releases as places; the models first, since releases are made of them."""
    return [Models(workspace.models, erased), Releases(workspace, erased)]
