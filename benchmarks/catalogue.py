"""A catalogue of any size: copies of a trained one's items with perturbed vectors."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from feature_repo import columns as c
from feature_repo.arrays import BoolArray, Float32Array, Int64Array
from feature_repo.encoding import Encoded
from feature_repo.files import link_atomically, read_json, write_json
from feature_repo.progress import Progress
from feature_repo.stores.feature_store import feature_store, redis_client
from feature_repo.stores.online_store import row_key
from feature_repo.workspace import Workspace
from pipelines.training.release_pointer import current_release
from retrieval.index import build_index, save_index
from serving.online.features import OnlineFeatures, concat_rows
from serving.recommender.item_attributes import RawColumn
from serving.recommender.item_table import Activity, ItemTable
from serving.releases.item_files import save_items, with_spare
from serving.releases.manifest import MANIFEST, read_manifest, write_manifest
from serving.releases.release import Release, load_release

_NOISE_NORM = 0.5
"""Norm of what is added to a copy's unit vector: two copies are about 30 degrees apart."""

_QUERIES = 512
_COPIES_PER_CALL = 2_000


def expand(base: Workspace, items: int, two_tower: int) -> Workspace:
    """Return a workspace whose release has ``items`` items, on the Redis and Feast of ``base``.

    An existing one is kept.

    Args:
        base: the workspace of a trained release.
        items: number of items.
        two_tower: number of candidates that the two towers propose.

    """
    source = current_release(base)
    root = base.root / "expanded" / f"{source.name}-{items}-{two_tower}"
    workspace = Workspace(root)
    if not (workspace.releases / "current").exists():
        release = load_release(source)
        origin = np.arange(items, dtype=np.int64) % len(release.codec.items.values)
        shutil.rmtree(root, ignore_errors=True)
        staging = workspace.releases / "expanded"
        shutil.copytree(source, staging)
        unit = _expand_files(staging, release, origin)
        _rebuild_index(staging, unit, _queries(base, release), two_tower)
        _write_manifest(staging)
        for name in ("ingest", "features", "feast", "redis"):
            (root / name).symlink_to(base.root / name)
        link_atomically(workspace.releases / "current", staging)
    return workspace


def _expand_files(folder: Path, release: Release, origin: Int64Array) -> Float32Array:
    """Write codes, vectors, neighbours and item table; item ``i`` is a copy of ``origin[i]``.

    Returns:
        the unit vectors, float32 ``[N, D]`` with row 0 first.

    """
    names = release.codec.items.values
    copy = np.arange(len(origin)) // len(names)
    ids = [
        names[row] if not n else f"{names[row]}~{n}" for row, n in zip(origin, copy, strict=True)
    ]
    write_json(folder / "codec.json", read_json(folder / "codec.json") | {"items": ids})

    # Row 0 is no item in every array.
    rows = np.concatenate([[0], origin + 1])
    copy = np.concatenate([[0], copy])
    unit = _perturbed(release.retrieval.vectors[rows], copy > 0)
    np.save(folder / "item_vectors.npy", with_spare(unit))
    for name in ("raw_item_vectors.npy", "similarities.npy"):
        np.save(folder / name, with_spare(np.load(folder / name)[rows]))

    # A copy's neighbours are the same copy of its original's neighbours, where there is one.
    near = np.load(folder / "neighbours.npy")[rows].astype(np.int64)
    shifted = near + copy[:, None] * len(names)
    near = np.where((near > 0) & (shifted <= len(ids)), shifted, near).astype(np.int32)
    np.save(folder / "neighbours.npy", with_spare(near))
    save_items(_table(release.items, rows, ids), folder)
    return unit


def _rebuild_index(folder: Path, unit: Float32Array, queries: Float32Array, two_tower: int) -> None:
    """Index the expanded vectors, and set how many candidates come from them."""
    index, report = build_index(unit[1:], queries)
    save_index(index, folder / "index.faiss")
    write_json(folder / "shares.json", read_json(folder / "shares.json") | {"two_tower": two_tower})
    metrics = read_json(folder / "metrics.json") | {"expanded_index": report.to_dict()}
    write_json(folder / "metrics.json", metrics)


def _write_manifest(folder: Path) -> None:
    """Write a manifest of the changed files, and remove the evaluation of the original."""
    manifest = read_manifest(folder)
    (folder / MANIFEST).unlink()
    (folder / "evaluation.json").unlink(missing_ok=True)
    write_manifest(folder, manifest.provenance)


def _perturbed(vectors: Float32Array, which: BoolArray) -> Float32Array:
    """Return unit vectors float32 ``[n, D]``, with noise on those of ``which`` bool ``[n]``."""
    noise = np.random.default_rng(5).normal(size=vectors.shape).astype(np.float32)
    moved = vectors + which[:, None] * noise * np.float32(_NOISE_NORM / np.sqrt(vectors.shape[1]))
    lengths = np.linalg.norm(moved, axis=1, keepdims=True)
    return np.divide(moved, lengths, out=np.zeros_like(moved), where=lengths > 0).astype(np.float32)


def _table(items: ItemTable, rows: Int64Array, ids: list[str]) -> ItemTable:
    """Return the rows of an item table, int64 ``[n]`` with row 0 first, under new ids."""
    encoded = items.encoded
    activity = items.activity
    codec = replace(items.codec, items=type(items.codec.items)(ids))
    raw = {name: RawColumn(column.values.take(rows[1:] - 1)) for name, column in items.raw.items()}
    return ItemTable(
        codec,
        raw,
        Encoded(encoded.codes[rows], encoded.first[rows], encoded.numbers[rows]),
        items.categories[rows],
        items.available_from[rows],
        items.available_until[rows],
        Activity(
            activity.counts[rows], activity.first_event_at[rows], activity.last_event_at[rows]
        ),
    )


def _queries(base: Workspace, release: Release) -> Float32Array:
    """Return the vectors of real users, float32 ``[q, D]``."""
    now = time.time()
    users = release.codec.users.values[:_QUERIES]
    features = OnlineFeatures(base, release.items).users(users, now)
    batch = release.reader.read(
        concat_rows([one.columns for one in features]), np.full(len(users), now)
    )
    return release.retrieval.tower(batch.context)


def copy_rows(workspace: Workspace, release: Release, progress: Progress) -> None:
    """Copy the online features of every copied item's original, as if they were materialized."""
    config = feature_store(workspace).config
    client = redis_client(workspace, timeout_s=60.0)
    ids = release.codec.items.values
    for start in range(0, len(ids), _COPIES_PER_CALL):
        with client.pipeline(transaction=False) as pipe:
            for item in ids[start : start + _COPIES_PER_CALL]:
                name, _, number = item.partition("~")
                if number:
                    original = row_key(config, c.ITEM, name)
                    copy = row_key(config, c.ITEM, item)
                    pipe.copy(original, copy, replace=True)  # type: ignore[arg-type]  # it takes bytes
            pipe.execute()
        progress("items into Redis", min(start + _COPIES_PER_CALL, len(ids)), len(ids))
