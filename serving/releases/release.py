"""A release: one folder with everything that serving needs, loaded whole or refused.

Nothing in it is a pickle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from feature_repo.arrays import Float32Array, Int32Array
from ranking.models.scorer import CalibratedRanker
from serving.recommender.candidates import CandidateQuota, Retriever
from serving.recommender.codec import Codec
from serving.recommender.filters import FilterRules
from serving.recommender.item_table import ItemTable
from serving.recommender.recommender import Recommender
from serving.recommender.user_tower import UserTowerSession
from serving.recommender.users import UserReader
from serving.releases.artifacts import (
    DamagedFile,
    naming_file,
    read_array,
    read_index,
    read_items,
    read_part,
    read_ranker,
)
from serving.releases.delta import AddedItem, Delta, ItemArrays, ItemTowerSession
from serving.releases.manifest import BadRelease, ReleaseManifest, file_states, verify_files


@dataclass(frozen=True)
class Retrieval:
    """The candidate generator with its codes and item table; ranker training needs it too."""

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
    manifest: ReleaseManifest
    retrieval: Retrieval
    recommender: Recommender
    reader: UserReader

    @property
    def codec(self) -> Codec:
        """The vocabularies."""
        return self.retrieval.codec

    @property
    def items(self) -> ItemTable:
        """The item table as of the release, with the items that were added since."""
        return self.retrieval.items


def load_retrieval(folder: Path) -> Retrieval:
    """Load the candidate generator that lies in ``folder``.

    Raises:
        BadRelease: its parts do not fit together.
        DamagedFile: a part cannot be read.

    """
    with naming_file("codec.json"):
        codec = Codec.from_dict(read_part(folder / "codec.json"))
    vectors: Float32Array = read_array(folder / "item_vectors.npy", np.float32)
    raw: Float32Array = read_array(folder / "raw_item_vectors.npy", np.float32)
    neighbours: Int32Array = read_array(folder / "neighbours.npy", np.int32)
    similarities: Float32Array = read_array(folder / "similarities.npy", np.float32)
    with naming_file("shares.json"):
        quota = CandidateQuota.model_validate(read_part(folder / "shares.json"))
    index = read_index(folder / "index.faiss", vectors.shape[1])
    items = read_items(folder, codec)
    size = len(codec.items)
    rows = {len(array) for array in (vectors, raw, neighbours, similarities, items)}
    if size != index.ntotal + 1 or len(rows) > 1 or size > min(rows):
        sizes = sorted({size, index.ntotal + 1, *(size + of - max(rows) for of in rows)})
        raise BadRelease(f"{folder}: its parts disagree on the number of items: {sizes}")
    if raw.shape != vectors.shape or neighbours.shape != similarities.shape:
        raise BadRelease(
            f"{folder}: raw and unit vectors, or neighbours and similarities, differ in shape"
        )
    with naming_file("user_tower.onnx"):
        tower = UserTowerSession((folder / "user_tower.onnx").read_bytes(), raw[:size])
    with naming_file("item_tower.onnx"):
        session = ItemTowerSession((folder / "item_tower.onnx").read_bytes())
    # Views without the costs of np.memmap's indexing.
    whole = ItemArrays(
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
    """Return a release with added items; items of the release itself stay as they are.

    Args:
        release: as it was loaded; both share everything else.
        added: all of them; if there are more than spare rows, the last ones wait for a new release.

    """
    loaded = release.retrieval
    codec = release.codec
    delta = loaded.delta
    first = len(codec.items)
    size = delta.update({name: item for name, item in added.items() if not codec.items.code(name)})
    if size == first:
        return release
    arrays = delta.arrays
    items = delta.table(loaded.items)
    vectors = arrays.vectors[:size]
    tower = loaded.tower.with_items(arrays.raw[:size])
    retriever = loaded.retriever.with_items(
        arrays.neighbours[:size], arrays.similarities[:size], vectors[first:]
    )
    return replace(
        release,
        retrieval=Retrieval(items.codec, tower, vectors, retriever, items, delta),
        recommender=release.recommender.with_items(tower, vectors, retriever, items),
        reader=UserReader(items.codec),
    )


def load_release(folder: Path) -> Release:
    """Verify and load a release.

    Raises:
        BadRelease: it fails verification or its parts do not fit together; nothing of it is served
            then.

    """
    with refusing(folder, "cannot be loaded"):
        folder = folder.resolve()
        before = file_states(folder)
        manifest = verify_files(folder)
        retrieval = load_retrieval(folder)
        ranker = read_ranker(folder / "ranker")
        with naming_file("filters.json"):
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
        if file_states(folder) != before:
            raise BadRelease(f"{folder}: it was changed while it was being loaded")
    return Release(
        manifest.release, folder, manifest, retrieval, recommender, UserReader(retrieval.codec)
    )


@contextmanager
def refusing(folder: Path, what: str) -> Iterator[None]:
    """Turn any error with a release into ``BadRelease``, with one line that says what it was."""
    try:
        yield
    except BadRelease:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        kind = "" if isinstance(error, DamagedFile) else f"{type(error).__name__}: "
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
