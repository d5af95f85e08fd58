"""Saved datasets of Feast: the rows of a historical read, kept as Parquet."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlparse

import pyarrow as pa
import pyarrow.parquet as pq
from feast.data_format import ParquetFormat
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.saved_dataset import SavedDatasetStorage

from feature_repo.files import replace_atomically


def check_storage(storage: SavedDatasetStorage, *, allow_overwrite: bool) -> Path:
    """Return the absolute path of a storage, and write it into the storage.

    Feast would write a relative path below the repository and read it below the current folder.

    Raises:
        ValueError: it is no local Parquet file or folder.
        SavedDatasetLocationAlreadyExists: it is there, and may not be overwritten.

    """
    if not isinstance(storage, SavedDatasetFileStorage):
        kind = type(storage).__name__
        raise ValueError(f"the DuckDB store saves with SavedDatasetFileStorage, not {kind}")
    options = storage.file_options
    if urlparse(options.uri).netloc or not isinstance(options.file_format, ParquetFormat):
        raise ValueError(f"the DuckDB store saves local Parquet files, which {options.uri} is not")
    path = Path(options.uri).absolute()
    if path.exists() and not allow_overwrite:
        raise SavedDatasetLocationAlreadyExists(location=str(path))
    options.uri = str(path)
    return path


def save_rows(rows: pa.Table, path: Path) -> None:
    """Write rows in one step to a file ``*.parquet``, or to the one file of a folder.

    Raises:
        ValueError: there are none, so Feast could not say of which time they are.

    """
    if not len(rows):
        raise ValueError("the read gives no row to save")
    file = path if path.suffix == ".parquet" else path / "rows.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    with replace_atomically(file) as temporary:
        pq.write_table(rows, temporary)
