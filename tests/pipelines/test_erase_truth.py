"""A proof says 'erased' only where nothing can be left, and nothing can bring a user back."""

import signal
import threading
import time

import pyarrow as pa
import pytest
from prometheus_client import CollectorRegistry, Counter

from feature_repo import columns as c
from feature_repo.erased import LISTED, ErasedUsers
from feature_repo.events.log_names import batch_key
from feature_repo.files import read_json
from feature_repo.stage_locks import Written, stage_lock
from feature_repo.stores.embedded_redis import release as stop_redis
from feature_repo.stores.feature_store import redis_client
from feature_repo.workspace import Workspace
from pipelines.erasure import erase as module
from pipelines.erasure.erase import NotErased, run_erase
from pipelines.operations.batch import _to_redis
from pipelines.streaming.lease import Lease
from serving.erasure import Erasure
from serving.impression_files import impressions_lock
from serving.impressions import ImpressionLog, read_impressions
from tests.support.an_impression import impression
from tests.support.forked import Forked
from tests.support.tiny_release import register
from tests.support.waiting import wait_until

USER = "u0017"


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FLUSH_S", -1.0)  # no server writes impressions here
    workspace = Workspace(tmp_path / "w")
    register(workspace)
    yield workspace
    stop_redis(workspace.redis)


def state(workspace):
    (path,) = (workspace.root / "erasures").glob("[!.]*.json")
    proof = read_json(path)
    return proof["state"], proof["problems"]


def spoil(client, way):
    if way == "refused":
        client.execute_command("ACL", "SETUSER", "default", "-bgrewriteaof")
        return lambda: client.execute_command("ACL", "SETUSER", "default", "+bgrewriteaof")
    # The file's name is taken by a folder: the rewrite fails at its last step, the renaming.
    folder = client.config_get("dir")["dir"]
    client.config_set("dir", f"{folder}/elsewhere")
    return lambda: client.config_set("dir", folder)


@pytest.mark.parametrize("way", ["refused", "fails at its last step"])
def test_a_file_of_redis_that_was_not_rewritten_is_no_erasure(workspace, way):
    client = redis_client(workspace)
    (workspace.redis / "elsewhere" / "appendonly.aof" / "in the way").mkdir(parents=True)
    restore = spoil(client, way)
    with pytest.raises(
        NotErased, match="append-only file of Redis: Redis (refused|could not)"
    ) as no:
        run_erase(workspace, USER)
    assert no.value.exit_code == 1
    found, problems = state(workspace)
    assert found == "pending" and list(problems) == ["append-only file of Redis"]
    restore()
    run_erase(workspace, None)
    assert state(workspace) == ("erased", {})


def hold(root, written):
    with stage_lock(Workspace(root), written):
        signal.pause()


@pytest.mark.parametrize("written", list(Written))
def test_a_command_that_began_before_is_waited_for(workspace, written):
    """It has read the user's rows, and will write what it made of them."""
    other = Forked(hold, workspace.root, written)
    lock = workspace.root / f".{written}.lock"
    wait_until(lambda: lock.exists() and lock.stat().st_size, 60)
    try:
        with pytest.raises(NotErased, match=f"process {other.pid} "):
            run_erase(workspace, USER)
        assert state(workspace)[0] == "pending"
    finally:
        other.kill()
        other.wait()
    run_erase(workspace, None)
    assert state(workspace) == ("erased", {})


def test_a_streaming_job_that_has_no_checkpoint_yet_is_waited_for(workspace):
    lease = Lease(redis_client(workspace))
    lease.acquire()
    with pytest.raises(NotErased, match="streaming job runs"):
        run_erase(workspace, USER)
    lease.release()
    run_erase(workspace, None)
    assert state(workspace) == ("erased", {})


def counter(name):
    return Counter(name, "", ["outcome"], registry=CollectorRegistry())


def test_an_impression_that_waits_while_its_user_is_erased_is_not_written(workspace):
    erased = ErasedUsers(workspace)
    counted = counter("waiting_impressions")
    log = ImpressionLog(workspace.impressions, counted, erased=erased)
    one, other = impression(1), impression(2)
    object.__setattr__(other, "user_id", USER)
    with impressions_lock(workspace.impressions, exclusive=True):
        log.offer(one)
        log.offer(other)
        time.sleep(2.5)  # the writer waits for the lock
        erased.add(USER)
    log.close()
    assert read_impressions(workspace.impressions)["user_id"].to_pylist() == [one.user_id]
    assert counted.labels("dropped")._value.get() == counted.labels("logged")._value.get() == 1


def test_an_erasure_waits_for_who_is_writing_impressions(workspace):
    ended = threading.Event()

    def run():
        run_erase(workspace, USER)
        ended.set()

    thread = threading.Thread(target=run)
    with impressions_lock(workspace.impressions, exclusive=False):
        thread.start()
        assert not ended.wait(3)
    thread.join(60)
    assert ended.is_set()


def test_a_batch_in_hand_leaves_no_list(workspace):
    client = redis_client(workspace)
    table = pa.table({c.USER: [USER, "u0018"], "item_ids": [["i1"]] * 2, "scores": [[1.0]] * 2})
    Erasure(workspace).erase(USER)
    _to_redis(workspace, table, "r", 1.0)
    assert not client.exists(batch_key(USER)) and client.exists(batch_key("u0018"))


def test_tables_that_a_killed_run_left_go(workspace):
    staged = workspace.root / "features" / ".staging-v2" / "user_history"
    staged.mkdir(parents=True)
    (staged / "part.parquet").write_bytes(USER.encode())
    run_erase(workspace, USER)
    assert not staged.exists() and state(workspace) == ("erased", {})


def test_torn_files_do_not_stop_an_erasure_and_do_not_outlast_it(workspace):
    folders = [
        workspace.root / "stream" / "events",
        workspace.root / "features" / "v1" / "user_history",
    ]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "stream-000001-000000000001-000000000001.parquet").write_bytes(USER.encode() * 9)
    workspace.impressions.mkdir()
    (workspace.impressions / "20240101T000000.0Z-1-000001.parquet").write_bytes(b"")
    run_erase(workspace, USER)
    assert state(workspace) == ("erased", {})
    left = [path for path in workspace.root.rglob("*.parquet*") if path.is_file()]
    assert left == []
    (proof,) = (workspace.root / "erasures").glob("[!.]*.json")
    assert read_json(proof)["damaged_files_removed"] == 3


def test_a_torn_table_is_named_with_the_command_that_makes_it_anew(workspace):
    folder = workspace.root / "features" / "v1" / "user_seen"
    folder.mkdir(parents=True)
    (folder / "part-0.parquet").write_bytes(b"")
    with pytest.raises(
        NotErased, match=r"user_seen/part-0.parquet cannot be read .*funnel features"
    ):
        run_erase(workspace, USER)
    assert state(workspace)[0] == "pending"


def test_the_list_in_redis_is_read_when_it_has_grown(workspace):
    client = redis_client(workspace)

    def reads():
        return client.info("commandstats").get("cmdstat_smembers", {}).get("calls", 0)

    one = ErasedUsers(workspace, client)
    one.add("a")
    one.numbers()
    before = reads()
    for _ in range(5):
        one._asked = 0.0  # as if a second had passed
        one.numbers()
    assert reads() == before
    client.sadd(LISTED, "of another folder")
    one._asked = 0.0
    assert "of another folder" in one.numbers() and reads() == before + 1
    client.delete(LISTED)
    one._asked = 0.0
    assert one.number("a") in one.numbers() and client.scard(LISTED) == 1
