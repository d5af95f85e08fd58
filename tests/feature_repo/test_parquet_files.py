"""A torn Parquet file is told from a whole one, set aside and named; nothing else is touched."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo.parquet_files import (
    files_set_aside,
    original_name,
    read_whole,
    set_torn_aside,
    why_unreadable,
)

SCHEMA = pa.schema([("user_id", pa.string()), ("n", pa.int64())])
TORN = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-30]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "zeros at the end": lambda path: path.write_bytes(path.read_bytes()[:-100] + bytes(100)),
}


@pytest.fixture
def path(tmp_path):
    rows = {"user_id": [f"u{n}" for n in range(1_000)], "n": list(range(1_000))}
    pq.write_table(pa.table(rows, schema=SCHEMA), tmp_path / "a.parquet", compression="zstd")
    return tmp_path / "a.parquet"


@pytest.mark.parametrize("how", TORN)
def test_a_torn_file_is_set_aside_and_named(path, how, caplog):
    assert why_unreadable(path) is None and set_torn_aside([path]) == []
    TORN[how](path)
    torn = path.read_bytes()
    assert why_unreadable(path, footer_only=True)
    assert read_whole(path, SCHEMA) is None
    (aside,) = files_set_aside(path.parent)
    assert not path.exists() and aside.read_bytes() == torn and original_name(aside) == path.name
    assert not aside.match("*.parquet") and aside.name.startswith("."), "no table's"
    (record,) = caplog.records
    assert str(path) in record.getMessage() and aside.name in record.getMessage()


def test_damage_inside_is_found_by_who_reads_all(path):
    content = bytearray(path.read_bytes())
    content[20:400] = bytes(380)
    path.write_bytes(content)
    assert why_unreadable(path, footer_only=True) is None
    assert why_unreadable(path) and read_whole(path, SCHEMA) is None
    assert files_set_aside(path.parent)


def test_a_file_of_other_columns_is_an_error_and_stays(path):
    other = pa.schema([("user_id", pa.list_(pa.int64()))])
    with pytest.raises((pa.ArrowInvalid, pa.ArrowNotImplementedError, TypeError)):
        read_whole(path, other)
    assert path.exists() and not files_set_aside(path.parent)


def test_a_file_that_is_gone_is_not_damaged(path):
    path.unlink()
    assert why_unreadable(path) is None
    with pytest.raises(FileNotFoundError):
        read_whole(path, SCHEMA)
