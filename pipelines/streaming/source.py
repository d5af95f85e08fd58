"""A Spark streaming source over the Redis Stream of accepted events: offsets are entry ids."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyarrow as pa
import redis
from pyspark.sql.datasource import DataSource, DataSourceStreamReader, InputPartition
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from feature_repo.events.log_names import COMMITTED, LOG
from pipelines.streaming.decode import SPARK_SCHEMA, to_batch

_STEP = 1_000
"""Entries a call: Redis serves others between."""

_SPLIT = 10_000
"""Entries worth a partition of their own."""

# The id of the entry so many places on, without its payload crossing the wire.
_SKIP = """
local found = redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[2])
return {#found, #found > 0 and found[#found][1] or ''}
"""

# Ids are compared by Redis as it compares entries; an older job's commit must not take a newer
# one's back.
_COMMIT = """
local function parts(id) local a, b = string.match(id or '0-0', '(%d+)-(%d+)') return tonumber(a), tonumber(b) end
local a, b = parts(redis.call('GET', KEYS[1]) or '0-0')
local x, y = parts(ARGV[1])
if x > a or (x == a and y > b) then redis.call('SET', KEYS[1], ARGV[1]) end
"""


@dataclass
class LogRange(InputPartition):
    """Entries after ``start`` up to and with ``end``."""

    start: str
    end: str


class LogReader(DataSourceStreamReader):
    """Plans batches in Spark's planner process and reads them in its workers; offsets are log positions."""

    def __init__(self, options: dict[str, str]) -> None:
        self._types = json.loads(options["types"])
        self._shards = json.loads(options["shards"])
        self._from = options.get("from", "0-0")
        self._max = int(options.get("max_entries", 100_000))

    def initialOffset(self) -> dict[str, str]:  # noqa: N802 - Spark's name
        """Return where a new checkpoint starts."""
        return {"position": self._from}

    def rows(self, entries: list[tuple[str, str]]) -> pa.RecordBatch:
        """Return the rows of entries (position, payload)."""
        return to_batch(entries, self._types, self._shards)


class LogSource(DataSource):
    """A streaming source of log entries as rows of ``decode.SPARK_SCHEMA``.

    Options: ``types`` (JSON list of event types), ``shards`` (JSON list), ``from`` (the position to
    start after), ``max_entries`` (a batch), and those of the log's place.
    """

    reader: type[LogReader]

    def schema(self) -> str:
        """Return the rows' schema."""
        return SPARK_SCHEMA

    def streamReader(self, schema: Any) -> LogReader:  # noqa: N802, ARG002 - Spark's names
        """Return the reader."""
        return self.reader(dict(self.options))


class RedisLogReader(LogReader):
    """Reads the Redis Stream."""

    def __init__(self, options: dict[str, str]) -> None:
        super().__init__(options)
        self._url = options["secret_url"]
        self._marks: list[str] = []
        self._client: redis.Redis | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_client": None}

    def _redis(self) -> redis.Redis:
        if self._client is None:
            self._client = patient_client(self._url)
        return self._client

    def latestOffset(self, start: dict[str, str], limit: Any) -> dict[str, str]:  # noqa: N802, ARG002
        """Return the newest entry, or the one ``max_entries`` on from ``start``."""
        client, position, taken = self._redis(), start["position"], 0
        self._marks = [position]
        marked = 0
        while taken < self._max:
            answer: Any = client.eval(_SKIP, 1, LOG, f"({position}", min(_STEP, self._max - taken))
            count, last = answer
            if not count:
                break
            position, taken = last.decode(), taken + count
            if taken - marked >= _SPLIT:
                self._marks.append(position)
                marked = taken
            if count < _STEP:
                break
        return {"position": position}

    def partitions(self, start: dict[str, str], end: dict[str, str]) -> list[LogRange]:
        """Return the ranges to read: several of a big batch, one of a batch that is run again after a crash."""
        marks = self._marks if self._marks[:1] == [start["position"]] else []
        inner = [mark for mark in marks[1:] if mark != end["position"]]
        bounds = [start["position"], *inner, end["position"]]
        return [LogRange(*pair) for pair in pairwise(bounds)]

    def read(self, partition: LogRange) -> Iterator[pa.RecordBatch]:  # type: ignore[override]
        """Yield the rows of a range."""
        client, position = self._redis(), partition.start
        while True:
            entries = client.xrange(LOG, min=f"({position}", max=partition.end, count=_STEP)
            if not entries:
                return
            found = [
                (key.decode(), fields.get(b"event", b"").decode(errors="replace"))
                for key, fields in entries  # type: ignore[union-attr]
            ]
            position = found[-1][0]
            yield self.rows(found)

    def commit(self, end: dict[str, str]) -> None:
        """Say that entries up to ``end`` are finished with, so that they may be trimmed."""
        self._redis().eval(_COMMIT, 1, COMMITTED, end["position"])


class RedisLogSource(LogSource):
    """``spark.readStream.format("funnel_redis_log")``; its place is ``secret_url``: Spark's logs redact such names."""

    reader = RedisLogReader

    @classmethod
    def name(cls) -> str:
        """Return the format's name."""
        return "funnel_redis_log"


def patient_client(url: str) -> redis.Redis:
    """Return a client that waits about a minute for a Redis that does not answer before it gives up."""
    retry = Retry(ExponentialBackoff(cap=1.0, base=0.02), 60)
    errors: list[type[Exception]] = [
        redis.ConnectionError,
        redis.TimeoutError,
        redis.BusyLoadingError,
    ]
    return redis.Redis.from_url(
        url, socket_timeout=15, socket_connect_timeout=5, retry=retry, retry_on_error=errors
    )
