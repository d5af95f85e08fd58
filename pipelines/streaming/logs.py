"""The reading end of the event log's adapters: each gives a streaming DataFrame of the same rows."""

from __future__ import annotations

import json
from dataclasses import dataclass

from pyspark.sql import DataFrame, SparkSession

from feature_repo.store import redis_url
from feature_repo.workspace import Workspace
from pipelines.streaming.source import RedisLogSource


@dataclass(frozen=True)
class Reading:
    """How a log is read.

    ``types``: the spec's event types in order; ``shards``: the numbers that keys are spread over; ``start``:
    the position after which a new checkpoint begins; ``max_entries``: at most so many in a batch.
    """

    types: list[str]
    shards: list[int]
    start: str
    max_entries: int


def log_entries(spark: SparkSession, workspace: Workspace, reading: Reading) -> DataFrame:
    """Return the log's entries as rows of ``decode.SPARK_SCHEMA``."""
    spark.dataSource.register(RedisLogSource)
    options = {
        "secret_url": redis_url(workspace),
        "types": json.dumps(reading.types),
        "shards": json.dumps(reading.shards),
        "from": reading.start,
        "max_entries": str(reading.max_entries),
    }
    return spark.readStream.format(RedisLogSource.name()).options(**options).load()
