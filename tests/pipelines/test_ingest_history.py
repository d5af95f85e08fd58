"""Tables of users and items with ``valid_from``: several rows of an id, each from its time on."""

import pandas as pd
import pyarrow.parquet as pq
import pytest

from feature_repo import columns as c
from feature_repo.dataset import DatasetSpec, SpecError
from feature_repo.erased import ErasedUsers
from feature_repo.parquet_files import DamagedTable
from pipelines.erasure.tables import table_locations
from tests.support.ingest_folder import MAY, WEEK, rows_of, spec_of

ITEMS = {
    "path": "items*.csv",
    "key": "id",
    "attributes": {"price": "numeric", "tags": "multi_categorical"},
    "valid_from": "since",
}
USERS = {"path": "users*.csv", "key": "id", "attributes": {"plan": "categorical"}} | {
    "valid_from": "since"
}
HEADER = "id,price,tags,since"


def priced(world, *lines, path="items.csv", header=HEADER, users=None, **options):
    """Ingest two events and items with a history; return the report."""
    world.write("events.csv", rows_of(f"u1,a,{MAY}", f"u2,b,{MAY}"))
    world.write(path, rows_of(*lines, header=header))
    return world.ingest(spec_of(items=ITEMS, users=users), **options)


def table(world, name, columns):
    frame = pq.read_table(world.workspace.ingest / f"{name}.parquet").to_pandas()
    if c.VALID_FROM in frame:
        frame[c.VALID_FROM] = frame[c.VALID_FROM].dt.strftime("%Y-%m-%d")
    return [tuple(row) for row in frame[columns].to_numpy()]


def history(world):
    return table(world, "items_history", [c.ITEM, c.VALID_FROM, "price"])


def current(world):
    return table(world, "items", [c.ITEM, "price"])


def test_every_row_is_kept_and_the_newest_is_the_current_one(world):
    report = priced(
        world,
        "a,3,x|y,2024-06-01", "a,1,x,2024-04-01", "b,7,,1714564800", "a,9,,2024-07-01",
        "c,5,,2024-07-01", "d,4,,1900-01-01",
    )  # fmt: skip
    assert history(world) == [
        ("a", "2024-04-01", 1), ("a", "2024-06-01", 3), ("a", "2024-07-01", 9),
        ("b", "2024-05-01", 7), ("c", "2024-07-01", 5), ("d", "1970-01-01", 4),
    ]  # fmt: skip
    # Of the future (now is the 15th of June) is the last row of "a", and "c" altogether.
    assert current(world) == [("a", 3), ("b", 7), ("d", 4)]
    assert c.VALID_FROM not in pq.read_schema(world.workspace.ingest / "items.parquet").names
    assert report.items == 3 and not report.quarantined
    assert any(note.startswith("2 of 6 rows of items are of the future") for note in report.notes)


def test_rows_without_a_usable_time_are_set_aside_with_one_finding_each(world):
    report = priced(world, "a,3,,", "a,4,,2024-05-32", "b,5,,46300", "b,7,,2024-05-01", "c,8,, ")
    assert world.reasons() == {
        ("items.csv", 2): "missing valid_from",
        ("items.csv", 3): "unreadable valid_from",
        ("items.csv", 4): "valid_from is no epoch time",
        ("items.csv", 6): "missing valid_from",
    }
    assert history(world) == [("b", "2024-05-01", 7)] and current(world) == [("b", 7)]
    told = [note for note in report.notes if "valid_from" in note]
    assert told[0] == (
        "2 rows of items not used: missing valid_from, such as an empty cell in items.csv, line 2"
    )
    assert told[1].startswith(
        "1 row of items not used: unreadable valid_from, such as '2024-05-32' in items.csv, line 3;"
    )
    assert told[2].startswith("1 row of items not used: valid_from is no epoch time, such as '463")
    assert len(told) == 3
    assert any("80% (4 of 5) of the rows of items cannot be used" in w for w in report.warnings)


def test_of_two_rows_of_an_id_and_time_the_later_stands_as_it_is(world):
    report = priced(world, "a,3,x,2024-05-01", "a,,y,2024-05-01T00:00:00Z", "b,1,,2024-05-01")
    (first, second) = history(world)
    assert first[:2] == ("a", "2024-05-01") and pd.isna(first[2])  # no cell of the other row
    assert second == ("b", "2024-05-01", 1)
    reason = "duplicate item_id and valid_from: a later row replaces it"
    assert world.reasons() == {("items.csv", 2): reason}
    assert report.quarantined == {reason: 1}


def test_a_file_without_the_column_is_refused(world):
    with pytest.raises(SpecError, match="items.csv.*since"):
        priced(world, "a,3,x", header="id,price,tags")
    assert not world.workspace.ingest.exists()


def test_a_later_ingest_adds_rows_and_keeps_the_older(world):
    first = priced(world, "a,1,x|y,2024-04-01", "b,7,,2024-04-01", shift_to_now=True)
    assert first.shift_s == 6 * WEEK
    again = priced(world, "a,1,x|y,2024-04-01", "b,7,,2024-04-01")
    assert again.data_version == first.data_version
    before = world.bytes()
    assert priced(world, "b,7,,2024-04-01").data_version == first.data_version
    assert world.bytes() == before

    (world.folder / "items.csv").unlink()
    later = priced(world, "a,2,z,2024-05-01", "b,8,,2024-04-01", path="items-2.csv")
    shifted = [("a", "2024-05-13", 1), ("a", "2024-06-12", 2), ("b", "2024-05-13", 8)]
    assert history(world) == shifted
    assert table(world, "items_history", ["tags"])[0][0].tolist() == ["x", "y"]
    assert current(world) == [("a", 2), ("b", 8)] and later.items == 2
    assert later.data_version != first.data_version
    told = [note for note in later.notes if "earlier ingest" in note]
    assert told == [
        "1 items: a row replaces that of an earlier ingest with the same item_id and valid_from"
    ]


def test_a_row_becomes_current_with_the_first_ingest_after_its_time(world):
    lines = ["a,2,,2024-06-20", "b,3,,2024-06-20"]
    assert priced(world, *lines).items == 0 and current(world) == []
    lines = ["a,1,,2024-04-01", "a,2,,2024-06-20"]
    first = priced(world, *lines)
    assert current(world) == [("a", 1)]
    second = priced(world, *lines, now=pd.Timestamp("2024-06-20T00:00:00Z"))
    assert current(world) == [("a", 2), ("b", 3)] and second.data_version != first.data_version


def test_users_have_a_history_which_erasure_removes_for_good(world):
    world.write("users.csv", rows_of("u1,free,2024-04-01", "u1,paid,2024-06-01",
                                     "u2,free,2024-04-01", header="id,plan,since"))  # fmt: skip
    priced(world, "a,1,,2024-04-01", users=USERS)
    columns = [c.USER, c.VALID_FROM, "plan"]
    kept = [("u2", "2024-04-01", "free")]
    whole = [("u1", "2024-04-01", "free"), ("u1", "2024-06-01", "paid"), *kept]
    assert table(world, "users_history", columns) == whole
    assert table(world, "users", [c.USER, "plan"]) == [("u1", "paid"), ("u2", "free")]

    erased = ErasedUsers(world.workspace)
    erased.add("u1")
    places = table_locations(world.workspace, erased)
    (place,) = (place for place in places if place.name == "ingested users")
    assert place.find() == {"u1": 3}
    # An ingest before the removal drops the rows as well, and the removal leaves nothing.
    priced(world, "a,1,,2024-04-01", users=USERS)
    assert table(world, "users_history", columns) == kept
    place.remove({"u1"})
    assert not place.find() and table(world, "users_history", columns) == kept


def test_a_torn_history_is_named(world):
    priced(world, "a,1,,2024-04-01")
    (world.workspace.ingest / "items_history.parquet").write_bytes(b"torn")
    with pytest.raises(DamagedTable, match="items_history.parquet cannot be read"):
        priced(world, "a,1,,2024-04-01")


def test_the_name_of_the_column_is_no_attributes():
    with pytest.raises(ValueError, match="no attribute may have the name 'valid_from' as well"):
        spec_of(items=ITEMS | {"attributes": {"valid_from": "text"}})
    # Without a history the name is free, and the description is what it was.
    plain = {key: value for key, value in ITEMS.items() if key != "valid_from"}
    spec = spec_of(items=plain | {"attributes": {"valid_from": "text"}})
    assert list(spec.model_dump()["items"]).count("valid_from") == 0
    assert DatasetSpec.model_validate(spec.model_dump()) == spec
