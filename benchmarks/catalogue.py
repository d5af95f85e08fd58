"""A catalogue of any size from a trained one: copies of its items with vectors moved a little, in release and Redis."""

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
from pipelines.training.release import current_release
from retrieval.index import build_index, save_index
from serving.online.features import OnlineFeatures, concat_rows
from serving.recommender.item_table import Activity, ItemTable, RawColumn
from serving.releases.item_files import save_items, with_spare
from serving.releases.release import MANIFEST, Release, load_release, write_manifest

_SPREAD = 0.5
"""Length of what is added to a copy's unit vector: copies lie about a right angle's third from each other."""
_QUERIES = 512
_COPIES_A_CALL = 2_000


def expand(base: Workspace, items: int, two_tower: int) -> Workspace:
    """Return a workspace on the Redis and Feast of ``base`` whose release has ``items`` items; a made one is kept.

    Args:
        base: the workspace of a trained release.
        items: how many items.
        two_tower: how many candidates the two towers propose.

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
        _write(staging, base, release, origin, two_tower)
        for name in ("ingest", "features", "feast", "redis"):
            (root / name).symlink_to(base.root / name)
        link_atomically(workspace.releases / "current", staging)
    return workspace


def _write(
    folder: Path, base: Workspace, release: Release, origin: Int64Array, two_tower: int
) -> None:
    names = release.codec.items.values
    copy = np.arange(len(origin)) // len(names)
    ids = [
        names[row] if not n else f"{names[row]}~{n}" for row, n in zip(origin, copy, strict=True)
    ]
    codec = read_json(folder / "codec.json")
    write_json(folder / "codec.json", codec | {"items": ids})
    rows = np.concatenate([[0], origin + 1])
    unit = _moved(release.retrieval.vectors[rows], np.concatenate([[0], copy]) > 0)
    np.save(folder / "item_vectors.npy", with_spare(unit))
    np.save(
        folder / "raw_item_vectors.npy", with_spare(np.load(folder / "raw_item_vectors.npy")[rows])
    )
    near = np.load(folder / "neighbours.npy")[rows].astype(np.int64)
    shifted = near + np.concatenate([[0], copy])[:, None] * len(names)
    near = np.where((near > 0) & (shifted <= len(ids)), shifted, near).astype(np.int32)
    np.save(folder / "neighbours.npy", with_spare(near))
    np.save(folder / "similarities.npy", with_spare(np.load(folder / "similarities.npy")[rows]))
    save_items(_table(release.items, rows, ids), folder)
    index, report = build_index(unit[1:], _queries(base, release))
    save_index(index, folder / "index.faiss")
    write_json(folder / "shares.json", read_json(folder / "shares.json") | {"two_tower": two_tower})
    write_json(
        folder / "metrics.json",
        read_json(folder / "metrics.json") | {"expanded_index": report.to_dict()},
    )
    manifest = read_json(folder / MANIFEST)
    (folder / MANIFEST).unlink()
    (folder / "evaluation.json").unlink(missing_ok=True)
    kept = {k: v for k, v in manifest.items() if k not in ("format", "release", "files")}
    write_manifest(folder, kept)


def _moved(vectors: Float32Array, which: BoolArray) -> Float32Array:
    noise = np.random.default_rng(5).normal(size=vectors.shape).astype(np.float32)
    moved = vectors + which[:, None] * noise * np.float32(_SPREAD / np.sqrt(vectors.shape[1]))
    lengths = np.linalg.norm(moved, axis=1, keepdims=True)
    return np.divide(moved, lengths, out=np.zeros_like(moved), where=lengths > 0).astype(np.float32)


def _table(items: ItemTable, rows: Int64Array, ids: list[str]) -> ItemTable:
    encoded, activity = items.encoded, items.activity
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
    now, users = time.time(), release.codec.users.values[:_QUERIES]
    found = OnlineFeatures(base, release.items).users(users, now)
    batch = release.reader.read(
        concat_rows([one.columns for one in found]), np.full(len(users), now)
    )
    return release.retrieval.tower(batch.context)


def copy_rows(workspace: Workspace, release: Release, progress: Progress) -> None:
    """Give every copied item the online features of its original, in Redis, as if they had been materialized."""
    config, client = feature_store(workspace).config, redis_client(workspace, timeout_s=60.0)
    ids = release.codec.items.values
    for start in range(0, len(ids), _COPIES_A_CALL):
        with client.pipeline(transaction=False) as pipe:
            for item in ids[start : start + _COPIES_A_CALL]:
                name, _, number = item.partition("~")
                if number:
                    original, copy = row_key(config, c.ITEM, name), row_key(config, c.ITEM, item)
                    pipe.copy(original, copy, replace=True)  # type: ignore[arg-type]  # it takes bytes
            pipe.execute()
        progress("items into Redis", min(start + _COPIES_A_CALL, len(ids)), len(ids))
