"""Tables of a user's own: a Feast view over Parquet that somebody else keeps."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlparse

import pyarrow as pa
from feast import FeatureView, Field, FileSource
from feast.type_map import pa_to_feast_value_type
from feast.types import Bool, Float32, Float64, Int32, Int64, String, from_value_type
from pyarrow.dataset import dataset

from feature_repo.declarations.checks import NAME, NAME_RULE, DeclaredView, entity_of

_NUMERIC = {Bool, Float32, Float64, Int32, Int64}


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
        numeric = tuple(field.name for field in fields if field.dtype in _NUMERIC)
        return DeclaredView(entity.join_key, numeric, view)

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

    not_features = {entity.join_key, stamp, given.created_timestamp_column}
    stored = {
        name: from_value_type(pa_to_feast_value_type(str(columns.field(name).type)))
        for name in columns.names
        if name not in not_features
    }
    declared = {field.name: field for field in view.schema if field.name not in not_features}
    for name, field in declared.items():
        if name not in stored:
            raise ValueError(f"{path} has no column '{name}', only {columns.names}")
        if field.dtype != stored[name]:
            raise ValueError(f"{path}: '{name}' is {stored[name]}, declared as {field.dtype}")
    fields = list(declared.values()) or [Field(name=n, dtype=kind) for n, kind in stored.items()]
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
            created_timestamp_column=given.created_timestamp_column,
            file_format=given.file_format,
        ),
        online=view.online,
        tags=view.tags,
        description=view.description,
        owner=view.owner,
    )
    numeric = tuple(field.name for field in fields if field.dtype in _NUMERIC)
    return DeclaredView(entity.join_key, numeric, registered)


def _columns(path: str) -> pa.Schema:
    """Return the columns of a Parquet file or folder."""
    try:
        return dataset(path, format="parquet").schema
    except FileNotFoundError:
        raise ValueError(f"there is no table {path}") from None
    except (OSError, pa.ArrowInvalid) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} cannot be read as Parquet: {reason}") from None
