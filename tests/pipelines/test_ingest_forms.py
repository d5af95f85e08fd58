"""Files as programs write them: JSON arrays, nested keys, quotation marks, later columns."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.dataset import SpecError
from tests.pipelines.test_readers import bad, read, rows
from tests.support.ingest_folder import MAY, rows_of, spec_of

RECORDS = [{"a": "x", "b": 1}, {"a": "y"}, {"b": None, "a": "z"}]
EXPECTED = [["x", "1"], ["y", None], ["z", None]]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(RECORDS),
        json.dumps(RECORDS) + "\n",
        json.dumps(RECORDS, indent=2),
        "[\n" + ",\n".join(map(json.dumps, RECORDS)) + "\n]\n",
        "\n".join(json.dumps(record, indent=1) for record in RECORDS),
        "".join(map(json.dumps, RECORDS)),
    ],
    ids=["line", "line end", "indented", "object a line", "indented objects", "no separators"],
)
def test_json_that_is_not_one_object_a_line(tmp_path, text):
    raw = read(tmp_path, text, "ab", "f.json")
    assert list(rows(raw).values()) == EXPECTED
    assert list(rows(raw)) == [1, 2, 3]
    assert raw.bad.empty


def test_a_damaged_value_of_an_array_costs_only_itself(tmp_path):
    raw = read(tmp_path, '[\n{"a": 1, "b": 1},\n{"a": ,\n{"a": 3, "b": 3},\n7\n]', "ab", "f.json")
    assert list(rows(raw).values()) == [["1", "1"], ["3", "3"]]
    assert "in line 3" in bad(raw)[2]
    assert bad(raw)[4] == "broken line: not a JSON object"


def test_a_log_in_brackets_is_told_line_by_line(tmp_path):
    lines = "".join(f"[2026-10-05T10:00:00Z] line {n}\n" for n in range(1, 50_001))
    raw = read(tmp_path, lines, "ab", "f.jsonl")
    assert raw.bad["line"].tolist() == list(range(1, 50_001))


def test_an_array_of_damages_is_given_up(tmp_path):
    text = "[" + '{"a": ,\n' * 3_000 + "]"
    raw = read(tmp_path, text, "ab", "f.json")
    assert len(raw.bad) == 1_001
    assert "the rest of the file is not read" in raw.bad["reason"].iloc[-1]


@settings(max_examples=60, deadline=None)
@given(
    records=st.lists(
        st.fixed_dictionaries({"a": st.text(max_size=5), "b": st.integers() | st.none()}),
        min_size=1,
        max_size=6,
    ),
    indent=st.sampled_from([None, 0, 2]),
    array=st.booleans(),
)
def test_any_json_comes_back(records, indent, array, tmp_path_factory):
    written = [json.dumps(record, indent=indent) for record in records]
    text = f"[{', '.join(written)}]" if array else "\n".join(written)
    raw = read(tmp_path_factory.mktemp("json"), text, "ab", "f.jsonl")
    expected = [[r["a"], None if r["b"] is None else str(r["b"])] for r in records]
    assert list(rows(raw).values()) == expected
    assert raw.bad.empty


def test_nested_keys(tmp_path):
    line = '{"user": {"id": "u1", "more": {"x": 1}}, "a.b": 2, "a": {"b": 3}}\n'
    wanted = ["user.id", "user.more.x", "a.b"]
    assert rows(read(tmp_path, line, wanted, "f.jsonl")) == {1: ["u1", "1", "2"]}
    with pytest.raises(SpecError) as refused:
        read(tmp_path, line, ["user.name"], "f.jsonl")
    assert "['user', 'user.id', 'user.more', 'a.b', 'a']" in str(refused.value)


BACKSLASHED = 'a,b,c\n1,"12\\" pan, black",x\n2,"a \\\\ b",y\n3,C:\\temp,z\n'


@pytest.mark.parametrize("quoting", ["auto", "backslash"])
def test_quotation_marks_behind_a_backslash(tmp_path, quoting):
    raw = read(tmp_path, BACKSLASHED, "abc", quoting=quoting)
    assert rows(raw) == {
        2: ["1", '12" pan, black', "x"],
        3: ["2", "a \\ b", "y"],
        4: ["3", "C:\\temp", "z"],
    }
    assert raw.bad.empty
    assert bool(raw.notes) == (quoting == "auto")


def test_backslashes_of_a_well_quoted_file_stay(tmp_path):
    raw = read(tmp_path, 'a,b,c\n1,"C:\\",x\n2,"a \\\\ ""b""",y\n', "abc")
    assert rows(raw) == {2: ["1", "C:\\", "x"], 3: ["2", 'a \\\\ "b"', "y"]}
    assert not raw.notes


def test_stray_quotation_marks_are_told_with_what_to_do(tmp_path):
    text = 'a\tb\tc\n1\t"Best" atlas\tx\n2\t12" pan\ty\n3\tpot\tz\n'
    raw = read(tmp_path, text, "abc", separator="\t")
    assert sorted(rows(raw)) == [3, 4]
    assert "set quoting = 'none'" in raw.notes[0]
    raw = read(tmp_path, text, "abc", separator="\t", quoting="none")
    assert rows(raw)[2] == ["1", '"Best" atlas', "x"]
    assert raw.bad.empty


def test_a_stray_quotation_mark_does_not_swallow_rows(tmp_path):
    lines = [f"u{n},i{n},{n}" for n in range(20)]
    lines[3] = 'u3,"i3,3'
    lines[15] = 'u15,i15,15"'
    raw = read(tmp_path, "a,b,c\n" + "\n".join(lines) + "\n", "abc")
    assert len(rows(raw)) == 19
    assert list(bad(raw)) == [5]


@given(texts=st.lists(st.text(st.sampled_from('ab"\\ ,\n'), max_size=6), min_size=1, max_size=6))
@settings(max_examples=80, deadline=None)
def test_what_spark_writes_is_read_with_backslashes(texts, tmp_path_factory):
    def escaped(text):
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    content = "a,b,c\n" + "".join(f"1,{escaped(text)},x\n" for text in texts)
    raw = read(tmp_path_factory.mktemp("csv"), content, ["b"], quoting="backslash")
    assert [values[0] for values in rows(raw).values()] == [text or None for text in texts]


TYPED = {"value": "paid", "type": "type", "types": {"view": {"positive": True}}}


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_column_that_came_later(world, suffix):
    old = {"user": "u", "item": "i", "time": MAY, "type": "view"}
    for name, record in (("1", old), ("2", {"paid": 9.5, **old, "user": "v"})):
        if suffix == "csv":
            text = rows_of(",".join(map(str, record.values())), header=",".join(record))
        else:
            text = json.dumps(record) + "\n"
        world.write(f"events/{name}.{suffix}", text)
    report = world.ingest(spec_of("events", **TYPED))
    values = world.events().set_index("user_id")["value"]
    assert (values.isna()["u"], values["v"]) == (True, 9.5)
    [note] = [note for note in report.notes if "'paid'" in note]
    assert note.startswith(f"events/1.{suffix}: no 'paid'")


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_column_that_no_file_has_is_a_mistake(world, suffix):
    record = {"user": "u", "item": "i", "time": MAY, "type": "view"}
    text = json.dumps(record) + "\n"
    if suffix == "csv":
        text = rows_of(",".join(map(str, record.values())), header=",".join(record))
    world.write(f"events.{suffix}", text)
    with pytest.raises(SpecError, match="paid"):
        world.ingest(spec_of(f"events.{suffix}", **TYPED))
    assert not world.workspace.root.exists()


def test_an_attribute_that_came_later(world):
    world.write("events.csv", rows_of(f"u,a,{MAY}"))
    world.write("items/1.csv", "id,name\na,A\nb,B\n")
    world.write("items/2.csv", "price,name,id\n3,C,c\n")
    items = {"path": "items", "key": "id", "attributes": {"name": "text", "price": "numeric"}}
    report = world.ingest(spec_of(items=items))
    assert report.items == 3
    assert any("items/1.csv: no 'price'; it is missing in 2 rows" in note for note in report.notes)
    assert not report.warnings
