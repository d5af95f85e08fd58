"""Files of the stream: named by batch, merged when many; a crash loses or doubles no row."""

import pyarrow.parquet as pq
import pytest

from feature_repo.workspace import Workspace
from pipelines.streaming.offline import (
    EVENT_SCHEMA,
    MERGE,
    Part,
    carry_over,
    merge,
    parts,
    write_part,
)


def rows(batch):
    return [{"position": f"{batch}-{n}", "event_id": f"{batch}/{n}"} for n in range(2)]


def fill(folder, batches, generation=1):
    for batch in batches:
        write_part(folder, Part(generation, batch, batch), rows(batch), EVENT_SCHEMA)


def ids(folder):
    return [
        i
        for part in parts(folder)
        for i in pq.read_table(folder / part.name)["event_id"].to_pylist()
    ]


def expected(batches):
    return [row["event_id"] for batch in batches for row in rows(batch)]


def test_a_batch_that_is_run_again_replaces_its_file(tmp_path):
    fill(tmp_path, [1, 2, 2, 1])
    assert ids(tmp_path) == expected([1, 2])
    write_part(tmp_path, Part(1, 3, 3), [], EVENT_SCHEMA)
    assert len(parts(tmp_path)) == 2


def test_many_files_become_one_and_hold_the_same_rows(tmp_path):
    batches = range(0, 3 * MERGE, 3)  # batches without rows have no file
    fill(tmp_path, batches)
    assert merge(tmp_path, EVENT_SCHEMA, 10**9, 1) == MERGE
    assert len(parts(tmp_path)) == 1 and ids(tmp_path) == expected(batches)


def test_only_finished_batches_are_merged(tmp_path):
    fill(tmp_path, range(MERGE))
    assert merge(tmp_path, EVENT_SCHEMA, MERGE - 1, 1) == 0
    assert merge(tmp_path, EVENT_SCHEMA, MERGE, 1) == MERGE


def test_a_merge_that_was_killed_doubles_nothing(tmp_path):
    fill(tmp_path, range(5))
    write_part(
        tmp_path, Part(1, 0, 3), [row for batch in range(4) for row in rows(batch)], EVENT_SCHEMA
    )
    assert ids(tmp_path) == expected(range(5))
    assert len(list(tmp_path.glob("stream-*"))) == 2


def test_a_new_checkpoint_does_not_replace_the_files_of_an_old_one(tmp_path):
    fill(tmp_path, [0, 1], generation=1)
    fill(tmp_path, [0], generation=2)
    assert len(ids(tmp_path)) == 6


@pytest.mark.parametrize("table", ["user_history", "bought"])
def test_new_tables_take_over_what_the_stream_appended(tmp_path, table):
    old, new = Workspace(tmp_path / "a").root, tmp_path / "b"
    fill(old / table, [7])
    (new / table).mkdir(parents=True)
    carry_over(old, new)
    assert ids(new / table) == expected([7])
