"""Files of impressions are merged by the hour and removed by age; none counts twice or is lost."""

import json
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.files import locked
from feature_repo.settings import SettingsError
from feature_repo.workspace import Workspace
from serving import impression_files as module
from serving.impression_files import files_of, impressions_lock, tidy
from serving.impression_keeper import ImpressionKeeper
from serving.impressions import IMPRESSION_SCHEMA, read_impressions, to_table
from tests.support.an_impression import impression
from tests.support.waiting import wait_until

NOW = datetime(2026, 11, 28, 12, 5, tzinfo=UTC)
DAYS = timedelta(days=90)


def write(folder, moment, number, table=None):
    folder.mkdir(exist_ok=True)
    stamp = moment.strftime("%Y%m%dT%H%M%S.%fZ")
    path = folder / f"{stamp}-7-{number:06d}.parquet"
    table = to_table([impression(number)]) if table is None else table
    pq.write_table(table, path, compression="zstd")
    return path


@pytest.fixture
def folder(tmp_path):
    """Impressions of three hours, three files each: two hours are past, one is settling."""
    for number in range(9):
        write(tmp_path / "i", NOW - timedelta(hours=number // 3, minutes=10 + number % 3), number)
    return tmp_path / "i"


def ids(folder):
    return sorted(read_impressions(folder)["request_id"].to_pylist())


def test_past_hours_become_one_file_each(folder):
    before = read_impressions(folder)
    assert tidy(folder, IMPRESSION_SCHEMA, DAYS, NOW) == 4
    names = [path.name for path in files_of(folder)]
    assert len(names) == 5 and [n for n in names if n.startswith("hour-")] == [
        "hour-20261128T09.parquet",
        "hour-20261128T10.parquet",
    ]
    assert repr(read_impressions(folder).to_pylist()) == repr(before.to_pylist())  # NaN among them
    assert read_impressions(folder).schema.equals(IMPRESSION_SCHEMA)
    assert tidy(folder, IMPRESSION_SCHEMA, DAYS, NOW) == 0


def test_a_late_file_is_added_to_its_hour(folder):
    tidy(folder, IMPRESSION_SCHEMA, DAYS, NOW)
    write(folder, NOW - timedelta(hours=2), 77)
    tidy(folder, IMPRESSION_SCHEMA, DAYS, NOW)
    assert ids(folder) == sorted(f"r{n}" for n in [*range(9), 77])
    assert len(list(folder.glob("*T10*"))) == 1


@pytest.mark.parametrize("step", ["write", 1, 2])
def test_a_merge_that_was_killed_loses_and_doubles_nothing(folder, monkeypatch, step):
    before = ids(folder)
    calls = 0
    unlink = module.Path.unlink

    def killed(path, missing_ok=False):
        nonlocal calls
        if path.name.startswith("20"):
            calls += 1
            if calls == step:
                raise KeyboardInterrupt
        unlink(path, missing_ok)

    if step == "write":
        monkeypatch.setattr(module.pq.ParquetWriter, "write_table", lambda *_: 1 / 0)
    else:
        monkeypatch.setattr(module.Path, "unlink", killed)
    with pytest.raises((KeyboardInterrupt, ZeroDivisionError)):
        tidy(folder, IMPRESSION_SCHEMA, DAYS, NOW)
    assert ids(folder) == before
    monkeypatch.undo()
    tidy(folder, IMPRESSION_SCHEMA, DAYS, NOW)
    assert ids(folder) == before and len(files_of(folder)) == 5


def test_old_hours_are_removed_and_younger_ones_stay(folder):
    for days in (89, 91, 400):
        write(folder, NOW - timedelta(days=days), 100 + days)
    torn = folder / ".20200101T000000.0Z-1-000001.parquet.damaged"
    torn.touch()
    tidy(folder, IMPRESSION_SCHEMA, DAYS, NOW)
    assert ids(folder) == sorted([*(f"r{n}" for n in range(9)), "r189"]) and not torn.exists()
    tidy(folder, IMPRESSION_SCHEMA, DAYS, NOW + timedelta(days=2))
    assert "r189" not in ids(folder) and "r8" in ids(folder)


def test_files_of_earlier_versions_are_merged_and_torn_ones_set_aside(folder):
    moment = NOW - timedelta(hours=2)
    write(folder, moment, 50, to_table([impression(50)]).drop_columns(["added"]))
    write(folder, moment, 51).write_bytes(b"")
    tidy(folder, IMPRESSION_SCHEMA, DAYS, NOW)
    rows = read_impressions(folder).to_pylist()
    assert [row["added"] for row in rows if row["request_id"] == "r50"] == [None]
    assert len(rows) == 10 and len(list(folder.glob(".*damaged"))) == 1


def test_hours_that_were_over_before_are_not_read(folder):
    """Their content would be an error."""
    tidy(folder, IMPRESSION_SCHEMA, DAYS, NOW)
    old = folder / "hour-20261128T09.parquet"
    old.write_bytes(bytes(100) + old.read_bytes()[100:])
    since = datetime(2026, 11, 28, 10, 30, tzinfo=UTC).timestamp()
    assert old not in files_of(folder, since) and len(files_of(folder, since)) == 4
    assert len(read_impressions(folder, ["request_id"], since)) == 0  # made up, of another year


def test_a_torn_file_does_not_stop_a_reader(folder):
    path = write(folder, NOW, 60)
    path.write_bytes(path.read_bytes()[:-20])
    assert len(ids(folder)) == 9 and not path.exists()


def test_nobody_merges_while_another_does_or_an_erasure_runs(folder):
    with impressions_lock(folder, exclusive=True):
        assert tidy(folder, IMPRESSION_SCHEMA, DAYS, NOW) == 0
    with locked(folder / ".tidying.lock"):
        assert tidy(folder, IMPRESSION_SCHEMA, DAYS, NOW) == 0
    with impressions_lock(folder, exclusive=False):  # a server writes
        assert tidy(folder, IMPRESSION_SCHEMA, DAYS, NOW) == 4


def test_a_server_tidies_by_itself(tmp_path, monkeypatch):
    workspace = Workspace(tmp_path)
    monkeypatch.setenv("FUNNEL_IMPRESSION_DAYS", "100")
    now = datetime.now(UTC)
    for number in range(3):
        write(workspace.impressions, now - timedelta(hours=2), number)
    write(workspace.impressions, now - timedelta(days=99), 99)
    write(workspace.impressions, now - timedelta(days=101), 101)
    keeper = ImpressionKeeper(workspace)
    keeper.step()
    wait_until(lambda: len(list(workspace.impressions.glob("[!.]*.parquet"))) == 2, 30)
    assert ids(workspace.impressions) == ["r0", "r1", "r2", "r99"]
    monkeypatch.setenv("FUNNEL_IMPRESSION_DAYS", "89")
    with pytest.raises(SettingsError, match="at least 90"):
        ImpressionKeeper(workspace)


def test_a_folder_that_is_absent_is_nothing_to_do(tmp_path):
    assert tidy(tmp_path / "none", IMPRESSION_SCHEMA, DAYS, NOW) == 0


def test_a_merged_file_names_its_sources_after_rows_were_removed(folder):
    """An erasure rewrites files; their metadata stays, or what was merged would count twice."""
    from pyarrow import compute as pc

    from pipelines.erasure.tables import filter_rows

    tidy(folder, IMPRESSION_SCHEMA, DAYS, NOW)
    path = folder / "hour-20261128T10.parquet"
    filter_rows(path, lambda rows: pc.not_equal(rows["request_id"], "r3"))
    assert len(json.loads(pq.read_schema(path).metadata[b"funnel.merged"])) == 3
    assert isinstance(pq.read_table(path), pa.Table) and len(ids(folder)) == 8
