"""A Spark streaming source over the log of files: offsets are positions, as in the Redis Stream.

Spark's own source of text files goes by their times, by a listing that is not one moment's, and forgets
what is a week old; a file that it takes after a later one would be missing from the counts. Whoever needs
no order can read the folder with it: the files are complete, under names that never change.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark.sql.datasource import DataSource, DataSourceStreamReader, InputPartition

from feature_repo.log_folder import LogFile, LogFolder
from feature_repo.recent import position_key
from pipelines.streaming.decode import SPARK_SCHEMA, to_batch

_STEP = 1_000
"""Entries a batch of Arrow."""


class FileRange(InputPartition):
    """The entries after ``start`` of files in order."""

    def __init__(self, start: str, files: list[LogFile]) -> None:
        self.start, self.files = start, files


class FileLogSource(DataSource):
    """``spark.readStream.format("funnel_file_log")``.

    Options: ``folder`` (that the driver and the workers see), ``types`` and ``shards`` (JSON lists), ``from`` (the
    position to start after), ``max_entries`` (a batch, which has one file at least, and whole ones).
    """

    @classmethod
    def name(cls) -> str:
        """Return the format's name."""
        return "funnel_file_log"

    def schema(self) -> str:
        """Return the rows' schema."""
        return SPARK_SCHEMA

    def streamReader(self, schema: Any) -> FileLogReader:  # noqa: N802, ARG002 - Spark's names
        """Return the reader."""
        return FileLogReader(dict(self.options))


class FileLogReader(DataSourceStreamReader):
    """Plans batches in Spark's planner process and reads them in its workers."""

    def __init__(self, options: dict[str, str]) -> None:
        self._folder = LogFolder(Path(options["folder"]))
        self._types = json.loads(options["types"])
        self._shards = json.loads(options["shards"])
        self._from = options.get("from", "0-0")
        self._max = int(options.get("max_entries", 100_000))

    def initialOffset(self) -> dict[str, str]:  # noqa: N802
        """Return where a new checkpoint starts."""
        return {"position": self._from}

    def latestOffset(self, start: dict[str, str], limit: Any) -> dict[str, str]:  # noqa: N802, ARG002
        """Return the newest entry, or the last of the files that ``max_entries`` reach to."""
        position, taken = start["position"], 0
        for file in self._after(position):
            taken += file.entries
            if taken > self._max and position != start["position"]:
                break
            position = file.last
        return {"position": position}

    def partitions(self, start: dict[str, str], end: dict[str, str]) -> list[FileRange]:
        """Return one range: the files of a batch."""
        last = position_key(end["position"])
        files = [file for file in self._after(start["position"]) if position_key(file.last) <= last]
        return [FileRange(start["position"], files)]

    def read(self, partition: FileRange) -> Iterator[pa.RecordBatch]:  # type: ignore[override]
        """Yield the rows of a range."""
        start, entries = position_key(partition.start), []
        for file in partition.files:
            entries += [entry for entry in file.read() if position_key(entry[0]) > start]
            if len(entries) >= _STEP:
                yield to_batch(entries, self._types, self._shards)
                entries = []
        if entries:
            yield to_batch(entries, self._types, self._shards)

    def _after(self, position: str) -> list[LogFile]:
        files = self._folder.after(position_key(position)[0])
        return [file for file in files if position_key(file.last) > position_key(position)]
