"""``funnel stream``: the job that keeps features fresh; one job per log, resumed after a crash."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import redis
from pyspark.errors import StreamingQueryException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.streaming import StreamingQuery

from feature_repo import columns as c
from feature_repo.aggregates.definition import AggregateView
from feature_repo.aggregates.reading import EventReader
from feature_repo.dataset import DatasetSpec
from feature_repo.declarations.reading import declared_in
from feature_repo.files import read_json
from feature_repo.stores.feature_store import feature_store, redis_url
from feature_repo.workspace import MissingStage, Workspace
from pipelines.display import console
from pipelines.features.spark import is_local, spark_session
from pipelines.features.stream_state import KEY, POSITION_FILE, STATE, STATE_COLUMN
from pipelines.features.whole_tables import require_whole_tables
from pipelines.streaming.decode import LogReading
from pipelines.streaming.generation import Generation, checkpoint_folder
from pipelines.streaming.lease import Fenced, Lease, StoreEmptied
from pipelines.streaming.logs import log_entries
from pipelines.streaming.offline import read_archive
from pipelines.streaming.processor import OUTPUT, FoldProcessor
from pipelines.streaming.sink import Sink
from pipelines.streaming.source import patient_client

_MAX_FAILURES = 5
"""Failures in a row, without a finished batch between them, that end the job."""

_CHECKPOINT_FILES = (
    "org.apache.spark.sql.execution.streaming.checkpointing.FileSystemBasedCheckpointFileManager"
)
_STATE = "org.apache.spark.sql.execution.streaming.state.RocksDBStateStoreProvider"


@dataclass(frozen=True)
class StreamConfig:
    """How the job runs.

    Attributes:
        interval_s: shortest time between the starts of two batches.
        max_entries: maximum log entries per batch.
        partitions: shuffle partitions; fixed when a checkpoint is made.
        late_s: event-time delay of the watermark.

    """

    interval_s: float = 0.0
    max_entries: int = 100_000
    partitions: int = 1
    late_s: int = 3_600


@dataclass(frozen=True)
class _Stream:
    """What a query is started from."""

    spark: SparkSession
    spec: DatasetSpec
    generation: Generation
    sink: Sink
    aggregates: tuple[AggregateView, ...]


class StreamJob:
    """One run of the job."""

    def __init__(
        self, workspace: Workspace, config: StreamConfig, master: str | None = None
    ) -> None:
        self._workspace = workspace
        self._config = config
        self._master = master
        self._stop = threading.Event()
        self._client = patient_client(redis_url(workspace))

    def run(self, rebuild: bool = False) -> None:
        """Run until ``stop`` is called; the current batch is finished first.

        Args:
            rebuild: make a new checkpoint from the offline tables.

        Raises:
            MissingStage: there are no features to start from, or they lack events that an earlier
                checkpoint had.
            JobRunning: another job works on this log.
            Fenced: another job took over.
            StoreEmptied: Redis lost what the job has written.
            DamagedTable: a file of the offline tables cannot be read.

        """
        spec = self._workspace.spec()
        if not (self._workspace.features / STATE).is_dir():
            raise MissingStage(
                "no features to start from: run 'funnel features' and 'funnel materialize' first"
            )
        require_whole_tables(self._workspace)
        declared = declared_in(self._workspace)
        self._require_tables_of(declared.streamed_version)
        lease = Lease(self._client)
        lease.acquire()
        try:
            generation = self._generation(rebuild, declared.streamed_version)
            sink = Sink(
                self._workspace,
                spec,
                feature_store(self._workspace),
                self._client,
                lease=lease,
                generation=generation.number,
                aggregates=declared.streamed,
            )
            spark = stream_session(self._workspace, self._config, self._master)
            try:
                self._supervise(_Stream(spark, spec, generation, sink, declared.streamed), lease)
            finally:
                spark.stop()
        finally:
            lease.release()

    def stop(self, *_: Any) -> None:
        """Stop after the current batch."""
        self._stop.set()

    def _require_tables_of(self, declared: str) -> None:
        """Refuse offline tables of other declared aggregates than today's."""
        tables = read_json(self._workspace.features / POSITION_FILE).get("declared", "")
        if tables != declared:
            raise MissingStage(
                f"{self._workspace.declarations or 'the built-in features'} changed after the "
                "features were computed: run 'funnel features' and 'funnel materialize' first"
            )

    def _generation(self, rebuild: bool, declared: str) -> Generation:
        """Return the checkpoint's generation; make a new checkpoint if asked or needed.

        It is needed when other aggregates are declared than those whose states it holds.
        """
        checkpoint = checkpoint_folder(self._workspace)
        last = Generation.read(self._workspace)
        if checkpoint.is_dir() and last and not rebuild and last.declared == declared:
            return last

        start = read_json(self._workspace.features / POSITION_FILE)["position"]
        if len(read_archive(self._workspace, start)):
            raise MissingStage(
                "the offline tables lack events that the stream has processed: "
                "run 'funnel ingest', 'funnel features' and 'funnel materialize' first"
            )
        generation = Generation(
            number=last.number + 1 if last else 1,
            start=start,
            partitions=self._config.partitions,
            declared=declared,
        )
        shutil.rmtree(checkpoint, ignore_errors=True)
        generation.write(self._workspace)
        checkpoint.mkdir(parents=True)
        return generation

    def _supervise(self, stream: _Stream, lease: Lease) -> None:
        """Keep a query running; a failed one is restarted from its checkpoint, as after a crash."""
        failures = 0
        last_batch = -1
        while not self._stop.is_set():
            query = self._start(stream)
            try:
                while not self._stop.is_set() and not query.awaitTermination(0.5):  # type: ignore[arg-type]
                    if lease.lost:
                        raise lease.lost
                    stream.sink.watermark_micros = watermark_micros(query)
                    if query.lastProgress and query.lastProgress["batchId"] > last_batch:
                        failures = 0
                        last_batch = query.lastProgress["batchId"]
                drain(query)
            except StreamingQueryException as error:
                for stopped in (Fenced, StoreEmptied):  # raised in the sink, below Spark
                    if stopped.__name__ in str(error):
                        raise stopped from None
                failures += 1
                if failures >= _MAX_FAILURES:
                    raise
                console.print(
                    "[yellow]Stream[/]: a batch failed; restarting from the checkpoint "
                    f"({_first_line(error)})"
                )
                self._wait_for_redis()
            finally:
                query.stop()

    def _wait_for_redis(self) -> None:
        """Wait until Redis answers; an embedded server that died is started again."""
        while not self._stop.wait(0.5):
            try:
                redis_url(self._workspace)
                self._client.ping()
                return
            except redis.RedisError:
                continue

    def _start(self, stream: _Stream) -> StreamingQuery:
        spec = stream.spec
        shards = shard_numbers(stream.spark, stream.generation.partitions)
        log = LogReading(
            types=spec.event_types,
            shards=shards,
            items=any(view.key == c.ITEM for view in stream.aggregates),
            start=stream.generation.start,
            max_entries=self._config.max_entries,
        )
        changes = (
            log_entries(stream.spark, self._workspace, log)
            .withWatermark("event_time", f"{self._config.late_s} seconds")
            .groupBy("shard")
            .transformWithStateInPandas(
                FoldProcessor(EventReader.of(spec), stream.aggregates),
                OUTPUT,
                "Update",
                "None",
                self._initial_state(stream.spark, shards).groupBy("shard"),
            )
        )
        writer = changes.writeStream.foreachBatch(stream.sink).outputMode("update")
        writer = writer.option("checkpointLocation", str(checkpoint_folder(self._workspace)))
        return writer.trigger(processingTime=f"{self._config.interval_s} seconds").start()

    def _initial_state(self, spark: SparkSession, shards: list[int]) -> DataFrame:
        """Return the states of ingested events, from which a new checkpoint starts."""
        numbers = F.array(*map(F.lit, shards))
        index = (F.crc32(F.encode("key", "utf-8")) % len(shards) + 1).cast("int")
        states = spark.read.parquet(str(self._workspace.features.resolve() / STATE))
        return states.select(F.element_at(numbers, index).alias("shard"), KEY, STATE_COLUMN)


def stream_session(workspace: Workspace, config: StreamConfig, master: str | None) -> SparkSession:
    """Return a session set for small batches, with state in RocksDB.

    On a local disk Spark's usual way to write checkpoint files forks ``readlink`` for each; with
    the other one a batch takes 285 ms instead of 363 (docs/results.md).
    """
    settings = {
        "spark.sql.shuffle.partitions": str(config.partitions),
        "spark.sql.adaptive.enabled": "false",  # few and small queries: planning anew costs more
        "spark.sql.streaming.stateStore.providerClass": _STATE,
        "spark.sql.streaming.stateStore.rocksdb.changelogCheckpointing.enabled": "true",
        "spark.sql.streaming.noDataMicroBatches.enabled": "false",
        "spark.sql.execution.arrow.maxRecordsPerBatch": "20000",
    }
    if is_local(master):
        settings["spark.sql.streaming.checkpointFileManagerClass"] = _CHECKPOINT_FILES
    return spark_session("funnel-stream", master, workspace.root, settings)


def shard_numbers(spark: SparkSession, partitions: int) -> list[int]:
    """Return, for each shuffle partition, one number that Spark's hash sends there."""
    rows = spark.range(64 * partitions).select(F.col("id").cast("int").alias("n"))
    partition = F.pmod(F.hash("n"), F.lit(partitions)).alias("partition")
    smallest = rows.groupBy(partition).agg(F.min("n").alias("n")).orderBy("partition")
    return [row["n"] for row in smallest.collect()]


def watermark_micros(query: StreamingQuery) -> int:
    """Return the watermark of the last batch in microseconds, 0 before there is one."""
    progress = query.lastProgress
    text = progress.get("eventTime", {}).get("watermark") if progress else None
    if not text:
        return 0
    return int(datetime.fromisoformat(text).timestamp() * 1_000_000)


def drain(query: StreamingQuery, patience_s: float = 30.0) -> None:
    """Wait until the current batch is finished, so that a stop leaves nothing to repeat."""
    deadline = time.monotonic() + patience_s
    while query.isActive and query.status["isTriggerActive"] and time.monotonic() < deadline:
        if not query.status["isDataAvailable"]:
            return
        time.sleep(0.02)


def run_stream(
    workspace: Workspace, config: StreamConfig, master: str | None, rebuild: bool
) -> None:
    """Run the job until SIGTERM or SIGINT."""
    job = StreamJob(workspace, config, master)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, job.stop)
    console.print("Streaming; stop with Ctrl-C or SIGTERM")
    job.run(rebuild)


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
