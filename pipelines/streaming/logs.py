"""Reads the event log, whichever its adapter, as a streaming DataFrame of the same rows.

Only the Redis Stream trims finished entries and answers 429 when too many wait. Files stay until
somebody removes them; a Kafka topic keeps events for its retention time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pyarrow as pa
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession

from feature_repo.errors import FunnelError
from feature_repo.events.log_names import KafkaAddress, log_address
from feature_repo.events.log_position import position_key
from feature_repo.stores.feature_store import redis_url
from feature_repo.workspace import Workspace
from pipelines.streaming.decode import SPARK_SCHEMA, LogReading, to_batch
from pipelines.streaming.file_source import FileLogSource
from pipelines.streaming.source import LogSource, RedisLogSource

CONNECTOR = "org.apache.spark:spark-sql-kafka-0-10_2.13"
"""Maven coordinates of Spark's Kafka connector, without the version, which is Spark's."""


class ConnectorMissing(FunnelError):
    """Spark was started without its Kafka connector; the message says how to start it with it."""


def log_entries(spark: SparkSession, workspace: Workspace, reading: LogReading) -> DataFrame:
    """Return the entries of the log in ``FUNNEL_EVENT_LOG`` as rows of ``decode.SPARK_SCHEMA``.

    Raises:
        SettingsError: the variable names no log.
        ConnectorMissing: it names a topic, and Spark was started without its Kafka connector.

    """
    address = log_address()
    if isinstance(address, KafkaAddress):
        return kafka_rows(_kafka_records(spark, address, reading), reading)
    options = {"reading": json.dumps(reading._asdict())}
    source: type[LogSource]
    if isinstance(address, Path):
        source = FileLogSource
        options["folder"] = str(address)
    else:
        source = RedisLogSource
        options["secret_url"] = redis_url(workspace)
    spark.dataSource.register(source)
    return spark.readStream.format(source.name()).options(**options).load()


def _kafka_records(spark: SparkSession, address: KafkaAddress, reading: LogReading) -> DataFrame:
    """Return a topic's records as Spark's connector gives them."""
    options = {
        "kafka.bootstrap.servers": address.servers,
        "subscribe": address.topic,
        "startingOffsets": "earliest",
        "maxOffsetsPerTrigger": str(reading.max_entries),
    }
    try:
        return spark.readStream.format("kafka").options(**options).load()
    except AnalysisException as error:
        missing = ("Failed to find data source", "DATA_SOURCE_NOT_FOUND")
        if not any(words in str(error) for words in missing):
            raise
        arguments = f"--packages {CONNECTOR}:{spark.version} pyspark-shell"
        raise ConnectorMissing(
            f'Spark has no Kafka connector: set PYSPARK_SUBMIT_ARGS="{arguments}"'
        ) from None


def kafka_rows(records: DataFrame, reading: LogReading) -> DataFrame:
    """Return Kafka's records (``timestamp``, ``offset``, ``value``) as ``decode.SPARK_SCHEMA``.

    A position is ``<timestamp in milliseconds>-<offset>``, both assigned by the broker.
    """
    columns = records.selectExpr("concat(unix_millis(timestamp), '-', offset) AS position", "value")
    return columns.mapInArrow(_decoder(reading), SPARK_SCHEMA)


def _decoder(reading: LogReading) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    start = position_key(reading.start)

    def decode(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            records = zip(batch["position"].to_pylist(), batch["value"].to_pylist(), strict=True)
            entries = [(at, (value or b"").decode(errors="replace")) for at, value in records]
            new = [entry for entry in entries if position_key(entry[0]) > start]
            yield to_batch(new, reading)

    return decode
