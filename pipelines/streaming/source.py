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
from pipelines.streaming.decode import SPARK_SCHEMA, LogReading, to_batch

_STEP = 1_000
"""Entries per call: Redis serves other clients between calls."""

_ENTRIES_PER_PARTITION = 10_000

# Returns the number of entries and the last one's id, so that no payload crosses the wire.
_SKIP = """
local found = redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[2])
return {#found, #found > 0 and found[#found][1] or ''}
"""

# Ids are compared as numbers; an older job's commit must not replace a newer one.
_COMMIT = """
local function parts(id)
  local a, b = string.match(id or '0-0', '(%d+)-(%d+)')
  return tonumber(a), tonumber(b)
end
local a, b = parts(redis.call('GET', KEYS[1]) or '0-0')
local x, y = parts(ARGV[1])
if x > a or (x == a and y > b) then redis.call('SET', KEYS[1], ARGV[1]) end
"""


@dataclass
class LogRange(InputPartition):
    """The entries after ``start``, ``end`` included."""

    start: str
    end: str


class LogReader(DataSourceStreamReader):
    """Plans batches and reads them in Spark's workers; offsets are log positions."""

    def __init__(self, options: dict[str, str]) -> None:
        self._reading = LogReading(**json.loads(options["reading"]))
        self._max = self._reading.max_entries

    def initialOffset(self) -> dict[str, str]:  # noqa: N802 - Spark's name
        """Return where a new checkpoint starts."""
        return {"position": self._reading.start}

    def rows(self, entries: list[tuple[str, str]]) -> pa.RecordBatch:
        """Return the rows of entries (position, payload)."""
        return to_batch(entries, self._reading)


class LogSource(DataSource):
    """A streaming source of log entries as rows of ``decode.SPARK_SCHEMA``.

    Options: ``reading`` (a ``LogReading`` as JSON), and the log's address.
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
        self._boundaries: list[str] = []
        self._client: redis.Redis | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_client": None}

    def _redis(self) -> redis.Redis:
        if self._client is None:
            self._client = patient_client(self._url)
        return self._client

    def latestOffset(  # noqa: N802
        self,
        start: dict[str, str],
        limit: Any,  # noqa: ARG002
    ) -> dict[str, str]:
        """Return the newest entry, or the one ``max_entries`` on from ``start``."""
        client = self._redis()
        position = start["position"]
        entries = 0
        self._boundaries = [position]
        entries_before_boundary = 0
        while entries < self._max:
            step = min(_STEP, self._max - entries)
            answer: Any = client.eval(_SKIP, 1, LOG, f"({position}", step)
            count, last = answer
            if not count:
                break
            position = last.decode()
            entries += count
            if entries - entries_before_boundary >= _ENTRIES_PER_PARTITION:
                self._boundaries.append(position)
                entries_before_boundary = entries
            if count < _STEP:
                break
        return {"position": position}

    def partitions(self, start: dict[str, str], end: dict[str, str]) -> list[LogRange]:
        """Return the ranges to read: several for a big batch, one for a repeated batch."""
        known = self._boundaries[:1] == [start["position"]]
        inner = [p for p in self._boundaries[1:] if p != end["position"]] if known else []
        bounds = [start["position"], *inner, end["position"]]
        return [LogRange(*pair) for pair in pairwise(bounds)]

    def read(self, partition: LogRange) -> Iterator[pa.RecordBatch]:  # type: ignore[override]
        """Yield the rows of a range."""
        client = self._redis()
        position = partition.start
        while True:
            entries = client.xrange(LOG, min=f"({position}", max=partition.end, count=_STEP)
            if not entries:
                return
            decoded = [
                (key.decode(), fields.get(b"event", b"").decode(errors="replace"))
                for key, fields in entries  # type: ignore[union-attr]
            ]
            position = decoded[-1][0]
            yield self.rows(decoded)

    def commit(self, end: dict[str, str]) -> None:
        """Store that entries up to ``end`` are finished, so that they may be trimmed."""
        self._redis().eval(_COMMIT, 1, COMMITTED, end["position"])


class RedisLogSource(LogSource):
    """``spark.readStream.format("funnel_redis_log")``.

    Its address is the option ``secret_url``: Spark's logs redact options of such names.
    """

    reader = RedisLogReader

    @classmethod
    def name(cls) -> str:
        """Return the format's name."""
        return "funnel_redis_log"


def patient_client(url: str) -> redis.Redis:
    """Return a client that repeats a call for about a minute before it gives up."""
    retry = Retry(ExponentialBackoff(cap=1.0, base=0.02), 60)
    errors: list[type[Exception]] = [
        redis.ConnectionError,
        redis.TimeoutError,
        redis.BusyLoadingError,
    ]
    return redis.Redis.from_url(
        url, socket_timeout=15, socket_connect_timeout=5, retry=retry, retry_on_error=errors
    )
