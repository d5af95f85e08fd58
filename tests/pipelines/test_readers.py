"""Every layout comes back as strings with the right line numbers, and nothing is lost."""

import gzip
import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.dataset import SpecError, Table
from pipelines.ingest import delimited
from pipelines.ingest.readers import check_header, find_files, read_file


def read(tmp_path, content, wanted, name="f.csv", **options):
    path = tmp_path / name
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return read_file(path, Table(path=name, **options), list(wanted))


def rows(raw):
    """Return line -> values (None: missing) of the rows read."""
    frame = raw.rows.astype("object").where(raw.rows.notna(), None)
    return dict(zip(frame.index.tolist(), frame.to_numpy().tolist(), strict=True))


def bad(raw):
    return dict(zip(raw.bad["line"].tolist(), raw.bad["reason"].tolist(), strict=True))


WRONG_COUNT = "broken line: wrong number of columns"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["f.csv", "f.csv.gz"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_csv_line_ends_and_byte_order_mark(tmp_path, end, bom, name, quote):
    lines = ["a,b", "1,x", "", f"2,{quote}é{quote}", "3", "4,", ""]
    raw = read(tmp_path, bom + end.join(lines).encode(), "ba", name)
    assert rows(raw) == {2: ["x", "1"], 4: ["é", "2"], 6: [None, "4"]}
    assert bad(raw) == {5: WRONG_COUNT}


def test_no_newline_at_the_end_and_no_rows(tmp_path):
    assert rows(read(tmp_path, "a,b\n1,2", "ab")) == {2: ["1", "2"]}
    assert rows(read(tmp_path, "a,b", "ab")) == {}
    assert rows(read(tmp_path, "a,b\n\n\n", "ab")) == {}
    assert rows(read(tmp_path, '"a",b\n', "ab")) == {}


def test_one_column(tmp_path):
    assert rows(read(tmp_path, "a\nx\n\ny\n", "a")) == {2: ["x"], 4: ["y"]}


def test_quoted_values_span_lines_also_in_columns_that_nobody_wants(tmp_path):
    content = 'a,note,b\n1,"one\ntwo\nthree",x\n2,"say ""hi"", you",y\n3,plain\n4,"\n",z\n5,,w\n'
    raw = read(tmp_path, content, "ab")
    assert rows(raw) == {2: ["1", "x"], 5: ["2", "y"], 7: ["4", "z"], 9: ["5", "w"]}
    assert bad(raw) == {6: WRONG_COUNT}
    wide = read(tmp_path, content, ["note"])
    assert rows(wide)[2] == ["one\ntwo\nthree"]
    assert rows(wide)[5] == ['say "hi", you']


def test_an_open_quote_spoils_its_own_line_only(tmp_path):
    raw = read(tmp_path, 'a,b\n1,"x\n2,y\n3,"z"\n4,"w" w\n5,in "the" midst\n6,"last\n', "ab")
    assert rows(raw) == {3: ["2", "y"], 4: ["3", "z"], 6: ["5", 'in "the" midst']}
    assert sorted(bad(raw)) == [2, 5, 7]
    assert raw.bad["row"].tolist()[0] == '1,"x'


def test_a_field_longer_than_the_csv_module_allows_by_default(tmp_path):
    text = "x" * 200_000
    assert rows(read(tmp_path, f'a,b\n1,"{text}"\n', "ab")) == {2: ["1", text]}


@pytest.mark.parametrize("quote", ["", '"'])
def test_lines_that_do_not_decode(tmp_path, quote):
    content = f"a,b\n1,{quote}x{quote}\n2,\xe9\n3,y\n".encode("latin-1") + b"4,\x00\n5,z\n"
    raw = read(tmp_path, content, "ab")
    assert rows(raw) == {2: ["1", "x"], 4: ["3", "y"], 6: ["5", "z"]}
    assert bad(raw) == {3: "not valid utf-8", 5: "broken line: NUL byte"}
    assert raw.bad["row"].tolist() == ["2,\ufffd", "4,\\0"]
    assert rows(read(tmp_path, "a,b\n2,\xe9\n".encode("latin-1"), "ab", encoding="iso-8859-1")) == {
        2: ["2", "é"]
    }


def test_a_damaged_line_within_a_quoted_value_spoils_the_whole_row(tmp_path):
    raw = read(tmp_path, b'a,b\n1,"x\n\xff\ny"\n2,z\n', "ab")
    assert rows(raw) == {5: ["2", "z"]}
    assert bad(raw) == {2: "not valid utf-8"}


def test_utf_16(tmp_path):
    assert rows(read(tmp_path, "a,b\n1,é\n".encode("utf-16"), "ab", encoding="utf-16")) == {
        2: ["1", "é"]
    }


def test_separators(tmp_path):
    assert rows(read(tmp_path, "a\tb\n1\t\n\t\n", "ab", separator="\t")) == {
        2: ["1", None],
        3: [None, None],
    }
    assert rows(read(tmp_path, "a¦b\n1¦2\n", "ab", separator="¦")) == {2: ["1", "2"]}
    options = {"separator": "::", "columns": ["a", "b"]}
    raw = read(tmp_path, '1::say "x\n2\n\n::\n::::\n3::a\x1fb\n', "ab", "f.dat", **options)
    assert rows(raw) == {1: ["1", 'say "x'], 4: [None, None], 6: ["3", "a\x1fb"]}
    assert bad(raw) == {2: WRONG_COUNT, 5: WRONG_COUNT}
    assert raw.bad["row"].tolist() == ["2", "::::"]


def test_rows_are_numbered_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, "_BLOCK_BYTES", 256)
    lines = ["a,b", *(f"{n}" if n % 7 == 0 else f"{n},x" for n in range(2, 1_000))]
    raw = read(tmp_path, "\n".join(lines), "ab")
    assert all(values == [str(line), "x"] for line, values in rows(raw).items())
    assert sorted([*rows(raw), *bad(raw)]) == list(range(2, 1_000))
    assert sorted(bad(raw)) == list(range(7, 1_000, 7))


FIELD = st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"]), max_size=6)


@settings(max_examples=150, deadline=None)
@given(table=st.lists(st.tuples(FIELD, FIELD, FIELD), max_size=12), quote_all=st.booleans())
def test_what_python_writes_is_what_is_read(table, quote_all, tmp_path_factory):
    lines, expected, line = ["a,b,c"], {}, 2
    for values in table:
        texts = [
            f'"{v.replace(chr(34), chr(34) * 2)}"' if quote_all or set(v) & set(',"\n') else v
            for v in values
        ]
        lines.append(",".join(texts))
        expected[line] = [value or None for value in values]
        line += 1 + lines[-1].count("\n")
    raw = read(tmp_path_factory.mktemp("csv"), "\n".join(lines) + "\n", "abc")
    assert rows(raw) == expected
    assert raw.bad.empty


@settings(max_examples=150, deadline=None)
@given(text=st.text(st.sampled_from('ab,"\n \r\0é'), max_size=60))
def test_of_any_text_every_line_that_is_not_blank_is_accounted_for(text, tmp_path_factory):
    raw = read(tmp_path_factory.mktemp("csv"), "a,b\n" + text, "ab")
    found = [*rows(raw), *bad(raw)]
    assert len(found) == len(set(found))
    body = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if '"' not in text:
        assert sorted(found) == [n for n, line in enumerate(body, start=2) if line.strip(" ")]


def test_header_is_checked(tmp_path):
    for content, message in (
        ("", "the file is empty"),
        ("1,2\n", r"no column \['a', 'b'\]; it has \['1', '2'\]"),
        ("\na,b\n", "the file is empty"),
        ("a,b,a\n", "more than one column"),
    ):
        with pytest.raises(SpecError, match=message):
            read(tmp_path, content, "ab")
    (tmp_path / "f.csv").write_text("a,b,c,c\n")
    check_header(tmp_path / "f.csv", Table(path="f.csv"), ["a", "b"])


def test_an_empty_file_without_header_has_no_rows(tmp_path):
    assert rows(read(tmp_path, "", "a", columns=["a", "b"])) == {}
    assert rows(read(tmp_path, "", "a", "f.jsonl")) == {}


@pytest.mark.parametrize("name", ["f.csv.gz", "f.jsonl.gz", "f.parquet"])
def test_a_damaged_file_is_one_sentence(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(b'a\n{"a": 1}\n' * 50)[:30])
    with pytest.raises(SpecError, match=f"^{name}: cannot be read: .+$"):
        read_file(path, Table(path=name), ["a"])


def test_json_lines(tmp_path):
    lines = [
        {"a": "x", "b": 1},
        {"a": 1.0, "b": None, "more": 3},
        {"a": True},
        {"a": ["p", None, 2], "b": {"c": 1}},
        {"a": 1.5, "b": 10**20},
    ]
    content = [json.dumps(line) for line in lines]
    content += [
        "[1]",
        "{",
        "",
        '{"a": NaN}',
        '{"a": "\\ud800"}',
        '{"a": "\\ud83d\\ude00"}',
        "[" * 50_000,
        "1" * 5_000,
    ]
    raw = read(tmp_path, "\ufeff" + "\r\n".join(content), "ab", "f.jsonl")
    assert rows(raw) == {
        1: ["x", "1"],
        2: ["1", None],
        3: ["true", None],
        4: [["p", "2"], '{"c": 1}'],
        5: ["1.5", str(10**20)],
        9: [None, None],
        11: ["😀", None],
    }
    assert sorted(bad(raw)) == [6, 7, 10, 12, 13]
    assert all(reason.startswith("broken line: ") for reason in bad(raw).values())


def test_json_lines_of_a_missing_key(tmp_path):
    with pytest.raises(SpecError, match=r"no line has the key \['b'\]"):
        read(tmp_path, '{"a": 1}\n{"a": 2}\n', "ab", "f.jsonl")
    assert rows(read(tmp_path, '{"a": 1, "b": null}\n', "ab", "f.jsonl")) == {1: ["1", None]}


def test_parquet(tmp_path):
    moment = pd.Timestamp("2024-05-01T12:00:00.123456")
    columns = {
        "text": pa.array(["x", None]),
        "whole": pa.array([7, None], pa.int64()),
        "number": pa.array([123456789012.0, float("nan")]),
        "share": pa.array([0.5, -3.0]),
        "flag": pa.array([True, None]),
        "word": pa.array(["p", "q"]).dictionary_encode(),
        "tags": pa.array([["a", None, "b"], None]),
        "naive": pa.array([moment, None], pa.timestamp("ns")),
        "zoned": pa.array(
            [moment.tz_localize("America/New_York"), None], pa.timestamp("ns", "America/New_York")
        ),
        "nanos": pa.array([1_714_564_800_123_456_789, None], pa.timestamp("ns")),
    }
    path = tmp_path / "month=2024-05" / "f.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table(columns), path)
    first, second = rows(read_file(path, Table(path="f.parquet"), list(columns))).values()
    assert first[:7] == ["x", "7", "123456789012", "0.5", "true", "p", ["a", "b"]]
    assert [pd.Timestamp(text) for text in first[7:]] == [
        moment,
        pd.Timestamp("2024-05-01T16:00:00.123456Z"),
        pd.Timestamp("2024-05-01T12:00:00.123456"),
    ]
    assert second == [None, None, None, "-3", None, "q", None, None, None, None]


def test_parquet_types_that_are_no_text_are_one_sentence(tmp_path):
    path = tmp_path / "f.parquet"
    pq.write_table(pa.table({"a": pa.array([{"b": 1}])}), path)
    with pytest.raises(SpecError, match=r"^f\.parquet: cannot be read: .*struct"):
        read_file(path, Table(path="f.parquet"), ["a"])


def test_find_files(tmp_path):
    for name in (
        "b.csv",
        "a/x.csv",
        "a/y.csv.gz",
        "a/.hidden.csv",
        "a/_SUCCESS",
        ".ipynb_checkpoints/c.csv",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a/_temporary").mkdir()
    (tmp_path / "a/_temporary/z.csv").touch()

    def names(path):
        return [
            found.relative_to(tmp_path).as_posix()
            for found in find_files(Table(path=path), tmp_path)
        ]

    assert names("b.csv") == ["b.csv"]
    assert names("a") == names("a/") == ["a/x.csv", "a/y.csv.gz"]
    assert names("a/*.csv") == ["a/x.csv"]
    assert names("**/*.csv") == ["a/x.csv", "b.csv"]
    assert names(str(tmp_path / "a")) == names(f"{tmp_path}/a/*") == ["a/x.csv", "a/y.csv.gz"]
    for nothing in ("c.csv", "c/*.csv", "/no/such/*.csv"):
        with pytest.raises(SpecError, match="no file matches"):
            names(nothing)
    with pytest.raises(SpecError, match="not a pattern"):
        names("**.csv")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("x.csv", "csv"),
        ("x.TSV", "csv"),
        ("x.dat.gz", "csv"),
        ("x.ndjson", "jsonl"),
        ("x.parquet", "parquet"),
    ],
)
def test_the_ending_says_the_format(name, kind):
    assert Table(path=".").file_format(Path(name)) == kind
    assert Table(path=".", format="jsonl").file_format(Path("x.log")) == "jsonl"
    with pytest.raises(SpecError, match="unknown file ending"):
        Table(path=".").file_format(Path("x.log"))
