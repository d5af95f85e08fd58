"""Tables of a user's own: a Feast view over Parquet that somebody else keeps."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from urllib.parse import urlparse

import pyarrow as pa
import pyarrow.dataset as ds
from feast import Entity, FeatureView, Field, FileSource
from feast.data_format import ParquetFormat
from feast.type_map import pa_to_feast_value_type
from feast.types import FeastType, Float32, Float64, Int32, Int64, String, from_value_type
from pyarrow.dataset import dataset

from feature_repo import columns as c
from feature_repo.declarations.checks import (
    NAME,
    NAME_RULE,
    NUMERIC,
    VECTORS,
    DeclaredView,
    entity_of,
)

_HOLDS = {
    Float64: (Float32, Int32, Int64),
    Float32: (Float64, Int32, Int64),
    Int64: (Int32,),
}
"""Declared types, and the stored types that they may hold."""


def declared_table(view: FeatureView, folder: Path) -> DeclaredView:
    """Return a view over a table; its file must have what the view says.

    Args:
        view: as the ``features.py`` declares it.
        folder: of the ``features.py``, to which a relative path of the table is relative.

    Raises:
        ValueError: the table is missing, or lacks a column, or one has another type.

    """
    entity = entity_of(view)
    if not isinstance(view.batch_source, FileSource):  # SparkSource: Spark knows its columns
        fields = [field for field in view.schema if field.name != entity.join_key]
        lengths = {field.name: field.vector_length for field in fields if field.dtype in VECTORS}
        return _declared(entity, view, fields, lengths)

    given = view.batch_source
    path = given.path if urlparse(given.path).netloc else str((folder / given.path).resolve())
    columns = _columns(path)
    stamp = given.timestamp_field
    if stamp not in columns.names:
        raise ValueError(f"{path} has no column '{stamp}' of times, only {columns.names}")
    if not pa.types.is_timestamp(columns.field(stamp).type):
        raise ValueError(f"{path}: '{stamp}' is {columns.field(stamp).type}, not a timestamp")
    if entity.join_key not in columns.names:
        raise ValueError(f"{path} has no column '{entity.join_key}', only {columns.names}")
    key = columns.field(entity.join_key).type
    if not (pa.types.is_string(key) or pa.types.is_large_string(key)):
        raise ValueError(f"{path}: '{entity.join_key}' is {key}; ids are strings")

    created = given.created_timestamp_column
    if created and created not in columns.names:
        raise ValueError(f"{path} has no column '{created}', only {columns.names}")
    not_features = {entity.join_key, stamp, created}
    fields = [field for field in view.schema if field.name not in not_features]
    for field in fields:
        if field.name not in columns.names:
            raise ValueError(f"{path} has no column '{field.name}', only {columns.names}")
        stored = _feast_type(path, columns.field(field.name))
        if field.dtype != stored and stored not in _HOLDS.get(field.dtype, ()):
            raise ValueError(f"{path}: '{field.name}' is {stored}, declared as {field.dtype}")
    fields = fields or [
        Field(name=name, dtype=_feast_type(path, columns.field(name)))
        for name in columns.names
        if name not in not_features
    ]
    bad = [field.name for field in fields if not NAME.fullmatch(field.name)]
    if bad:
        raise ValueError(f"'{bad[0]}': {NAME_RULE}")

    registered = FeatureView(
        name=view.name,
        entities=[entity],
        ttl=view.ttl,
        schema=[Field(name=entity.join_key, dtype=String), *fields],
        source=FileSource(
            name=given.name if given.name != given.path else f"{view.name}_source",
            path=path,
            timestamp_field=stamp,
            created_timestamp_column=created,
            file_format=given.file_format or ParquetFormat(),
        ),
        online=view.online,
        tags=view.tags,
        description=view.description,
        owner=view.owner,
    )
    lengths = {
        field.name: field.vector_length or _length(path, field.name)
        for field in fields
        if field.dtype in VECTORS
    }
    return _declared(entity, registered, fields, lengths)


def read_by_spark(view: FeatureView) -> FeatureView:
    """Return a view that Spark reads, over the same Parquet: for the profile ``cluster``."""
    given = view.batch_source
    if not isinstance(given, FileSource):
        return view
    from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource

    view = copy(view)
    view.batch_source = SparkSource(
        name=given.name,
        path=given.path,
        file_format="parquet",
        timestamp_field=given.timestamp_field,
        created_timestamp_column=given.created_timestamp_column,
    )
    return view


def _declared(
    entity: Entity, registered: FeatureView, fields: list[Field], lengths: dict[str, int]
) -> DeclaredView:
    """Return a view with its features by what a model can read; ``lengths`` 0: unknown."""
    of_items = entity.join_key == c.ITEM
    return DeclaredView(
        entity.join_key,
        tuple(field.name for field in fields if field.dtype in NUMERIC),
        registered,
        vectors={name: length for name, length in lengths.items() if length and of_items},
        categorical=tuple(field.name for field in fields if field.dtype == String),
    )


def _length(path: str, column: str) -> int:
    """Return the length of the first vector of a column; 0: it has none."""
    known = ds.field(column).is_valid()
    rows = dataset(path, format="parquet").scanner(columns=[column], filter=known).head(1)
    return len(rows[column][0]) if len(rows) else 0


def _feast_type(path: str, column: pa.Field) -> FeastType:
    """Return the type that Feast has for a column of a file.

    Raises:
        ValueError: it has none.

    """
    # Text and lists with longer offsets, and lists as Parquet names their parts.
    plain = str(column.type).replace("large_", "").replace("<element: ", "<item: ")
    try:
        return from_value_type(pa_to_feast_value_type(plain))
    except (KeyError, ValueError):
        raise ValueError(
            f"{path}: '{column.name}' is {column.type}, which Feast does not store: "
            "cast it, or name the other columns in a schema"
        ) from None


def _columns(path: str) -> pa.Schema:
    """Return the columns of a Parquet file or folder."""
    try:
        return dataset(path, format="parquet").schema
    except FileNotFoundError:
        raise ValueError(f"there is no table {path}") from None
    except (OSError, pa.ArrowInvalid) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} cannot be read as Parquet: {reason}") from None
