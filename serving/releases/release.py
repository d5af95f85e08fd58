"""A release: one folder with everything that serving needs, loaded whole or refused with the reason.

``manifest.json`` names every file with its SHA-256; the release's id is the hash of that list, so
two releases with equal content have equal ids. Only ``evaluation.json``, which is measured
afterwards, lies outside it. Nothing in a release is a pickle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from feature_repo.arrays import Float32Array, Int32Array
from feature_repo.errors import FunnelError
from feature_repo.files import read_json, write_json
from feature_repo.hashing import file_hash
from ranking.models.scorer import CalibratedRanker
from serving.recommender.candidates import CandidateQuota, Retriever
from serving.recommender.codec import Codec
from serving.recommender.filters import FilterRules
from serving.recommender.item_table import ItemTable
from serving.recommender.recommender import Recommender, UserTowerSession
from serving.recommender.users import UserReader
from serving.releases.artifacts import (
    Damaged,
    naming,
    read_array,
    read_index,
    read_items,
    read_part,
    read_ranker,
)
from serving.releases.delta import AddedItem, Delta, ItemTowerSession, Rows

MANIFEST = "manifest.json"
EVALUATION = "evaluation.json"
FORMAT = 3


class BadRelease(FunnelError):
    """A release cannot be served; the message says what is wrong with it."""


@dataclass(frozen=True)
class Retrieval:
    """The candidate generator with its codes and item table: what the ranker's training sets need too."""

    codec: Codec
    tower: UserTowerSession
    vectors: Float32Array
    retriever: Retriever
    items: ItemTable
    delta: Delta


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
        """The item table as it was when the release was made, with what was added since."""
        return self.retrieval.items


def load_retrieval(folder: Path) -> Retrieval:
    """Load the candidate generator that lies in ``folder``.

    Raises:
        BadRelease: its parts do not fit together.
        Damaged: a part cannot be read.

    """
    with naming("codec.json"):
        codec = Codec.from_dict(read_part(folder / "codec.json"))
    vectors: Float32Array = read_array(folder / "item_vectors.npy", np.float32)
    raw: Float32Array = read_array(folder / "raw_item_vectors.npy", np.float32)
    neighbours: Int32Array = read_array(folder / "neighbours.npy", np.int32)
    similarities: Float32Array = read_array(folder / "similarities.npy", np.float32)
    with naming("shares.json"):
        quota = CandidateQuota.model_validate(read_part(folder / "shares.json"))
    index = read_index(folder / "index.faiss", vectors.shape[1])
    items = read_items(folder, codec)
    size = len(codec.items)
    rows = {len(array) for array in (vectors, raw, neighbours, similarities, items)}
    if size != index.ntotal + 1 or len(rows) > 1 or size > min(rows):
        found = sorted({size, index.ntotal + 1, *(size + of - max(rows) for of in rows)})
        raise BadRelease(f"{folder}: its parts disagree on the number of items: {found}")
    if raw.shape != vectors.shape or neighbours.shape != similarities.shape:
        raise BadRelease(
            f"{folder}: its raw and unit vectors, or its neighbours and similarities, differ in shape"
        )
    with naming("user_tower.onnx"):
        tower = UserTowerSession((folder / "user_tower.onnx").read_bytes(), raw[:size])
    with naming("item_tower.onnx"):
        session = ItemTowerSession((folder / "item_tower.onnx").read_bytes())
    # Views without the costs of np.memmap's indexing.
    whole = Rows(
        np.asarray(vectors),
        np.asarray(raw),
        np.asarray(neighbours),
        np.asarray(similarities),
        items,
    )
    retriever = Retriever(index, neighbours[:size], similarities[:size], quota)
    return Retrieval(
        codec, tower, vectors[:size], retriever, items.head(size), Delta(whole, session)
    )


def with_added(release: Release, added: Mapping[str, AddedItem]) -> Release:
    """Return a release with items that came after it; those that it has itself are served as it has them.

    Args:
        release: as it was loaded. Both share everything but what is said of the added items.
        added: all of them; where there are more than spare rows, the last ones wait for a new
            release.

    """
    loaded, codec = release.retrieval, release.codec
    delta, first = loaded.delta, len(codec.items)
    size = delta.take({name: item for name, item in added.items() if not codec.items.code(name)})
    if size == first:
        return release
    rows, items = delta.rows, delta.table(loaded.items)
    vectors = rows.vectors[:size]
    tower = loaded.tower.with_items(rows.raw[:size])
    retriever = loaded.retriever.with_items(
        rows.neighbours[:size], rows.similarities[:size], vectors[first:]
    )
    return replace(
        release,
        retrieval=Retrieval(items.codec, tower, vectors, retriever, items, delta),
        recommender=release.recommender.with_items(tower, vectors, retriever, items),
        reader=UserReader(items.codec),
    )


def write_manifest(folder: Path, versions: dict[str, Any]) -> str:
    """Describe every file of ``folder`` in its manifest and return the release's id.

    Args:
        folder: the finished content.
        versions: what it was made from (data, code, ...); part of the manifest, not of the id.

    """
    files = {name: file_hash(folder / name) for name in sorted(_contents(folder))}
    identity = _identity(files)
    write_json(
        folder / MANIFEST, {"format": FORMAT, "release": identity, "files": files, **versions}
    )
    return identity


def verify(folder: Path) -> dict[str, Any]:
    """Check a release's files against its manifest and return the manifest.

    Raises:
        BadRelease: no readable manifest, another format, a file missing, changed or added.

    """
    manifest = _read_manifest(folder)
    files: dict[str, str] = manifest["files"]
    if manifest.get("format") != FORMAT:
        raise BadRelease(f"{folder}: format {manifest.get('format')}, this version reads {FORMAT}")
    if manifest.get("release") != _identity(files):
        raise BadRelease(f"{folder}: the manifest's own hash does not fit its list of files")
    # All of them are looked for first: of a copy that is under way nothing need be read.
    missing = [name for name in files if not (_is_within(name) and (folder / name).is_file())]
    if missing:
        raise BadRelease(f"{folder}: {', '.join(missing)} is missing")
    for name, expected in files.items():
        if file_hash(folder / name) != expected:
            raise BadRelease(f"{folder}: {name} is not what was released (its hash differs)")
    added = sorted(_contents(folder) - set(files))
    if added:
        raise BadRelease(f"{folder}: {', '.join(added)} is not part of what was released")
    return manifest


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        if not path.is_file():  # to open a pipe would wait for ever
            raise FileNotFoundError("no such file")
        manifest: dict[str, Any] = read_json(path)
        if not isinstance(manifest["files"], dict):
            raise TypeError("it lists no files")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadRelease(f"{folder}: no readable {MANIFEST} ({error})") from None
    return manifest


def _is_within(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def load_release(folder: Path) -> Release:
    """Verify and load a release.

    Raises:
        BadRelease: it fails verification or its parts do not fit together; nothing of it is served
            then.

    """
    with refusing(folder, "cannot be loaded"):
        folder = folder.resolve()
        before = stamp(folder)
        manifest = verify(folder)
        retrieval = load_retrieval(folder)
        ranker = read_ranker(folder / "ranker")
        with naming("filters.json"):
            rules = FilterRules.model_validate(read_part(folder / "filters.json"))
        _fit_together(folder, retrieval.codec, ranker, rules)
        recommender = Recommender(
            tower=retrieval.tower,
            vectors=retrieval.vectors,
            retriever=retrieval.retriever,
            ranker=ranker,
            rules=rules,
            items=retrieval.items,
        )
        if stamp(folder) != before:
            raise BadRelease(f"{folder}: it was changed while it was being loaded")
    return Release(
        manifest["release"], folder, manifest, retrieval, recommender, UserReader(retrieval.codec)
    )


@contextmanager
def refusing(folder: Path, what: str) -> Iterator[None]:
    """Turn whatever goes wrong with a release into ``BadRelease``, in one line that says what it was."""
    try:
        yield
    except BadRelease:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        kind = "" if isinstance(error, Damaged) else f"{type(error).__name__}: "
        raise BadRelease(f"{folder}: {what}: {kind}{said}") from error


def _fit_together(folder: Path, codec: Codec, ranker: CalibratedRanker, rules: FilterRules) -> None:
    schema = ranker.schema
    if schema.numeric != codec.numeric or schema.categorical != tuple(codec.categorical):
        raise BadRelease(
            f"{folder}: the ranker was trained on other columns than the row builder makes"
        )
    if schema.cardinalities != tuple(codec.categorical.values()):
        raise BadRelease(
            f"{folder}: the ranker was trained with other vocabularies than codec.json has"
        )
    types = codec.spec.event_types
    if schema.heads != tuple(types):
        raise BadRelease(
            f"{folder}: the ranker predicts {list(schema.heads)}, the event types are {types}"
        )
    unknown = rules.unknown_event_types(types)
    if unknown:
        raise BadRelease(f"{folder}: exclude_seen names {unknown}, the event types are {types}")


def stamp(folder: Path) -> frozenset[tuple[str, int, int, int]]:
    """Return name, size, time and inode of every file that counts: other values, other content."""
    found = [
        (name, (folder / name).stat())
        for name in _contents(folder) | {MANIFEST}
        if (folder / name).exists()
    ]
    return frozenset((name, of.st_size, of.st_mtime_ns, of.st_ino) for name, of in found)


def _contents(folder: Path) -> set[str]:
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    # An evaluation that was killed may leave its unfinished file behind.
    return {name for name in names if not name.startswith(f".{EVALUATION}.")} - {
        MANIFEST,
        EVALUATION,
    }


def _identity(files: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]
