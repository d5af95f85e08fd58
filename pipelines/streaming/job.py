"""``funnel stream``: the job that keeps features fresh, one at a time for a log, restarted wherever it was killed."""

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

from feature_repo.dataset import DatasetSpec
from feature_repo.files import read_json, write_json
from feature_repo.settings import read_settings
from feature_repo.stores.feature_store import feature_store, redis_url
from feature_repo.workspace import MissingStage, Workspace
from pipelines.display import console
from pipelines.features.spark import spark_session
from pipelines.features.stream_facts import POSITION_FILE, STATE, main_categories
from pipelines.streaming.lease import Fenced, Lease
from pipelines.streaming.logs import Reading, log_entries
from pipelines.streaming.offline import read_archive
from pipelines.streaming.processor import OUTPUT, FoldProcessor
from pipelines.streaming.sink import Sink
from pipelines.streaming.source import patient_client

_FAILURES = 5
"""So many failures without a finished batch between them end the job."""

_CHECKPOINT_FILES = (
    "org.apache.spark.sql.execution.streaming.checkpointing.FileSystemBasedCheckpointFileManager"
)
_STATE = "org.apache.spark.sql.execution.streaming.state.RocksDBStateStoreProvider"


@dataclass(frozen=True)
class StreamConfig:
    """How the job runs. ``partitions`` is fixed when a checkpoint is made, as Spark fixes it."""

    interval_s: float = 0.0
    max_entries: int = 100_000
    partitions: int = 1
    late_s: int = 3_600


class StreamJob:
    """One run of the job."""

    def __init__(
        self, workspace: Workspace, config: StreamConfig, master: str | None = None
    ) -> None:
        self._workspace, self._config, self._master = workspace, config, master
        self._folder = workspace.root / "stream"
        self._stop = threading.Event()
        self._url = redis_url(workspace)
        self._client = patient_client(self._url)

    def run(self, rebuild: bool = False) -> None:
        """Work until ``stop`` is called or the process is told to end; a batch in hand is finished first.

        Args:
            rebuild: begin a new checkpoint from the offline tables.

        Raises:
            MissingStage: there are no features to start from, or they lack events that an earlier
                checkpoint had.
            JobRunning: another job works on this log.
            Fenced: another job took over.

        """
        spec = self._workspace.spec()
        if not (self._workspace.features / STATE).is_dir():
            raise MissingStage(
                "no features to start from: run 'funnel features' and 'funnel materialize' first"
            )
        lease = Lease(self._client)
        lease.acquire()
        try:
            generation = self._generation(rebuild)
            store = feature_store(self._workspace)
            categories = main_categories(self._workspace.ingest, spec)
            sink = Sink(
                self._workspace,
                spec,
                store,
                self._client,
                lease,
                generation["generation"],
                categories,
            )
            spark = stream_session(self._workspace, self._config, self._master)
            try:
                self._supervise(spark, spec, generation, sink, lease)
            finally:
                spark.stop()
        finally:
            lease.release()

    def stop(self, *_: Any) -> None:
        """End after the batch in hand."""
        self._stop.set()

    def _generation(self, rebuild: bool) -> dict[str, Any]:
        """Return the checkpoint's number and where its stream starts; a new one if asked, or if there is none."""
        path, checkpoint = self._folder / "generation.json", self._folder / "checkpoint"
        if checkpoint.is_dir() and path.is_file() and not rebuild:
            return dict(read_json(path))
        start = read_json(self._workspace.features / POSITION_FILE)["position"]
        if len(read_archive(self._workspace, start)):
            raise MissingStage(
                "events that the stream has taken are not in the offline tables yet: "
                "run 'funnel ingest', 'funnel features' and 'funnel materialize' first"
            )
        number = read_json(path)["generation"] + 1 if path.is_file() else 1
        shutil.rmtree(checkpoint, ignore_errors=True)
        generation = {"generation": number, "from": start, "partitions": self._config.partitions}
        write_json(path, generation)
        checkpoint.mkdir(parents=True)
        return generation

    def _supervise(
        self,
        spark: SparkSession,
        spec: DatasetSpec,
        generation: dict[str, Any],
        sink: Sink,
        lease: Lease,
    ) -> None:
        """Keep a query running; one that failed starts again from its checkpoint, as after a crash."""
        failures, batch = 0, -1
        while not self._stop.is_set():
            query = self._start(spark, spec, generation, sink)
            try:
                while not self._stop.is_set() and not query.awaitTermination(0.5):  # type: ignore[arg-type]
                    if lease.lost:
                        raise Fenced(
                            "another streaming job has taken over this log; this one stops"
                        )
                    sink.watermark_micros = watermark_micros(query)
                    if query.lastProgress and query.lastProgress["batchId"] > batch:
                        failures, batch = 0, query.lastProgress["batchId"]
                drain(query)
            except StreamingQueryException as error:
                if "Fenced" in str(error):
                    raise Fenced(
                        "another streaming job has taken over this log; this one stops"
                    ) from None
                failures += 1
                if failures >= _FAILURES:
                    raise
                console.print(
                    f"[yellow]Stream[/]: a batch failed, starting again from the checkpoint ({_short(error)})"
                )
                self._wait_for_redis()
            finally:
                query.stop()

    def _wait_for_redis(self) -> None:
        """Wait, and start the embedded server if it is the one that died."""
        while not self._stop.wait(0.5):
            try:
                redis_url(self._workspace)
                self._client.ping()
                return
            except redis.RedisError:
                continue

    def _start(
        self, spark: SparkSession, spec: DatasetSpec, generation: dict[str, Any], sink: Sink
    ) -> StreamingQuery:
        shards = shard_numbers(spark, generation["partitions"])
        reading = Reading(spec.event_types, shards, generation["from"], self._config.max_entries)
        entries = log_entries(spark, self._workspace, reading)
        positive = [spec.events.types[kind].positive for kind in spec.event_types]
        changes = (
            entries.withWatermark("event_time", f"{self._config.late_s} seconds")
            .groupBy("shard")
            .transformWithStateInPandas(
                FoldProcessor(positive),
                OUTPUT,
                "Update",
                "None",
                self._initial_state(spark, shards).groupBy("shard"),
            )
        )
        writer = changes.writeStream.foreachBatch(sink).outputMode("update")
        writer = writer.option("checkpointLocation", str(self._folder / "checkpoint"))
        return writer.trigger(processingTime=f"{self._config.interval_s} seconds").start()

    def _initial_state(self, spark: SparkSession, shards: list[int]) -> DataFrame:
        """Return the facts of ingested events: what a new checkpoint starts with, an old one ignores it."""
        numbers = F.array(*map(F.lit, shards))
        place = (F.crc32(F.encode("key", "utf-8")) % len(shards) + 1).cast("int")
        facts = spark.read.parquet(str(self._workspace.features.resolve() / STATE))
        return facts.select(F.element_at(numbers, place).alias("shard"), "key", "facts")


def stream_session(workspace: Workspace, config: StreamConfig, master: str | None) -> SparkSession:
    """Return a session set for small batches, with state in RocksDB.

    On a local disk Spark's usual way to write checkpoint files forks ``readlink`` for each; with
    the other one a batch takes 285 ms instead of 363 (docs/results.md).
    """
    settings = {
        "spark.sql.shuffle.partitions": str(config.partitions),
        "spark.sql.streaming.stateStore.providerClass": _STATE,
        "spark.sql.streaming.stateStore.rocksdb.changelogCheckpointing.enabled": "true",
        "spark.sql.streaming.noDataMicroBatches.enabled": "false",
        "spark.sql.execution.arrow.maxRecordsPerBatch": "20000",
    }
    if (master or read_settings().spark_master or "local").startswith("local"):
        settings["spark.sql.streaming.checkpointFileManagerClass"] = _CHECKPOINT_FILES
    return spark_session("funnel-stream", master, workspace.root, settings)


def shard_numbers(spark: SparkSession, partitions: int) -> list[int]:
    """Return one number for each shuffle partition that Spark's hash sends there."""
    rows = spark.range(64 * partitions).select(F.col("id").cast("int").alias("n"))
    place = F.pmod(F.hash("n"), F.lit(partitions))
    found = rows.groupBy(place.alias("place")).agg(F.min("n").alias("n")).orderBy("place").collect()
    return [row["n"] for row in found]


def watermark_micros(query: StreamingQuery) -> int:
    """Return the watermark of the last batch in microseconds, 0 before there is one."""
    progress = query.lastProgress
    text = progress.get("eventTime", {}).get("watermark") if progress else None
    if not text:
        return 0
    return int(datetime.fromisoformat(text).timestamp() * 1_000_000)


def drain(query: StreamingQuery, patience_s: float = 30.0) -> None:
    """Wait until no batch is being worked on, so that a stop leaves nothing to do again."""
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


def _short(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
