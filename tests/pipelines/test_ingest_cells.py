"""One bad cell of a user or item table costs only itself, and is counted."""

import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_repo.cell_values import MAX_NUMBER
from feature_repo.dataset import SpecError
from pipelines.ingest.cells import as_numbers, list_cells, number_cells
from tests.support.ingest_folder import MAY, World, rows_of, spec_of

ITEMS = {
    "path": "items.csv",
    "key": "id",
    "attributes": {"name": "text", "tags": "multi_categorical", "price": "numeric"},
    "available_from": "from",
    "available_until": "until",
}
HEADER = "id,name,tags,price,from,until\n"


def items(world, content, **options):
    """Ingest an item table and return it by id, and the report."""
    spec = ITEMS | options
    world.write("events.csv", rows_of(f"u,a,{MAY}"))
    world.write(spec["path"], content)
    report = world.ingest(spec_of(items=spec))
    table = pq.read_table(world.workspace.ingest / "items.parquet").to_pandas()
    return table.set_index("item_id"), report


@pytest.mark.parametrize(
    ("column", "cell", "reason"),
    [
        *(
            ("price", cell, "bad number in price")
            for cell in ('"12,99"', "$12.99", "12.99 EUR", "N/A", "null", "1.299.00", "inf")
        ),
        ("price", "1e308", "number in price beyond ±1e15"),
        ("price", "-2e15", "number in price beyond ±1e15"),
        ("from", "soon", "unreadable available_from"),
        ("from", "46300", "available_from is no epoch time"),
        ("until", "31/12/2027", "unreadable available_until"),
        ("until", "20:15", "unreadable available_until"),
        ("tags", '"[[""a""], [""b""]]"', "list within a list in tags"),
    ],
)
def test_a_bad_cell_is_left_empty_and_its_row_stays(world, column, cell, reason):
    good = {"id": "a", "name": "A", "tags": "x|y", "price": "9.5", "from": "", "until": ""}
    bad = good | {"id": "b", column: cell}
    lines = [",".join(row.values()) for row in (good, bad)]
    table, report = items(world, HEADER + "\n".join(lines) + "\n")
    assert table["name"].tolist() == ["A", "A"]
    name = {"from": "available_from", "until": "available_until"}.get(column, column)
    left = table[name]["b"]
    assert len(left) == 0 if column == "tags" else pd.isna(left)
    assert report.cells == {f"{reason}: cell left empty": 1}
    assert not report.quarantined
    assert world.reasons() == {("items.csv", 3): f"{reason}: cell left empty"}
    [note] = [note for note in report.notes if reason in note]
    assert "in items.csv, line 3" in note


def test_the_spec_can_say_the_decimal_mark(world):
    content = "id;name;tags;price;from;until\na;A;x;8,50;;\nb;B;x;1.299,00;;\nc;C;x;8.50;;\n"
    table, report = items(world, content, separator=";", decimal=",")
    assert table["price"].tolist()[:2] == [8.5, 1299.0]
    assert pd.isna(table["price"]["c"])
    assert report.cells == {"bad number in price: cell left empty": 1}


@given(number=st.decimals(-(10**9), 10**9, places=2))
def test_a_decimal_comma_reads_what_it_writes(number):
    grouped = f"{number:,}".replace(",", " ").replace(".", ",").replace(" ", ".")
    plain = str(number).replace(".", ",")
    texts = pd.Series([grouped, plain], dtype="string[pyarrow]")
    assert as_numbers(texts, ",").tolist() == [float(number)] * 2


@given(number=st.floats(allow_nan=False))
def test_numbers_are_bounded(number):
    cells = number_cells(pd.Series([repr(number)], dtype="string[pyarrow]"), "n", ".")
    assert cells.values.notna()[0] == (abs(number) <= MAX_NUMBER) == (not cells.problems[0])


def test_dates_that_mean_no_end(world):
    ends = ["9999-12-31", "0000-00-00 00:00:00", "", "2027-01-31", "0001-01-01T00:00:00Z"]
    lines = [f"{name},N,x,1,,{end}" for name, end in zip("abcde", ends, strict=True)]
    table, report = items(world, HEADER + "\n".join(lines) + "\n")
    assert table["available_until"].notna().tolist() == [False, False, False, True, False]
    assert not report.cells


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('["Shoes", "Sale"]', ["Shoes", "Sale"]),
        ("['Shoes', 'Home & Garden']", ["Shoes", "Home & Garden"]),
        ('["Books, Films"]', ["Books, Films"]),
        ("[]", []),
        ("{Shoes,Sale}", ["Shoes", "Sale"]),
        ('{Shoes,"Home, Garden",NULL}', ["Shoes", "Home, Garden"]),
        ("[1, 2]", ["1", "2"]),
        ('["a", null]', ["a"]),
        ("a | b", ["a", "b"]),
        ("[new] | b", ["[new]", "b"]),
    ],
)
def test_lists_that_became_text(text, parts):
    cells = list_cells(pd.Series([text]), "tags", "|")
    assert cells.values[0] == parts
    assert cells.problems[0] == ""


@pytest.mark.parametrize("text", ["[Shoes, Sale]", "['Shoes' 'Sale']", '{"a": 1}', "[not json"])
def test_what_only_looks_like_a_list_is_told(text):
    cells = list_cells(pd.Series([text]), "tags", "|")
    assert cells.values[0] == [text]
    assert (cells.problems[0] != "") == (text != "[not json")


@given(parts=st.lists(st.text(st.characters(exclude_categories=["Cs", "Zs", "Cc"]), min_size=1)))
def test_any_json_list_comes_back(parts):
    cells = list_cells(pd.Series([json.dumps(parts)]), "tags", "|")
    assert cells.values[0] == [part.strip() for part in parts if part.strip()]


def test_a_later_row_changes_only_what_it_holds(world):
    table, report = items(
        world,
        HEADER + "a,A,x|y,1,2024-01-01,2026-01-01\nb,B,z,2,,\na,,,99,,\nb,B,z,2,,\n"
        "a,,,,,9999-12-31\n",
    )
    assert table.loc["a", ["name", "price"]].tolist() == ["A", 99.0]
    assert list(table["tags"]["a"]) == ["x", "y"]
    assert table["available_from"]["a"] == pd.Timestamp("2024-01-01", tz="UTC")
    assert pd.isna(table["available_until"]["a"])  # the update says that there is no end
    assert report.quarantined == {"duplicate item_id: a later row replaces it": 3}
    assert any(note.startswith("1 items: the last row leaves cells empty") for note in report.notes)


def test_a_table_without_rows(world):
    table, report = items(world, HEADER)
    assert len(table) == 0
    assert any("items table: 0%" in warning for warning in report.warnings)


CELL = st.sampled_from(["", "1", "2", "3"])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows=st.lists(st.tuples(st.sampled_from("abc"), CELL, CELL), min_size=1, max_size=8))
def test_updates_merge_as_one_would_by_hand(rows, tmp_path_factory):
    world = World(tmp_path_factory.mktemp("world"))
    expected = {}
    for key, name, price in rows:
        row = expected.setdefault(key, {"name": None, "price": None})
        row |= {"name": name or row["name"], "price": price or row["price"]}
    lines = [f"{key},{name},,{price},," for key, name, price in rows]
    table, _ = items(world, HEADER + "\n".join(lines) + "\n")
    assert sorted(table.index) == sorted(expected)
    for key, row in expected.items():
        assert (table["name"][key] if row["name"] else None) == row["name"]
        assert pd.isna(table["price"][key]) if not row["price"] else True
        assert not row["price"] or table["price"][key] == float(row["price"])


def parquet(world, name, values):
    columns = {"id": ["a", "b"], "name": ["A", "B"], "tags": [["x"], ["y"]], "price": [1.0, 2.0]}
    columns |= {"from": ["", ""], "until": ["", ""], name: values}
    path = world.folder / "items.parquet"
    pq.write_table(pa.table(columns), path)
    return items(world, path.read_bytes(), path="items.parquet")


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("tags", pa.array([["p", "q"]] * 2, pa.list_(pa.string(), 2)), ["p", "q"]),
        ("tags", pa.array([["p"], ["q"]], pa.large_list(pa.string())), ["p"]),
        ("tags", pa.array([[1, 2], [3]]), ["1", "2"]),
        ("price", pa.array([1.5, 2.5], pa.float32()).cast(pa.float16()), 1.5),
        ("price", pa.array([True, False]), 1.0),
        ("price", pa.array([12, 13], pa.uint8()), 12.0),
        ("name", pa.array(["p", "q"]).dictionary_encode(), "p"),
    ],
)
def test_parquet_types(world, name, values, expected):
    table, report = parquet(world, name, values)
    found = table[name]["a"]
    assert (list(found) if name == "tags" else found) == expected
    assert len(table) == 2
    assert not report.cells


@pytest.mark.parametrize(
    ("name", "values", "kind"),
    [
        ("tags", pa.array([[["p"]], [["q"]]]), "list<element: list<element: string>>"),
        ("name", pa.array([{"en": "p"}, {"en": "q"}]), "struct<en: string>"),
        ("tags", pa.array([[{"n": 1}], []]), "struct<n: int64>"),
    ],
)
def test_parquet_types_without_a_reading_are_one_sentence(world, name, values, kind):
    with pytest.raises(SpecError, match=f"column '{name}' is ") as refused:
        parquet(world, name, values)
    assert kind in str(refused.value)
    assert "\n" not in str(refused.value)
