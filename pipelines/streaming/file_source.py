"""A Spark streaming source over the log of files: offsets are positions, as in the Redis Stream.

Spark's own source of text files orders them by their times and forgets them after a week; a file
that it reads after a later one would be missing from the counts. A reader that needs no order can
use it: the files are complete, and their names never change.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark.sql.datasource import InputPartition

from feature_repo.events.log_folder import LogFile, LogFolder
from feature_repo.events.log_position import position_key
from pipelines.streaming.source import LogReader, LogSource

_STEP = 1_000
"""Minimum entries per Arrow batch, unless there are fewer."""


class FileRange(InputPartition):
    """The entries after ``start`` of files in order."""

    def __init__(self, start: str, files: list[LogFile]) -> None:
        self.start, self.files = start, files


class FileLogReader(LogReader):
    """Reads the folder; a batch consists of whole files, at least one."""

    def __init__(self, options: dict[str, str]) -> None:
        super().__init__(options)
        self._folder = LogFolder(Path(options["folder"]))

    def latestOffset(self, start: dict[str, str], limit: Any) -> dict[str, str]:  # noqa: N802, ARG002
        """Return the newest entry, or the last of the files that ``max_entries`` reach to."""
        position = start["position"]
        entries = 0
        for file in self._after(position):
            entries += file.entries
            if entries > self._max and position != start["position"]:
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
        start = position_key(partition.start)
        entries: list[tuple[str, str]] = []
        for file in partition.files:
            entries += [entry for entry in file.read() if position_key(entry[0]) > start]
            if len(entries) >= _STEP:
                yield self.rows(entries)
                entries = []
        if entries:
            yield self.rows(entries)

    def _after(self, position: str) -> list[LogFile]:
        files = self._folder.after(position_key(position)[0])
        return [file for file in files if position_key(file.last) > position_key(position)]


class FileLogSource(LogSource):
    """``spark.readStream.format("funnel_file_log")``.

    Its address is the option ``folder``, which driver and workers must see.
    """

    reader = FileLogReader

    @classmethod
    def name(cls) -> str:
        """Return the format's name."""
        return "funnel_file_log"
