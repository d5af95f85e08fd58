"""``funnel batch``: recommendations for every known user, through the serving code, to Parquet."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import columns as c
from feature_repo.workspace import Workspace
from pipelines import display
from pipelines.ingest import read_events
from pipelines.release import current_release
from serving.filters import RequestRules
from serving.online import OnlineFeatures, together
from serving.release import load_release

_BATCH = 64


def run_batch(workspace: Workspace, out: Path, k: int) -> None:
    """Write one row a user: ``user_id``, ``item_ids`` and ``scores``, best first; the file appears when complete."""
    release = load_release(current_release(workspace))
    online = OnlineFeatures(workspace, release.items)
    items = release.items.with_activity(online.item_activity(time.time()))
    users = sorted(read_events(workspace, [c.USER])[c.USER].unique())
    schema = pa.schema([(c.USER, pa.string()), ("item_ids", pa.list_(pa.string())), ("scores", pa.list_(pa.float32()))])
    temporary = out.with_name(f".{out.name}.part")
    ids = np.array([None, *release.codec.items.values], dtype=object)
    with display.stage("Batch") as progress, pq.ParquetWriter(temporary, schema) as writer:
        for start in range(0, len(users), _BATCH):
            names = users[start : start + _BATCH]
            now = time.time()
            found = together([one.columns for one in online.users(names, now)])
            batch = release.reader.read(found, np.full(len(names), now))
            lists = release.recommender.recommend(batch, [RequestRules(k)] * len(names), items)
            rows = {
                c.USER: names,
                "item_ids": [ids[result.items].tolist() for result in lists],
                "scores": [result.scores.tolist() for result in lists],
            }
            writer.write_table(pa.table(rows, schema=schema))
            progress("users", start + len(names), len(users))
    os.replace(temporary, out)
