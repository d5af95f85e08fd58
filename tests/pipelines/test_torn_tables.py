"""A torn file of the offline tables is noticed, named, and made anew by ``funnel features``."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.erased import ErasedUsers
from feature_repo.files import link_atomically
from feature_repo.parquet_files import DamagedTable, files_set_aside
from feature_repo.workspace import Workspace
from pipelines.erasure.tables import table_locations
from pipelines.features.point_in_time import PointInTime
from pipelines.features.whole_tables import (
    damage_of,
    forget_files,
    list_files,
    require_whole_tables,
)
from pipelines.ingest.ingested import event_files, read_events
from pipelines.streaming.job import StreamConfig, StreamJob
from pipelines.workflow import stages

STREAMED = "stream-000001-000000000001-000000000001.parquet"


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[8] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-30]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "gone": lambda path: path.unlink(),
}


@pytest.fixture
def workspace(tmp_path):
    """A working folder with one table of two files, and a third that the stream appended."""
    workspace = Workspace(tmp_path)
    tables = tmp_path / "features" / "v1"
    (tables / "user_history").mkdir(parents=True)
    for number in range(2):
        rows = pa.table({"user_id": ["a", "gone"], "n": [number] * 2})
        pq.write_table(rows, tables / "user_history" / f"part-{number}.parquet")
    list_files(tables)
    pq.write_table(rows, tables / "user_history" / STREAMED)
    link_atomically(workspace.features, tables)
    return workspace


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_is_refused_by_name_with_the_command(workspace, how):
    require_whole_tables(workspace)
    path = workspace.features.resolve() / "user_history" / "part-1.parquet"
    DAMAGE[how](path)
    with pytest.raises(DamagedTable, match=f"{path} .*run 'funnel features'") as refused:
        require_whole_tables(workspace)
    assert refused.value.exit_code == 1


def test_a_changed_bit_is_found_when_the_tables_are_said_to_be_up_to_date(workspace):
    tables = workspace.features.resolve()
    flip_a_bit(tables / "user_history" / "part-1.parquet")
    assert damage_of(tables) is None
    assert "its hash differs" in damage_of(tables, hashes=True)


def test_tables_of_an_earlier_version_have_no_list_and_are_checked_by_their_indices(workspace):
    tables = workspace.features.resolve()
    forget_files(tables)
    assert damage_of(tables, hashes=True) is None
    DAMAGE["cut"](tables / "user_history" / "part-0.parquet")
    assert "part-0.parquet cannot be read" in damage_of(tables)


def test_what_the_stream_appended_is_set_aside(workspace, caplog):
    folder = workspace.features.resolve() / "user_history"
    DAMAGE["cut"](folder / STREAMED)
    require_whole_tables(workspace)
    assert len(files_set_aside(folder)) == 1 and STREAMED in caplog.text
    assert pq.read_table(folder).num_rows == 4


def test_an_erasure_lists_what_it_has_rewritten(workspace):
    erased = ErasedUsers(workspace)
    erased.add("gone")
    tables = workspace.features.resolve()
    (location,) = (
        one for one in table_locations(workspace, erased) if one.name == "feature tables"
    )
    assert location.find() == {"gone": 3}
    location.remove({"gone"})
    assert not location.find() and damage_of(tables, hashes=True) is None
    flip_a_bit(tables / "user_history" / "part-1.parquet")
    assert damage_of(tables, hashes=True)


@pytest.mark.faults
@pytest.mark.parametrize("how", [*DAMAGE, "flipped"])
def test_everybody_refuses_and_features_makes_them_anew(tiny, how):
    folder = tiny.features.resolve() / "user_history"
    path = next(folder.glob("part-*.parquet"))
    shutil.copy(path, folder / STREAMED)
    before = pq.read_table(folder).num_rows
    (DAMAGE | {"flipped": flip_a_bit})[how](path)
    if how != "flipped":
        for command in (
            PointInTime,
            stages.run_materialize,
            lambda workspace: StreamJob(workspace, StreamConfig()).run(),
        ):
            with pytest.raises(DamagedTable, match="funnel features"):
                command(tiny)
    stages.run_features(tiny)
    PointInTime(tiny)
    assert pq.read_table(tiny.features / "user_history").num_rows == before
    assert (tiny.features / "user_history" / STREAMED).is_file()
    final = stages.run_features(tiny)
    assert final == tiny.features.resolve() and damage_of(final, hashes=True) is None


@pytest.mark.faults
def test_torn_ingested_events_are_named(tiny):
    path = event_files(tiny)[0]
    open(path, "wb").close()
    for command in (read_events, stages.run_features):
        shutil.rmtree(tiny.root / "features", ignore_errors=True)
        with pytest.raises(DamagedTable, match=f"{path} .*funnel ingest"):
            command(tiny)
