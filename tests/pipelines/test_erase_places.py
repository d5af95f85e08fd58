"""Files from which users are removed: all other content stays as it was."""

import json
import time

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.erased import ErasedUsers
from feature_repo.events.log_folder import LogFolder
from feature_repo.stores.embedded_redis import release as stop_redis
from feature_repo.workspace import Workspace
from pipelines.erasure.log_files import LogFiles
from pipelines.erasure.tables import QuarantinedRows, Tables
from serving.event_log.file_log import FileLog


@pytest.fixture
def erased(tmp_path):
    erased = ErasedUsers(Workspace(tmp_path))
    erased.add("gone")
    return erased


def test_a_table_keeps_its_schema_coding_and_other_rows(tmp_path, erased):
    frame = pd.DataFrame(
        {"user_id": ["a", "gone", None, "gone2", "gone"], "items": [["x"], None, [], ["y"], ["z"]]}
    )
    for name, rows, coding in (("a", 5, "zstd"), ("b", 1, "snappy")):
        table = pa.Table.from_pandas(frame[:rows], preserve_index=False)
        pq.write_table(table, tmp_path / f"{name}.parquet", compression=coding, row_group_size=2)
    (tmp_path / ".a.parquet.crc").write_text("of the old file")
    before, untouched = pq.ParquetFile(tmp_path / "a.parquet"), (tmp_path / "b.parquet").stat()
    location = Tables("tables", erased, lambda: sorted(tmp_path.glob("*.parquet")))
    assert location.find() == {"gone": 2}
    location.remove({"gone"})
    after = pq.ParquetFile(tmp_path / "a.parquet")
    assert after.read()["user_id"].to_pylist() == ["a", None, "gone2"]
    assert after.read()["items"].to_pylist() == [["x"], [], ["y"]]
    assert after.schema_arrow.equals(before.schema_arrow, check_metadata=True)
    assert after.metadata.row_group(0).column(0).compression == "ZSTD"
    assert not (tmp_path / ".a.parquet.crc").exists() and not location.find()
    assert (tmp_path / "b.parquet").stat().st_ino == untouched.st_ino


def test_a_table_that_had_nobody_else_stays_readable(tmp_path, erased):
    pq.write_table(pa.table({"key": ["ugone"]}), tmp_path / "a.parquet")
    location = Tables("state", erased, lambda: [tmp_path / "a.parquet"], "key", "u")
    for _ in range(2):
        location.remove({"gone"})
    assert pq.read_table(tmp_path / "a.parquet").num_rows == 0 and not location.find()


def test_quarantined_rows_that_name_the_user_go(tmp_path, erased):
    texts = [
        '{"u": "gone", "i": "1"}',
        '{"u": "a", "i": "gone"}',
        "gone,1,broken",
        "a,1,broken",
        None,
    ]
    rows = {"file": ["f"] * 5, "line": range(5), "reason": ["r"] * 5, "row": texts}
    pq.write_table(pa.table(rows), tmp_path / "q.parquet")
    location = QuarantinedRows(erased, lambda: [tmp_path / "q.parquet"], ["u"], Tables.lock)
    assert location.find() == {"gone": 2}
    location.remove({"gone"})
    assert pq.read_table(tmp_path / "q.parquet")["row"].to_pylist() == [texts[1], texts[3], None]


def test_other_entries_of_a_log_of_files_keep_their_locations(tmp_path, erased):
    workspace, folder = Workspace(tmp_path), tmp_path / "log"
    log = FileLog(workspace, folder)
    for batch, users in enumerate((["a", "gone", "b"], ["gone", "gone"], ["c"])):
        log.append([event(user, f"{batch}-{n}") for n, user in enumerate(users)])
    location, before = LogFiles(erased, folder), entries(folder)
    assert location.find() == {"gone": 3}
    location.remove({"gone"})
    assert (
        entries(folder) == [(at, user) for at, user in before if user != "gone"]
        and not location.find()
    )
    log.append([event("d", "next")])
    assert [user for _, user in entries(folder)] == ["a", "b", "c", "d"]
    stop_redis(workspace.redis)


def event(user, name):
    return {
        "event_id": name,
        "user_id": user,
        "item_id": "i",
        "type": "view",
        "timestamp": time.time(),
    }


def entries(folder):
    return [
        (at, json.loads(text)["user_id"])
        for file in LogFolder(folder).after(0)
        for at, text in file.read()
    ]
