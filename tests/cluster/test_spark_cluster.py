"""The profile ``cluster`` on a real Spark cluster gives the values of ``local[*]``.

A worker is killed while features are computed, and another one while events are streamed.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis

from feature_repo import columns as c
from feature_repo.erased import ErasedUsers
from feature_repo.events.log_names import LOG
from feature_repo.stores.feature_store import feature_store, redis_client
from feature_repo.workspace import Workspace
from pipelines.ingest.ingested import event_count, read_events
from pipelines.streaming.offline import read_archive
from pipelines.streaming.status import stream_status
from pipelines.workflow.feature_tables import ONE_PARTITION_EVENTS
from serving.event_log.redis_stream import RedisStreamLog
from tests.support import forked
from tests.support.spark_cluster import SparkCluster
from tests.support.waiting import wait_until

pytestmark = pytest.mark.cluster

Rows = dict[bytes, dict[bytes, bytes]]
"""What Feast's online store holds: the fields of each entity's hash."""

EVENTS = 300
ERASED = "u0400"


@dataclass(frozen=True)
class Both:
    """What ``local[*]`` gave, and what the cluster gave."""

    local: Any
    cluster: Any


@contextlib.contextmanager
def started(
    workspace: Workspace, command: str, environment: dict[str, str]
) -> Iterator[forked.Forked]:
    """Run a command while the body runs; at the end it has succeeded or is killed."""
    arguments = (forked.command, command, "--home", workspace.root)
    log = workspace.root / f"{command}.log"
    process = forked.Forked(*arguments, out=log, environment=environment)
    try:
        yield process
    finally:
        if process.poll() is None:
            forked.kill(process)
    assert process.returncode == 0, log.read_text()[-4_000:]


def run(workspace: Workspace, command: str, environment: dict[str, str] | None = None) -> None:
    with started(workspace, command, environment or {}) as process:
        process.wait(timeout=900)


def table(folder: Path) -> list[str]:
    """Return a table's rows in an order of their own; floats by every bit."""
    files = sorted(folder.glob("*.parquet"))
    rows = pa.concat_tables([pq.read_table(file) for file in files], promote_options="permissive")
    return sorted(map(repr, rows.to_pylist()))


def newest(folder: Path) -> dict[str, str]:
    """Return the newest row of each key of a table."""
    files = sorted(folder.glob("*.parquet"))
    rows = pa.concat_tables([pq.read_table(file) for file in files], promote_options="permissive")
    key = c.USER if c.USER in rows.column_names else c.ITEM
    return {row[key]: repr(row) for row in rows.sort_by(c.EVENT_TIMESTAMP).to_pylist()}


def online(client: redis.Redis) -> Rows:
    """Return all rows of Feast's project ``funnel``."""
    keys = [key for key in client.scan_iter(count=1_000) if key.endswith(b"funnel")]
    return {key: client.hgetall(key) for key in keys}


def differing(left: dict[Any, Any], right: dict[Any, Any]) -> list[Any]:
    return [key for key in left.keys() | right.keys() if left.get(key) != right.get(key)][:5]


@pytest.fixture(scope="module")
def environment(
    cluster: SparkCluster, cluster_redis: int, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Variables of a command that runs on the cluster, with Feast's registry in a database."""
    registry = tmp_path_factory.mktemp("registry") / "registry.sqlite"
    return cluster.environment | {
        "FUNNEL_REDIS": f"127.0.0.1:{cluster_redis}",
        "FUNNEL_REGISTRY": f"sqlite:///{registry}",
    }


@pytest.fixture(scope="module")
def features(
    local: Workspace, remote: Workspace, cluster: SparkCluster, environment: dict[str, str]
) -> Both:
    """All offline tables. A worker is killed while the third one is written."""
    assert event_count(remote) > ONE_PARTITION_EVENTS
    shutil.rmtree(remote.features.parent)
    staging = remote.features.parent
    with started(remote, "features", environment) as process:
        wait_until(
            lambda: process.poll() is not None or any(staging.glob(".staging-*/user_activity"))
        )
        cluster.kill_worker()
        process.wait(timeout=900)
    cluster.start_workers()
    return Both(
        *(
            {folder.name: table(folder) for folder in w.features.iterdir() if folder.is_dir()}
            for w in (local, remote)
        )
    )


@pytest.fixture(scope="module")
def materialized(
    features: Both,
    local: Workspace,
    remote: Workspace,
    environment: dict[str, str],
    cluster_redis: int,
) -> Both:
    """All online rows. A user was erased before."""
    assert features.cluster
    for workspace in (local, remote):  # Spark's workers must find the list, too
        assert ERASED in set(read_events(workspace, [c.USER])[c.USER])
        ErasedUsers(workspace).add(ERASED)
    run(local, "materialize")
    run(remote, "materialize", environment)
    return Both(online(redis_client(local)), online(redis.Redis(port=cluster_redis)))


def read_by_feast(workspace: Workspace) -> dict[str, Any]:
    """Return what Feast reads of some users and items, sliding counts of now left out."""
    store = feature_store(workspace)
    known = read_events(workspace, [c.USER, c.ITEM])
    rows = {c.USER: sorted(known[c.USER].unique())[:9], c.ITEM: sorted(known[c.ITEM].unique())[:9]}
    read: dict[str, tuple[str, Any]] = {
        name: (c.USER, store.get_feature_service(name))
        for name in ("online_user_v1", "user_tower_v1")
    }
    read["items"] = (
        c.ITEM,
        ["item_activity:events_30d", "item_activity:trend", "bought:last_paid"],
    )
    values: dict[str, Any] = {}
    for name, (key, features) in read.items():
        entities = [{key: value, c.REQUEST_TIME: 1_700_000_000} for value in rows[key]]
        values[name] = store.get_online_features(features, entity_rows=entities).to_dict()
    return values


def new_events(workspace: Workspace) -> list[dict[str, Any]]:
    """Return events of known and new users and items, some of them days late."""
    known = read_events(workspace, [c.USER, c.ITEM, c.TYPE])
    draw = random.Random(5)
    users, items = sorted(known[c.USER].unique())[:40], sorted(known[c.ITEM].unique())[:60]
    types, now = sorted(known[c.TYPE].unique()), time.time()
    return [
        {
            "event_id": f"streamed-{number}",
            "user_id": draw.choice([*users, "new-user"]),
            "item_id": draw.choice([*items, "new-item"]),
            "type": draw.choice(types),
            "timestamp": now - draw.choice([0, 30, 4_000, 300_000]),
            "value": draw.randrange(1_000) / 100,
        }
        for number in range(EVENTS)
    ]


@pytest.fixture(scope="module")
def streamed(
    materialized: Both,
    local: Workspace,
    remote: Workspace,
    cluster: SparkCluster,
    environment: dict[str, str],
    cluster_redis: int,
) -> Both:
    """What two jobs made of the same log entries. A worker is killed between the batches."""
    assert materialized.cluster
    log, client, there = RedisStreamLog(local), redis_client(local), redis.Redis(port=cluster_redis)
    for event in new_events(local):
        log.append([event])
    entries = client.xrange(LOG)
    assert len(entries) == EVENTS

    def drained(server: redis.Redis, job: forked.Forked) -> None:
        wait_until(lambda: job.poll() is not None or stream_status(server).pending == 0)

    with started(local, "stream", {}) as job:
        drained(client, job)
        job.terminate()
        job.wait(timeout=240)
    halves = entries[: EVENTS // 2], entries[EVENTS // 2 :]
    with started(remote, "stream", environment) as job:
        for number, half in enumerate(halves):
            for position, fields in half:
                there.xadd(LOG, fields, id=position)
            if number:
                cluster.kill_worker()
            drained(there, job)
        job.terminate()
        job.wait(timeout=240)
    return Both(
        *(
            {
                "online": online(server),
                "archive": sorted(map(repr, read_archive(workspace).to_pylist())),
                **{
                    name: newest(workspace.features / name)
                    for name in ("user_history", "user_recent", "spend", "bought")
                },
            }
            for workspace, server in ((local, client), (remote, there))
        )
    )


def test_offline_tables_have_the_same_rows(features: Both) -> None:
    assert features.local.keys() == features.cluster.keys()
    assert {"spend", "bought", "user_activity", "stream_state"} <= features.local.keys()
    for name, rows in features.local.items():
        assert len(rows) > 100, name
        assert rows == features.cluster[name], name


def test_materialize_writes_the_same_values(materialized: Both) -> None:
    assert len(materialized.local) > 600
    assert not any(ERASED.encode() in key for key in materialized.cluster)
    assert differing(materialized.local, materialized.cluster) == []


def test_feast_reads_the_same_values(
    materialized: Both,
    local: Workspace,
    remote: Workspace,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert materialized.cluster
    expected = read_by_feast(local)
    assert any(value for value in expected["user_tower_v1"]["history_item_ids"])
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert read_by_feast(remote) == expected


def test_the_stream_makes_the_same_values(streamed: Both) -> None:
    assert len(streamed.local["archive"]) == EVENTS
    assert streamed.local["archive"] == streamed.cluster["archive"]
    for name in streamed.local.keys() - {"archive"}:
        assert differing(streamed.local[name], streamed.cluster[name]) == [], name
