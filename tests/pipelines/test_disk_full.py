"""A full disk: a command that failed says so, has changed nothing, and ends well when run again."""

import json
import os
from pathlib import Path

import pytest

from feature_repo.errors import disk_full
from feature_repo.workspace import Workspace
from pipelines.training.release import make_release
from pipelines.training.release_history import HISTORY
from pipelines.training.release_pointer import promote
from serving.http.keys import Scope, create, read_keys
from tests.support import forked
from tests.support.full_disk import limited
from tests.support.tiny_release import write_trained

LIMIT = 900
"""Bytes that a file may have in these tests: sentences fit in, what the commands write does not."""


@pytest.fixture
def run(tmp_path):
    """How a command runs with and without room on the disk; returns exit code and words."""

    def run(*arguments, room=True, limit=LIMIT):
        out = tmp_path / "out"
        out.unlink(missing_ok=True)
        command = (forked.command,) if room else (limited, limit)
        return forked.run(*command, *arguments, out=out)

    return run


@pytest.fixture(scope="module")
def released_once(tmp_path_factory):
    """A working folder with three releases, the second current, and a long history."""
    root = tmp_path_factory.mktemp("full") / "w"
    workspace = write_trained(root)
    made = []
    for quota in (1, 2, 3):
        rules = root / "rules.toml"
        rules.write_text(f"max_per_category = {quota}\n")
        made.append(make_release(workspace, rules).name)
    for _ in range(4):
        promote(workspace, made[0])
        promote(workspace, made[1])
    assert (workspace.releases / HISTORY).stat().st_size > LIMIT
    return workspace, made


@pytest.fixture
def released(released_once, tmp_path):
    import shutil

    workspace, made = released_once
    return Workspace(shutil.copytree(workspace.root, tmp_path / "w", symlinks=True)), made


def of(workspace):
    """Return what is in the folder of releases: names, the pointer, the history."""
    names = sorted(path.name for path in workspace.releases.iterdir())
    return (
        names,
        os.readlink(workspace.releases / "current"),
        (workspace.releases / HISTORY).read_text(),
    )


@pytest.mark.parametrize("command", ["promote", "rollback"])
def test_the_pointer_moves_or_the_command_fails(released, run, command):
    workspace, made = released
    arguments = ["release", command, *([made[2]] if command == "promote" else [])]
    arguments += ["--home", workspace.root]
    before = of(workspace)
    code, said = run(*arguments, room=False)
    assert code == 1 and of(workspace) == before
    assert (
        said.startswith("funnel: the limit of a file's size is reached") and "\n" not in said[:-1]
    )

    code, said = run(*arguments)
    assert code == 0, said
    names, current, history = of(workspace)
    assert current == (made[2] if command == "promote" else made[0]) and names == before[0]
    assert json.loads(history.splitlines()[-1])["release"] == current


@pytest.mark.parametrize("limit", [LIMIT, 3_000, 12_000])
def test_a_release_is_made_or_the_command_fails(released, run, limit):
    workspace, made = released
    rules = workspace.root / "rules.toml"
    rules.write_text("max_per_category = 4\n")
    command = ("release", "--home", workspace.root, "--filters", rules)
    before = of(workspace)
    code, said = run(*command, room=False, limit=limit)
    assert code == 1, said
    after = of(workspace)
    assert after[1:] == before[1:]
    assert [name for name in after[0] if not name.startswith(".staging-")] == before[0]
    code, said = run(*command)
    assert code == 0, said
    names, current, _ = of(workspace)
    assert current not in made and not [name for name in names if name.startswith(".staging-")]


def test_a_key_is_stored_or_not_shown(tmp_path, run):
    path = tmp_path / "w" / "keys.json"
    for number in range(5):
        create(path, f"key {number}", [Scope.EVENTS])
    before = read_keys(path)
    command = ("keys", "create", "--home", path.parent, "--name", "six", "--scope", "events")
    code, said = run(*command, room=False)
    assert code == 1 and "fk_" not in said and read_keys(path) == before
    assert not list(path.parent.glob("*.tmp")) and not list(path.parent.glob(".*.tmp"))
    assert run(*command)[0] == 0 and len(read_keys(path)) == 6


DATASET = """
name = "shop"

[events]
path = "events.csv"
user = "user"
item = "item"
timestamp = "time"
type = "type"

[events.types.view]
positive = true
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    (folder / "dataset.toml").write_text(DATASET)
    rows = (
        f"u{n % 40},i{n % 7},2024-{1 + n % 6:02}-03T04:05:{n % 60:02}Z,view" for n in range(3_000)
    )
    (folder / "events.csv").write_text("\n".join(["user,item,time,type", *rows, "bad,,,"]))
    return folder


def content(root):
    paths = (path for path in sorted(Path(root).rglob("*")) if path.is_file())
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in paths
        if not path.name.endswith(".lock")
    }


def test_ingest_ends_as_if_there_had_always_been_room(shop, tmp_path, run):
    def command(home):
        return ("ingest", "--data", shop / "dataset.toml", "--home", tmp_path / home)

    assert run(*command("undisturbed"))[0] == 0
    expected = content(tmp_path / "undisturbed" / "ingest")
    largest = max(map(len, expected.values()))
    for limit in (LIMIT, largest // 2, largest - 1):
        code, said = run(*command("w"), room=False, limit=limit)
        assert code == 1 and "run the command again" in said, said
        assert not (tmp_path / "w" / "ingest" / "manifest.json").exists()
    code, said = run(*command("w"))
    assert code == 0, said
    assert content(tmp_path / "w" / "ingest") == expected


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("PytorchStreamWriter failed: No space left on device"),
        OSError(122, "Disk quota exceeded"),
    ],
)
def test_a_full_disk_is_said_in_one_sentence(error):
    wrapped = ValueError("cannot write")
    wrapped.__cause__ = error
    assert "run the command again" in disk_full(error) == disk_full(wrapped)
    assert disk_full(ValueError("other")) is None and disk_full(OSError(13, "denied")) is None


@pytest.mark.faults
@pytest.mark.parametrize("stage", ["features", "materialize", "train", "batch"])
def test_every_stage_ends_as_if_there_had_always_been_room(tiny, tmp_path, run, stage):
    """The stage fails at several sizes; with room again, its results are those of the fixture."""
    import shutil

    from feature_repo.stores.embedded_redis import ensure_running
    from tests.pipelines.test_kill import tables
    from tests.support.tiny_world import model_hashes

    ensure_running(tiny.redis)  # of this process, which has no limit
    options = {
        "batch": ("--out", tmp_path / "out.parquet"),
        "train": ("--kind", "logistic", "--requests", 200),
    }
    command = (stage, "--home", tiny.root, *options.get(stage, ()))
    if stage == "batch":
        assert run("materialize", "--home", tiny.root)[0] == 0
    if stage == "train":
        shutil.rmtree(tiny.models)
        assert run(*command)[0] == 0  # what an undisturbed training gives
    before = {"features": lambda: tables(tiny), "train": lambda: model_hashes(tiny)}
    expected = before[stage]() if stage in before else None
    if stage == "features":
        folder = tiny.features.resolve()
        tiny.features.unlink()
        shutil.rmtree(folder)
    if stage == "train":
        shutil.rmtree(tiny.models)
    failed = 0
    for limit in (2_000, 20_000):
        code, said = run(*command, room=False, limit=limit)
        assert code in (0, 1), said[-2_000:]
        failed += code
    assert failed, "some limit was too small"
    code, said = run(*command)
    assert code == 0, said[-2_000:]
    if stage == "features":
        assert tables(tiny).keys() == expected.keys()
        assert all(frame.equals(expected[name]) for name, frame in tables(tiny).items())
    if stage == "train":
        assert model_hashes(tiny) == expected
    if stage == "batch":
        import pyarrow.parquet as pq

        assert pq.read_metadata(tmp_path / "out.parquet").num_rows > 0
    assert not list(tiny.root.rglob(".staging-*"))


@pytest.mark.faults
def test_an_erasure_without_room_is_pending_and_ends_with_room(tiny, run):
    from feature_repo.files import read_json
    from feature_repo.stores.embedded_redis import ensure_running
    from pipelines.ingest.ingested import read_events

    ensure_running(tiny.redis)
    before = len(read_events(tiny))
    for limit in (2_000, 20_000):
        code, said = run("erase", "--home", tiny.root, "--user", "u0017", room=False, limit=limit)
        assert code == 1, said[-2_000:]
        (proof,) = (tiny.root / "erasures").glob("[!.]*.json")
        assert read_json(proof)["state"] == "pending"
    code, said = run("erase", "--home", tiny.root, "--pending")
    assert code == 0, said[-2_000:]
    assert read_json(proof)["state"] == "erased" and 0 < len(read_events(tiny)) < before


@pytest.mark.faults
def test_a_streaming_job_without_room_ends_and_goes_on_with_room(tiny, run):
    import time

    from feature_repo.stores.embedded_redis import ensure_running
    from pipelines.operations.recount import check
    from pipelines.streaming.offline import read_archive
    from serving.event_log.redis_stream import RedisStreamLog
    from tests.support.streaming_job import streaming

    ensure_running(tiny.redis)
    assert run("materialize", "--home", tiny.root)[0] == 0
    now = time.time()
    events = [
        {"event_id": f"e{n}", "user_id": f"u{n % 9:04}", "item_id": f"i{n % 5 + 1:04}",
         "type": "view", "timestamp": now} for n in range(300)
    ]  # fmt: skip
    RedisStreamLog(tiny).append(events)
    code, said = run("stream", "--home", tiny.root, room=False, limit=2_000)
    assert code == 1, said[-2_000:]
    with streaming(tiny) as wait_until_drained:
        wait_until_drained()
    assert len(read_archive(tiny)) == 300
    assert check(tiny, time.time()).differing == 0
