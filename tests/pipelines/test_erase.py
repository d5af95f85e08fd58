"""``funnel erase`` on a used world.

The user is nowhere, others are unchanged, kills are survived.
"""

import importlib
import json
import os
import shutil
import signal
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prometheus_client import Counter

from feature_repo import columns as c
from feature_repo.aggregates.key_state import KeyState
from feature_repo.aggregates.reading import EventReader
from feature_repo.declarations.reading import declared_in
from feature_repo.events.log_names import DEAD_LETTERS, LOG
from feature_repo.events.log_position import event_micros
from feature_repo.files import TEMPORARY, read_json
from feature_repo.hashing import file_hash
from feature_repo.stores.embedded_redis import release as stop_redis
from feature_repo.stores.feature_store import apply, feature_store, redis_client
from feature_repo.workspace import Workspace
from pipelines.erasure import erase as erase_command
from pipelines.erasure.erase import NotErased, erase, run_erase
from pipelines.ingest.ingest import ingest
from pipelines.ingest.ingested import data_version, read_events
from pipelines.operations.recount import check
from pipelines.streaming.lease import Lease
from pipelines.streaming.offline import read_archive
from pipelines.streaming.sink import Sink
from pipelines.streaming.status import stream_status
from pipelines.training.from_impressions import compatible_releases
from pipelines.training.ranking_sets import row_schema
from pipelines.training.release_pointer import current_release
from pipelines.workflow.stages import run_materialize
from serving.erasure import Erasure
from serving.event_log.redis_stream import RedisStreamLog
from serving.impressions import Impression, ImpressionLog, read_impressions
from serving.intake import Intake
from serving.online.features import no_features
from serving.recommender.codec import Codec
from serving.recommender.filters import RequestRules
from serving.releases.release import load_release
from tests.support.forked import Forked
from tests.support.streaming_job import streaming
from tests.support.tiny_world import WORLD, tiny_world

USER = "u0017"
OTHERS = ["u0016", "u0018", "u0170", "u0001"]
"""Of these u0170 is known by what it did online only."""

POINTS = {
    "list": ("erase", "_wait_for_impressions"),
    "manifest": ("tables", "filter_rows"),
    "tables": ("tables", "filter_rows", 6),
    "checkpoint": ("stream", "write_json"),
    "models": ("models", "_clear_weights"),
    "releases": ("models", "Releases._link"),
    "proof": ("proof", "Proofs.finish"),
}
"""Where an erasure is killed: before the first or nth call of a function, by its module."""


def killed_erasure(point, root, user):
    """Run ``funnel erase`` and kill this process at a point of ``POINTS``."""
    module, path, calls = (*POINTS[point], 1)[:3]
    owner = importlib.import_module(f"pipelines.erasure.{module}")
    *inner, name = path.split(".")
    for step in inner:
        owner = getattr(owner, step)
    original = getattr(owner, name)

    def patched(*args, **kwargs):
        nonlocal calls
        calls -= 1
        if calls == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, patched)
    run_erase(Workspace(root), user)


def events(users, name):
    now = time.time()
    return [
        {
            "event_id": f"{name}-{user}-{n}",
            "user_id": user,
            "item_id": f"i{n + 1:04}",
            "type": "view",
            "timestamp": now,
        }
        for n in range(4)
        for user in users
    ]


def serve(workspace, users):
    release = load_release(workspace.releases / "current")
    width = [len(release.codec.numeric), len(release.codec.categorical)]
    log = ImpressionLog(
        workspace.impressions, Counter("impressions", "", ["outcome"], registry=None)
    )
    for user in users:
        vectors = np.zeros((2, width[0]), np.float32), np.zeros((2, width[1]), np.int32)
        log.offer(
            Impression(
                f"r-{user}", user, time.time(), release.id, 2, [], ["i0001", "i0002"],
                np.zeros(2, np.float32), [["popular"]] * 2, *vectors,
            )
        )  # fmt: skip
    log.close()


@pytest.fixture(scope="module")
def lived_once(copy, tmp_path_factory):
    """A copy of the tiny world with bad rows, responses, a stream of events and a checkpoint."""
    root = tmp_path_factory.mktemp("lived") / "w"
    with copy(tiny_world(), root) as workspace:
        more = root.parent / "more"
        shutil.copytree(root / "raw", more)
        header, *_ = (more / "events.csv").read_text().splitlines()
        bad = [f"bad-{user},{user},i0001,view,soon," for user in (USER, "u0018")]
        (more / "events.csv").write_text("\n".join([header, *bad]))
        ingest(workspace.spec(), more, workspace, shift_to_now=True)
        run_materialize(workspace)
        serve(workspace, [USER, *OTHERS])
        RedisStreamLog(workspace).append(events([USER, *OTHERS], "live"))
        client = redis_client(workspace)
        for user in (USER, "u0018"):
            client.xadd(LOG, {"event": json.dumps({"user_id": user, "type": "stare"})})
        with streaming(workspace) as wait_until_drained:
            wait_until_drained()
        assert client.xlen(DEAD_LETTERS) == 2
    return workspace


@pytest.fixture
def lived(lived_once, tmp_path):
    """A copy of the world that was lived in, with the data of its Redis."""
    ignored = shutil.ignore_patterns("*.sock", "*.lock", "spark")
    shutil.copytree(lived_once.root, tmp_path / "w", symlinks=True, ignore=ignored)
    workspace = Workspace(tmp_path / "w")
    apply(feature_store(workspace), workspace)  # the registry holds full paths
    yield workspace
    stop_redis(workspace.redis)


def texts(content):
    """Return the forms in which a text may lie in a file."""
    return [content.encode(), content.encode("utf-16-le"), content.encode("utf-32-le")]


def content_of(path):
    """Yield what a file says, as bytes: as it is, and unpacked."""
    yield path.name.encode()
    yield path.read_bytes()
    if path.suffix == ".parquet":
        yield repr(pq.read_table(path, partitioning=None).to_pydict()).encode()
    elif path.suffix in (".npy", ".npz"):
        loaded = np.load(path, allow_pickle=False)
        for array in [loaded] if path.suffix == ".npy" else [loaded[name] for name in loaded.files]:
            yield repr(array.tolist()).encode()
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            for name in file.namelist():
                yield file.read(name)


def found_in_files(workspace, user):
    """Return every file below the working folder that names a user.

    No code of ours searches here.
    """
    wanted = texts(user)
    paths = (
        path
        for path in sorted(workspace.root.rglob("*"))
        if path.is_file() and not path.is_symlink()
    )
    return [
        str(path.relative_to(workspace.root))
        for path in paths
        if any(text in part for part in content_of(path) for text in wanted)
    ]


def found_in_redis(workspace, user):
    client = redis_client(workspace)
    read = {
        b"string": client.get, b"hash": client.hgetall, b"list": lambda k: client.lrange(k, 0, -1),
        b"set": client.smembers, b"stream": client.xrange,
        b"zset": lambda k: client.zrange(k, 0, -1),
    }  # fmt: skip
    return [
        key
        for key in client.scan_iter()
        if user.encode() in key or user in repr(read[client.type(key)](key))
    ]


def others(workspace):
    """Return every table without the user's rows, and Redis's rows of the others."""
    found = {}
    for path in sorted(p for p in workspace.root.rglob("*.parquet") if "releases" not in p.parts):
        frame = pq.read_table(path, partitioning=None).to_pandas()
        key = next((name for name in (c.USER, "key", "row") if name in frame), None)
        if key and "stream_state" not in path.parts:
            gone = (
                frame[key].str.contains(USER, regex=False) if key == "row" else frame[key] == USER
            )
            frame = frame[~gone].reset_index(drop=True)
            found[path.relative_to(workspace.root)] = (frame, pq.read_schema(path))
    return found


def hashes(workspace):
    client = redis_client(workspace)
    keys = [
        key
        for key in client.scan_iter()
        if client.type(key) == b"hash" and USER.encode() not in key
    ]
    return {key: client.hgetall(key) for key in keys}


def assert_same(before, after):
    assert before.keys() == after.keys()
    for path, (frame, schema) in before.items():
        assert after[path][1].equals(schema), path
        pd.testing.assert_frame_equal(after[path][0], frame, obj=str(path))


def assert_nowhere(workspace):
    assert found_in_files(workspace, USER) == []
    assert found_in_redis(workspace, USER) == []


def assert_proven(workspace):
    (path,) = (workspace.root / "erasures").glob("*.json")
    proof = read_json(path)
    assert USER not in path.read_text() and proof["state"] == "erased" and proof["problems"] == {}
    assert all(n["remaining"] == 0 and n["removed"] == n["found"] for n in proof["places"].values())
    assert proof["redis_file"] == "rewritten" and proof["version"]
    return {place: n["found"] for place, n in proof["places"].items()}


def takes(workspace):
    counter = Counter("events", "", ["outcome"], registry=None)
    return Intake(RedisStreamLog(workspace), workspace.spec(), counter, Erasure(workspace))


def test_the_user_is_nowhere_and_stays_away(lived, tmp_path):
    assert {name.partition("/")[0] for name in found_in_files(lived, USER)} >= {
        "raw", "ingest", "impressions", "models", "releases", "stream", "redis", "features"
    }  # fmt: skip
    assert len(found_in_redis(lived, USER)) >= 4
    original = shutil.copytree(lived.root / "raw", tmp_path / "original")
    version, before, rows = data_version(lived), others(lived), hashes(lived)
    mine = (read_events(lived)[c.USER] == USER).sum()
    old, shown = (lived.releases / "current").resolve().name, read_impressions(lived.impressions)
    lease = Lease(redis_client(lived))
    lease.acquire()  # as a job does for as long as it runs
    with pytest.raises(NotErased, match="streaming job runs"):
        run_erase(lived, USER)
    assert found_in_redis(lived, USER) == []
    live = takes(lived).accept(events([USER, *OTHERS], "later"))
    assert live.accepted == 16 and {one.reason for one in live.rejected} == {"user was erased"}
    lease.release()
    run_erase(lived, None)

    assert_nowhere(lived)
    counts = assert_proven(lived)
    assert (
        counts["impressions"]
        == counts["quarantine"]
        == counts["dead letters"]
        == counts["state of the stream"]
        == 1
    )
    assert (
        counts["event log"] == 5
        and counts["event archive"] == 4
        and counts["models"] == counts["releases"] == 1
    )
    _compare(lived, before, rows)
    assert (
        data_version(lived) != version
        and len(read_impressions(lived.impressions)) == len(shown) - 1
    )
    release = load_release(lived.releases / old)
    assert release.id != old and (lived.releases / "current").resolve().name == release.id
    assert release.codec.users.code(USER) == 0 and release.codec.users.code("u0018") > 0

    again = takes(lived).accept(events([USER, "u0018"], "live"))
    assert (again.accepted, again.duplicates, len(again.rejected)) == (0, 4, 4)
    with (original / "events.csv").open("a") as file:
        file.write("new,u0018,i0001,view,2024-03-02T00:00:00Z,,home\n")
    report = ingest(lived.spec(), original, lived, shift_to_now=True)
    # One new event, and those of the others that the stream had processed.
    assert (report.events, report.users) == (1 + 16, WORLD.users - 1)
    assert report.erased == mine + 1  # and the bad row
    assert USER not in set(read_events(lived)[c.USER])
    with streaming(lived) as wait_until_drained:
        takes(lived).accept(events(OTHERS, "last"))
        wait_until_drained()
    assert read_json(lived.root / "stream" / "generation.json")["generation"] == 2
    different = [one for one in check(lived, time.time()).examples if not one.startswith("i")]
    assert different == []  # items still have the user's events in their counts of 24 hours
    assert erase(lived, None) == []
    assert_nowhere(lived)


def _compare(workspace, before, rows):
    """Compare what was there before with what is there now. The stream may have more files now."""
    after = others(workspace)
    assert_same(before, {path: after[path] for path in before})
    now = hashes(workspace)
    changed = {key for key, fields in rows.items() if now.get(key) != fields}
    assert rows.keys() <= now.keys()
    assert all(any(name.encode() in key for name in (*OTHERS, "i000")) for key in changed)


@pytest.mark.faults  # an erasure starts for each point
@pytest.mark.parametrize(
    "points", [["checkpoint"], [name for name in POINTS if name != "checkpoint"]]
)
def test_killed_anywhere_the_next_run_finishes(points, lived, tmp_path, capsys):
    """A checkpoint is read by Spark, which starts for each kill; so one kill is near it."""
    if "checkpoint" not in points:
        shutil.rmtree(lived.root / "stream" / "checkpoint")
    before, rows = others(lived), hashes(lived)
    mine = (read_events(lived)[c.USER] == USER).sum()
    for number, point in enumerate(points):
        log = tmp_path / f"{point}.log"
        killed = Forked(killed_erasure, point, lived.root, None if number else USER, out=log)
        assert killed.wait(300) == -signal.SIGKILL, f"{point}: {log.read_text()[-3_000:]}"
    run_erase(lived, None)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])[0]["state"] == "erased"
    assert_nowhere(lived)
    counts = assert_proven(lived)
    assert counts["ingested events"] == mine > 10 and counts["event log"] == 5
    assert_same(before, others(lived))
    assert hashes(lived) == rows
    manifest = read_json(lived.ingest / "manifest.json")
    assert sum(batch["rows"] for batch in manifest["batches"]) == len(read_events(lived))
    assert not [path for path in lived.releases.glob(".*") if path.is_dir()]
    assert not (lived.root / "stream" / "checkpoint").exists()
    load_release(lived.releases / "current")


def test_a_release_loses_the_user_and_nothing_else(tiny):
    schema = row_schema(Codec.from_dict(read_json(tiny.models / "retrieval" / "codec.json")))
    names = (
        "user_tower.onnx",
        "codec.json",
        "index.faiss",
        "item_vectors.npy",
        "ranker/model.json",
    )
    before = current_release(tiny)
    old = load_release(before)
    hashes_before = {name: file_hash(before / name) for name in names}
    # Of an evaluation that was killed: histories under numbers.
    (tiny.peers / "inputs").mkdir(parents=True)
    erase(tiny, USER)
    assert not tiny.peers.exists()
    erase(tiny, "u0018")
    now = {name: file_hash(tiny.releases / before.name / name) for name in names}
    changed = [name for name in names if now[name] != hashes_before[name]]
    assert changed == ["user_tower.onnx", "codec.json"]
    assert before.name in compatible_releases(tiny, schema)  # its responses can be learned from
    links = [path for path in tiny.releases.iterdir() if path.is_symlink()]
    assert len(links) == 3  # two older ids, and current
    new = load_release(current_release(tiny))
    assert vectors(new, [USER, "u0018"]).tolist() == vectors(old, ["nobody", "nobody"]).tolist()
    assert vectors(new, ["u0001", "nobody"]).tolist() == vectors(old, ["u0001", "nobody"]).tolist()


def vectors(release, users):
    names = no_features("", release.codec)
    columns = {name: [None] * len(users) for name in names} | {c.USER: users}
    batch = release.reader.read(columns, np.full(len(users), 1.7e9))
    return release.recommender.recommend_ranked(
        batch, [RequestRules(3)] * len(users), release.items
    )[2]


def test_folders_that_vanish_are_passed_over(tmp_path, monkeypatch):
    for folder in ("a/b", "gone", "z"):
        (tmp_path / folder).mkdir(parents=True)
    old, fresh = (tmp_path / "a" / "b" / f".x{TEMPORARY}", tmp_path / "z" / f".y{TEMPORARY}")
    for path in (old, fresh, tmp_path / "z" / "kept"):
        path.touch()
    os.utime(old, (1.0, 1.0))
    listed = os.scandir

    def scandir(folder):
        if Path(folder).name == "gone":
            raise FileNotFoundError(folder)
        return listed(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert erase_command._remove_unfinished(Workspace(tmp_path), {}) == 1
    assert not old.exists() and fresh.exists()


def test_a_batch_in_hand_brings_nobody_back(tiny):
    client, spec, names = redis_client(tiny), tiny.spec(), [USER, "u0018"]
    lease = Lease(client)
    lease.acquire()
    views = [view for view in declared_in(tiny).streamed if view.key == c.USER]
    store = feature_store(tiny)
    sink = Sink(tiny, spec, store, client, lease=lease, generation=1, aggregates=views)
    rows = [
        row
        for n, user in enumerate(names)
        for row in changes(spec, views, user, f"{time.time_ns() // 1_000_000}-{n}")
    ]
    poison = {"what": "poison", "position": "1-0", "payload": f'no\n{{"user_id":"{USER}"}}'}
    batch = pa.Table.from_pylist([*rows, poison], pa.schema(COLUMNS))
    Erasure(tiny).erase(USER)
    sink.write(batch, 0, time.time())
    lease.release()
    assert read_archive(tiny)[c.USER].to_pylist() == ["u0018"]
    written = [pq.read_table(path) for path in tiny.features.glob("*/stream-*.parquet")]
    assert [table[c.USER].to_pylist() for table in written] == [["u0018"]] * len(views)
    assert found_in_redis(tiny, USER) == [] and found_in_redis(tiny, "u0018")
    status = stream_status(client)
    assert (status.events, status.poison, status.position) == (2, 1, rows[-1]["position"])


COLUMNS = [
    *(
        (name, pa.string())
        for name in (
            "what", "key", "position", "event_id", "user", "item", "request_id", "context",
            "payload",
        )
    ),
    ("micros", pa.int64()), ("kind", pa.int32()), ("value", pa.float64()),
]  # fmt: skip


def changes(spec, views, user, position):
    """Return what the stream gives of one event: the event, and the state of its user."""
    micros, event_id = event_micros(time.time(), position), f"e-{user}"
    event = {"what": "event", "key": f"u{user}", "position": position, "micros": micros}
    event |= {"event_id": event_id, "user": user, "item": "i0001", "kind": 0}
    state = KeyState.empty(views, position)
    state.add(
        [
            EventReader.of(spec).read(
                micros, event_id, spec.event_types[0], user=user, item="i0001", value=None
            )
        ]
    )
    return [event, {"what": "user", "key": user, "position": position, "payload": state.dump()}]
