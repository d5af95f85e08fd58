"""``funnel batch``: recommendations for every known user, by serving's code, to Parquet."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import columns as c
from feature_repo.erased import ErasedUsers
from feature_repo.events.log_names import batch_key
from feature_repo.files import read_json, replace_atomically, write_json
from feature_repo.hashing import fingerprint
from feature_repo.stage_locks import output_lock
from feature_repo.stores.feature_store import redis_client
from feature_repo.workspace import Workspace
from pipelines import display
from pipelines.ingest.ingested import read_events
from pipelines.training.release_pointer import current_release
from serving.online.features import OnlineFeatures, concat_rows
from serving.recommender.filters import RequestRules
from serving.releases.release import load_release

_USERS_PER_BATCH = 64
_USERS_PER_PART = 4_096
_SCHEMA = pa.schema(
    [(c.USER, pa.string()), ("item_ids", pa.list_(pa.string())), ("scores", pa.list_(pa.float32()))]
)


def run_batch(workspace: Workspace, out: Path, k: int, redis_days: float | None = None) -> None:
    """Write one row per user: ``user_id``, ``item_ids`` and ``scores``, best first.

    The file appears when it is complete. A run that was stopped continues after its last finished
    part if release, ``k`` and users are the same.

    Args:
        workspace: the working folder, released and materialized.
        out: the file to write.
        k: items per user.
        redis_days: also write each list to Redis, with this lifetime; None: do not.

    Raises:
        StageRunning: another process writes the same file.

    """
    with output_lock(out.with_name(f".{out.name}.lock"), str(out)):
        _write_batch(workspace, out, k, redis_days)


def _write_batch(workspace: Workspace, out: Path, k: int, redis_days: float | None) -> None:
    """Write the file in parts, then as a whole; see ``run_batch``."""
    lists = _Lists(workspace, k)
    users = sorted(read_events(workspace, [c.USER])[c.USER].unique())
    parts = out.with_name(f".{out.name}.parts")
    identity = {"version": fingerprint(lists.release.id, k, users)}
    if not (parts / "run.json").is_file() or read_json(parts / "run.json") != identity:
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir(parents=True)
        write_json(parts / "run.json", identity)
    with display.stage("Batch") as progress:
        for start in range(0, len(users), _USERS_PER_PART):
            path = parts / f"{start:012d}.parquet"
            if not path.is_file():
                part = users[start : start + _USERS_PER_PART]
                table = pa.concat_tables(
                    lists.recommend(part[first : first + _USERS_PER_BATCH])
                    for first in range(0, len(part), _USERS_PER_BATCH)
                )
                if redis_days is not None:
                    _to_redis(workspace, table, lists.release.id, redis_days)
                with replace_atomically(path) as temporary:
                    pq.write_table(table, temporary)
            progress("users", min(start + _USERS_PER_PART, len(users)), len(users))
    _join(sorted(parts.glob("*.parquet")), out)
    shutil.rmtree(parts)


class _Lists:
    """Recommendations of the current release, from the online store as it is now."""

    def __init__(self, workspace: Workspace, k: int) -> None:
        self.release = load_release(current_release(workspace))
        self._k = k
        self._online = OnlineFeatures(workspace, self.release.items)
        self._items = self.release.items.with_activity(self._online.item_activity(time.time()))

    def recommend(self, users: Sequence[str]) -> pa.Table:
        """Return the lists of some users, rows of ``_SCHEMA``."""
        now = time.time()
        codec = self.release.codec
        columns = concat_rows([user.columns for user in self._online.users(users, now)])
        batch = self.release.reader.read(columns, np.full(len(users), now))
        lists = self.release.recommender.recommend(
            batch, [RequestRules(self._k)] * len(users), self._items
        )
        rows = {
            c.USER: users,
            "item_ids": [codec.items.names(result.items) for result in lists],
            "scores": [result.scores.tolist() for result in lists],
        }
        return pa.table(rows, schema=_SCHEMA)


def _to_redis(workspace: Workspace, table: pa.Table, release: str, days: float) -> None:
    """Write each user's list as JSON: ``items`` (best first), ``scores``, ``release``, ``at``."""
    now = round(time.time(), 3)
    client = redis_client(workspace)
    with client.pipeline(transaction=False) as pipe:
        for row in table.to_pylist():
            value = {
                "items": row["item_ids"],
                "scores": row["scores"],
                "release": release,
                "at": now,
            }
            pipe.set(batch_key(row[c.USER]), orjson.dumps(value), ex=max(1, int(days * 86_400)))
        pipe.execute()
    # After the write: an erasure that begins from now on removes these lists itself.
    for user in ErasedUsers(workspace, client).among(table[c.USER].to_pylist()):
        client.delete(batch_key(user))


def _join(parts: Sequence[Path], out: Path) -> None:
    with replace_atomically(out) as temporary, pq.ParquetWriter(temporary, _SCHEMA) as writer:
        for part in parts:
            writer.write_table(pq.read_table(part))
