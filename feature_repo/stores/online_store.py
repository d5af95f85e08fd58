"""Feast's Redis online store, in which no older row replaces a newer one.

Neither beside a stream, which may have written meanwhile, nor when a range of the past is
materialized.

The layout of keys, fields and values is Feast's own
(https://github.com/feast-dev/feast/blob/master/docs/specs/online_store_format.md), so Feast reads
every row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import redis
from feast import FeatureView, RepoConfig
from feast.infra.online_stores.helpers import _mmh3, _redis_key
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig
from feast.infra.supported_async_methods import SupportedAsyncMethods
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import FloatList, Int64List, StringList, Value
from feast.types import Array, FeastType, Float32, Float64, Int64, String
from google.protobuf.timestamp_pb2 import Timestamp

from feature_repo import columns as c
from feature_repo.aggregates.definition import AggregateView
from feature_repo.aggregates.state import values_of
from feature_repo.declarations.aggregate_views import computed_as_of, definition_of, feature_types
from feature_repo.erased import ErasedUsers
from feature_repo.stores.embedded_redis import connect
from feature_repo.workspace import Workspace, default_root

_ROWS_A_CALL = 1_000

# Writes only if the row is still the one whose time was compared: the stream may have written
# meanwhile.
_REPLACE = """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= (ARGV[2] ~= '' and ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
return 1
"""


_WrittenRow = tuple[EntityKey, dict[str, Value], datetime, datetime | None]
"""A row as Feast gives it to a store: entity, values, time, time of making."""


class StreamSafeRedisOnlineStoreConfig(RedisOnlineStoreConfig):
    """The options of Feast's Redis store; ``home`` is the working folder, by default that in use.

    It travels to Spark's workers, whose environment does not name it.
    """

    type: str = "feature_repo.stores.online_store.StreamSafeRedisOnlineStore"  # type: ignore[assignment]
    home: str | None = None


class StreamSafeRedisOnlineStore(RedisOnlineStore):
    """Feast's Redis store, but materialization leaves rows that are newer than its own.

    Nor does it write rows of erased users, which a table that somebody else keeps may still have.
    """

    _erased: ErasedUsers | None = None

    @property
    def async_supported(self) -> SupportedAsyncMethods:
        """Return that there is no asynchronous access, so ``feast serve`` takes the methods below.

        Feast's asynchronous ones know neither the embedded server nor what these methods add.
        """
        return SupportedAsyncMethods(read=False, write=False)

    def _writable(
        self, config: RepoConfig, client: redis.Redis, rows: Sequence[_WrittenRow]
    ) -> list[_WrittenRow]:
        """Return the rows that have an id, without those of erased users."""
        if self._erased is None:
            self._erased = ErasedUsers(_workspace(config.online_store), client)
        with_key = [row for row in rows if _has_key(row[0])]
        users = {row[0].entity_values[0].string_val for row in with_key if _is_of_user(row[0])}
        erased = self._erased.among(users)
        return [
            row
            for row in with_key
            if not (_is_of_user(row[0]) and row[0].entity_values[0].string_val in erased)
        ]

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[_WrittenRow],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write the rows that are not older than what is stored."""
        client = self._get_client(config.online_store)
        replace = client.register_script(_REPLACE)
        version = config.entity_key_serialization_version
        for start in range(0, len(data), _ROWS_A_CALL):
            part = self._writable(config, client, data[start : start + _ROWS_A_CALL])
            newest = {
                _redis_key(config.project, row[0], version): row for row in sorted(part, key=_time)
            }
            keys = list(newest)
            with client.pipeline(transaction=False) as read:
                for key in keys:
                    read.hget(key, stamp_field(table.name))
                stored = read.execute()
            with client.pipeline(transaction=False) as write:
                for key, old in zip(keys, stored, strict=True):
                    _, values, timestamp, _created = newest[key]
                    micros = int(timestamp.timestamp() * 1e6)
                    if old and Timestamp.FromString(old).ToMicroseconds() > micros:
                        continue
                    encoded = {name: value.SerializeToString() for name, value in values.items()}
                    fields = row_fields(table.name, encoded, timestamp)
                    flat = [word for pair in fields.items() for word in pair]
                    replace(
                        keys=[key], args=[stamp_field(table.name), old or b"", *flat], client=write
                    )
                write.execute()
            if progress:
                progress(len(data[start : start + _ROWS_A_CALL]))
        client.incr(written_key(table.name))

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        """Return rows as Feast does; aggregates of events as of now, not as they were written."""
        if not computed_as_of(table):
            rows: list[tuple[datetime | None, dict[str, Value] | None]] = super().online_read(
                config, table, entity_keys, requested_features
            )
            return rows
        view = definition_of(table)
        wanted = requested_features or [field.name for field in table.features]
        names = list(dict.fromkeys([*wanted, view.state_column]))
        micros = time.time_ns() // 1_000
        stored = super().online_read(config, table, entity_keys, names)
        return [(at, _as_of(view, row, wanted, micros)) for at, row in stored]

    def _read_features_per_fv(self, config: RepoConfig, grouped_refs: Any, *rest: Any) -> None:
        """Read views of aggregates one by one, by ``online_read``; all others in one trip."""
        computed = [pair for pair in grouped_refs if computed_as_of(pair[0])]
        plain = [pair for pair in grouped_refs if pair not in computed]
        super()._read_features_per_fv(config, plain, *rest)
        OnlineStore._read_features_per_fv(self, config, computed, *rest)


def _as_of(
    view: AggregateView, row: dict[str, Value] | None, wanted: Sequence[str], micros: int
) -> dict[str, Value] | None:
    """Return the wanted features of a stored row of a view as of a time."""
    stored = row[view.state_column].string_val if row else ""
    if not row or not stored:  # materialized from a past range: the values as they were then
        return row and {name: row[name] for name in wanted}
    values = {view.state_column: stored, **values_of(view, stored, micros)}
    types = feature_types(view)
    return {
        name: Value() if values[name] is None else _ENCODERS[types[name]](values[name])
        for name in wanted
    }


class EmbeddedRedisOnlineStoreConfig(StreamSafeRedisOnlineStoreConfig):
    """``timeout_s``: the limit of a call."""

    type: str = "feature_repo.stores.online_store.EmbeddedRedisOnlineStore"
    timeout_s: float = 5.0


class EmbeddedRedisOnlineStore(StreamSafeRedisOnlineStore):
    """The store on the embedded server, which it starts when it is not running."""

    _client: redis.Redis | None = None

    def _get_client(self, online_store_config: EmbeddedRedisOnlineStoreConfig) -> redis.Redis:
        if not self._client:
            folder = _workspace(online_store_config).redis
            self._client = connect(folder, online_store_config.timeout_s)
        return self._client


def _workspace(config: StreamSafeRedisOnlineStoreConfig) -> Workspace:
    """Return the working folder: of the list of erased users, and of the embedded server."""
    return Workspace(Path(config.home) if config.home else default_root())


def _is_of_user(entity: EntityKey) -> bool:
    return list(entity.join_keys) == [c.USER]


def _has_key(entity: EntityKey) -> bool:
    return all(value.WhichOneof("val") not in (None, "null_val") for value in entity.entity_values)


def _time(row: _WrittenRow) -> datetime:
    return row[2]


def written_key(view: str) -> str:
    """Return the key of a counter of writes to a view: caches of its rows compare it."""
    return f"funnel:written:{view}"


@cache
def stamp_field(view: str) -> bytes:
    """Return the field of a row's hash that holds the time of a view's values."""
    return f"_ts:{view}".encode()


@cache
def _feature_field(view: str, feature: str) -> bytes:
    field: bytes = _mmh3(f"{view}:{feature}")
    return field


def row_fields(view: str, encoded: Mapping[str, bytes], timestamp: datetime) -> dict[bytes, bytes]:
    """Return the hash fields of a row of a view, from encoded values."""
    fields = {_feature_field(view, name): value for name, value in encoded.items()}
    return {stamp_field(view): encode_timestamp(timestamp), **fields}


def encode_timestamp(timestamp: datetime) -> bytes:
    """Return a row's time as it is stored."""
    stamp = Timestamp()
    stamp.FromDatetime(timestamp)
    return bytes(stamp.SerializeToString())


def row_key(config: RepoConfig, join_key: str, value: str) -> bytes:
    """Return the Redis key of an entity's hash."""
    entity = EntityKey(join_keys=[join_key], entity_values=[Value(string_val=value)])
    key: bytes = _redis_key(config.project, entity, config.entity_key_serialization_version)
    return key


_ENCODERS: dict[FeastType, Callable[[Any], Value]] = {
    String: lambda value: Value(string_val=value),
    Int64: lambda value: Value(int64_val=value),
    Float64: lambda value: Value(double_val=value),
    Array(String): lambda value: Value(string_list_val=StringList(val=value)),
    Array(Float32): lambda value: Value(float_list_val=FloatList(val=value)),
    Array(Int64): lambda value: Value(int64_list_val=Int64List(val=value)),
}


class RowEncoder:
    """Encodes rows of a streamed view without a data frame between."""

    def __init__(self, view: str, schema: Mapping[str, FeastType]) -> None:
        """``schema``: the view's features and their types."""
        self._stamp = stamp_field(view)
        self._columns = [
            (_feature_field(view, name), name, _ENCODERS[kind]) for name, kind in schema.items()
        ]

    def fields(self, row: Mapping[str, Any], timestamp: bytes) -> dict[bytes, bytes]:
        """Return the hash fields of a row; ``timestamp`` is the result of ``encode_timestamp``."""
        fields = {
            field: (encode(row[name]) if row[name] is not None else Value()).SerializeToString()
            for field, name, encode in self._columns
        }
        return {self._stamp: timestamp, **fields}


class RowReader:
    """Reads an entity's rows of several views in one command, with the values that Feast gives.

    Feast's own read of a user with six views takes 1.3 ms on the machine of docs/results.md, this
    one 0.2.
    """

    def __init__(
        self, config: RepoConfig, join_key: str, views: Mapping[str, Sequence[str]]
    ) -> None:
        """``views``: the names of the features of each view to read."""
        self._config = config
        self._join_key = join_key
        self._views = list(views)
        self._names = [name for names in views.values() for name in names]
        stamps = [stamp_field(view) for view in views]
        self.fields = stamps + [
            _feature_field(view, name) for view, names in views.items() for name in names
        ]

    def key(self, value: str) -> bytes:
        """Return the key of the hash of which ``fields`` are to be fetched."""
        return row_key(self._config, self._join_key, value)

    def decode(
        self, values: Sequence[bytes | None]
    ) -> tuple[dict[str, Any], dict[str, int | None]]:
        """Return features (None: missing) and each view's time, epoch seconds (None: no row)."""
        count = len(self._views)
        stamps = {
            view: Timestamp.FromString(value).seconds if value else None
            for view, value in zip(self._views, values[:count], strict=True)
        }
        return dict(zip(self._names, map(_decode, values[count:]), strict=True)), stamps


_SMALL_INT64 = Value(int64_val=1).SerializeToString()[0]


def _decode(value: bytes | None) -> Any:
    if not value:
        return None
    if len(value) == 2 and value[0] == _SMALL_INT64 and value[1] < 128:
        return value[1]  # most values are small counts
    message = Value.FromString(value)
    kind = message.WhichOneof("val")
    if kind is None or kind == "null_val":
        return None
    plain = getattr(message, kind)
    return list(plain.val) if kind.endswith("_list_val") else plain
