"""What is wrong stops a run before it writes; a run that is killed leaves no trace."""

import os
import shutil
import signal

import pytest

from feature_repo.dataset import SpecError
from feature_repo.workspace import MissingStage, Workspace
from pipelines.ingest.ingest import ingest
from pipelines.ingest.ingested import read_events
from tests.support import forked
from tests.support.ingest_folder import ITEMS, MAY, NOW, World, rows_of, spec_of


def test_a_wrong_spec_stops_before_anything_is_written(world):
    def refused(message, spec, **options):
        with pytest.raises(SpecError, match=message) as caught:
            world.ingest(spec, **options)
        assert "\n" not in str(caught.value)
        assert not world.workspace.root.exists()

    refused("no file matches 'events.csv'", spec_of())
    world.write("events.csv", rows_of(f"u,i,{MAY}"))
    refused(r"events.csv: no column \['kind'\]", spec_of(type="kind"))
    refused("no file matches 'items'", spec_of(items=ITEMS))
    world.write("items/1.csv", "id,tags\n1,2\n")
    refused(r"1.csv: no column \['name', 'price', 'from'\]", spec_of(items=ITEMS))
    world.write("events.csv", rows_of("u,i,soon"))
    refused("no usable event", spec_of())
    world.write("events.csv", rows_of())
    refused("no usable event", spec_of())
    world.write("events.csv", "")
    refused("the file is empty", spec_of())
    world.write("events.log", "")
    refused("unknown file ending", spec_of("events.log"))


def test_a_bad_later_file_leaves_all_as_it_was(world):
    world.write("events/1.csv", rows_of(f"u,i,{MAY}"))
    world.ingest(spec_of("events"))
    before = world.bytes()
    world.write("events/2.csv", rows_of(f"u,{MAY}", header="user,time"))
    with pytest.raises(SpecError, match="no column"):
        world.ingest(spec_of("events"))
    assert world.bytes() == before


def test_another_spec_needs_another_folder(world):
    world.write("events.csv", rows_of(f"u,i,{MAY}"))
    world.ingest(spec_of())
    before = world.bytes()
    with pytest.raises(SpecError, match="another dataset.toml"):
        world.ingest(spec_of(types={"view": {"positive": True}}))
    assert world.bytes() == before


def test_events_of_an_empty_workspace(world):
    with pytest.raises(MissingStage, match="funnel ingest"):
        read_events(world.workspace)


def die_at_each(folder, spec, homes):
    """Ingest into each home; its parent's name says at which write, and how, the process dies."""
    replace, calls = os.replace, 0

    def dying(source, target):
        nonlocal calls
        calls += 1
        if calls == point and how == "half written":
            os.truncate(source, os.path.getsize(source) // 2)
        if calls == point and how == "written":
            replace(source, target)
        if calls == point:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = dying
    for home in homes:
        at, how = home.parent.name.split("-")
        point = int(at)
        if os.fork() == 0:  # a process of its own for each death
            ingest(spec, folder, Workspace(home), now=NOW, shift_to_now=True)
            os._exit(0)
        _, status = os.wait()
        assert os.WIFSIGNALED(status), home


@pytest.mark.parametrize("runs_before", [0, 1])
def test_a_killed_run_leaves_no_trace(world, runs_before, tmp_path):
    users = {"path": "users.csv", "key": "id", "attributes": {"age": "numeric"}}
    spec = spec_of("events", users=users)
    world.write("users.csv", "id,age\nu1,3\nu2,x\n")
    world.write("events/1.csv", rows_of(f"u1,i,{MAY}", "u1,i,", f"u2,i,{MAY - 40 * 86_400}"))
    if runs_before:
        world.ingest(spec, shift_to_now=True)
        world.write("events/2.csv", rows_of(f"u3,i,{MAY - 10}", f"u2,i,{MAY - 40 * 86_400}"))
    writes = 8 if runs_before == 0 else 7
    deaths = [
        f"{point}-{how}" for point in range(1, writes + 1) for how in ("half written", "written")
    ]
    killed = [
        World(tmp_path / death, world.folder) for death in deaths[:-1]
    ]  # the last write makes the run count
    if runs_before:
        for other in killed:
            shutil.copytree(world.workspace.root, other.workspace.root)
    world.ingest(spec, shift_to_now=True)
    expected = world.bytes()
    homes = [other.workspace.root for other in killed]
    code, said = forked.run(
        die_at_each, world.folder, spec, homes, out=tmp_path / "log", timeout=120
    )
    assert code == 0, said
    for other in killed:
        assert other.bytes() != expected
        if runs_before:
            assert len(other.events()) == 2
        else:
            with pytest.raises(MissingStage, match="funnel ingest"):
                other.events()
        other.ingest(spec, shift_to_now=True)
        assert other.bytes() == expected, other.workspace.root


def test_a_run_killed_before_more_files_came_leaves_no_trace(world, tmp_path):
    world.write("events/1.csv", rows_of(f"u1,i,{MAY}"))
    spec = spec_of("events")
    world.ingest(spec)
    os.unlink(world.workspace.ingest / "manifest.json")
    world.write("events/2.csv", rows_of(f"u2,i,{MAY}"))
    world.ingest(spec)
    other = World(tmp_path / "other", world.folder)
    other.ingest(spec)
    assert world.bytes() == other.bytes()
