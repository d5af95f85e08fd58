"""A release: one folder with everything that serving needs, loaded whole or refused with the reason.

``manifest.json`` names every file with its SHA-256; the release's id is the hash of that list, so two
releases with equal content have equal ids. Only ``evaluation.json``, which is measured afterwards,
lies outside it. Nothing in a release is a pickle.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from feature_repo.encoding import Codes, Floats
from feature_repo.workspace import file_hash, read_json, write_json
from ranking.scorer import CalibratedRanker
from retrieval.index import load_index
from serving.candidates import Retriever, Shares
from serving.catalogue import ItemTable, from_arrow
from serving.codec import Codec
from serving.filters import FilterRules
from serving.recommender import Recommender, UserTowerSession
from serving.users import UserReader

MANIFEST = "manifest.json"
EVALUATION = "evaluation.json"
FORMAT = 1


class BadRelease(RuntimeError):
    """A release cannot be served; the message says what is wrong with it."""


@dataclass(frozen=True)
class Retrieval:
    """The candidate generator with its codes and item table: what the ranker's training sets need too."""

    codec: Codec
    tower: UserTowerSession
    vectors: Floats
    retriever: Retriever
    items: ItemTable


@dataclass(frozen=True)
class Release:
    """A loaded release."""

    id: str
    folder: Path
    manifest: dict[str, Any]
    retrieval: Retrieval
    recommender: Recommender
    reader: UserReader

    @property
    def codec(self) -> Codec:
        """The vocabularies."""
        return self.retrieval.codec

    @property
    def items(self) -> ItemTable:
        """The item table as it was when the release was made."""
        return self.retrieval.items


def load_retrieval(folder: Path) -> Retrieval:
    """Load the candidate generator that lies in ``folder``."""
    codec = Codec.from_dict(read_json(folder / "codec.json"))
    vectors: Floats = np.load(folder / "item_vectors.npy", mmap_mode="r", allow_pickle=False)
    raw: Floats = np.load(folder / "raw_item_vectors.npy", mmap_mode="r", allow_pickle=False)
    neighbours: Codes = np.load(folder / "neighbours.npy", mmap_mode="r", allow_pickle=False)
    similarities: Floats = np.load(folder / "similarities.npy", mmap_mode="r", allow_pickle=False)
    shares = Shares.model_validate(read_json(folder / "shares.json"))
    index = load_index(folder / "index.faiss")
    items = from_arrow(pq.read_table(folder / "items.parquet"), codec)
    sizes = {len(codec.items), len(vectors), len(raw), len(neighbours), len(similarities), index.ntotal + 1, len(items)}
    if len(sizes) > 1:
        raise BadRelease(f"{folder}: its parts disagree on the number of items: {sorted(sizes)}")
    tower = UserTowerSession((folder / "user_tower.onnx").read_bytes(), raw)
    return Retrieval(codec, tower, vectors, Retriever(index, neighbours, similarities, shares), items)


def write_manifest(folder: Path, versions: dict[str, Any]) -> str:
    """Describe every file of ``folder`` in its manifest and return the release's id.

    Args:
        folder: the finished content.
        versions: what it was made from (data, code, ...); part of the manifest, not of the id.

    """
    files = {name: file_hash(folder / name) for name in sorted(_contents(folder))}
    identity = _identity(files)
    write_json(folder / MANIFEST, {"format": FORMAT, "release": identity, "files": files, **versions})
    return identity


def verify(folder: Path) -> dict[str, Any]:
    """Check a release's files against its manifest and return the manifest.

    Raises:
        BadRelease: no readable manifest, another format, a file missing, changed or added.

    """
    try:
        manifest: dict[str, Any] = read_json(folder / MANIFEST)
        files: dict[str, str] = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadRelease(f"{folder}: no readable {MANIFEST} ({error})") from None
    if manifest.get("format") != FORMAT:
        raise BadRelease(f"{folder}: format {manifest.get('format')}, this version reads {FORMAT}")
    if manifest.get("release") != _identity(files):
        raise BadRelease(f"{folder}: the manifest's own hash does not fit its list of files")
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise BadRelease(f"{folder}: {name} is missing")
        if file_hash(path) != expected:
            raise BadRelease(f"{folder}: {name} is not what was released (its hash differs)")
    added = sorted(_contents(folder) - set(files))
    if added:
        raise BadRelease(f"{folder}: {', '.join(added)} is not part of what was released")
    return manifest


def load_release(folder: Path) -> Release:
    """Verify and load a release.

    Raises:
        BadRelease: it fails verification or its parts do not fit together; nothing of it is served then.

    """
    folder = folder.resolve()
    manifest = verify(folder)
    try:
        retrieval = load_retrieval(folder)
        ranker = CalibratedRanker.load(folder / "ranker")
        rules = FilterRules.model_validate(read_json(folder / "filters.json"))
    except BadRelease:
        raise
    except Exception as error:
        raise BadRelease(f"{folder}: cannot be loaded: {type(error).__name__}: {error}") from error
    codec = retrieval.codec
    if ranker.schema.numeric != codec.numeric or ranker.schema.categorical != tuple(codec.categorical):
        raise BadRelease(f"{folder}: the ranker was trained on other columns than the row builder makes")
    recommender = Recommender(retrieval.tower, retrieval.vectors, retrieval.retriever, ranker, rules, retrieval.items)
    return Release(manifest["release"], folder, manifest, retrieval, recommender, UserReader(codec))


def _contents(folder: Path) -> set[str]:
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    # An evaluation that was killed may leave its unfinished file behind.
    return {name for name in names if not name.startswith(f".{EVALUATION}.")} - {MANIFEST, EVALUATION}


def _identity(files: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]
